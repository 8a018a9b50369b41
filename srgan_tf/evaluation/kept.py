"""Results kept in a folder, so that an interrupted evaluation can resume."""

import hashlib
import json
import re
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from srgan_tf import files, pictures
from srgan_tf.evaluation.sets import KEPT_PICTURES, Picture

# Part of each result's key. Raise it when the measures or the methods "nearest" and "bicubic"
# change, so that older results are not reused.
_VERSION = 1


class KeptResults:
    """Results by key: each has a line in `kept.jsonl` and a picture in `pictures/`.

    A line is written only after its picture. If a key has several lines, the last one counts.
    """

    def __init__(self, out_dir: Path | None, fresh: bool = False):
        """Reads the results in `out_dir`, or removes them if `fresh`; None keeps nothing.

        Raises:
            ValueError: The folder cannot be written to.
        """
        self._out_dir = out_dir
        self._records: dict[str, dict] = {}
        self._log: TextIO | None = None
        if out_dir is None:
            return
        path = out_dir / "kept.jsonl"
        lines = path.read_text(errors="replace").splitlines() if path.is_file() else ()
        for record in filter(None, map(_record, lines)):
            if fresh:
                self._remove(record)
            else:
                self._records[record["key"]] = record
        files.make_folder(out_dir)
        with self._writing():
            self._log = path.open("w" if fresh else "a")
            self._log.write("\n")  # ends a line that was cut short

    def _remove(self, record: dict) -> None:
        path = self._out_dir / record["file"]
        if path.resolve().is_relative_to((self._out_dir / KEPT_PICTURES).resolve()):
            path.unlink(missing_ok=True)

    def find(self, sha256: str, picture: Picture) -> dict | None:
        """Returns a result's record (key, file, scores) if its picture exists and is undamaged."""
        record = self._records.get(_key(sha256, picture))
        if record is None:
            return None
        try:
            with Image.open(self._out_dir / record["file"]) as image:
                image.verify()  # the checksums of all chunks
        except Exception:  # Pillow raises all sorts on broken files
            return None
        return record

    def add(self, sha256: str, picture: Picture, name: str, sr: np.ndarray) -> dict:
        """Keeps a result as `pictures/SET/PICTURE/NAME-KEY.png` and returns its record.

        Args:
            sha256: The method's hash.
            picture: The picture that the method upscaled.
            name: The method's name.
            sr: The result, uint8 [H, W] or [H, W, 3].
        """
        key = _key(sha256, picture)
        if self._out_dir is None:
            return {"key": key, "file": None, "scores": {}}
        folders = [_file_name(part) for part in (picture.set, picture.name)]
        file = Path(KEPT_PICTURES, *folders, f"{_file_name(name)}-{key[:8]}.png")
        path = self._out_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as temporary:
            Image.fromarray(sr).save(temporary)
        return self.update({"key": key, "file": file.as_posix(), "scores": {}})

    def update(self, record: dict) -> dict:
        """Writes and returns a record whose picture exists; it replaces an older one of its key."""
        if self._log:
            self._records[record["key"]] = record
            with self._writing():
                self._log.write(json.dumps(record) + "\n")
                self._log.flush()
        return record

    def read(self, record: dict) -> np.ndarray:
        """Returns the picture of a record, uint8 [H, W] or [H, W, 3]."""
        return pictures.read_scoring(self._out_dir / record["file"])

    def close(self) -> None:
        """Closes `kept.jsonl`."""
        if self._log:
            with self._writing():
                self._log.close()

    def _writing(self):
        return files.naming(self._out_dir / "kept.jsonl", "cannot be written")


def _record(line: str) -> dict | None:
    """Reads a line of `kept.jsonl`; returns None if it is damaged or cut short."""
    try:
        record = json.loads(line)
        key, file, scores = record["key"], record["file"], record.get("scores", {})
        return {"key": str(key), "file": str(file), "scores": dict(scores)}
    except Exception:
        return None


def _key(sha256: str, picture: Picture) -> str:
    """Identifies a result by everything it depends on: both pictures and the weights' hash."""
    lr, hr = picture.lr, picture.hr
    digest = hashlib.sha256(f"{_VERSION} {sha256} {lr.shape} {hr.shape}".encode())
    digest.update(lr.tobytes())
    digest.update(hr.tobytes())
    return digest.hexdigest()


def _file_name(name: str) -> str:
    """Makes a file name from a name; distinct names stay distinct."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip(".")
    if safe == name:
        return name
    digest = hashlib.sha256(name.encode(errors="surrogateescape"))
    return f"{safe}-{digest.hexdigest()[:6]}"
