"""Methods scored on sets of pictures by the measures of `metrics`; `tables` prints the means."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from srgan_tf import files, metrics, pictures, resize, upscaling, weights
from srgan_tf.evaluation.sets import (
    _PICTURES,
    SMALLEST,
    SMALLEST_LPIPS,
    EvaluationSet,
    Pair,
    read_pair,
)
from srgan_tf.formats import runtimes

MEASURES = {"psnr": "PSNR", "ssim": "SSIM (paper)", "ssim_wang": "SSIM (Wang)", "lpips": "LPIPS"}

# Part of each kept score's key: raise it when the measures or the methods "nearest" and "bicubic"
# change, so that older scores are not taken for new ones.
_KEPT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to upscale by 4.

    Attributes:
        name: As it stands in the tables.
        upscale: From lr uint8 [h, w] or [h, w, 3] to sr uint8 [4h, 4w] or [4h, 4w, 3].
        sha256: Of the weights; for interpolation its name.
        provenance: What is known of the weights: path, variant, steps, vgg...
    """

    name: str
    upscale: Callable[[np.ndarray], np.ndarray]
    sha256: str
    provenance: dict = dataclasses.field(default_factory=dict)


class Row(NamedTuple):
    """The scores of one method on one picture, and where its result is kept (in `out_dir`)."""

    set: str
    picture: str
    method: str
    scores: dict[str, float]
    file: str | None


@dataclasses.dataclass(frozen=True)
class Results:
    """All that was scored.

    Attributes:
        sets: The sets, in the order of the tables.
        methods: The methods, likewise.
        rows: One for each picture and method.
        left_out: A line for each picture that could not be scored: its file and why.
        originals: Where the original of each (set, picture) is kept, in `out_dir`.
    """

    sets: Sequence[EvaluationSet]
    methods: Sequence[Method]
    rows: Sequence[Row]
    left_out: Sequence[str]
    originals: dict[tuple[str, str], str]

    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Means by set and method: {set: {method: {measure: mean}}}."""
        collected: dict = {}
        for row in self.rows:
            by_method = collected.setdefault(row.set, {})
            by_method.setdefault(row.method, []).append(row.scores)
        return {
            name: {
                method: {key: float(np.mean([s[key] for s in scores])) for key in scores[0]}
                for method, scores in by_method.items()
            }
            for name, by_method in collected.items()
        }

    def measures(self) -> list[str]:
        """The measures that were taken, in the order of the tables."""
        return [name for name in MEASURES if any(name in row.scores for row in self.rows)]

    def counts(self) -> dict[str, int]:
        """Number of pictures scored in each set."""
        scored = {(row.set, row.picture) for row in self.rows}
        return {s.name: sum(name == s.name for name, _ in scored) for s in self.sets}


def nearest(lr: np.ndarray) -> np.ndarray:
    """Repeats each pixel of lr, uint8 [h, w] or [h, w, 3], four by four."""
    return lr.repeat(4, axis=0).repeat(4, axis=1)


def bicubic(lr: np.ndarray) -> np.ndarray:
    """Enlarges lr, uint8 [h, w] or [h, w, 3], by 4 as Matlab's `imresize` does."""
    return resize.imresize(lr, (4 * lr.shape[0], 4 * lr.shape[1]))


def load_methods(specs: Iterable[str], *, tile: int | None = None) -> list[Method]:
    """Loads nearest, bicubic and the weights to score.

    Args:
        specs: Each a run folder, a weights file, a bundled name, an exported SavedModel folder, a
            .tflite or an .onnx file.
        tile: As in `upscaling.upscale`.

    Returns:
        The methods, with names that differ.

    Raises:
        FileNotFoundError, ValueError: One cannot be loaded, or `tile` is too small for it; one line
            that names it.
    """
    methods = [Method("nearest", nearest, "nearest"), Method("bicubic", bicubic, "bicubic")]
    once = {os.path.realpath(spec): spec for spec in specs}
    for spec in once.values():
        if runtimes.is_exported(spec):
            network, provenance = runtimes.load_exported(spec), weights.exported_card(spec)
        else:
            generator, provenance = weights.load_generator(spec)
            network = runtimes.compiled(generator)
        upscale = _upscale_any(network, upscaling.checked_tile(network, tile, spec))
        methods.append(Method(provenance["name"], upscale, provenance["sha256"], provenance))
    if len({method.name for method in methods}) == len(methods):
        return methods
    # What was given differs, but may read like the name of an interpolation.
    given = [os.path.join(".", s) if s in ("nearest", "bicubic") else s for s in once.values()]
    renamed = zip(methods[2:], given, strict=True)
    return methods[:2] + [dataclasses.replace(method, name=name) for method, name in renamed]


def _upscale_any(network, tile: int) -> Callable[[np.ndarray], np.ndarray]:
    def upscale(lr):
        rgb = lr if lr.ndim == 3 else np.stack([lr] * 3, axis=-1)
        return upscaling.upscale(network, rgb, tile=tile)

    return upscale


def _like(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Gives sr as many channels as hr, to be scored on the original's own values.

    A colour result for a gray original becomes its BT.601 gray, as any program would save it.
    """
    if sr.ndim == hr.ndim:
        return sr
    if hr.ndim == 3:
        return np.stack([sr] * 3, axis=-1)
    return np.round(sr @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)


def load_lpips() -> Callable[[np.ndarray, np.ndarray], float]:
    """Loads the perceptual distance of Zhang et al. (2018), the `lpips` package with AlexNet.

    Returns:
        A function of sr and hr, uint8 [H, W] or [H, W, 3], which it compares whole and in RGB.

    Raises:
        ValueError: The package is not installed, or AlexNet's weights cannot be had.
    """
    try:
        import lpips
        import torch
    except ImportError as error:
        raise ValueError("--lpips needs the lpips package: pip install lpips") from error
    try:
        network = lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception as error:  # the download fails in the ways of urllib, of torch and of the disk
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--lpips: the weights of AlexNet cannot be had ({reason}); lpips downloads them from "
            "download.pytorch.org once, into ~/.cache/torch"
        ) from error

    def tensor(picture):
        rgb = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
        return torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)

    def measure(sr, hr):
        with torch.no_grad():
            return float(network(tensor(sr), tensor(hr)))

    return measure


def evaluate(
    sets: Sequence[EvaluationSet],
    methods: Sequence[Method],
    *,
    out_dir: str | os.PathLike | None = None,
    fresh: bool = False,
    lpips: Callable[[np.ndarray, np.ndarray], float] | None = None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> Results:
    """Scores every method on every picture.

    Args:
        sets: From `open_sets`.
        methods: From `load_methods`.
        out_dir: Where results are kept as they come: `kept.jsonl` and `pictures/`. What is there
            for the same pictures and weights is not computed again. None keeps nothing.
        fresh: Compute all again.
        lpips: From `load_lpips`, to measure that too.
        progress: Told the fraction that is done, in 0..1, and what comes next.

    Returns:
        The results. Pictures that a method fails on or that cannot be scored are in `left_out`.
    """
    measures = {"psnr": metrics.psnr, "ssim": metrics.ssim, "ssim_wang": metrics.ssim_wang}
    if lpips:
        measures["lpips"] = lpips
    rows, originals = [], {}
    left_out = [line for s in sets for line in s.left_out]
    pixels = {pair: pictures.count_pixels(pair.hr) for s in sets for pair in s.pairs}
    # Interpolation takes next to no time; what is kept or cannot be read is no work at all.
    costs = {method.name: 1 if method.provenance else 0.03 for method in methods}
    done, todo = 0.0, sum(pixels[pair] for s in sets for pair in s.pairs) * sum(costs.values())
    keeping = contextlib.nullcontext()
    if out_dir is not None:
        keeping = contextlib.closing(_Kept(Path(out_dir), fresh))
    with keeping as kept:
        for evaluation_set, pair in [(s, pair) for s in sets for pair in s.pairs]:
            where = (evaluation_set.name, pair.name)
            scored, original = [], None
            todo_then = todo - pixels[pair] * sum(costs.values())
            try:
                lr, hr = read_pair(pair, SMALLEST_LPIPS if lpips else SMALLEST)
                if kept:
                    key = _key("original", lr, hr)
                    original = kept.find(key) or kept.add(key, where, "original", hr, {})
                for method in methods:
                    progress(done / (done + todo), f"{' '.join(where)}: {method.name}")
                    work = pixels[pair] * costs[method.name]
                    todo -= work
                    key = _key(method.sha256, lr, hr)
                    record = kept.find(key) if kept else None
                    if not (record and measures.keys() <= record["scores"].keys()):
                        # What is kept may lack a measure that is asked for now.
                        sr = kept.read(record) if record else _upscaled(pair, method, lr, hr)
                        scores = {name: measure(sr, hr) for name, measure in measures.items()}
                        if record:
                            record = kept.log(record | {"scores": scores})
                        elif kept:
                            record = kept.add(key, where, method.name, sr, scores)
                        else:
                            record = {"scores": scores, "file": None}
                        done += work
                    scores = {name: record["scores"][name] for name in measures}
                    scored.append(Row(*where, method.name, scores, record["file"]))
            except ValueError as error:
                left_out.append(str(error))
            except (MemoryError, RuntimeError) as error:  # NumPy's and PyTorch's
                left_out.append(f"{pair.hr}: cannot be scored ({pictures.one_line(error)})")
            else:  # a picture counts for all methods or for none
                rows += scored
                if original:
                    originals[where] = original["file"]
            todo = todo_then
    progress(1.0, "")
    return Results(sets, methods, rows, left_out, originals)


def _upscaled(pair: Pair, method: Method, lr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Upscales lr into as many channels as hr has; a failure names the picture and the method."""
    try:
        return _like(method.upscale(lr), hr)
    except MemoryError:
        reason = "not enough memory, a smaller --tile takes less"
    except Exception as error:  # the errors of TensorFlow, LiteRT and ONNX have no class in common
        reason = pictures.one_line(error)
    raise ValueError(f"{pair.hr}: cannot be upscaled by {method.name} ({reason})")


def _key(made_by: str, lr: np.ndarray, hr: np.ndarray) -> str:
    """Identifies a result by what it is made from: both pictures and the weights' hash."""
    digest = hashlib.sha256(f"{_KEPT_VERSION} {made_by} {lr.shape} {hr.shape}".encode())
    digest.update(lr.tobytes())
    digest.update(hr.tobytes())
    return digest.hexdigest()


class _Kept:
    """Results in a folder: a line for each in `kept.jsonl`, its picture in `pictures/`.

    A line is written when its picture is there. The last line of a key counts.
    """

    def __init__(self, out_dir: Path, fresh: bool):
        self._out_dir = out_dir
        self._records = {}
        path = out_dir / "kept.jsonl"
        for line in path.read_text().splitlines() if path.is_file() else ():
            with contextlib.suppress(json.JSONDecodeError):  # cut short by an interruption
                record = json.loads(line)
                if fresh:
                    self._remove(record)
                else:
                    self._records[record["key"]] = record
        files.make_folder(out_dir)
        self._log = path.open("w" if fresh else "a")
        self._log.write("\n")  # ends a line that was cut short

    def _remove(self, record: dict) -> None:
        path = self._out_dir / record["file"]
        if path.resolve().is_relative_to((self._out_dir / _PICTURES).resolve()):
            path.unlink(missing_ok=True)

    def find(self, key: str) -> dict | None:
        """The record of a result whose picture is there and whole."""
        record = self._records.get(key)
        if record is None:
            return None
        try:
            with Image.open(self._out_dir / record["file"]) as image:
                image.verify()  # the checksums of all chunks
        except Exception:  # Pillow raises all sorts on broken files
            return None
        return record

    def add(self, key: str, where: tuple[str, str], name: str, picture: np.ndarray, scores: dict):
        """Keeps a result as `pictures/SET/PICTURE/NAME-KEY.png` and returns its record."""
        folders = [_safe(part) for part in where]
        file = Path(_PICTURES, *folders, f"{_safe(name)}-{key[:8]}.png")
        path = self._out_dir / file
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path) as beside:
            Image.fromarray(picture).save(beside)
        return self.log({"key": key, "file": file.as_posix(), "scores": scores})

    def log(self, record: dict) -> dict:
        """Writes a record down, the picture of which is there, and returns it."""
        self._records[record["key"]] = record
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()
        return record

    def read(self, record: dict) -> np.ndarray:
        """The picture of a record, uint8 [H, W] or [H, W, 3]."""
        return pictures.read_scoring(self._out_dir / record["file"])

    def close(self):
        self._log.close()


def _safe(name: str) -> str:
    """A name as a file's name; names that differ stay different."""
    safe = re.sub(r"[^\w.-]+", "_", name).strip(".")
    if safe == name:
        return name
    return f"{safe}-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
