"""Sets of pictures to score on."""

import collections
import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srgan_tf import pictures, resize

SAMPLE = "sample"

# Pixels on each side: the smallest multiples of 4 that leave room for Wang's window and AlexNet.
SMALLEST, SMALLEST_LPIPS = 20, 32

KEPT_PICTURES = "pictures"  # the folder in out_dir with kept results


class Pair(NamedTuple):
    """The files of one picture: the original and, where the set has one, its LR file."""

    name: str
    hr: Path
    lr: Path | None


class Picture(NamedTuple):
    """One picture of a set: names, the original's file, and lr and hr from `read_pair`."""

    set: str
    name: str
    file: Path
    lr: np.ndarray
    hr: np.ndarray


@dataclasses.dataclass(frozen=True)
class EvaluationSet:
    """Pictures to score on.

    Attributes:
        name: The name in the tables: the folder's.
        folder: Its path.
        pairs: The pictures, sorted by name.
        lr: Where LR comes from, in words.
        skipped: A line for each file that has no counterpart.
    """

    name: str
    folder: str
    pairs: Sequence[Pair]
    lr: str
    skipped: Sequence[str] = ()


def open_sets(
    specs: Sequence[str], out_dir: str | os.PathLike | None = None
) -> list[EvaluationSet]:
    """Opens the sets to score on.

    Args:
        specs: Folders with `HR/` and perhaps `LR_x4/`, folders of HR pictures, or "sample" for the
            photographs that scikit-image carries.
        out_dir: As in `evaluate`; pictures kept there do not count as originals.

    Returns:
        One set for each distinct spec, with distinct names.

    Raises:
        FileNotFoundError: A folder does not exist.
        ValueError: A folder has no pictures, or `out_dir` keeps its own pictures there.
    """
    distinct = {os.path.realpath(spec): spec for spec in specs}
    kept = None if out_dir is None else Path(out_dir, KEPT_PICTURES).resolve()
    sets = [_open_set(spec, kept) for spec in distinct.values()]
    names = [s.name for s in sets]
    return [dataclasses.replace(s, name=s.folder) if names.count(s.name) > 1 else s for s in sets]


def _open_set(spec: str, kept: Path | None) -> EvaluationSet:
    made = "made from HR with Matlab's bicubic"
    if spec == SAMPLE:
        pairs = [Pair(path.stem, path, None) for path in pictures.sample_pictures()]
        return EvaluationSet(SAMPLE, SAMPLE, pairs, made)
    folder = Path(spec)
    if kept and folder.resolve().is_relative_to(kept):
        raise ValueError(f"{folder}: results are kept there, choose another --out_dir")
    name = folder.resolve().name
    hr_folder, lr_folder = folder / "HR", folder / "LR_x4"
    if not hr_folder.is_dir():
        hr_folder = folder
    originals = _by_name(hr_folder, kept)
    if not originals:
        raise ValueError(f"{hr_folder}: no pictures to score on")
    if hr_folder == folder or not lr_folder.is_dir():
        pairs = [Pair(name, path, None) for name, path in originals.items()]
        return EvaluationSet(name, str(folder), pairs, made)
    # Some copies of the benchmarks name the LR file of "baby" "babyx4".
    small = {re.sub("x4$", "", stem) if stem not in originals else stem: path
             for stem, path in _by_name(lr_folder, kept).items()}  # fmt: skip
    pairs = [Pair(name, path, small[name]) for name, path in originals.items() if name in small]
    skipped = [
        f"{path}: no picture of this name in {place}"
        for found, others, place in ((originals, small, lr_folder), (small, originals, hr_folder))
        for name, path in found.items()
        if name not in others
    ]
    return EvaluationSet(name, str(folder), pairs, "from LR_x4", skipped)


def _by_name(folder: Path, kept: Path | None) -> dict[str, Path]:
    """Finds pictures by path below the folder, without suffix unless two would be the same."""
    found = pictures.find_pictures(folder)
    if kept:
        found = [path for path in found if not path.resolve().is_relative_to(kept)]
    stems = [path.relative_to(folder).with_suffix("").as_posix() for path in found]
    counts = collections.Counter(stems)
    return {
        path.relative_to(folder).as_posix() if counts[stem] > 1 else stem: path
        for stem, path in zip(stems, found, strict=True)
    }


def read_pair(pair: Pair, smallest: int = SMALLEST) -> tuple[np.ndarray, np.ndarray]:
    """Reads a picture for scoring, its sides cropped to a multiple of 4.

    Args:
        pair: From an `EvaluationSet`.
        smallest: Pixels that the original must have on each side.

    Returns:
        lr and hr, uint8 [h, w, 3] and [4h, 4w, 3], or [h, w] where the file is grayscale.

    Raises:
        ValueError: A file cannot be read, is too small or does not match the other; names the file.
    """
    hr = pictures.read_scoring(pair.hr)
    height, width = (side // 4 * 4 for side in hr.shape[:2])
    hr = hr[:height, :width]
    if min(height, width) < smallest:
        raise ValueError(
            f"{pair.hr}: too small to score ({width}x{height}, at least {smallest}x{smallest})"
        )
    if pair.lr is None:
        return resize.imresize(hr, (height // 4, width // 4)), hr
    lr = pictures.read_scoring(pair.lr)
    if lr.shape[:2] != (height // 4, width // 4):
        raise ValueError(
            f"{pair.lr}: {lr.shape[1]}x{lr.shape[0]} is not a quarter of its original's "
            f"{width}x{height}"
        )
    return lr, hr
