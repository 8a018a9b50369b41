"""PNG files of 8 or 16 bits, written row by row, and the chunks that are not pixels.

Pillow's writer takes whole pictures, has no 16-bit color and compresses on one core. Here bands
of rows are compressed in parallel, as in pigz. Paeth's filter and zlib's run-length strategy
make photographs as small as Pillow's defaults do, in a tenth of the time. No picture is ever
in memory as a whole.
"""

import collections
import contextlib
import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from typing import BinaryIO, NamedTuple

import numpy as np

_COLOR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # channels: gray, gray and alpha, RGB, RGBA
_SLICE = 1 << 20  # bytes that are compressed as one piece
_SIGNATURE = b"\x89PNG\r\n\x1a\n"

# Chunks that define colors and pixel sizes, with the length of each. They are also true of the
# upscaled picture.
_MEANING = {
    b"gAMA": 4,
    b"cHRM": 32,
    b"sRGB": 1,
    b"cICP": 4,
    b"mDCV": 24,
    b"cLLI": 8,
    b"pHYs": 9,
}
_SKIPPED = (b"tEXt", b"zTXt", b"iTXt", b"acTL", b"fcTL", b"fdAT")  # texts and animation
_LARGEST_PROFILE = 1 << 24


class Chunk(NamedTuple):
    """A chunk of a file: its kind, its data, and whether its checksum is right."""

    kind: bytes
    data: bytes
    intact: bool


def read_chunks(file: BinaryIO, end: bytes = b"") -> Iterator[Chunk]:
    """Reads the chunks of a PNG file; the last one may be truncated. Other files have none.

    Args:
        file: Any open file.
        end: The kind of chunk before which to stop; by default all are read.
    """
    file.seek(0)
    if file.read(8) != _SIGNATURE:
        return
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == end:
            return
        data = file.read(length)
        yield Chunk(kind, data, file.read(4) == struct.pack(">I", zlib.crc32(kind + data)))


def meaning(file: BinaryIO) -> tuple[tuple[bytes, bytes], ...]:
    """Reads kind and data of the chunks that define colors and pixel sizes.

    Args:
        file: Any open file; other formats have none.
    """
    chunks = read_chunks(file, end=b"IDAT")  # they come before the pixels
    return tuple(
        (kind, data) for kind, data, intact in chunks if intact and len(data) == _MEANING.get(kind)
    )


def without_metadata(file: BinaryIO) -> tuple[io.BytesIO, bytes, list[str]] | None:
    """Copies a PNG file without what Pillow may refuse: texts, animation and damaged chunks.

    Args:
        file: Any open file.

    Returns:
        The copy, the color profile (empty if it has none), and the kinds of the chunks that are
        missing from the copy. None if the copy would equal the file or would not be a picture.
    """
    copy, icc, missing, color_type = io.BytesIO(), b"", [], None
    copy.write(_SIGNATURE)
    for kind, data, intact in read_chunks(file):
        if kind[:1].isupper():  # the pixels, and how they are stored
            if not intact:
                return None
            _write_chunk(copy, kind, data)
            if kind == b"IHDR":
                color_type = data[9]
        elif not (intact and _has_its_length(kind, data, color_type)) or kind in _SKIPPED:
            missing.append(kind.decode("ascii", "replace"))
        elif kind == b"iCCP":  # Pillow refuses those of more than 1 MB
            inflate = zlib.decompressobj()
            _, _, compressed = data.partition(b"\0")
            with contextlib.suppress(zlib.error):
                icc = inflate.decompress(compressed[1:], _LARGEST_PROFILE)
            if not icc:
                missing.append("iCCP")
        else:
            _write_chunk(copy, kind, data)
    copy.seek(0)
    return (copy, icc, missing) if missing or icc else None


def _has_its_length(kind: bytes, data: bytes, color_type: int) -> bool:
    """Tells whether a chunk has the length of its kind, which is known for a few kinds only."""
    if kind == b"tRNS":
        least, most = {0: (2, 2), 2: (6, 6)}.get(color_type, (0, 256))
        return least <= len(data) <= most
    return len(data) == _MEANING.get(kind, len(data))


def _write_chunk(file: BinaryIO, kind: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + kind)
    file.write(data)
    file.write(struct.pack(">I", zlib.crc32(data, zlib.crc32(kind))))


class PngWriter:
    """Writes one picture: rows from top to bottom, then `close`."""

    def __init__(
        self,
        file: BinaryIO,
        width: int,
        height: int,
        *,
        channels: int,
        bits: int,
        executor: Executor,
        exif: bytes = b"",
        icc: bytes = b"",
        meaning: Iterable[tuple[bytes, bytes]] = (),
    ):
        """Writes everything before the rows.

        Args:
            file: Open for writing; it stays open.
            width: Pixels of a row.
            height: Rows that will come.
            channels: 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha.
            bits: 8 or 16 for each channel.
            executor: Where rows are compressed.
            exif: EXIF as TIFF bytes, without the "Exif" in front that JPEG has; empty for none.
            icc: An ICC color profile; empty for none.
            meaning: Further chunks, as `meaning` reads them.
        """
        self._file = file
        self._executor = executor
        self._pixel_bytes = channels * bits // 8
        self._type = np.dtype(">u2" if bits == 16 else np.uint8)
        self._above = np.zeros(width * self._pixel_bytes, np.uint8)
        self._rows_left = height
        self._adler = 1
        self._pending = collections.deque()
        file.write(_SIGNATURE)
        color_type = _COLOR_TYPES[channels]
        _write_chunk(
            self._file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
        )
        for kind, data in meaning:
            _write_chunk(self._file, kind, data)
        if icc:
            _write_chunk(self._file, b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))
        if exif:
            _write_chunk(self._file, b"eXIf", exif)
        # One zlib stream over all IDAT chunks; this is its header (32k window, fastest).
        _write_chunk(self._file, b"IDAT", b"\x78\x01")

    def write(self, rows: np.ndarray) -> None:
        """Adds rows; waits only while all cores are compressing.

        Args:
            rows: uint8 or uint16 by `bits`, [n, width] or [n, width, channels]. They must not be
                changed afterwards.
        """
        at_once = max(1, _SLICE // len(self._above))
        for start in range(0, len(rows), at_once):
            piece = np.ascontiguousarray(rows[start : start + at_once], self._type)
            piece = piece.view(np.uint8).reshape(len(piece), -1)
            self._rows_left -= len(piece)
            job = self._executor.submit(
                _compress, piece, self._above, self._pixel_bytes, last=not self._rows_left
            )
            self._above = piece[-1]
            self._pending.append(job)
            if len(self._pending) > 2 * (os.cpu_count() or 1):
                self._append(*self._pending.popleft().result())

    def close(self) -> None:
        """Writes the rest. The file itself is not closed.

        Raises:
            ValueError: Fewer or more rows than announced were written.
        """
        if self._rows_left:
            raise ValueError(f"{self._rows_left} rows of the picture are missing")
        while self._pending:
            self._append(*self._pending.popleft().result())
        _write_chunk(self._file, b"IDAT", struct.pack(">I", self._adler))
        _write_chunk(self._file, b"IEND", b"")

    def _append(self, compressed: bytes, filtered: bytes) -> None:
        self._adler = zlib.adler32(filtered, self._adler)
        _write_chunk(self._file, b"IDAT", compressed)


def _compress(
    rows: np.ndarray, above: np.ndarray, pixel_bytes: int, *, last: bool
) -> tuple[bytes, bytes]:
    """Filters and deflates rows, uint8 [n, bytes of a row], below the row `above`.

    Returns:
        A piece of a deflate stream that ends on a byte boundary, and the filtered bytes.
    """
    filtered = np.empty([rows.shape[0], 1 + rows.shape[1]], np.uint8)
    filtered[:, 0] = 4  # Paeth
    up = np.concatenate([above[None], rows[:-1]]).astype(np.int16)
    left, up_left = np.zeros_like(up), np.zeros_like(up)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    up_left[:, pixel_bytes:] = up[:, :-pixel_bytes]
    # The neighbor that is nearest to left + up - up_left; the order of comparison is the format's.
    from_left, from_up = up - up_left, left - up_left
    from_up_left = np.abs(from_left + from_up)
    from_left, from_up = np.abs(from_left), np.abs(from_up)
    is_left = (from_left <= from_up) & (from_left <= from_up_left)
    nearest = np.where(is_left, left, np.where(from_up <= from_up_left, up, up_left))
    np.subtract(rows, nearest.astype(np.uint8), out=filtered[:, 1:])
    filtered = filtered.tobytes()
    deflate = zlib.compressobj(1, zlib.DEFLATED, -15, 9, zlib.Z_RLE)
    compressed = deflate.compress(filtered)
    return compressed + deflate.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH), filtered
