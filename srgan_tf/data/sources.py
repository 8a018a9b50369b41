"""Collections of pictures to draw from: folders, TFDS or sample pictures, not yet decoded."""

import dataclasses
import hashlib
import io
import os
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import files, pictures, resize

CODINGS = ("other", "jpeg", "png")

# "Epochs" whose permutations choose validation pictures; training epochs count from 0.
_SPLIT, _VALIDATION = -1, -2


@dataclasses.dataclass(frozen=True)
class Source:
    """A collection of pictures to draw from: only their headers, no decoded pixels.

    Attributes:
        spec: The data set as the user named it, see `open_source`.
        names: Name of each picture: its path, or "tfds:NAME:SPLIT#RECORD".
        sizes: int32 [N, 2], height and width in pixels, of the oriented picture.
        orientations: int32 [N], EXIF orientation 1 to 8.
        codings: int32 [N], index into `CODINGS`, see `pictures.Header`.
        skipped: (name, reason) of each picture that is too small or unreadable.
        records: int64 [N], the record number of each picture; None where pictures are files.
        read_record: Function from a record number to the encoded picture; None where pictures are
            files. It raises ValueError.
    """

    spec: str
    names: Sequence[str]
    sizes: np.ndarray
    orientations: np.ndarray
    codings: np.ndarray
    skipped: Sequence[tuple[str, str]] = ()
    records: np.ndarray | None = None
    read_record: Callable[[int], bytes] | None = None

    def __len__(self) -> int:
        """Returns the number of usable pictures."""
        return len(self.names)

    def subset(self, indices: Sequence[int]) -> "Source":
        """Returns the pictures at these indices, in this order, without `skipped`."""
        indices = np.asarray(indices, np.int64)
        return dataclasses.replace(
            self,
            names=[self.names[i] for i in indices],
            sizes=self.sizes[indices],
            orientations=self.orientations[indices],
            codings=self.codings[indices],
            skipped=(),
            records=None if self.records is None else self.records[indices],
        )

    def read_rgb(self, index: int) -> np.ndarray:
        """Decodes one picture.

        Returns:
            uint8 [H, W, 3].

        Raises:
            ValueError: It is damaged; one line with its name.
        """
        name = self.names[index]
        if self.records is None:
            return pictures.read_rgb(name)
        return pictures.read_rgb(io.BytesIO(self.read_record(self.records[index])), name)


def open_source(spec: str, *, min_size: int = 96) -> Source:
    """Finds the pictures of a data set and reads their headers.

    A picture is skipped if its shorter side is less than `min_size` or its header cannot be read.
    The log names it, and `skipped` lists it.

    The headers of a folder are read at each start, some thousand files a second. For a TFDS data
    set this means reading whole records, also some thousand a second (ImageNet: about ten minutes),
    so its headers are stored in a small file beside it.

    Args:
        spec: A folder, searched at any depth; `tfds:NAME[/CONFIG][:SPLIT]` (by default the split
            "train"), found or prepared in TFDS_DATA_DIR; or `sample`, the photographs in
            scikit-image.
        min_size: Smallest usable side in pixels: the crop size.

    Returns:
        The source.

    Raises:
        ValueError, FileNotFoundError: The data set does not exist or holds no usable picture.
    """
    if spec.startswith("tfds:"):
        return _open_tfds(spec, min_size)
    paths = pictures.sample_pictures() if spec == "sample" else pictures.find_pictures(spec)
    names = [os.fspath(path) for path in paths]
    if not names:
        raise ValueError(f"{spec}: no pictures in this folder or below it")
    headers, reasons = _scan(names, lambda number: names[number])
    return _usable(spec, names, headers, reasons, min_size)


def _open_tfds(spec: str, min_size: int) -> Source:
    match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", spec)
    if not match:
        raise ValueError(f"{spec}: should read tfds:NAME[/CONFIG][:SPLIT]")
    name, split = match[1], match[2] or "train"
    import array_record  # noqa: F401  (TFDS would fail later, with a less clear error)
    import tensorflow_datasets as tfds

    try:
        data_dir = os.environ.get("TFDS_DATA_DIR")  # TFDS itself reads it once, when imported
        builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
        builder.download_and_prepare()
        features = builder.info.features
        images = [key for key in features if isinstance(features[key], tfds.features.Image)]
        decoders = {key: tfds.decode.SkipDecoding() for key in images}
        data_source = builder.as_data_source(split, decoders=decoders)
    except Exception as error:  # a data set's own code may raise anything
        reason = files.one_line(error)
        if "file format" in reason:
            reason += " Set TFDS_DATA_DIR to another folder to prepare it there as array_record."
        raise ValueError(f"{spec}: cannot be opened or prepared: {reason}") from error
    if not images:
        raise ValueError(f"{spec}: holds no pictures, only {', '.join(features)}")
    # DIV2K and similar sets hold the picture as "hr" beside its "lr"; others as "image".
    key = next((key for key in ("image", "hr") if key in images), images[0])

    def read_record(number: int) -> bytes:
        try:
            return data_source[int(number)][key]
        except Exception as error:  # array_record and the parser may raise anything on damage
            reason = files.one_line(error)
            raise ValueError(f"{name}:{split}#{number}: damaged record ({reason})") from error

    names = [f"tfds:{name}:{split}#{number}" for number in range(len(data_source))]
    # Splits as different as train[:9] and train[-9:] have equal slugs.
    slug = re.sub(r"\W+", "_", f"{key}-{split}") + f"-{zlib.crc32(split.encode()):08x}"
    index = os.path.join(builder.data_dir, f"srgan_tf_headers-{slug}.npz")
    headers, reasons = _stored_headers(index, len(names)) or _scan(
        names, lambda number: io.BytesIO(read_record(number)), index
    )
    return _usable(spec, names, headers, reasons, min_size, read_record)


def _scan(
    names: Sequence[str], open_one: Callable, index: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Reads the headers of all pictures.

    Args:
        names: Their names.
        open_one: Function from the number of a picture to an argument of `pictures.read_header`.
        index: File to store the result in, for `_stored_headers`.

    Returns:
        int32 [N, 4]: height, width, orientation, index of the coding in CODINGS; and, by number,
        why pictures cannot be read. Their rows are 0.
    """

    def look(number):
        try:
            header = pictures.read_header(open_one(number), names[number])
        except ValueError as error:
            return str(error).removeprefix(f"{names[number]}: ")
        return header._replace(coding=CODINGS.index(header.coding))

    logging.info("reading the headers of %d pictures", len(names))
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        found = list(pool.map(look, range(len(names))))
    reasons = {number: reason for number, reason in enumerate(found) if isinstance(reason, str)}
    headers = np.array(
        [(0, 0, 0, 0) if number in reasons else row for number, row in enumerate(found)], np.int32
    )
    if index is not None:
        try:
            with files.replacing(Path(index)) as draft:
                np.savez(
                    draft,
                    headers=headers,
                    broken=np.array(list(reasons), np.int64),
                    reasons=np.array(list(reasons.values()), str),
                )
        except OSError as error:
            logging.warning("picture headers will be read again at the next start: %s", error)
    return headers, reasons


def _stored_headers(index: str, count: int) -> tuple[np.ndarray, dict[int, str]] | None:
    """Loads the headers that `_scan` stored; None if there are none for `count` pictures."""
    try:
        with np.load(index) as stored:
            if len(stored["headers"]) == count:
                broken, reasons = stored["broken"].tolist(), stored["reasons"].tolist()
                return stored["headers"], dict(zip(broken, reasons, strict=True))
    except FileNotFoundError:
        pass
    except Exception as error:  # zipfile and NumPy may raise anything on a damaged file
        logging.warning("%s: cannot be read and is rebuilt (%s)", index, error)
    return None


def _usable(spec, names, headers, reasons, min_size, read_record=None) -> Source:
    """Builds the source of the usable pictures and names the others in the log."""
    skipped = []
    for number in np.flatnonzero(headers[:, :2].min(axis=1) < min_size).tolist():
        height, width = headers[number, :2]
        reason = reasons.get(number, f"{width}x{height} is smaller than {min_size}x{min_size}")
        logging.warning("skipped: %s: %s", names[number], reason)
        skipped.append((names[number], reason))
    if len(skipped) == len(names):
        raise ValueError(
            f"{spec}: none of its {len(names)} pictures can be used; the first is "
            f"{skipped[0][0]}: {skipped[0][1]}"
        )
    if skipped:
        logging.warning("%s: %d of %d pictures skipped", spec, len(skipped), len(names))
    whole = Source(
        spec,
        names,
        sizes=headers[:, :2],
        orientations=headers[:, 2],
        codings=headers[:, 3],
        records=None if read_record is None else np.arange(len(names)),
        read_record=read_record,
    )
    kept = np.flatnonzero(headers[:, :2].min(axis=1) >= min_size)
    return dataclasses.replace(whole.subset(kept), skipped=skipped)


def split_validation(source: Source, count: int, seed: int) -> tuple[Source, Source]:
    """Sets pictures aside for validation, chosen only by the seed and the number of pictures.

    Args:
        source: The pictures.
        count: Number of pictures to set aside.
        seed: Seed of the choice.

    Returns:
        The training source, which keeps `skipped`, and the validation source.

    Raises:
        ValueError: No picture would be left to train on.
    """
    if not 0 <= count < len(source):
        raise ValueError(
            f"{source.spec}: cannot set {count} of {len(source)} pictures aside for validation"
        )
    order = shuffled(np.arange(len(source)), len(source), seed, _SPLIT)
    chosen, rest = np.sort(order[:count]), np.sort(order[count:])
    train = dataclasses.replace(source.subset(rest), skipped=source.skipped)
    return train, source.subset(chosen)


def shuffled(positions: tf.Tensor, count: int, seed: int, epoch: int | tf.Tensor) -> tf.Tensor:
    """Permutes positions (int64 [n]) in range(count) at random, without storing the permutation."""
    # Below 2**16 positions, index_shuffle uses only the last 8 bits of each part of its key and
    # would repeat after 256 epochs. Two in a row, with hashed keys, have 2**32 permutations.
    epoch_key = tf.stack([tf.constant(seed, tf.int64), tf.cast(epoch, tf.int64)])
    keys = tf.random.stateless_uniform(
        [2, 2], epoch_key, minval=None, maxval=None, dtype=tf.int64, alg="philox"
    )
    for key in tf.unstack(keys):
        positions = tf.random.experimental.index_shuffle(
            positions, key, tf.constant(count - 1, tf.int64)
        )
    return positions


def validation_pairs(
    source: Source, *, count: int, max_size: int = 384
) -> list[tuple[str, np.ndarray, np.ndarray]]:
    """Reads a fixed choice of pictures and shrinks them by 4 with Matlab's bicubic.

    Args:
        source: The pictures.
        count: Number of pictures; fewer if the source has fewer.
        max_size: Longest side of an HR picture in pixels; larger ones are cropped at the center.

    Returns:
        (name, lr, hr) in the source's order: hr uint8 [4h, 4w, 3], lr uint8 [h, w, 3].

    Raises:
        ValueError: No picture can be read.
    """
    order = shuffled(tf.range(len(source), dtype=tf.int64), len(source), 0, _VALIDATION).numpy()
    pairs = {}
    for index in order:
        if len(pairs) == count:
            break
        try:
            picture = source.read_rgb(index)
        except ValueError as error:
            logging.warning("skipped: %s", error)
            continue
        height, width = (min(side, max_size) // 4 * 4 for side in picture.shape[:2])
        top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
        hr = picture[top : top + height, left : left + width]
        pairs[index] = source.names[index], resize.imresize(hr, (height // 4, width // 4)), hr
    if count and not pairs:
        raise ValueError(f"{source.spec}: none of its pictures can be read")
    return [pairs[index] for index in sorted(pairs)]


def describe(source: Source) -> dict:
    """Describes a source for run.json.

    Returns:
        JSON values: `spec`; `pictures`, their number; `left_out`, the number of skipped ones;
        `left_out_first`, name and reason of the first 20; smallest, largest and total megapixels;
        and `fingerprint`, which changes with the names, sizes and order of the pictures, but not
        with the path of their folder.
    """
    megapixels = source.sizes.astype(np.float64).prod(axis=1) / 1e6
    return {
        "spec": source.spec,
        "pictures": len(source),
        "left_out": len(source.skipped),
        "left_out_first": [list(pair) for pair in source.skipped[:20]],
        "smallest_megapixels": round(float(megapixels.min()), 4),
        "largest_megapixels": round(float(megapixels.max()), 4),
        "total_megapixels": round(float(megapixels.sum()), 2),
        "fingerprint": hashlib.sha256(
            "\0".join(map(os.path.basename, source.names)).encode(errors="surrogateescape")
            + source.sizes.tobytes()
        ).hexdigest(),
    }
