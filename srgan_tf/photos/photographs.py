"""One photograph: read, upscaled and written with its depth, alpha, EXIF and color profile."""

import functools
import io
import os
import struct
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms

from srgan_tf import files, pictures, png, upscaling
from srgan_tf.photos import fastest, transparency

# Pillow's name for each format, and the most pixels that it writes each way.
FORMATS = {
    "png": ("PNG", 2**31 - 1),
    "jpg": ("JPEG", 65500),
    "webp": ("WEBP", 16383),
    "tif": ("TIFF", 2**31 - 1),
}
LOSSY = ("jpg", "webp")
# Bytes of pixels above which a TIFF is a BigTIFF: the plain kind ends at 4 GiB.
BIG_TIFF = 2**32 - 2**24
DEFAULT_QUALITY = 92
_MOST_JPEG_DPI = 65535

_ORIENTATION, _EXIF_IFD, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 282, 283, 296
_BITS, _PHOTOMETRIC, _EXTRA_SAMPLES = 258, 262, 338  # of a TIFF
_PNG_GRAY = 0  # the only color type of a PNG that Pillow reads with 16 bits
# EXIF tags about the source's storage of pixels, and about metadata that is kept apart from EXIF. A
# JPEG may have these tags, too, and a writer would trust them.
_STORAGE_TAGS = (
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284),
    *(317, 318, 319, 320, 322, 323, 324, 325, 330, 332, 333, 334, 336, 338, 339, 340, 341, 347),
    *(512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)
_JPEG_CODING = (0x9101, 0x9102)  # components and bits per pixel of the source

# The contents of PNG's chunks for an sRGB picture, which loses nothing without them.
_SRGB = {
    b"gAMA": struct.pack(">I", 45455),
    b"cHRM": struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000),
}
_METERS_PER_INCH = 0.0254


class Photograph(NamedTuple):
    """A picture and its metadata.

    Attributes:
        colors: uint8 or uint16, [h, w, 3] in RGB, or [h, w] where it is grayscale.
        alpha: [h, w] of the same type, or None.
        exif: EXIF of the oriented picture, as TIFF bytes; empty for none.
        icc: ICC profile; empty for none.
        notes: A sentence for each loss.
        meaning: PNG chunks that define colors and pixel sizes, as `png.meaning` reads them.
    """

    colors: np.ndarray
    alpha: np.ndarray | None
    exif: bytes
    icc: bytes
    notes: tuple[str, ...] = ()
    meaning: tuple[tuple[bytes, bytes], ...] = ()


def upscale(
    image: np.ndarray | Image.Image,
    *,
    weights: str | None = None,
    detail: float | None = None,
    precision: str = "auto",
    tile: int | None = None,
) -> np.ndarray | Image.Image:
    """Upscales a picture by 4; also available as `srgan_tf.upscale`.

    Args:
        image: uint8 or uint16 of the type's full range, [h, w] or [h, w, 1] (gray), [h, w, 2] (gray
            and alpha), [h, w, 3] (RGB) or [h, w, 4] (RGB and alpha); or a Pillow image of any mode.
        weights: As in `fastest.load_network`; by default the bundled pair, blended by `detail`. The
            network stays loaded for the next picture.
        detail: From 0, the faithful SRResNet-MSE, to 1, the detailed SRGAN-VGG54; by default
            `fastest.DEFAULT_DETAIL`.
        precision: One of `fastest.PRECISIONS`.
        tile: As in `upscaling.upscale`; a smaller tile takes less memory.

    Returns:
        For an array, an array of the same type and number of dimensions. For a Pillow image, an
        oriented Pillow image of mode L, LA, RGB, RGBA or (for gray of more than 8 bits without
        alpha) I;16, with its EXIF and color profile.

    Raises:
        TypeError, ValueError: It is not such a picture, `detail` is outside 0..1, or both `weights`
            and `detail` are given.
        FileNotFoundError, ValueError: The network cannot be loaded.
    """
    given = isinstance(image, Image.Image)
    if given:
        pictures.correct(image)
    # A Pillow image holds what a TIFF does: 16-bit gray, but not 16-bit gray with alpha.
    photograph = fitted(_photograph(image), "tif", 16) if given else _from_array(image)
    spec, bits = fastest.chosen(weights, detail), 8 * photograph.colors.dtype.itemsize
    network, _ = _network(spec, precision, bits)
    sr, top = None, 0
    for rows in upscaled_rows(network, photograph, tile=tile):
        if sr is None:
            sr = np.empty([4 * photograph.colors.shape[0], *rows.shape[1:]], rows.dtype)
        sr[top : top + len(rows)] = rows
        top += len(rows)
    if not given:
        return sr.reshape(*sr.shape[:2], *image.shape[2:]).astype(image.dtype, copy=False)
    result = Image.fromarray(sr)
    if photograph.icc:
        result.info["icc_profile"] = photograph.icc
    if photograph.exif:
        result.info["exif"] = b"Exif\0\0" + photograph.exif
    for key in ("dpi", "gamma", "chromaticity", "srgb"):
        if key in image.info:
            result.info[key] = image.info[key]
    return result


_network = functools.lru_cache(maxsize=2)(
    lambda weights, precision, bits: fastest.load_network(weights, precision=precision, bits=bits)
)


def _from_array(array: np.ndarray) -> Photograph:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"upscale takes an array or a Pillow image, not {type(array).__name__}")
    channels = array.shape[2] if array.ndim == 3 else 1
    dtype, depths = array.dtype.newbyteorder("="), (np.uint8, np.uint16)
    if dtype not in depths or array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
        raise ValueError(
            "upscale takes uint8 or uint16 pictures [h, w] or [h, w, 1 to 4 channels], not "
            f"{array.dtype} {list(array.shape)}"
        )
    array = array.astype(dtype, copy=False)
    pixels = array[..., None] if array.ndim == 2 else array
    colors = pixels[..., 0] if channels < 3 else pixels[..., :3]
    return Photograph(colors, pixels[..., -1] if channels in (2, 4) else None, b"", b"")


def refuse_above(megapixels: float) -> None:
    """Sets the size above which this process refuses to read a picture.

    Args:
        megapixels: The largest size of a picture before upscaling.
    """
    # Pillow warns above this number and refuses above twice this number.
    Image.MAX_IMAGE_PIXELS = int(megapixels * 1e6 / 2)
    warnings.filterwarnings("ignore", module="PIL")


def read_photograph(path: str | os.PathLike) -> Photograph:
    """Reads a picture file at its full depth, oriented.

    Palettes and CMYK become RGB; CMYK is converted with its profile if it has one. 16-bit color is
    kept in PNG and RGB TIFF. Pillow reads other files as 8 bits, which is noted for TIFF and PPM,
    the only formats whose depth Pillow reports. Only the first frame of an animation is read.

    Raises:
        ValueError: The file is missing, not a picture, damaged or truncated, or has more than
            twice `PIL.Image.MAX_IMAGE_PIXELS` pixels; one line.
    """
    try:
        photograph, notes = pictures.open_picture(path, None, functools.partial(_read, path))
    except ValueError as error:
        if not isinstance(error.__cause__, Image.DecompressionBombError):
            raise
        most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(
            f"{path}: more than {most:,.0f} megapixels, which may be an attack with a small file; "
            "if you trust it, raise --max_megapixels"
        ) from error
    return photograph._replace(notes=(*notes, *photograph.notes))


def _read(path: str | os.PathLike, image: Image.Image) -> Photograph:
    """Converts a picture file that is open, but not loaded."""
    deep = _is_deep(image)  # unknown after loading
    photograph = _photograph(image, _deep_colors(path, image))
    notes = photograph.notes
    if deep and photograph.colors.dtype == np.uint8:
        notes += ("only 8 of its bits are read",)
    # A phone's MPO holds depth maps and the like after its picture, and a PSD layers, not frames.
    if getattr(image, "is_animated", False) and image.format not in ("MPO", "PSD"):
        notes = ("only its first frame is read", *notes)
    if image.format == "PNG":
        with open(path, "rb") as file:
            meaning = png.meaning(file)
    else:
        meaning = _resolution(image.info.get("dpi"))
    return photograph._replace(notes=notes, meaning=meaning)


def _resolution(dpi: tuple[float, float] | None) -> tuple[tuple[bytes, bytes], ...]:
    """Returns PNG's chunk for a resolution; none if it is unknown or invalid."""
    try:
        meters = [round(float(each) / _METERS_PER_INCH) for each in dpi]
        return ((b"pHYs", struct.pack(">IIB", *meters, 1)),) if min(meters) > 0 else ()
    except (TypeError, ValueError, ArithmeticError, struct.error):
        return ()


def _is_deep(image: Image.Image) -> bool:
    """Tells whether a TIFF or PPM that is open, but not loaded, has more than 8 bits."""
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS, (1,))) > 8
    arguments = image.tile[0].args if image.format == "PPM" else ""
    return not isinstance(arguments, str) and arguments[-1] > 255  # (mode, value of white)


def _deep_colors(
    path: str | os.PathLike, image: Image.Image
) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Reads 16-bit color, which Pillow would reduce to 8 bits.

    Args:
        path: The picture's file.
        image: The same file, open, but not loaded: loading a TIFF removes its orientation.

    Returns:
        Colors and alpha as in `Photograph`; None for files without 16-bit color and for those that
        only Pillow can read: CMYK, and TIFF with colors multiplied by alpha.
    """
    if image.format == "PNG":
        with open(path, "rb") as file:
            depth, kind = file.read(26)[24:]  # in the first chunk
            if depth != 16 or kind == _PNG_GRAY:
                return None
            import imagecodecs  # here, because few photographs have 16 bits

            file.seek(0)
            values = imagecodecs.png_decode(file.read())  # a transparent color becomes alpha
        image.load()  # also reads the EXIF after the pixels
    elif image.format == "TIFF" and image.mode in ("RGB", "RGBA"):
        tags = image.tag_v2
        rgb = tags.get(_PHOTOMETRIC) == 2 and tags.get(_EXTRA_SAMPLES) != (1,)
        if set(tags.get(_BITS, ())) != {16} or not rgb:
            return None
        import tifffile

        with tifffile.TiffFile(path) as file:
            page = file.pages[0]
            values = page.asarray()
        if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
            values = np.moveaxis(values, 0, -1)
        values = values[..., : len(image.mode)]  # further channels do not belong to the picture
    else:
        return None
    values = _oriented(values, pictures.orientation(image))
    colors = values[..., 0] if values.shape[-1] == 2 else values[..., :3]
    return colors, values[..., -1] if values.shape[-1] in (2, 4) else None


def _oriented(stored: np.ndarray, orientation: int) -> np.ndarray:
    """Applies an EXIF orientation, 1 to 8, to pixels [h, w, channels]."""
    if orientation in (5, 6, 7, 8):
        stored = stored.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        stored = stored[:, ::-1]
    return stored[::-1] if orientation in (3, 4, 7, 8) else stored


def _photograph(
    image: Image.Image, deep: tuple[np.ndarray, np.ndarray | None] | None = None
) -> Photograph:
    """Converts an open picture and orients it; `deep` has its 16-bit colors, if any."""
    if deep is None:
        upright = pictures.upright(image)
        size = upright.size
    else:
        size = deep[0].shape[1::-1]
    exif, notes = _exif(image, size)
    icc = image.info.get("icc_profile") or b""
    if deep is not None:
        pixels = deep
    elif pictures.is_deep_gray(image):
        *pixels, assumed = _deep_gray(image, upright)
        notes += assumed
    else:
        if image.mode == "LAB" or (image.mode == "CMYK" and icc):
            upright = _by_profile(upright, icc)
        if image.mode in ("LAB", "CMYK"):
            icc = b""  # it does not describe the RGB values
        pixels = _colors(upright)
    return Photograph(*pixels, exif, icc, notes)


def _colors(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Returns colors and alpha of an 8-bit picture."""
    transparent = image.has_transparency_data or image.mode in ("La", "RGBa")
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if gray else "RGB") + ("A" if transparent else "")
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    if not transparent:
        return values, None
    return (values[..., 0] if gray else values[..., :3]), values[..., -1]


def _deep_gray(
    image: Image.Image, upright: Image.Image
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...]]:
    """Returns gray of more than 8 bits as uint16, its alpha, and its assumed range in words."""
    values = np.asarray(upright)
    white, assumed = pictures.white_level(image, values)
    gray = values
    if white != 65535 or values.dtype.kind == "f":
        gray = np.clip(np.floor(values * (65535 / white) + 0.5), 0, 65535)
    gray, alpha = gray.astype(np.uint16), None
    if isinstance(key := image.info.get("transparency"), int):  # PNG's one transparent gray
        alpha = np.where(values == key, 0, 65535).astype(np.uint16)
    return gray, alpha, ((assumed,) if assumed else ())


def _by_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """Converts a picture to sRGB with its profile."""
    lab = image.mode == "LAB"
    try:
        source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (OSError, ImageCms.PyCMSError):  # a damaged profile, or one for other channels
        return image.convert("RGB")


def _exif(image: Image.Image, size: tuple[int, int]) -> tuple[bytes, tuple[str, ...]]:
    """Returns EXIF that fits the upscaled picture, and a note if it is damaged.

    Args:
        image: The open picture.
        size: Its width and height, oriented.
    """
    try:
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())  # a copy: the caller's picture keeps its own
        for tag in (_ORIENTATION, *_STORAGE_TAGS):
            exif.pop(tag, None)
        details = exif.get_ifd(_EXIF_IFD) if _EXIF_IFD in exif else {}
        for tag in _JPEG_CODING:
            details.pop(tag, None)
        for tag, side in zip((_WIDTH, _HEIGHT), size, strict=True):
            if tag in details:
                details[tag] = 4 * side
        return exif.tobytes().removeprefix(b"Exif\0\0") if exif else b"", ()
    except Exception:  # Pillow raises errors of all kinds on broken tags
        return b"", (pictures.DAMAGED_EXIF,)


def upscaled_rows(
    network: upscaling.Upscaler,
    photograph: Photograph,
    *,
    tile: int | None,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Iterator[np.ndarray]:
    """Upscales a photograph by 4, from top to bottom, one row of tiles at a time.

    Args:
        network: From `fastest.load_network`.
        photograph: The photograph. The network sees grayscale as three equal channels. Alpha is
            upscaled with Pillow's bicubic, and in a copy the colors that it hides are replaced by
            visible ones.
        tile: As in `upscaling.upscale`.
        progress: Receives the number of the photograph's pixels that were upscaled since its last
            call.

    Returns:
        An iterator of rows of the photograph's type, [n, 4w, channels] (RGB, RGBA, or gray and
        alpha) or [n, 4w] (gray).
    """
    lr, alpha = photograph.colors, photograph.alpha
    if alpha is not None:
        lr = transparency.filled(lr, alpha)
    height, width = lr.shape[:2]
    gray = lr.ndim == 2
    if gray:
        lr = np.broadcast_to(lr[..., None], (height, width, 3))
    colors = 1 if gray else 3
    if alpha is not None:
        # In floats, because Pillow's bicubic has no 16-bit mode. It also reads rows around its box.
        alpha = Image.fromarray(alpha.astype(np.float32))
    for top, left, piece in upscaling.upscaled_pieces(network, lr, tile=tile):
        if left == 0:
            shape = [piece.shape[0], 4 * width, colors + (alpha is not None)]
            rows = np.empty(shape, lr.dtype)
        if gray:  # BT.601, as usual
            piece = np.round(piece @ np.float32([[0.299], [0.587], [0.114]]))
        rows[:, left : left + piece.shape[1], :colors] = piece
        progress(piece.shape[0] * piece.shape[1] // 16)
        if left + piece.shape[1] == 4 * width:
            if alpha is not None:
                box = (0, top / 4, width, (top + len(rows)) / 4)
                size = (4 * width, len(rows))
                opacity = np.asarray(alpha.resize(size, Image.Resampling.BICUBIC, box))
                rows[..., -1] = np.clip(np.round(opacity), 0, np.iinfo(lr.dtype).max)
            yield rows[..., 0] if rows.shape[-1] == 1 else rows


class _WholePicture:
    """Gathers rows for Pillow's writers, which take whole pictures; used like `PngWriter`."""

    def __init__(self, file: BinaryIO, image: Image.Image, **options):
        self._file, self._image, self._options, self._top = file, image, options, 0

    def write(self, rows: np.ndarray) -> None:
        self._image.paste(Image.fromarray(rows), (0, self._top))
        self._top += len(rows)

    def close(self) -> None:
        self._image.save(self._file, **self._options)


def fitted(photograph: Photograph, format: str, bits: int) -> Photograph:
    """Reduces a photograph to what a format and a network support, and notes each loss.

    Args:
        photograph: From `read_photograph`.
        format: One of `FORMATS`.
        bits: The most bits that the network takes, 8 or 16.

    Raises:
        ValueError: The upscaled picture has more pixels than the format allows.
    """
    colors, alpha, exif, icc, notes, meaning = photograph
    height, width = (4 * side for side in colors.shape[:2])
    most = FORMATS[format][1]
    if max(height, width) > most:
        raise ValueError(
            f"{width}x{height} pixels are more than a .{format} file can have "
            f"({most} each way): give --format=png"
        )
    if alpha is not None and format == "jpg":
        white = np.iinfo(alpha.dtype).max
        if alpha.min() < white:
            notes += ("JPEG has no alpha: the picture is laid over white",)
            share = alpha.astype(np.float32) / white
            if colors.ndim == 3:
                share = share[..., None]
            colors = np.round(colors * share + white * (1 - share)).astype(colors.dtype)
        alpha = None
    if colors.dtype == np.uint16:
        reason = None
        if bits == 8:
            reason = "reduced to 8 bits, the most that this network takes"
        elif format in LOSSY or (format == "tif" and (colors.ndim == 3 or alpha is not None)):
            reason = f"reduced to the 8 bits of .{format}; --format=png keeps 16"
        if reason:
            notes += (reason,)
            colors, alpha = (
                None if values is None else np.round(values / np.float32(257)).astype(np.uint8)
                for values in (colors, alpha)
            )
    if format == "webp" and (dpi := _dpi(dict(meaning).get(b"pHYs", b""))):
        exif = _with_resolution(exif, dpi)
    if format != "png":
        lost = [kind for kind, data in meaning if not _is_kept(kind, data, format, icc)]
        if lost:
            names = ", ".join(kind.decode() for kind in lost)
            notes += (f"its {names} cannot be kept in .{format}; --format=png keeps them",)
        meaning = tuple((kind, data) for kind, data in meaning if kind not in lost)
    if exif and not _is_writable(format, exif=b"Exif\0\0" + exif):
        exif = b""
        notes += (f"its EXIF cannot be kept in .{format} and is skipped",)
    if icc and not _is_writable(format, icc_profile=icc):
        outcome = "it is skipped"
        if colors.ndim == 3 and colors.dtype == np.uint8:
            colors = np.asarray(_by_profile(Image.fromarray(colors), icc))
            outcome = "its colors are converted to sRGB"
        icc = b""
        notes += (f"its color profile is too large for .{format}: {outcome}",)
    return Photograph(colors, alpha, exif, icc, notes, meaning)


def _is_kept(kind: bytes, data: bytes, format: str, icc: bytes) -> bool:
    """Tells whether a format other than PNG keeps what a chunk states or loses nothing by it."""
    if kind == b"pHYs":
        dpi = _dpi(data)
        return dpi is not None and (format != "jpg" or max(dpi) <= _MOST_JPEG_DPI)
    # Pictures without any of this are in sRGB. A profile overrides gAMA and cHRM.
    return kind == b"sRGB" or _SRGB.get(kind) == data or (bool(icc) and kind in _SRGB)


def _dpi(data: bytes) -> tuple[float, float] | None:
    """Returns the resolution of a pHYs chunk; None if it states only the pixels' aspect ratio."""
    x, y, unit = struct.unpack(">IIB", data[:9].ljust(9, b"\0"))
    return (x * _METERS_PER_INCH, y * _METERS_PER_INCH) if unit == 1 else None


def _with_resolution(exif: bytes, dpi: tuple[float, float]) -> bytes:
    """Adds a resolution to EXIF, for formats that have no other place for it."""
    tags = Image.Exif()
    tags.load(exif)
    tags.update({_X_RESOLUTION: dpi[0], _Y_RESOLUTION: dpi[1], _RESOLUTION_UNIT: 2})  # inches
    return tags.tobytes().removeprefix(b"Exif\0\0")


def _is_writable(format: str, **metadata: bytes) -> bool:
    """Tells whether Pillow writes a picture with this metadata so that it can read it again."""
    file = io.BytesIO()
    try:
        Image.new("L", (8, 8)).save(file, FORMATS[format][0], **metadata)
        Image.open(file).load()
    except Exception:  # Pillow raises errors of all kinds
        return False
    return True


def check_result(path: str | os.PathLike, photograph: Photograph, format: str) -> None:
    """Checks that a result can be read again: its header and, in a PNG, its checksums.

    Args:
        path: The file.
        photograph: The photograph before upscaling.
        format: One of `FORMATS`.

    Raises:
        ValueError: It cannot be read again.
    """
    height, width = photograph.colors.shape[:2]
    Image.init()
    reader, _ = Image.OPEN[FORMATS[format][0]]  # Image.open would refuse large pictures
    try:
        with open(path, "rb") as file, reader(file, str(path)) as image:
            size = image.size
            image.verify()
    except Exception as error:  # Pillow raises errors of all kinds
        raise ValueError(f"it could not be read again: {files.one_line(error)}") from error
    if size != (4 * width, 4 * height):
        raise ValueError(f"it would be read as {size[0]}x{size[1]}")


def open_writer(
    file: BinaryIO,
    photograph: Photograph,
    *,
    format: str,
    quality: int = DEFAULT_QUALITY,
    executor: Executor,
) -> png.PngWriter | _WholePicture:
    """Opens a picture file for the rows from `upscaled_rows`.

    Args:
        file: Open for writing.
        photograph: The photograph before upscaling, `fitted` to the format.
        format: One of `FORMATS`. PNG is written as rows come; other formats are gathered in memory.
        quality: 1 to 100, for JPEG and WebP.
        executor: Runs the compression of PNG.

    Returns:
        An object with `write(rows)` and `close()`; `close` leaves the file itself open.
    """
    colors, alpha, exif, icc, _, meaning = photograph
    height, width = (4 * side for side in colors.shape[:2])
    channels = (1 if colors.ndim == 2 else 3) + (alpha is not None)
    bits = 8 * colors.dtype.itemsize
    if format == "png":
        return png.PngWriter(
            file,
            width,
            height,
            channels=channels,
            bits=bits,
            executor=executor,
            exif=exif,
            icc=icc,
            meaning=meaning,
        )
    mode = "I;16" if bits == 16 else {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    options = {"format": FORMATS[format][0]}
    if exif:
        options["exif"] = b"Exif\0\0" + exif
    if icc:
        options["icc_profile"] = icc
    if format != "webp" and (dpi := _dpi(dict(meaning).get(b"pHYs", b""))):
        options["dpi"] = dpi
    if format in LOSSY:
        options["quality"] = quality
    if format == "jpg":
        options["subsampling"] = 0
    if format == "tif":
        options["big_tiff"] = height * width * channels * bits // 8 > BIG_TIFF
    return _WholePicture(file, Image.new(mode, (width, height)), **options)
