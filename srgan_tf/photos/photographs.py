"""Photographs as people keep them: enlarged with their depth, alpha, EXIF and colour profile."""

import functools
import io
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps

from srgan_tf import pictures, upscaling
from srgan_tf.photos import fastest
from srgan_tf.photos.png import PngWriter

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

_ORIENTATION, _EXIF_IFD, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0xA002, 0xA003
_BITS, _PLANES = 258, 284  # of a TIFF; 2: a plane for each channel
# What a TIFF's own tags say of how its pixels are stored, and what is carried apart from EXIF.
_STORAGE_TAGS = (
    *(254, 255, 256, 257, 258, 259, 262, 263, 264, 265, 266, 273, 277, 278, 279, 280, 281, 284),
    *(317, 318, 319, 320, 322, 323, 324, 325, 330, 332, 333, 334, 336, 338, 339, 340, 341, 347),
    *(512, 513, 514, 529, 530, 531, 532, 700, 33723, 34377, 34675),
)


class Photograph(NamedTuple):
    """A picture and what comes with it.

    Attributes:
        colours: uint8 or uint16, [h, w, 3] in RGB, or [h, w] where it is grayscale.
        alpha: [h, w] of the same type, or None.
        exif: EXIF of an upright picture, as TIFF bytes; empty for none.
        icc: ICC profile; empty for none.
        notes: What was not kept, in words.
    """

    colours: np.ndarray
    alpha: np.ndarray | None
    exif: bytes
    icc: bytes
    notes: tuple[str, ...] = ()


def upscale(
    image: np.ndarray | Image.Image,
    *,
    weights: str | None = None,
    detail: float | None = None,
    precision: str = "auto",
    tile: int | None = None,
) -> np.ndarray | Image.Image:
    """Enlarges a picture by 4; also there as `srgan_tf.upscale`.

    Args:
        image: uint8 or uint16, each of its full range, [h, w] or [h, w, 1] (gray), [h, w, 2] (gray
            and alpha), [h, w, 3] (RGB) or [h, w, 4] (RGB and alpha); or a Pillow image of any mode.
        weights: As in `fastest.load_network`; by default the bundled pair, blended by `detail`. The
            network stays loaded for the next picture.
        detail: From 0, the faithful SRResNet-MSE, to 1, the detailed SRGAN-VGG54; by default
            `fastest.DEFAULT_DETAIL`.
        precision: One of `fastest.PRECISIONS`.
        tile: As in `upscaling.upscale`: smaller takes less memory.

    Returns:
        An array of the type and number of dimensions of `image`; or, for a Pillow image, another
        one, upright, of mode L, LA, RGB, RGBA or (for gray of more than 8 bits without alpha)
        I;16, with its EXIF and colour profile.

    Raises:
        TypeError, ValueError: It is no such picture, `detail` is outside 0..1, or `weights` and
            `detail` are both given.
        FileNotFoundError, ValueError: The network cannot be loaded.
    """
    given = isinstance(image, Image.Image)
    # A Pillow image holds what its TIFF does: 16 bits of gray, but not of gray with alpha.
    photograph = fitted(_photograph(image), "tif", 16) if given else _from_array(image)
    spec, bits = fastest.chosen(weights, detail), 8 * photograph.colours.dtype.itemsize
    network, _ = _network(spec, precision, bits)
    sr, top = None, 0
    for rows in enlarged_rows(network, photograph, tile=tile):
        if sr is None:
            sr = np.empty([4 * photograph.colours.shape[0], *rows.shape[1:]], rows.dtype)
        sr[top : top + len(rows)] = rows
        top += len(rows)
    if not given:
        return sr.reshape(*sr.shape[:2], *image.shape[2:])
    result = Image.fromarray(sr)
    if photograph.icc:
        result.info["icc_profile"] = photograph.icc
    if photograph.exif:
        result.info["exif"] = b"Exif\0\0" + photograph.exif
    return result


_network = functools.lru_cache(maxsize=2)(
    lambda weights, precision, bits: fastest.load_network(weights, precision=precision, bits=bits)
)


def _from_array(array: np.ndarray) -> Photograph:
    if not isinstance(array, np.ndarray):
        raise TypeError(f"upscale takes an array or a Pillow image, not {type(array).__name__}")
    channels = array.shape[2] if array.ndim == 3 else 1
    depths = (np.uint8, np.uint16)
    if array.dtype not in depths or array.ndim not in (2, 3) or channels not in (1, 2, 3, 4):
        raise ValueError(
            "upscale takes uint8 or uint16 pictures [h, w] or [h, w, 1 to 4 channels], not "
            f"{array.dtype} {list(array.shape)}"
        )
    pixels = array[..., None] if array.ndim == 2 else array
    colours = pixels[..., 0] if channels < 3 else pixels[..., :3]
    return Photograph(colours, pixels[..., -1] if channels in (2, 4) else None, b"", b"")


def read_photograph(path: str | os.PathLike) -> Photograph:
    """Reads a picture file at its full depth, upright.

    Palettes and CMYK become RGB, CMYK by its own profile where it has one. Colour of 16 bits is
    kept for PNG and for RGB in TIFF; of all other Pillow gives 8 bits, which is noted for TIFF and
    PPM: others' headers are not at hand. Of an animation the first frame is taken.

    Raises:
        ValueError: The file is missing, no picture, damaged or cut short, or larger than
            `PIL.Image.MAX_IMAGE_PIXELS` allows (twice that number); one line.
    """
    try:
        with Image.open(path) as image:
            deep = _is_deep(image)  # which is forgotten by loading
            photograph = _photograph(image, _low_bytes(path, image))
            if deep and photograph.colours.dtype == np.uint8:
                notes = (*photograph.notes, "it has more than 8 bits, of which 8 are read")
                photograph = photograph._replace(notes=notes)
            # Behind a phone's MPO picture lie depth maps and the like, no frames.
            if getattr(image, "is_animated", False) and image.format != "MPO":
                notes = ("the first of its frames is taken", *photograph.notes)
                photograph = photograph._replace(notes=notes)
            return photograph
    except Image.DecompressionBombError as error:
        most = 2 * Image.MAX_IMAGE_PIXELS / 1e6
        raise ValueError(
            f"{path}: more than {most:,.0f} megapixels, which may be an attack by a small file; "
            "if you trust it, allow them by --max_megapixels"
        ) from error
    except Exception as error:
        raise pictures.unreadable(path, error) from error


def _is_deep(image: Image.Image) -> bool:
    """Tells whether a TIFF or PPM that is opened, but not loaded, has more than 8 bits."""
    if image.format == "TIFF":
        deep = max(image.tag_v2.get(_BITS, (1,))) > 8
        if deep and image.tag_v2.get(_PLANES) == 2 and image.info["compression"] == "raw":
            raise ValueError("16 bits in planes, which Pillow reads only where compressed")
        return deep
    arguments = image.tile[0].args if image.format == "PPM" else ""
    return not isinstance(arguments, str) and arguments[-1] > 255  # (mode, value of white)


def _low_bytes(path, image: Image.Image) -> np.ndarray | None:
    """Reads the low bytes of 16-bit colour, of which Pillow gives the high ones only.

    Args:
        path: The picture's file.
        image: The same, opened.

    Returns:
        uint8 [h, w, channels], upright: RGB, RGBA, or gray and alpha; None for other files.
    """
    if image.format not in ("PNG", "TIFF"):
        return None
    if image.format == "TIFF" and image.tag_v2.get(_PLANES) == 2:  # swapped they come out wrong
        return None
    arguments = image.tile[0].args
    layout = arguments if isinstance(arguments, str) else arguments[0]
    kind, _, order = layout.partition(";")  # such as RGB;16B, for big-endian
    if kind not in ("RGB", "RGBX", "RGBA", "LA") or order not in ("16B", "16L", "16N"):
        return None
    # In the other order of bytes, the low byte is where the high one should be. That order is not
    # there for gray with alpha; all its four bytes are read as if they were RGBA.
    swapped = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
    layout = "RGBA" if kind == "LA" else f"{kind};{swapped[order]}"
    with Image.open(path) as again:
        again.tile = [
            tile._replace(args=layout if isinstance(tile.args, str) else (layout, *tile.args[1:]))
            for tile in again.tile
        ]
        low = np.asarray(ImageOps.exif_transpose(again))
    return low[..., 1::2] if kind == "LA" else low


def _photograph(image: Image.Image, low: np.ndarray | None = None) -> Photograph:
    """Gives a picture upright, of 16 bits where it has them or where `low` holds their low half."""
    image.load()  # also reads the EXIF that comes behind a PNG's pixels
    upright = ImageOps.exif_transpose(image)
    exif, notes = _exif(image, upright.size)
    icc = image.info.get("icc_profile") or b""
    if low is not None:
        pixels = _deep_colours(np.asarray(upright), low, image.info.get("transparency"))
    elif image.mode in ("I", "F") or image.mode.startswith("I;16"):
        pixels = _deep_gray(upright)
    else:
        if image.mode == "LAB" or (image.mode == "CMYK" and icc):
            upright = _by_profile(upright, icc)
        if image.mode in ("LAB", "CMYK"):
            icc = b""  # it is not that of the RGB values
        pixels = _colours(upright)
    return Photograph(*pixels, exif, icc, notes)


def _colours(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Gives colours and alpha of an 8-bit picture."""
    transparent = image.has_transparency_data or image.mode in ("La", "RGBa")
    gray = image.mode in ("1", "L", "LA", "La")
    mode = ("L" if gray else "RGB") + ("A" if transparent else "")
    values = np.asarray(image if image.mode == mode else image.convert(mode))
    if not transparent:
        return values, None
    return (values[..., 0] if gray else values[..., :3]), values[..., -1]


def _deep_colours(high, low, key) -> tuple[np.ndarray, np.ndarray | None]:
    """Joins the bytes of 16-bit colours, and gives alpha: their own or that of PNG's `key`."""
    if low.shape[-1] == 2:  # gray and alpha, whose high bytes Pillow gives as RGBA
        high = high[..., [0, 3]]
    values = high.astype(np.uint16) << 8 | low
    if low.shape[-1] == 2:
        return values[..., 0], values[..., 1]
    colours = values[..., :3]
    if low.shape[-1] == 4:
        return colours, values[..., 3]
    if key is not None:
        return colours, np.where((colours == key).all(axis=-1), 0, 65535).astype(np.uint16)
    return colours, None


def _deep_gray(image: Image.Image) -> tuple[np.ndarray, np.ndarray | None]:
    """Gives the values of a gray picture of more than 8 bits as uint16, and its alpha."""
    values = np.asarray(image)
    if not image.mode.startswith("I;16"):
        # Any range: the smallest usual one that holds the values, as `pictures` takes it.
        values = np.asarray(values, np.float64)
        if image.mode == "F" and values.max() <= 1:
            values = values * 65535
        elif values.max() <= 255:
            values = values * 257
        values = np.clip(np.floor(values + 0.5), 0, 65535)
    values = values.astype(np.uint16)
    key = image.info.get("transparency")
    if isinstance(key, int):  # PNG's one transparent gray
        return values, np.where(values == key, 0, 65535).astype(np.uint16)
    return values, None


def _by_profile(image: Image.Image, icc: bytes) -> Image.Image:
    """Converts CMYK or Lab to sRGB by its profile."""
    lab = image.mode == "LAB"
    try:
        source = ImageCms.createProfile("LAB") if lab else ImageCms.ImageCmsProfile(io.BytesIO(icc))
        return ImageCms.profileToProfile(
            image, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (OSError, ImageCms.PyCMSError):  # a damaged profile, or one for other channels
        return image.convert("RGB")


def _exif(image: Image.Image, size: tuple[int, int]) -> tuple[bytes, tuple[str, ...]]:
    """Gives EXIF as it fits the enlarged picture, and a note where it cannot.

    Args:
        image: As it was opened.
        size: Its width and height when upright.
    """
    try:
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())  # a copy: the caller's own picture stays as it is
        for tag in (_ORIENTATION, *(_STORAGE_TAGS if image.format == "TIFF" else ())):
            exif.pop(tag, None)
        details = exif.get_ifd(_EXIF_IFD) if _EXIF_IFD in exif else {}
        for tag, side in zip((_WIDTH, _HEIGHT), size, strict=True):
            if tag in details:
                details[tag] = 4 * side
        return exif.tobytes().removeprefix(b"Exif\0\0") if exif else b"", ()
    except Exception:  # Pillow raises all sorts on broken tags
        return b"", ("its EXIF is damaged and left out",)


def enlarged_rows(
    network: upscaling.Upscaler,
    photograph: Photograph,
    *,
    tile: int | None,
    progress: Callable[[int], None] = lambda pixels: None,
) -> Iterator[np.ndarray]:
    """Enlarges a photograph by 4, from top to bottom, one row of tiles at a time.

    Args:
        network: As `fastest.load_network` gives it.
        photograph: What to enlarge. Grayscale goes through the network as three equal channels;
            alpha is enlarged by Pillow's bicubic.
        tile: As in `upscaling.upscale`.
        progress: Told how many pixels of the photograph have been enlarged since the last call.

    Returns:
        An iterator of rows of the photograph's type, [n, 4w, channels] (RGB, RGBA, or gray and
        alpha) or [n, 4w] (gray).
    """
    lr, alpha = photograph.colours, photograph.alpha
    height, width = lr.shape[:2]
    gray = lr.ndim == 2
    if gray:
        lr = np.broadcast_to(lr[..., None], (height, width, 3))
    colours = 1 if gray else 3
    if alpha is not None:
        # In floats: Pillow's bicubic has no 16 bits. With a box it still sees beyond the rows.
        alpha = Image.fromarray(alpha.astype(np.float32))
    for top, left, piece in upscaling.upscaled_pieces(network, lr, tile=tile):
        if left == 0:
            shape = [piece.shape[0], 4 * width, colours + (alpha is not None)]
            rows = np.empty(shape, lr.dtype)
        if gray:  # BT.601, as any program turns colour into gray
            piece = np.round(piece @ np.float32([[0.299], [0.587], [0.114]]))
        rows[:, left : left + piece.shape[1], :colours] = piece
        progress(piece.shape[0] * piece.shape[1] // 16)
        if left + piece.shape[1] == 4 * width:
            if alpha is not None:
                box = (0, top / 4, width, (top + len(rows)) / 4)
                size = (4 * width, len(rows))
                opacity = np.asarray(alpha.resize(size, Image.Resampling.BICUBIC, box))
                rows[..., -1] = np.clip(np.round(opacity), 0, np.iinfo(lr.dtype).max)
            yield rows[..., 0] if rows.shape[-1] == 1 else rows


class _WholePicture:
    """Gathers rows for Pillow's writers, which take whole pictures; the same use as `PngWriter`."""

    def __init__(self, file: BinaryIO, image: Image.Image, **options):
        self._file, self._image, self._options, self._top = file, image, options, 0

    def write(self, rows: np.ndarray) -> None:
        self._image.paste(Image.fromarray(rows), (0, self._top))
        self._top += len(rows)

    def close(self) -> None:
        self._image.save(self._file, **self._options)


def fitted(photograph: Photograph, format: str, bits: int) -> Photograph:
    """Reduces a photograph to what a format and a network can hold, and notes what that costs.

    Args:
        photograph: As it was read.
        format: One of `FORMATS`.
        bits: The most that the network takes, 8 or 16.

    Raises:
        ValueError: The enlarged picture has more pixels than the format allows.
    """
    colours, alpha, exif, _, notes = photograph
    height, width = (4 * side for side in colours.shape[:2])
    most = FORMATS[format][1]
    if max(height, width) > most:
        raise ValueError(
            f"{width}x{height} pixels are more than a .{format} file can have "
            f"({most} each way): give --format=png"
        )
    if alpha is not None and format == "jpg":
        white = np.iinfo(alpha.dtype).max
        if alpha.min() < white:
            notes += ("JPEG has no alpha: it is laid over white",)
            share = alpha.astype(np.float32) / white
            if colours.ndim == 3:
                share = share[..., None]
            colours = np.round(colours * share + white * (1 - share)).astype(colours.dtype)
        alpha = None
    if colours.dtype == np.uint16:
        reason = None
        if bits == 8:
            reason = "this network takes 8 bits"
        elif format in LOSSY or (format == "tif" and (colours.ndim == 3 or alpha is not None)):
            reason = f"it is reduced to the 8 bits of .{format}; --format=png keeps 16"
        if reason:
            notes += (reason,)
            colours, alpha = (
                None if values is None else np.round(values / np.float32(257)).astype(np.uint8)
                for values in (colours, alpha)
            )
    if format == "jpg" and len(exif) > 65000:
        exif = b""
        notes += ("its EXIF is larger than JPEG allows and left out",)
    return Photograph(colours, alpha, exif, photograph.icc, notes)


def open_writer(
    file: BinaryIO,
    photograph: Photograph,
    *,
    format: str,
    quality: int = DEFAULT_QUALITY,
    executor: Executor,
) -> PngWriter | _WholePicture:
    """Opens a picture file for the rows that `enlarged_rows` makes of a photograph.

    Args:
        file: Open for writing.
        photograph: What is enlarged, `fitted` to the format.
        format: One of `FORMATS`. PNG is written as rows come; others are gathered in memory.
        quality: 1 to 100, for JPEG and WebP.
        executor: Where PNG is compressed.

    Returns:
        An object with `write(rows)` and `close()`, which leaves the file itself open.
    """
    colours, alpha, exif, icc, _ = photograph
    height, width = (4 * side for side in colours.shape[:2])
    channels = (1 if colours.ndim == 2 else 3) + (alpha is not None)
    bits = 8 * colours.dtype.itemsize
    if format == "png":
        return PngWriter(
            file, width, height, channels=channels, bits=bits, executor=executor, exif=exif, icc=icc
        )
    mode = "I;16" if bits == 16 else {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[channels]
    options = {"format": FORMATS[format][0]}
    if exif:
        options["exif"] = b"Exif\0\0" + exif
    if icc:
        options["icc_profile"] = icc
    if format in LOSSY:
        options["quality"] = quality
    if format == "jpg":
        options["subsampling"] = 0
    if format == "tif":
        options["big_tiff"] = height * width * channels * bits // 8 > BIG_TIFF
    return _WholePicture(file, Image.new(mode, (width, height)), **options)
