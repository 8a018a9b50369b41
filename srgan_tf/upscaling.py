"""Upscales pictures of any size in tiles, with the same result as in one piece.

A tile extends beyond the part that it fills by the network's margin. Tiles at the picture's border
start at the border, so that zero padding is where it would be without tiles.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

# The paper's generator needs 2.5 GB for such a tile with TensorFlow or LiteRT. Smaller tiles need
# less, but take more time, since each has a margin of 40 pixels.
DEFAULT_TILE = 512
# The warning for a file or model without a known margin, by its name.
WHOLE = (
    "%s: no receptive field recorded, so each picture is processed in one piece, whatever --tile is"
)


class Upscaler(NamedTuple):
    """A network ready to upscale.

    Attributes:
        call: From lr uint8 or uint16 [1, h, w, 3] to sr [1, 4h, 4w, 3], of the same type or floats
            in [-1, 1]; with a `tail`, to features float32 [1, h, w, channels]. The result
            may be valid until the next call only.
        margin: The lr pixels that a tile needs on each side of the part that it fills, the tail's
            included. None if unknown: then pictures are never cut into tiles.
        bits: 16, or 8 where `call` takes uint8 only.
        tile: The default for the height and width of the largest input of `call`.
        tail: The network from features to sr, where a network is cut in two. Its margin is far
            smaller, so that its own tiles may be small, to save memory.
    """

    call: Callable[[np.ndarray], np.ndarray]
    margin: int | None
    bits: int = 16
    tile: int = DEFAULT_TILE
    tail: "Upscaler | None" = None


def blended(first: Upscaler, second: Upscaler, detail: float) -> Upscaler:
    """Blends the pictures of two networks; the result is rounded once.

    A blend of pictures has better PSNR and LPIPS than the network with the blended weights.

    Args:
        first: A network, with or without a tail.
        second: Another network, with a tail if and only if `first` has one.
        detail: The weight of the second network's picture, 0 to 1.

    Returns:
        A network that runs both on each tile. Its margin is the larger of theirs; its tiles are
        smaller, so that it needs no more memory than one of them.

    Raises:
        ValueError: Only one of them is cut in two; or, from `call`, they upscale by different
            factors.
    """
    if (first.tail is None) != (second.tail is None):
        raise ValueError("one network of the blend is cut in two and the other is not")

    def mix(one, two):
        one, two = (np.clip(_as_symmetric(sr), -1, 1) for sr in (one, two))
        if one.shape != two.shape:
            raise ValueError("the networks of the blend upscale by different factors")
        return one + np.float32(detail) * (two - one)

    margins = first.margin, second.margin
    both = {
        "margin": None if None in margins else max(margins),
        "bits": min(first.bits, second.bits),
    }
    if first.tail is None:
        tile = min(first.tile, second.tile)
        return Upscaler(lambda lr: mix(first.call(lr), second.call(lr)), tile=tile, **both)
    channels = 0  # of the first network's features

    def call(lr):
        nonlocal channels
        features = first.call(lr), second.call(lr)
        channels = features[0].shape[-1]
        return np.concatenate(features, axis=-1)

    def tail(features):
        parts = features[..., :channels], features[..., channels:]
        calls = first.tail.call, second.tail.call
        return mix(*(call(np.ascontiguousarray(x)) for call, x in zip(calls, parts, strict=True)))

    tails = Upscaler(
        tail,
        max(first.tail.margin, second.tail.margin),
        tile=min(first.tail.tile, second.tail.tile),
    )
    # Twice the features, but less than half the area.
    return Upscaler(call, tile=2 * min(first.tile, second.tile) // 3, tail=tails, **both)


def upscale(network: Upscaler, lr: np.ndarray, *, tile: int | None = None) -> np.ndarray:
    """Upscales a picture by 4, in tiles where it is larger than one.

    All tiles of a picture have one size, the smallest that covers it with the fewest tiles. The
    result does not depend on `tile`, except that float32 adds sums in another order when a
    convolution has another shape: a value at a rounding edge may then differ by one level, or by
    two in OpenVINO's int8, which also rounds inside. LiteRT's "dynamic" int8 does depend on it,
    since its scales come from the range of activations in each tile: in a picture half dark and
    half bright, 8 % of the values differed by more than a level, and by 17 at most.

    Args:
        network: From `fastest.load_network`, `keras_model.compiled` or `exported.load`.
        lr: uint8 or uint16 [h, w, 3], of the type's full range.
        tile: The largest height and width of lr that the network takes at once; by default the
            network's own. A network without a margin takes every picture in one piece.

    Returns:
        [4h, 4w, 3] of lr's type.

    Raises:
        ValueError: lr is not such a picture, the tile is too small for the network's margin, or
            the network does not upscale by 4.
    """
    return _joined(upscaled_pieces(network, lr, tile=tile), lr.shape, lr.dtype)


def checked_tile(network: Upscaler, tile: int | None, name: str = "this network") -> int | None:
    """Returns the requested tile or the network's own; None if the network takes no tiles.

    Raises:
        ValueError: The tile does not suit the network of this name.
    """
    if network.margin is None:
        return None
    tile = network.tile if tile is None else tile
    least = 2 * network.margin + 1
    if tile < least:
        raise ValueError(
            f"tiles of {tile} pixels are too small: {name} needs a margin of {network.margin} on "
            f"each side, so give --tile={3 * least}, or at least {least}, which is far slower"
        )
    return tile


def check_scale(network: Upscaler, name: str | os.PathLike) -> None:
    """Refuses a network whose result for a tiny picture is not 4 times as large.

    Raises:
        ValueError: It does not; one line with its name.
    """
    try:
        sr = network.call(np.zeros([1, 8, 8, 3], np.uint8))
    except Exception:  # it takes pictures of another size, so nothing is known yet
        return
    if sr.shape != (1, 32, 32, 3):
        raise ValueError(
            f"{name}: does not upscale by 4: it makes {list(sr.shape)} of [1, 8, 8, 3]"
        )


def upscaled_pieces(
    network: Upscaler, lr: np.ndarray, *, tile: int | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Upscales as `upscale` does and yields each piece of the result once it is finished.

    Returns:
        An iterator of (top, left, piece): where in sr the piece [h, w, 3] belongs. Pieces come row
        by row, from left to right, and fill sr without overlap.

    Raises:
        ValueError: As `upscale`.
    """
    if lr.dtype not in (np.uint8, np.uint16) or lr.ndim != 3 or lr.shape[-1] != 3 or not lr.size:
        raise ValueError(
            f"upscale takes uint8 or uint16 [h, w, 3], not {lr.dtype} {list(lr.shape)}"
        )
    if lr.dtype == np.uint16 and network.bits == 8:
        raise ValueError("this network takes 8-bit pictures only, not uint16")
    if network.margin is None:
        tile = max(lr.shape)  # all in one tile
    elif tile is None:
        tile = network.tile
    spans = [_spans(length, tile, network.margin) for length in lr.shape[:2]]
    return _pieces(network, lr, *spans, lr.dtype)


def _pieces(network, x, rows, columns, dtype):
    """Yields sr of lr or features x, tile by tile; a tail takes a window of a tile's features."""
    tail = network.tail
    windows = [_windows(spans, tail.margin) if tail else spans for spans in (rows, columns)]
    for (top, bottom, first_row, end_row), (above, below, *_) in zip(rows, windows[0], strict=True):
        for (left, right, first_column, end_column), (before, behind, *_) in zip(
            columns, windows[1], strict=True
        ):
            y = network.call(x[None, top:bottom, left:right])[0]
            scale = 1 if tail else 4
            if y.shape[:2] != (scale * (bottom - top), scale * (right - left)):
                raise ValueError(
                    f"this network does not upscale by 4: it makes {list(y.shape)} of "
                    f"{[bottom - top, right - left, x.shape[-1]]}"
                )
            if tail:
                y = y[above - top : below - top, before - left : behind - left]
                spans = (_spans(length, tail.tile, tail.margin) for length in y.shape[:2])
                y = _joined(_pieces(tail, y, *spans, dtype), y.shape, dtype)
            piece = y[
                4 * (first_row - above) : 4 * (end_row - above),
                4 * (first_column - before) : 4 * (end_column - before),
            ]
            yield 4 * first_row, 4 * first_column, _as_picture(piece, dtype)


def _joined(pieces: Iterable, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Joins pieces to a picture 4 times as high and wide as `shape`."""
    sr = np.empty([4 * shape[0], 4 * shape[1], 3], dtype)
    for top, left, piece in pieces:
        sr[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return sr


def _windows(spans: list[tuple[int, int, int, int]], margin: int) -> list[tuple[int, int]]:
    """Returns (start, end) of the features that a tail needs of each tile, all of one size."""
    length = spans[-1][3]
    needed = [(max(first - margin, 0), min(end + margin, length)) for _, _, first, end in spans]
    size = max(end - start for start, end in needed)
    starts = [min(start, length - size) for start, _ in needed]
    return [(start, start + size) for start in starts]


def _spans(length: int, tile: int, margin: int | None) -> list[tuple[int, int, int, int]]:
    """Cuts one axis: (start, end) of each tile and (first, end) of the part that it fills."""
    if length <= tile:
        return [(0, length, 0, length)]
    if tile <= 2 * margin:
        raise ValueError(
            f"a tile of {tile} pixels is too small: this network needs a margin of {margin} on "
            f"each side, so a tile must have more than {2 * margin}"
        )
    count = math.ceil((length - 2 * margin) / (tile - 2 * margin))
    size = math.ceil((length - 2 * margin) / count) + 2 * margin
    starts = [min(i * (size - 2 * margin), length - size) for i in range(count)]
    fills = [0, *(start + margin for start in starts[1:]), length]
    return [
        (start, start + size, first, end)
        for start, first, end in zip(starts, fills, fills[1:], strict=False)
    ]


def no_memory(tile: np.ndarray, path: str | os.PathLike | None = None) -> MemoryError:
    """Returns the error for a tile [1, h, w, channels] that does not fit into memory."""
    named = f"{path}: " if path else ""
    return MemoryError(f"{named}no memory for {tile.shape[2]}x{tile.shape[1]}")


def _white(dtype: np.dtype) -> int:
    """Returns the value of white in a picture, 255 or 65535 by its type."""
    return np.iinfo(dtype).max


def as_float(lr: np.ndarray) -> np.ndarray:
    """Converts a picture, uint8 or uint16, to float32 in [0, 1]."""
    return lr.astype(np.float32) / _white(lr.dtype)


def _as_symmetric(sr: np.ndarray) -> np.ndarray:
    """Converts sr, a picture or floats in [-1, 1], to floats in [-1, 1]."""
    return as_float(sr) * 2 - 1 if sr.dtype in (np.uint8, np.uint16) else sr


def _as_picture(sr: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts sr in [-1, 1] to a picture of a type; an integer sr is one already."""
    if sr.dtype not in (np.uint8, np.uint16):
        # In place this takes 1 % of the run time; with temporary arrays it would take 3 %.
        sr = np.add(sr, 1, dtype=np.float32)
        sr *= _white(dtype) / 2
        np.rint(sr, out=sr)
        np.clip(sr, 0, _white(dtype), out=sr)
    return sr.astype(dtype, copy=False)
