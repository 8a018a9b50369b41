"""Compares exported files with their Keras model on pictures."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srgan_tf import metrics, upscaling
from srgan_tf.formats import exported, keras_model

# The largest allowed difference of each form: levels of 255 in any pixel, or dB of `Parity.pooled`.
BOUNDS = {
    "savedmodel": (1, None),
    "onnx": (1, None),
    "float32": (1, None),
    "float16": (1, None),
    "dynamic": (None, 0.05),
    "int8": (None, 0.1),
}


class Parity(NamedTuple):
    """How a file compares with its Keras model.

    Attributes:
        megabytes: The size of the file or of all files in the folder.
        psnr: The paper's measure against the originals, mean over the pictures, dB.
        change: `psnr` minus the Keras model's, dB.
        pooled: The change if the squared errors of all pictures are averaged first. Bounds use
            this, because a single almost flat picture dominates `change`: float scores so high on
            it that any rounding counts.
        changes: The change of each picture.
        worst: The largest difference from the Keras model's pictures, in levels of 255.
        seconds: Time for a megapixel of sr, on this machine.
    """

    megabytes: float
    psnr: float
    change: float
    pooled: float
    changes: Sequence[float]
    worst: int
    seconds: float


class Reference(NamedTuple):
    """Pictures to compare on: lr, hr, and the Keras model's results with the PSNR of each."""

    pairs: Sequence[tuple[np.ndarray, np.ndarray]]
    results: Sequence[np.ndarray]
    psnr: np.ndarray


def reference(generator, pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> Reference:
    """Runs the Keras model on pairs of lr uint8 [h, w, 3] and hr uint8 [4h, 4w, 3]."""
    network = keras_model.compiled(generator)
    results = [upscaling.upscale(network, lr) for lr, _ in pairs]
    return Reference(pairs, results, _psnr(results, pairs))


def crops(
    pairs: Sequence[tuple[np.ndarray, np.ndarray]], size: tuple[int, int]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Crops pairs to one size of lr around the middle; smaller ones are padded by mirroring.

    Args:
        pairs: lr uint8 [h, w, 3] and hr uint8 [4h, 4w, 3] each.
        size: Height and width of lr.

    Returns:
        Pairs of lr uint8 [*size, 3] and hr, 4 times as large.
    """

    def fit(picture, scale):
        missing = [
            (0, max(0, scale * want - have))
            for want, have in zip(size, picture.shape, strict=False)
        ]
        picture = np.pad(picture, [*missing, (0, 0)], mode="symmetric")
        top, left = (
            scale * ((have // scale - want) // 2)
            for want, have in zip(size, picture.shape, strict=False)
        )
        return picture[top : top + scale * size[0], left : left + scale * size[1]]

    return [(fit(lr, 1), fit(hr, 4)) for lr, hr in pairs]


def compare(path: Path, expected: Reference, *, tile: int | None = None) -> Parity:
    """Runs an exported file on the pictures of a reference, in tiles if they are larger."""
    network = exported.load(path)
    results, seconds = [], 0.0
    for lr, _ in expected.pairs:
        upscaling.upscale(network, lr, tile=tile)  # prepares for this size, not timed
        start = time.perf_counter()
        results.append(upscaling.upscale(network, lr, tile=tile))
        seconds += time.perf_counter() - start
    psnr = _psnr(results, expected.pairs)
    files = [file for file in (path, *path.rglob("*")) if file.is_file()]
    return Parity(
        megabytes=sum(file.stat().st_size for file in files) / 1e6,
        psnr=float(psnr.mean()),
        change=float(psnr.mean() - expected.psnr.mean()),
        pooled=float(_pooled(psnr) - _pooled(expected.psnr)),
        changes=(psnr - expected.psnr).tolist(),
        worst=max(
            int(np.abs(sr.astype(int) - right).max())
            for sr, right in zip(results, expected.results, strict=True)
        ),
        seconds=seconds / (sum(sr.shape[0] * sr.shape[1] for sr in results) / 1e6),
    )


def out_of_bounds(form: str, parity: Parity) -> str | None:
    """Returns a line with the figure if a file misses its bound in `BOUNDS`, else None."""
    levels, decibels = BOUNDS[form]
    if levels is not None and parity.worst > levels:
        return f"{form} differs by {parity.worst} levels of 255, more than {levels}"
    if decibels is not None and not abs(parity.pooled) <= decibels:
        return f"{form} changes the pooled PSNR by {parity.pooled:+.3f} dB, more than {decibels}"
    return None


def _psnr(results, pairs) -> np.ndarray:
    return np.array([metrics.psnr(sr, hr) for sr, (_, hr) in zip(results, pairs, strict=True)])


def _pooled(psnr: np.ndarray) -> float:
    """Returns the PSNR of the mean of the squared errors."""
    return -10 * np.log10(np.mean(10 ** (-psnr / 10)))
