"""Pictures of any size through a network, tile by tile, with the result of one piece.

A tile reaches as far beyond the part it fills as the network sees. Tiles at the picture's border
begin at the border, so that zero padding is where it would be without tiles.
"""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

# For such a tile the paper's generator takes 2.5 GB by TensorFlow or LiteRT. Smaller tiles take
# less, but cost more time, since each sees 40 pixels around what it fills.
DEFAULT_TILE = 512


class Upscaler(NamedTuple):
    """What upscaling needs to know of a network.

    Attributes:
        call: from lr uint8 or uint16 [1, h, w, 3] to sr [1, 4h, 4w, 3], of the same type or floats
            in [-1, 1]; with a `tail`, to features float32 [1, h, w, channels]. What it gives may
            hold until the next call only.
        margin: lr pixels that it looks at beyond an output pixel's own, to each side, the tail's
            among them.
        bits: 16, or 8 where `call` takes uint8 only.
        tile: The most pixels of what `call` takes, height or width, that it gets at once unless
            another number is asked for.
        tail: What takes features to sr, for networks that are cut in two. It sees far less around a
            pixel than the whole, so that its own tiles may be small, as its memory asks for.
    """

    call: Callable[[np.ndarray], np.ndarray]
    margin: int
    bits: int = 16
    tile: int = DEFAULT_TILE
    tail: "Upscaler | None" = None


def upscale(network: Upscaler, lr: np.ndarray, *, tile: int | None = None) -> np.ndarray:
    """Upscales a picture by 4, in tiles where it is larger than one.

    Tiles of a picture all have one size, the smallest that covers it with as few tiles. The result
    does not depend on `tile`, but for sums that float32 adds in another order when a convolution
    has another shape: a value at a rounding edge may then differ by one level, by two in OpenVINO's
    8 bits, which round inside, too. LiteRT's "dynamic" 8 bits do depend on it, since their steps
    come from the range of activations in each tile: of a picture half dark and half bright 1.4 % of
    the values differed by more than a level, by 4 at most.

    Args:
        network: From `inference.load_network`, or one of `runtimes`.
        lr: uint8 or uint16 [h, w, 3], of the type's full range.
        tile: The most pixels of lr, height or width, that the network is given at once; by default
            what suits it.

    Returns:
        [4h, 4w, 3] of lr's type.

    Raises:
        ValueError: lr is no such picture, a tile is smaller than what the network sees, or the
            network does not enlarge by 4.
    """
    return _joined(upscaled_pieces(network, lr, tile=tile), lr.shape, lr.dtype)


def checked_tile(network: Upscaler, tile: int | None, name: str = "this network") -> int:
    """Gives the tile that was asked for, or the network's own.

    Raises:
        ValueError: It is too small for the network, by this name.
    """
    tile = network.tile if tile is None else tile
    least = 2 * network.margin + 1
    if tile < least:
        raise ValueError(
            f"tiles of {tile} pixels are too small: {name} looks at {network.margin} pixels around "
            f"each, so give --tile={3 * least}, or at least {least}, which is far slower"
        )
    return tile


def upscaled_pieces(
    network: Upscaler, lr: np.ndarray, *, tile: int | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Upscales as `upscale` does and gives the result piece by piece, as it comes.

    Returns:
        An iterator of (top, left, piece): where in sr the piece [h, w, 3] belongs. Pieces come row
        by row, those of a row from left to right; they fill sr without overlap.

    Raises:
        ValueError: As `upscale`.
    """
    if lr.dtype not in (np.uint8, np.uint16) or lr.ndim != 3 or lr.shape[-1] != 3 or not lr.size:
        raise ValueError(
            f"upscale takes uint8 or uint16 [h, w, 3], not {lr.dtype} {list(lr.shape)}"
        )
    if lr.dtype == np.uint16 and network.bits == 8:
        raise ValueError("this network takes 8-bit pictures only, not uint16")
    tile = network.tile if tile is None else tile
    spans = [_spans(length, tile, network.margin) for length in lr.shape[:2]]
    return _pieces(network, lr, *spans, lr.dtype)


def _pieces(network, x, rows, columns, dtype):
    """Gives sr of lr or features x, tile by tile; a tail gets a window of the tile's features."""
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
                    "this network does not enlarge by 4: it makes "
                    f"{y.shape[1]}x{y.shape[0]} of {right - left}x{bottom - top}"
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
    """Puts together the pieces of what is 4 times as high and wide as `shape`."""
    sr = np.empty([4 * shape[0], 4 * shape[1], 3], dtype)
    for top, left, piece in pieces:
        sr[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return sr


def _windows(spans: list[tuple[int, int, int, int]], margin: int) -> list[tuple[int, int]]:
    """Gives (start, end) of what a tail needs of each tile to fill its part, all of one size."""
    length = spans[-1][3]
    needed = [(max(first - margin, 0), min(end + margin, length)) for _, _, first, end in spans]
    size = max(end - start for start, end in needed)
    starts = [min(start, length - size) for start, _ in needed]
    return [(start, start + size) for start in starts]


def _spans(length: int, tile: int, margin: int) -> list[tuple[int, int, int, int]]:
    """Cuts one axis: (start, end) of each tile and (first, end) of the part that it fills."""
    if length <= tile:
        return [(0, length, 0, length)]
    if tile <= 2 * margin:
        raise ValueError(
            f"a tile of {tile} pixels is too small: this network looks at {margin} pixels around "
            f"each, so a tile must have more than {2 * margin}"
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
    """Makes the error for a tile [1, h, w, channels] too large for the network of this file."""
    named = f"{path}: " if path else ""
    return MemoryError(f"{named}no memory for {tile.shape[2]}x{tile.shape[1]}")


def _white(dtype: np.dtype) -> int:
    """The value of white in a picture, 255 or 65535 by its type."""
    return np.iinfo(dtype).max


def as_float(lr: np.ndarray) -> np.ndarray:
    """Converts a picture, uint8 or uint16, to float32 in [0, 1]."""
    return lr.astype(np.float32) / _white(lr.dtype)


def _as_picture(sr: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Converts sr in [-1, 1] to a picture of a type; one that is a picture already stays."""
    if sr.dtype not in (np.uint8, np.uint16):
        # In one piece of memory: this takes a hundredth of all time, in new pieces three.
        sr = np.add(sr, 1, dtype=np.float32)
        sr *= _white(dtype) / 2
        np.rint(sr, out=sr)
        np.clip(sr, 0, _white(dtype), out=sr)
    return sr.astype(dtype, copy=False)
