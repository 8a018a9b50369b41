"""Picture files in the shapes people keep them, read as 8-bit RGB. Pillow and NumPy only."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

# fmt: off
_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp", ".bmp", ".dib", ".tif",
    ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga",
)
# fmt: on

# The color photographs among the files of scikit-image's wheel. Of the stereo pair
# motorcycle_left/right one is enough; microscopy, textures and drawings are left aside.
_SAMPLES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)

_EXIF_ORIENTATION = 0x0112


class Header(NamedTuple):
    """What is known of a picture before it is decoded.

    Attributes:
        height: Rows as a person sees it, that is, after the EXIF turn.
        width: Columns, likewise.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        coding: "jpeg" or "png" where a plain decoder of that format gives the same RGB as
            `to_rgb` but for the EXIF turn; "other" where only `to_rgb` does.
    """

    height: int
    width: int
    orientation: int
    coding: str


def find_pictures(folder: str | os.PathLike) -> list[Path]:
    """Lists the pictures in a folder and in all folders below it, following links.

    Args:
        folder: The folder.

    Returns:
        Sorted paths of the files whose name ends like a picture's, whatever its case. Hidden files
        and folders (a name that begins with a dot) are passed over.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder")
    found, visited = [], set()
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link that leads back up would be walked for ever
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if is_picture_name(name)]
    return sorted(found)


def is_picture_name(name: str) -> bool:
    """Tells whether a file's name ends like a picture's, whatever its case, and is not hidden."""
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def sample_pictures(names: Sequence[str] = _SAMPLES) -> list[Path]:
    """Lists photographs that scikit-image's wheel carries; nothing is downloaded.

    Args:
        names: Their files, by default the color photographs.

    Raises:
        ValueError: scikit-image is not installed, or has none of them.
    """
    try:
        import skimage
    except ImportError as error:
        raise ValueError(
            "sample pictures come with scikit-image: pip install scikit-image"
        ) from error
    folder = Path(skimage.__file__).parent / "data"
    found = [folder / name for name in names if (folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder}: this scikit-image carries no sample photographs")
    return found


def _upright_8_bits(image: Image.Image) -> Image.Image:
    """Turns a picture upright and reduces it to mode L (true grayscale) or RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        # I;16 is always the full 16 bits. I and F are any range: the smallest usual one that
        # holds the values.
        if image.mode.startswith("I;16") or values.max() > 255:
            values = values / 257
        elif image.mode == "F" and values.max() <= 1:
            values = values * 255
        return Image.fromarray(np.clip(np.floor(values + 0.5), 0, 255).astype(np.uint8))
    if "transparency" in image.info or image.mode in ("RGBA", "RGBa", "LA", "La", "PA"):
        image = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")  # P, CMYK, YCbCr, HSV


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts any picture to RGB as a person would expect to see it.

    The EXIF turn is applied, a palette looked up, transparency laid over white, CMYK and
    grayscale converted, 16 bits scaled to 8. Of an animation the first frame is taken. Color
    profiles are ignored, as the field does.

    Args:
        image: A Pillow image in any mode.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError, OSError: Pillow cannot decode or convert it.
    """
    return np.asarray(_upright_8_bits(image).convert("RGB"))


def _open(file, name: str | None, use):
    """Opens a picture and returns use(image); any failure becomes one line with its name."""
    if name is None:
        name = str(file if isinstance(file, str | os.PathLike) else getattr(file, "name", file))
    try:
        with Image.open(file) as image:
            return use(image)
    except Exception as error:
        raise unreadable(name, error) from error


def unreadable(name: str | os.PathLike, error: Exception) -> ValueError:
    """Makes one line of whatever was raised while a picture was read.

    Args:
        name: What to call the picture.
        error: Pillow's readers raise all sorts on broken files.

    Returns:
        The error to raise instead.
    """
    if isinstance(error, FileNotFoundError):
        reason = "no such file"
    elif isinstance(error, Image.UnidentifiedImageError):
        reason = "not a picture that Pillow knows"
    else:
        reason = one_line(error)
    return ValueError(f"{name}: cannot be read ({reason})")


def one_line(error: Exception) -> str:
    """Gives the first line of an error's text, or its kind where it has none."""
    return next(filter(None, map(str.strip, str(error).splitlines())), type(error).__name__)


def read_rgb(file: str | os.PathLike | io.IOBase, name: str | None = None) -> np.ndarray:
    """Reads a picture as RGB, see `to_rgb`.

    Args:
        file: A path or an open binary file.
        name: What to call it in errors, by default the file's own name.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: The file is missing, no picture, damaged or cut short.
    """
    return _open(file, name, to_rgb)


def read_scoring(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture for scoring: a true grayscale file is its own luma, see `metrics.luma`.

    Returns:
        uint8 [H, W] for a grayscale file, otherwise [H, W, 3] as `read_rgb` gives.

    Raises:
        ValueError: The file is missing, no picture, damaged or cut short.
    """
    return _open(path, None, lambda image: np.asarray(_upright_8_bits(image)))


def read_header(file: str | os.PathLike | io.IOBase, name: str | None = None) -> Header:
    """Reads size, EXIF turn and coding of a picture without decoding it.

    Raises:
        ValueError: The file is missing or its header is not a picture's.
    """
    return _open(file, name, _header)


def count_pixels(path: str | os.PathLike) -> int:
    """Height times width of a picture; 0 of one that cannot be read, which says so when it is."""
    try:
        header = read_header(path)
    except ValueError:
        return 0
    return header.height * header.width


def _header(image: Image.Image) -> Header:
    # PngImageFile.getexif would decode the whole picture to look for EXIF behind it.
    orientation = Image.Image.getexif(image).get(_EXIF_ORIENTATION, 1)
    if orientation not in range(1, 9):
        orientation = 1
    width, height = image.size
    if orientation >= 5 and image.format != "TIFF":  # Pillow gives a TIFF's size as turned
        width, height = height, width
    coding = "other"
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        # MPO is a JPEG with more pictures behind it, as phones make them.
        coding = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}.get(image.format, "other")
    return Header(height, width, orientation, coding)


def middle(picture: np.ndarray, size: int) -> np.ndarray:
    """Cuts the middle out of a picture [h, w, c]: [size, size, c], less where it is smaller."""
    top, left = (max(side - size, 0) // 2 for side in picture.shape[:2])
    return picture[top : top + size, left : left + size]
