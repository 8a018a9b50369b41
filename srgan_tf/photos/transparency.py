"""Replaces colors that alpha hides, so that they do not bleed into the visible ones.

Programs leave any color where a picture is transparent: black, white, or an earlier color. A
network sees these colors beside the visible ones, and its result would have fringes of them.
"""

import numpy as np
from PIL import Image

# Levels of averaging. A cell of the coarsest has more pixels per side than a network's margin.
_LEVELS = 6
_CELL = 2**_LEVELS
_BAND = 8 * _CELL  # rows at once, to save memory
_OVERLAP = 2 * _CELL  # rows above and below a band that influence it
# A pixel keeps its own color if its alpha is at least this share of the largest alpha around it.
# A smaller share would let undefined colors of faint pixels through; a larger one would blur them.
_FAINT = 1 / 4
_AROUND = 8  # pixels


def filled(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Replaces hidden colors with the visible colors around them.

    A pixel with alpha 0 gets a mean of visible colors, in which the nearest weigh most. A pixel
    that is far fainter than its surroundings gets part of this mean.

    Args:
        colors: uint8 or uint16 [h, w, 3] or [h, w].
        alpha: [h, w] of the same type.

    Returns:
        Colors of the same type and shape; `colors` itself if every pixel is opaque.
    """
    opaque = np.iinfo(alpha.dtype).max
    if alpha.min() == opaque:
        return colors
    result = colors.copy()
    height = len(alpha)
    for top in range(0, height, _BAND):
        start, end = max(top - _OVERLAP, 0), min(top + _BAND, height)
        rows = slice(start, min(end + _OVERLAP, height))
        if alpha[top:end].min() < opaque:
            band = _filled(colors[rows], alpha[rows].astype(np.float32) / opaque)
            result[top:end] = band[top - start : end - start]
    return result


def _filled(colors: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Fills one band; alpha is float32 in [0, 1]."""
    height, width = alpha.shape
    own = colors.reshape(height, width, -1)
    # Colors times alpha, and alpha, so that a mean weights each color by how visible it is.
    level = np.concatenate([own * alpha[..., None], alpha[..., None]], axis=-1, dtype=np.float32)
    level = np.pad(level, [(0, -height % _CELL), (0, -width % _CELL), (0, 0)])
    share = level[..., -1] / np.maximum(_FAINT * _largest_around(level[..., -1]), 1e-9)
    share = np.minimum(share, 1)[:height, :width, None]
    levels = []
    for _ in range(_LEVELS):
        rows, columns, channels = level.shape
        level = level.reshape(rows // 2, 2, columns // 2, 2, channels).mean((1, 3))
        levels.append(level)
    around = np.zeros_like(levels[-1])
    for level in reversed(levels):
        # A mean with little alpha counts less than the mean of the larger cell around it.
        nearest = level / np.maximum(level[..., -1:], _FAINT)
        around = _doubled(nearest + (1 - nearest[..., -1:]) * around)
    around = around[:height, :width]
    around = around[..., :-1] / np.maximum(around[..., -1:], 1e-9)
    result = np.where(share == 1, own, np.rint(around + share * (own - around)))
    return result.astype(colors.dtype).reshape(colors.shape)


def _doubled(values: np.ndarray) -> np.ndarray:
    """Upscales [h, w, channels] bilinearly by 2."""
    size = (2 * values.shape[1], 2 * values.shape[0])
    channels = (Image.fromarray(np.ascontiguousarray(each)) for each in np.moveaxis(values, -1, 0))
    return np.stack([each.resize(size, Image.Resampling.BILINEAR) for each in channels], axis=-1)


def _largest_around(alpha: np.ndarray) -> np.ndarray:
    """Returns the largest alpha within about `_AROUND` pixels; sides are multiples of that."""
    height, width = alpha.shape
    cells = alpha.reshape(height // _AROUND, _AROUND, width // _AROUND, _AROUND).max((1, 3))
    padded = np.pad(cells, 1)
    across = np.maximum(np.maximum(padded[:-2], padded[1:-1]), padded[2:])
    largest = np.maximum(np.maximum(across[:, :-2], across[:, 1:-1]), across[:, 2:])
    return largest.repeat(_AROUND, 0).repeat(_AROUND, 1)
