import io
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import photograph, png_of, save_photograph, tiff, with_chunk
from PIL import Image, PngImagePlugin

from srgan_tf import pictures
from srgan_tf.photos import photographs

ORIENTATION = 0x0112


def _written(image, suffix, tmp_path, **options):
    path = tmp_path / f"picture{suffix}"
    image.save(path, **options)
    return path


def test_pictures_are_found_at_any_depth_and_behind_links_whatever_the_case_of_their_ending(
    tmp_path,
):
    folder, store = tmp_path / "folder", tmp_path / "store"
    wanted = ["b.JPEG", "deep/c.TIF", "deep/er/a.png", "link/a.png", "z.webp"]
    for name in [*wanted, "notes.txt", "jpg", ".hidden.png", ".thumbnails/d.png"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    (folder / "link").replace(store)
    (folder / "link").symlink_to(store, target_is_directory=True)
    (folder / "deep" / "loop").symlink_to(folder, target_is_directory=True)
    assert pictures.find_pictures(folder) == [folder / name for name in wanted]


def test_every_ending_that_pillow_knows_is_read_or_named():
    Image.init()
    no_pictures = {".bufr", ".grib", ".h5", ".hdf", ".iim", ".mpeg", ".mpg", ".pdf", ".ps"}
    for ending in Image.registered_extensions().keys() - no_pictures:
        assert f"a{ending}".endswith((*pictures._ENDINGS, *pictures._UNREAD_ENDINGS)), ending


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_named_pipes_are_skipped_in_folders_and_refused_by_name(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    save_photograph(tmp_path / "a.png", 8, 8)
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "to pipe.png").symlink_to(tmp_path / "pipe.png")
    said = []
    found = pictures.find_pictures(tmp_path, said.append)
    assert [path.name for path in found] == ["a.png", "link.png"]
    pipe = tmp_path / "pipe.png"
    assert said == [f"skipped 2 files, such as {pipe}: no regular file"]
    for read in (pictures.read_rgb, pictures.read_header, photographs.read_photograph):
        with pytest.raises(ValueError, match=r"pipe\.png: cannot be read \(no regular file\)"):
            read(pipe)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        pictures.find_pictures(tmp_path / "nowhere")


def test_sample_pictures_are_color_photographs_on_disk():
    paths = pictures.sample_pictures()
    assert len(paths) >= 5
    for path in paths:
        picture = pictures.read_rgb(path)
        assert min(picture.shape[:2]) >= 256, path
        assert np.ptp(picture.astype(int), axis=2).mean() > 5, path


@pytest.mark.parametrize("orientation", range(10))  # 0 and 9 are none
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_applied(orientation, suffix, tmp_path):
    upright = photograph(40, 64)
    stored = {
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),  # to be turned clockwise when shown
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }.get(orientation, upright)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = _written(
        Image.fromarray(stored), suffix, tmp_path, exif=exif, quality=100, lossless=True
    )
    picture = pictures.read_rgb(path)
    assert picture.shape == upright.shape
    assert np.abs(picture.astype(int) - upright).mean() < 4
    header = pictures.read_header(path)
    assert (header.height, header.width) == (40, 64)
    assert header.orientation == (orientation if orientation in range(1, 9) else 1)


def test_transparency_is_laid_over_white():
    color = photograph(10, 12)
    alpha = np.zeros((10, 12), np.uint8)
    alpha[:, 6:] = 255
    rgba = np.dstack([color, alpha])
    rgb = pictures.to_rgb(Image.fromarray(rgba))
    assert (rgb[:, :6] == 255).all()
    np.testing.assert_array_equal(rgb[:, 6:], color[:, 6:])
    half = Image.new("RGBA", (1, 1), (0, 100, 200, 51))  # 20 % opaque
    np.testing.assert_allclose(pictures.to_rgb(half)[0, 0], [204, 224, 244], atol=1)
    gray = Image.new("LA", (1, 1), (80, 51))
    np.testing.assert_allclose(pictures.to_rgb(gray)[0, 0], [220] * 3, atol=1)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
def test_a_transparent_color_is_laid_over_white(mode, tmp_path):
    image = Image.new(mode, (2, 1))
    if mode == "P":
        image.putpalette([9, 9, 9, 70, 80, 90])
    image.putpixel((1, 0), {"RGB": (70, 80, 90), "L": 77, "P": 1}[mode])
    path = _written(image, ".png", tmp_path, transparency=(0, 0, 0) if mode == "RGB" else 0)
    expected = [77] * 3 if mode == "L" else [70, 80, 90]
    np.testing.assert_array_equal(pictures.read_rgb(path), [[[255] * 3, expected]])
    assert pictures.read_header(path).coding == "other"


def test_a_palette_is_looked_up(tmp_path):
    image = Image.fromarray(photograph(20, 30)).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    for suffix in (".png", ".gif"):
        path = _written(image, suffix, tmp_path)
        np.testing.assert_array_equal(pictures.read_rgb(path), expected)


def test_cmyk_becomes_rgb(tmp_path):
    colors = Image.fromarray(photograph(32, 48))
    path = _written(colors.convert("CMYK"), ".jpg", tmp_path, quality=100)
    assert pictures.read_header(path).coding == "other"
    difference = pictures.read_rgb(path).astype(int) - np.asarray(colors)
    assert np.abs(difference).mean() < 2


def test_16_bits_are_scaled_to_8(tmp_path):
    levels = np.arange(256, dtype=np.uint16).reshape(16, 16)
    for suffix in (".png", ".tif"):
        path = _written(Image.fromarray(levels * 257), suffix, tmp_path)
        np.testing.assert_array_equal(pictures.read_rgb(path), np.dstack([levels] * 3))
        assert pictures.read_header(path).coding == "other"


@pytest.mark.parametrize(
    ("values", "white"),
    [(np.float32([[0, 0.2, 1]]), 1), (np.float32([[0, 51, 255]]), 255),
     (np.float32([[0, 13107, 65535]]), 65535), (np.int32([[0, 51, 255]]), 255),
     (np.int32([[0, 13107, 65535]]), 65535), (np.int32([[0, 429496730, 2**31 - 1]]), 2**31 - 1)],
)  # fmt: skip
def test_numbers_without_a_stated_white_are_read_in_the_smallest_usual_range(
    values, white, tmp_path
):
    path = _written(Image.fromarray(values), ".tif", tmp_path)
    np.testing.assert_array_equal(pictures.read_rgb(path)[0, :, 0], [0, 51, 255])
    photo = photographs.read_photograph(path)
    np.testing.assert_array_equal(photo.colors, [[0, 13107, 65535]])
    kind = "float" if values.dtype == np.float32 else "integer"
    assert photo.notes == (f"its {kind} values are read as 0 to {white}",)


def test_a_pfm_file_is_read_by_the_rule_for_floats(tmp_path):
    values = struct.pack("<4f", 0.4, 0.6, 0, 1)  # the lower row comes first
    (tmp_path / "a.pfm").write_bytes(b"Pf 2 2 -1.0\n" + values)
    photo = photographs.read_photograph(tmp_path / "a.pfm")
    np.testing.assert_array_equal(photo.colors, [[0, 65535], [26214, 39321]])
    assert photo.notes == ("its float values are read as 0 to 1",)


def test_the_white_level_that_a_format_states_is_used_for_dark_pictures(tmp_path):
    size = {256: 4, 257: 1, 262: 1, 277: 1, 278: 1}
    twelve = tiff(size | {258: 12}, pixels=bytes([0x00, 0x00, 0x33, 0xFF, 0xF0, 0x00]))
    sixteen = tiff(size | {258: 16}, pixels=struct.pack("<4H", 0, 3, 200, 257))
    signed = tiff(size | {258: 16, 339: 2}, pixels=struct.pack("<4h", 0, 3277, 16384, 32767))
    for name, data, levels in (
        ("12.tif", twelve, [0, 3, 255, 0]),
        ("16.tif", sixteen, [0, 0, 1, 1]),
        ("signed.tif", signed, [0, 26, 128, 255]),
        ("16.pgm", b"P5 4 1 65535\n" + struct.pack(">4H", 0, 3, 200, 255), [0, 0, 1, 1]),
        ("10.pgm", b"P5 4 1 1023\n" + struct.pack(">4H", 0, 205, 1023, 0), [0, 51, 255, 0]),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        np.testing.assert_array_equal(pictures.read_rgb(path)[0, :, 0], levels, name)
        deep = photographs.read_photograph(path).colors
        assert np.abs(deep / 257 - levels).max() <= 0.6, name


@pytest.mark.parametrize(
    ("values", "reason"),
    [(np.float32([[0, np.nan]]), "include NaN or infinity"),
     (np.float32([[0, np.inf]]), "include NaN or infinity"),
     (np.float32([[-1, 1]]), "begin at -1, below black"), (np.float32([[0, 1.02]]), "reach 1.02"),
     (np.float32([[0, 300]]), "reach 300"), (np.float32([[0, 70000]]), "reach 70000"),
     (np.int32([[0, 256]]), "reach 256"), (np.int32([[-3, 9]]), "begin at -3"),
     (np.int32([[0, 70000]]), "reach 70000")],
)  # fmt: skip
def test_numbers_without_a_sensible_reading_are_refused(values, reason, tmp_path):
    path = _written(Image.fromarray(values), ".tif", tmp_path)
    for read in (pictures.read_rgb, pictures.read_scoring, photographs.read_photograph):
        with pytest.raises(ValueError, match=rf"picture\.tif: cannot be read \(its .*{reason}"):
            read(path)


def test_signed_bytes_are_refused(tmp_path):
    tags = {256: 4, 257: 1, 258: 8, 262: 1, 277: 1, 278: 1, 339: 2}
    (tmp_path / "a.tif").write_bytes(tiff(tags, pixels=bytes([0, 5, 250, 127])))
    with pytest.raises(ValueError, match="signed 8-bit integers"):
        pictures.read_rgb(tmp_path / "a.tif")


_PREVIEW = {254: 1, 256: 4, 257: 2, 258: 8, 262: 1, 277: 1, 278: 2}


@pytest.mark.parametrize(
    ("preview", "pixels"),
    [({254: 1, 330: "next"}, bytes(8)), ({254: 1}, bytes(8)), ({254: 0}, b"CR\2\0\0\0\0\0")],
    ids=["DNG", "pages", "CR2"],
)
def test_the_preview_of_a_camera_raw_file_is_refused(tmp_path, preview, pixels):
    path = tmp_path / "raw.tif"
    path.write_bytes(tiff(_PREVIEW | preview, _PREVIEW | {254: 0}, pixels=pixels))
    for read in (pictures.read_rgb, pictures.read_header, photographs.read_photograph):
        with pytest.raises(ValueError, match="raw.tif: cannot be read .only the preview of a came"):
            read(path)


def test_a_tiff_with_smaller_copies_behind_it_is_read(tmp_path):
    path = tmp_path / "pyramid.tif"
    path.write_bytes(tiff(_PREVIEW | {254: 0, 330: "next"}, _PREVIEW, pixels=bytes(8)))
    assert pictures.read_rgb(path).shape == (2, 4, 3)
    path.write_bytes(tiff(_PREVIEW, pixels=bytes(8)))  # all that there is
    assert pictures.read_rgb(path).shape == (2, 4, 3)


def _damaged(kind):
    image = Image.fromarray(photograph(8, 9))
    if kind == "text":
        info, file = PngImagePlugin.PngInfo(), io.BytesIO()
        info.add_text("workflow", "x" * 2_000_000, zip=True)
        image.save(file, "PNG", pnginfo=info)
        return file.getvalue()
    data = bytearray(with_chunk(image, kind, bytes(9)))
    data[41] ^= 1
    return bytes(data)


@pytest.mark.parametrize("kind", ["text", b"tEXt", b"pHYs", b"eXIf", b"tIME", b"gAMA"])
def test_metadata_that_is_damaged_or_large_does_not_keep_a_picture_from_being_read(tmp_path, kind):
    path = tmp_path / "a.png"
    path.write_bytes(_damaged(kind))
    np.testing.assert_array_equal(pictures.read_rgb(path), photograph(8, 9))
    np.testing.assert_array_equal(
        pictures.read_rgb(io.BytesIO(path.read_bytes())), photograph(8, 9)
    )
    assert pictures.read_header(path)[:2] == (8, 9)
    photo = photographs.read_photograph(path)
    np.testing.assert_array_equal(photo.colors, photograph(8, 9))
    named = "zTXt" if kind == "text" else kind.decode()
    assert photo.notes == (f"damaged or large metadata is skipped ({named})",)


@pytest.mark.parametrize(
    ("mode", "kind", "data"),
    [("RGB", kind, b"\0") for kind in (b"pHYs", b"cHRM", b"gAMA", b"acTL", b"fcTL", b"tRNS")]
    + [("RGB", b"sRGB", b""), ("RGB", b"fdAT", b""), ("RGB", b"iCCP", b"junk"), ("L", b"tRNS", b"")]
    + [("P", b"tRNS", bytes(300))],
)
def test_a_png_chunk_with_bad_content_is_skipped_with_a_note(tmp_path, mode, kind, data):
    image = Image.fromarray(photograph(8, 9)).convert(mode)
    path = tmp_path / "a.png"
    sound = with_chunk(image, b"cICP", bytes([9, 16, 0, 1]))
    path.write_bytes(with_chunk(with_chunk(sound, kind, data), b"tIME", bytes(7)))
    np.testing.assert_array_equal(pictures.read_rgb(path), image.convert("RGB"))
    photo = photographs.read_photograph(path)
    np.testing.assert_array_equal(photo.colors, image.convert("L" if mode == "L" else "RGB"))
    assert photo.alpha is None and [kind for kind, _ in photo.meaning] == [b"cICP"]
    assert photo.notes == (f"damaged or large metadata is skipped ({kind.decode()})",)


def test_sound_chunks_beside_a_damaged_one_are_kept(tmp_path):
    path, clear = tmp_path / "a.png", struct.pack(">3H", *photograph(8, 9)[0, 0])
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    image = Image.fromarray(photograph(8, 9))
    image.save(path, exif=exif, dpi=(254, 254))
    path.write_bytes(with_chunk(with_chunk(path.read_bytes(), b"tRNS", clear), b"gAMA", b""))
    photo = photographs.read_photograph(path)
    np.testing.assert_array_equal(photo.colors, np.rot90(photograph(8, 9), -1))
    assert photo.alpha[0, -1] == 0 and photo.alpha[-1, 0] == 255
    assert photo.meaning == ((b"pHYs", struct.pack(">IIB", 10000, 10000, 1)),)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_damaged_exif_is_skipped_with_a_note(tmp_path, suffix):
    path = _written(
        Image.fromarray(photograph(8, 9)), suffix, tmp_path, exif=b"Exif\0\0junk", lossless=True
    )
    with Image.open(path) as image:
        expected = np.asarray(image)
    np.testing.assert_array_equal(pictures.read_rgb(path), expected)
    assert pictures.read_header(path)[:3] == (8, 9, 1)
    photo = photographs.read_photograph(path)
    np.testing.assert_array_equal(photo.colors, expected)
    assert photo.exif == b"" and photo.notes == ("its EXIF is damaged and skipped",)


def test_a_picture_is_oriented_though_another_tag_of_its_exif_is_damaged(tmp_path):
    # A resolution as text, which Pillow reads but cannot write again.
    exif = tiff({ORIENTATION: 6, 282: 0}, pixels=b"")
    exif = exif.replace(struct.pack("<HH", 282, 4), struct.pack("<HH", 282, 2))
    path = _written(Image.fromarray(photograph(8, 9)), ".png", tmp_path, exif=b"Exif\0\0" + exif)
    expected = np.rot90(photograph(8, 9), -1)
    np.testing.assert_array_equal(pictures.read_rgb(path), expected)
    photo = photographs.read_photograph(path)
    np.testing.assert_array_equal(photo.colors, expected)
    assert photo.exif == b"" and photo.notes == ("its EXIF is damaged and skipped",)


def _png_with_a_hidden_value(path, width, bits, color_type, rows, value):
    header = struct.pack(">IIBBBBB", width, len(rows), bits, color_type, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = ((b"IHDR", header), (b"tRNS", value), (b"IDAT", pixels), (b"IEND", b""))
    path.write_bytes(png_of(*chunks))


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_the_transparent_gray_of_a_png_of_any_depth_is_hidden(tmp_path, bits):
    path = tmp_path / "a.png"
    rows = 2 * [bytes(bits) + bytes([255]) * bits]  # eight pixels black, eight white
    for key, expected in ((0, [255] * 16), (2**bits - 1, [0] * 8 + [255] * 8)):
        _png_with_a_hidden_value(path, 16, bits, 0, rows, struct.pack(">H", key))
        np.testing.assert_array_equal(pictures.read_rgb(path)[..., 0], [expected] * 2)
        photo = photographs.read_photograph(path)
        alpha = photo.alpha // np.iinfo(photo.alpha.dtype).max
        np.testing.assert_array_equal(alpha, [[int(key != 0)] * 8 + [int(key == 0)] * 8] * 2)


def test_the_transparent_color_of_a_16_bit_png_is_hidden(tmp_path):
    path = tmp_path / "a.png"
    pixels = struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x1134, 0x5678, 0x9ABC)
    _png_with_a_hidden_value(path, 2, 16, 2, [pixels], pixels[:6])
    rgb = pictures.read_rgb(path)
    np.testing.assert_array_equal(rgb, [[[255] * 3, [0x11, 0x56, 0x9A]]])
    np.testing.assert_array_equal(photographs.read_photograph(path).alpha, [[0, 65535]])


def test_1_bit_pictures_are_read_as_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(pictures.to_rgb(image), [[[255] * 3, [0] * 3]])


def test_scoring_keeps_the_values_of_a_gray_file_and_has_color_otherwise(tmp_path):
    gray = photograph(8, 9)[..., 0]
    np.testing.assert_array_equal(
        pictures.read_scoring(_written(Image.fromarray(gray), ".png", tmp_path)), gray
    )
    color = save_photograph(tmp_path / "color.png", 8, 9)
    np.testing.assert_array_equal(pictures.read_scoring(tmp_path / "color.png"), color)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif"])
def test_a_truncated_picture_is_reported_by_name_in_one_line(suffix, tmp_path):
    path = tmp_path / f"cut{suffix}"
    save_photograph(path, 100, 120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    for read in (pictures.read_rgb, photographs.read_photograph):
        with pytest.raises(ValueError, match=rf"cut{suffix}: cannot be read \(.+\)$"):
            read(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "no such file"), (b"", ".+"), (b"Not a picture.", "not a picture that Pillow knows"),
     (b"\x89PNG\r\n\x1a\n", ".+"), (b"\xff\xd8\xff", ".+")],
)  # fmt: skip
def test_a_file_that_is_no_picture_is_reported_by_name_in_one_line(content, reason, tmp_path):
    path = tmp_path / "odd.png"
    if content is not None:
        path.write_bytes(content)
    for read in (
        pictures.read_rgb, pictures.read_header, pictures.read_scoring, photographs.read_photograph
    ):  # fmt: skip
        with pytest.raises(ValueError, match=rf"odd\.png: cannot be read \({reason}\)$"):
            read(path)


def test_a_header_is_read_without_the_body(tmp_path):
    for suffix, coding in [(".jpg", "jpeg"), (".png", "png"), (".bmp", "other")]:
        path = tmp_path / f"cut{suffix}"
        save_photograph(path, 100, 120)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert pictures.read_header(path) == (100, 120, 1, coding)
