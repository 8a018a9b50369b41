"""Reads picture files of many kinds into 8-bit RGB. Imports no TensorFlow."""

import collections
import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from absl import logging
from PIL import Image

from srgan_tf import files, png

# fmt: off
_ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".tif",
    ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc",
    ".jpf", ".jpx", ".avif", ".avifs", ".tga", ".icb", ".vda", ".vst", ".psd", ".qoi", ".pcx",
    ".dcx", ".sgi", ".bw", ".rgb", ".rgba", ".ras", ".dds", ".ico", ".icns", ".cur", ".xbm",
    ".xpm", ".im", ".pcd", ".fli", ".flc", ".msp", ".blp", ".ftc", ".ftu", ".gbr", ".pxr",
    ".fits", ".fit",
)
# Formats that Pillow does not read: from phones, cameras and drawing programs, and rare ones.
_UNREAD_ENDINGS = (
    ".heic", ".heif", ".hif", ".heics", ".jxl", ".jxr", ".wdp", ".hdp", ".bpg", ".flif",
    ".dng", ".gpr", ".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".srw",
    ".orf", ".rw2", ".raf", ".pef", ".raw", ".rwl", ".3fr", ".fff", ".iiq", ".erf", ".kdc",
    ".dcr", ".mrw", ".mef", ".mos", ".x3f", ".svg", ".svgz", ".eps", ".ai", ".wmf", ".emf",
    ".psb", ".xcf", ".kra", ".exr", ".hdr", ".dcm", ".djvu", ".palm",
)
# fmt: on

# The color photographs among the files of scikit-image's wheel. One of the stereo pair
# motorcycle_left/right is enough. Microscopy, textures and drawings are skipped.
_SAMPLES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)

DAMAGED_EXIF = "its EXIF is damaged and skipped"
_EXIF_ORIENTATION = 0x0112
_TRANSPOSED = {  # by EXIF orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# TIFF tags: kind of copy (reduced or not), bits, further pictures, kind of numbers.
_NEW_SUBFILE_TYPE, _BITS, _SUB_IFDS, _SAMPLE_FORMAT = 254, 258, 330, 339
_SIGNED = 2


class Header(NamedTuple):
    """Metadata of a picture, read without decoding it.

    Attributes:
        height: Rows as a person sees it, that is, after EXIF orientation.
        width: Columns, likewise.
        orientation: EXIF orientation, 1 to 8; 1 is upright.
        coding: "jpeg" or "png" where a plain decoder of that format returns the same RGB as
            `to_rgb`, except for the orientation; "other" where only `to_rgb` does.
    """

    height: int
    width: int
    orientation: int
    coding: str


def find_pictures(
    folder: str | os.PathLike, say: Callable[[str], None] = logging.warning
) -> list[Path]:
    """Lists the pictures in a folder and in all folders below it, following links.

    Args:
        folder: The folder.
        say: Receives a line that counts, by their endings, the files that look like pictures but
            are skipped: Pillow cannot read their format, or they are not regular files.

    Returns:
        Sorted paths of the files whose name ends like a picture's, whatever its case. Hidden files
        and folders (a name that begins with a dot) are skipped.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    return sorted(Path(parent, name) for parent, names in walk(folder, say) for name in names)


def walk(
    folder: str | os.PathLike, say: Callable[[str], None] = logging.warning
) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder in which `find_pictures` finds pictures, with their names, as it is read.

    Raises:
        FileNotFoundError: There is no such folder.
    """
    if not os.path.isdir(folder):
        raise FileNotFoundError(f"{folder}: no such folder")
    visited, skipped = set(), collections.defaultdict(list)
    for parent, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(parent)
        if real in visited:  # a link to a folder above would be walked forever
            folders.clear()
            continue
        visited.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found = []
        for name in names:
            path = Path(parent, name)
            if is_picture_name(name):
                if path.is_file():  # reading a pipe would wait forever
                    found.append(name)
                else:
                    skipped["no regular file"].append(path)
            elif name.lower().endswith(_UNREAD_ENDINGS) and not name.startswith("."):
                skipped[f"{path.suffix.lower()} is not read"].append(path)
        if found:
            yield parent, found
    for reason, paths in sorted(skipped.items()):
        count = f"{len(paths)} files, such as " if len(paths) > 1 else ""
        say(f"skipped {count}{min(paths)}: {reason}")


def is_picture_name(name: str) -> bool:
    """Tells whether a file's name ends like a picture's, whatever its case, and is not hidden."""
    return name.lower().endswith(_ENDINGS) and not name.startswith(".")


def sample_pictures(names: Sequence[str] = _SAMPLES) -> list[Path]:
    """Lists photographs in scikit-image's wheel; nothing is downloaded.

    Args:
        names: Their files, by default the color photographs; those that this version of
            scikit-image does not carry are skipped.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return [folder / name for name in names if (folder / name).is_file()]


def is_deep_gray(image: Image.Image) -> bool:
    """Tells whether a picture is gray with more than 8 bits: of mode I, F or I;16."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def white_level(image: Image.Image, values: np.ndarray) -> tuple[float, str]:
    """Finds the value of white in a gray picture of more than 8 bits.

    Unsigned integers of 12 and 16 bits, and PGM, state it. Signed and 32-bit integers and floats
    do not: the smallest usual range that holds the values is assumed.

    Args:
        image: The picture as it was opened, of a mode with `is_deep_gray`.
        values: Its values.

    Returns:
        The value of white, and a sentence about it where it is assumed.

    Raises:
        ValueError: The values have no sensible reading as a picture.
    """
    bits, signed = 32, True
    if image.format == "TIFF":
        bits = image.tag_v2.get(_BITS, (32,))[0]
        signed = image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED
    if image.mode.startswith("I;16"):
        return (4095 if bits == 12 else 65535), ""
    if image.mode == "I" and image.format == "PPM":
        return 65535, ""
    if not np.isfinite(values).all():
        raise ValueError("its values include NaN or infinity")
    least, most = values.min(), values.max()
    if least < 0:
        raise ValueError(f"its values begin at {least:g}, below black")
    if image.mode == "F":
        whites = 1, 255, 65535
    else:
        whites = (255, 32767) if signed and bits == 16 else (255, 65535, 2**31 - 1)
    white = next((white for white in whites if most <= white), None)
    # Values just above the next smaller white, such as 1.02, exceed that range a little. Read in
    # the larger range, they would make a black picture.
    if white is None or (white > whites[0] and most < white / 16):
        usual = ", ".join(map(str, whites))
        raise ValueError(f"its values reach {most:g}: white is none of the usual {usual}")
    kind = "float" if image.mode == "F" else "integer"
    return white, f"its {kind} values are read as 0 to {white}"


def orientation(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8, of an open picture; 1 if its EXIF is damaged.

    EXIF after the pixels of a PNG is found only once the picture is loaded, and a loaded TIFF is
    already oriented.
    """
    try:
        # PngImageFile.getexif would decode the whole picture to look for EXIF after the pixels.
        found = Image.Image.getexif(image).get(_EXIF_ORIENTATION)
    except Exception:  # Pillow raises errors of all kinds on broken tags
        return 1
    return found if found in range(1, 9) else 1


def upright(image: Image.Image) -> Image.Image:
    """Loads a picture and applies its EXIF orientation.

    Unlike `ImageOps.exif_transpose`, it does not rewrite EXIF, which may be damaged.
    """
    image.load()
    method = _TRANSPOSED.get(orientation(image))
    return image if method is None else image.transpose(method)


def _upright_8_bits(image: Image.Image) -> Image.Image:
    """Orients a picture and reduces it to mode L (true grayscale) or RGB."""
    oriented = upright(image)
    if is_deep_gray(oriented):
        values = np.asarray(oriented, np.float64)
        white, assumed = white_level(image, values)
        if assumed:
            _warn_once(f"{getattr(image, 'filename', 'picture')}: {assumed}")
        gray = np.clip(np.floor(values * (255 / white) + 0.5), 0, 255).astype(np.uint8)
        if isinstance(key := image.info.get("transparency"), int):  # PNG's one transparent gray
            gray[values == key] = 255
        return Image.fromarray(gray)
    if oriented.has_transparency_data or oriented.mode in ("La", "RGBa"):
        mode = "LA" if oriented.mode == "La" else "RGBA"
        oriented = oriented.convert(mode).convert("RGBA")
        white = Image.new("RGBA", oriented.size, "white")
        return Image.alpha_composite(white, oriented).convert("RGB")
    if oriented.mode in ("1", "L"):
        return oriented.convert("L")
    return oriented.convert("RGB")  # P, CMYK, YCbCr, HSV


# Training reads a picture many times.
_warn_once = functools.cache(logging.warning)


def to_rgb(image: Image.Image) -> np.ndarray:
    """Converts any picture to RGB as a person would expect to see it.

    The EXIF orientation is applied, a palette looked up, transparency laid over white, CMYK and
    grayscale converted, more than 8 bits scaled to 8 (see `white_level`). The first frame of an
    animation is taken. Color profiles are ignored, as is usual in the field.

    Args:
        image: A Pillow image in any mode.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError, OSError: Pillow cannot decode or convert it, or its numbers have no sensible
            reading.
    """
    return np.asarray(_upright_8_bits(image).convert("RGB"))


def open_picture(file, name: str | None, use: Callable) -> tuple:
    """Opens a picture and uses it; any failure becomes one line with its name.

    Metadata for which Pillow refuses a PNG is skipped: large texts and damaged ancillary chunks.
    Damaged EXIF is skipped in every format.

    Args:
        file: A path or an open binary file.
        name: Its name in errors; None for the file's own name.
        use: Receives the open `PIL.Image.Image`.

    Returns:
        The result of `use`, and sentences about skipped metadata.

    Raises:
        ValueError: It cannot be read; `error.__cause__` is the reason.
    """
    named = isinstance(file, str | os.PathLike)
    if name is None:
        name = str(file if named else getattr(file, "name", file))
    try:
        if named and os.path.exists(file) and not os.path.isfile(file):
            raise ValueError("no regular file")  # reading a pipe would wait forever
        try:
            return _opened(file, use)
        except Exception:
            with open(file, "rb") if named else contextlib.nullcontext(file) as stream:
                rest = png.without_metadata(stream)
            if rest is None:
                raise
        copy, icc, skipped = rest
        result, notes = _opened(copy, use, icc)
    except Exception as error:  # Pillow's readers raise all kinds on broken files
        if isinstance(error, FileNotFoundError):
            reason = "no such file"
        elif isinstance(error, Image.UnidentifiedImageError):
            reason = "not a picture that Pillow knows"
        else:
            reason = files.one_line(error)
        raise ValueError(f"{name}: cannot be read ({reason})") from error
    if skipped:
        chunks = ", ".join(dict.fromkeys(skipped))
        notes = (f"damaged or large metadata is skipped ({chunks})", *notes)
    return result, notes


def _opened(file, use: Callable, icc: bytes = b"") -> tuple:
    with Image.open(file) as image:
        if icc:
            image.info["icc_profile"] = icc
        correct(image)
        result = use(image)
        try:
            # Not image.getexif, which raises an error only once.
            Image.Exif().load(image.info.get("exif", b""))
        except Exception:  # Pillow raises errors of all kinds on broken tags
            return result, (DAMAGED_EXIF,)
    return result, ()


def correct(image: Image.Image) -> None:
    """Corrects what Pillow misreads in an open picture that is not loaded yet.

    Call it once: a second call would scale a PNG's transparent value again.

    Raises:
        ValueError: It is only the preview of a camera raw file.
    """
    if image.format == "TIFF":
        reduced = image.tag_v2.get(_NEW_SUBFILE_TYPE, 0) & 1 or _is_canon_raw(image)
        if reduced and (_SUB_IFDS in image.tag_v2 or image.n_frames > 1):
            raise ValueError(
                "only the preview of a camera raw file can be read: convert it to TIFF or PNG first"
            )
        if image.mode == "L" and image.tag_v2.get(_SAMPLE_FORMAT, (1,))[0] == _SIGNED:
            raise ValueError("its values are signed 8-bit integers, below black")
    key = image.info.get("transparency")
    if image.format == "PNG" and key is not None and image.tile:
        arguments = image.tile[0].args  # Pillow scales the pixels by this, but not the value
        if arguments in ("L;2", "L;4"):
            image.info["transparency"] = key * 255 // (2 ** int(arguments[-1]) - 1)
        elif arguments == "RGB;16B":
            image.info["transparency"] = tuple(value >> 8 for value in key)


def _is_canon_raw(image: Image.Image) -> bool:
    """Tells whether an open TIFF is a CR2 file, whose previews are not marked as such."""
    if image.fp is None or image.fp.closed:
        return False
    position = image.fp.tell()
    image.fp.seek(8)
    mark = image.fp.read(3)
    image.fp.seek(position)
    return mark == b"CR\2"


def read_rgb(file: str | os.PathLike | io.IOBase, name: str | None = None) -> np.ndarray:
    """Reads a picture as RGB, see `to_rgb`.

    Args:
        file: A path or an open binary file.
        name: Its name in errors, by default the file's own name.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: The file is missing, not a picture, damaged or truncated.
    """
    return _read(file, name, to_rgb)


def _read(file, name: str | None, use: Callable) -> np.ndarray:
    picture, notes = open_picture(file, name, use)
    for note in notes:
        _warn_once(f"{name or file}: {note}")
    return picture


def read_scoring(path: str | os.PathLike) -> np.ndarray:
    """Reads a picture for scoring: a true grayscale file is its own luma, see `metrics.luma`.

    Returns:
        uint8 [H, W] for a grayscale file, otherwise [H, W, 3] as from `read_rgb`.

    Raises:
        ValueError: The file is missing, not a picture, damaged or truncated.
    """
    return _read(path, None, lambda image: np.asarray(_upright_8_bits(image)))


def read_header(file: str | os.PathLike | io.IOBase, name: str | None = None) -> Header:
    """Reads size, EXIF orientation and coding of a picture without decoding it.

    Raises:
        ValueError: The file is missing or its header is not a picture's.
    """
    return open_picture(file, name, _header)[0]


def count_pixels(path: str | os.PathLike) -> int:
    """Returns height times width of a picture; 0 if its header cannot be read."""
    try:
        header = read_header(path)
    except ValueError:
        return 0
    return header.height * header.width


def _header(image: Image.Image) -> Header:
    width, height = image.size
    applied = orientation(image)
    if applied >= 5 and image.format != "TIFF":  # a TIFF's size is after orientation already
        width, height = height, width
    coding = "other"
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        # MPO is a JPEG followed by more pictures, as phones write it.
        coding = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}.get(image.format, "other")
    return Header(height, width, applied, coding)


def middle(picture: np.ndarray, size: int) -> np.ndarray:
    """Cuts the middle, at most [size, size, c], out of a picture [h, w, c]."""
    top, left = (max(side - size, 0) // 2 for side in picture.shape[:2])
    return picture[top : top + size, left : left + size]
