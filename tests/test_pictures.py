import io

import numpy as np
import pytest
from conftest import photograph, save_photograph
from PIL import Image

from srgan_tf import pictures

ORIENTATION = 0x0112


def _written(image, suffix, tmp_path, **options):
    path = tmp_path / f"picture{suffix}"
    image.save(path, **options)
    return path


def test_pictures_are_found_at_any_depth_sorted_whatever_the_case_of_their_ending(tmp_path):
    wanted = ["b.JPEG", "deep/c.TIF", "deep/er/a.png", "z.webp"]
    for name in [*wanted, "notes.txt", "jpg", ".hidden.png", ".thumbnails/d.png"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep" / "loop").symlink_to(tmp_path, target_is_directory=True)
    assert pictures.find_pictures(tmp_path) == [tmp_path / name for name in wanted]


def test_links_to_folders_are_followed(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "a.png").touch()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "link").symlink_to(tmp_path / "store", target_is_directory=True)
    assert pictures.find_pictures(tmp_path / "train") == [tmp_path / "train" / "link" / "a.png"]


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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_turns_are_applied(orientation, suffix, tmp_path):
    upright = photograph(40, 64)
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),  # to be turned clockwise when shown
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
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
    assert header.orientation == orientation


def test_a_nonsensical_exif_turn_is_ignored(tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = 9
    path = _written(Image.fromarray(photograph(20, 30)), ".jpg", tmp_path, exif=exif)
    assert pictures.read_header(path).orientation == 1
    assert pictures.read_rgb(path).shape == (20, 30, 3)


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


def test_gray_with_transparency_is_laid_over_white():
    image = Image.new("LA", (2, 1), (80, 255))
    image.putpixel((0, 0), (80, 0))
    np.testing.assert_array_equal(pictures.to_rgb(image), [[[255] * 3, [80] * 3]])


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
    "values", [np.float32([[0, 0.2, 1]]), np.float32([[0, 51, 255]]), np.int32([[0, 51, 255]])]
)
def test_numbers_of_another_range_become_8_bits(values, tmp_path):
    path = _written(Image.fromarray(values), ".tif", tmp_path)
    np.testing.assert_array_equal(pictures.read_rgb(path)[0, :, 0], [0, 51, 255])


def test_black_and_white_becomes_black_and_white():
    image = Image.fromarray(np.array([[True, False]]))
    np.testing.assert_array_equal(pictures.to_rgb(image), [[[255] * 3, [0] * 3]])


def test_scoring_keeps_the_values_of_a_gray_file_and_has_color_otherwise(tmp_path):
    gray = photograph(8, 9)[..., 0]
    np.testing.assert_array_equal(
        pictures.read_scoring(_written(Image.fromarray(gray), ".png", tmp_path)), gray
    )
    color = save_photograph(tmp_path / "color.png", 8, 9)
    np.testing.assert_array_equal(pictures.read_scoring(tmp_path / "color.png"), color)


def test_an_open_file_is_read_like_a_path():
    picture, buffer = photograph(8, 9), io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    np.testing.assert_array_equal(pictures.read_rgb(buffer), picture)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif"])
def test_a_truncated_picture_is_an_error_of_one_line_that_names_it(suffix, tmp_path):
    path = tmp_path / f"cut{suffix}"
    save_photograph(path, 100, 120)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match="cut") as caught:
        pictures.read_rgb(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"Not a picture.", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_what_is_no_picture_is_an_error_of_one_line_that_names_it(content, tmp_path):
    path = tmp_path / "odd.png"
    path.write_bytes(content)
    for read in (pictures.read_rgb, pictures.read_header, pictures.read_scoring):
        with pytest.raises(ValueError, match=r"odd\.png: cannot be read \(.+\)$"):
            read(path)


def test_a_missing_picture_is_said_to_be_missing(tmp_path):
    with pytest.raises(ValueError, match="gone.png: cannot be read .no such file"):
        pictures.read_rgb(tmp_path / "gone.png")


def test_a_header_is_read_without_the_body(tmp_path):
    for suffix, coding in [(".jpg", "jpeg"), (".png", "png"), (".bmp", "other")]:
        path = tmp_path / f"cut{suffix}"
        save_photograph(path, 100, 120)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        assert pictures.read_header(path) == (100, 120, 1, coding)
