import io
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf
import tifffile
from conftest import NEAREST, noise, photograph, save_photograph, with_chunk
from PIL import Image, ImageCms, ImageOps

import srgan_tf
from srgan_tf import networks, pictures, png, upscaling, weights
from srgan_tf.formats import keras_model, openvino_model
from srgan_tf.photos import fastest, photographs, transparency
from srgan_tf.png import PngWriter

ORIENTATION, MAKE, EXIF_IFD, EXPOSURE, WIDTH, HEIGHT = 0x0112, 271, 0x8769, 0x829A, 0xA002, 0xA003
EXECUTOR = ThreadPoolExecutor(2)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


@pytest.fixture(scope="module")
def bundled_network(tmp_path_factory):
    """The bundled SRResNet-MSE in float32, by OpenVINO."""
    path = tmp_path_factory.mktemp("network") / "network.xml"
    openvino_model.write(openvino_model.build(weights.load_layers("srresnet_mse")), path)
    return openvino_model.load(path)


def _visible(pixels):
    """Makes the alpha of [h, w, 2 or 4] visible everywhere, so that all colors count."""
    if pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
        pixels[..., -1] |= np.iinfo(pixels.dtype).max // 2 + 1
    return pixels


def _png(pixels, **options):
    file = io.BytesIO()
    channels = 1 if pixels.ndim == 2 else pixels.shape[-1]
    bits = 8 * pixels.dtype.itemsize
    height, width = pixels.shape[:2]
    writer = PngWriter(
        file, width, height, channels=channels, bits=bits, executor=EXECUTOR, **options
    )
    for start in range(0, height, 40):  # bands, as they come from the network
        writer.write(pixels[start : start + 40])
    writer.close()
    return file.getvalue()


def _upscaled(photo, format="png", tile=16, network=NEAREST):
    file = io.BytesIO()
    photo = photographs.fitted(photo, format, network.bits)
    writer = photographs.open_writer(file, photo, format=format, executor=EXECUTOR)
    for rows in photographs.upscaled_rows(network, photo, tile=tile):
        writer.write(rows)
    writer.close()
    file.seek(0)
    return file


def _exif_of(photo):
    exif = Image.Exif()
    if photo.exif:
        exif.load(b"Exif\0\0" + photo.exif)
    return exif


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_other_decoders_read_the_written_png(channels, dtype):
    for pixels in (
        noise(101, 1 if channels == 1 else 997, channels, dtype=dtype),
        np.full([3, 1, channels], 7, dtype),
    ):
        data = _png(pixels[..., 0] if channels == 1 else pixels)
        decoded = tf.io.decode_png(data, dtype=dtype).numpy()
        np.testing.assert_array_equal(decoded, pixels)
        Image.open(io.BytesIO(data)).verify()


def test_the_written_png_is_at_most_5_percent_larger_than_pillows():
    [cat] = [path for path in pictures.sample_pictures() if path.stem == "chelsea"]
    pixels = pictures.read_rgb(cat)
    by_pillow = io.BytesIO()
    Image.fromarray(pixels).save(by_pillow, "PNG")
    assert len(_png(pixels)) < 1.05 * by_pillow.tell()


def test_missing_rows_are_an_error():
    writer = PngWriter(io.BytesIO(), 4, 4, channels=1, bits=8, executor=EXECUTOR)
    writer.write(np.zeros([3, 4], np.uint8))
    with pytest.raises(ValueError, match="1 rows of the picture are missing"):
        writer.close()


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_exif_and_profile_are_kept_and_the_picture_is_oriented(tmp_path, format, orientation):
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKE] = orientation, "Lens Works"
    exif.get_ifd(EXIF_IFD).update({EXPOSURE: 0.5, WIDTH: 20, HEIGHT: 12})
    stored = photograph(12, 20)
    Image.fromarray(stored).save(
        tmp_path / "p.jpg", exif=exif, icc_profile=SRGB, quality=95, subsampling=0
    )
    photo = photographs.read_photograph(tmp_path / "p.jpg")
    result = Image.open(_upscaled(photo, format))
    seen = np.rot90(stored, -1) if orientation == 6 else stored
    assert result.size == (4 * seen.shape[1], 4 * seen.shape[0])
    small = np.asarray(result.convert("RGB"))[1::4, 1::4].astype(int)
    assert np.abs(small - seen).mean() < 12
    kept = result.getexif()
    assert kept[MAKE] == "Lens Works" and kept.get(ORIENTATION, 1) == 1
    details = kept.get_ifd(EXIF_IFD)
    assert details[EXPOSURE] == 0.5 and (details[WIDTH], details[HEIGHT]) == result.size
    assert result.info["icc_profile"] == SRGB


def test_tags_for_a_tiffs_own_layout_are_not_copied_as_exif(tmp_path):
    exif = Image.Exif()
    exif[MAKE] = "Lens Works"
    Image.fromarray(photograph(12, 20)).save(tmp_path / "p.tif", exif=exif)
    assert dict(_exif_of(photographs.read_photograph(tmp_path / "p.tif"))) == {MAKE: "Lens Works"}


@pytest.mark.parametrize("format", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize(
    "tags",
    [{256: 20, 257: 12}, {256: 4000, 257: 3000, 278: 1}, {284: 2}, {262: 6, 277: 1}, {339: (3,)},
     {254: 1, 330: (8,)}, {258: (16, 16, 16), 338: 1}],
)  # fmt: skip
def test_exif_about_the_storage_of_the_source_is_not_copied(tmp_path, format, tags):
    exif = Image.Exif()
    exif.update(tags | {MAKE: "Lens Works"})
    exif.get_ifd(EXIF_IFD).update({EXPOSURE: 0.5, 0x9102: 4})
    picture = photograph(12, 20)
    Image.fromarray(picture).save(tmp_path / "p.webp", exif=exif, lossless=True)
    photo = photographs.read_photograph(tmp_path / "p.webp")
    exif = _exif_of(photo)
    assert dict(exif).keys() == {MAKE, EXIF_IFD} and exif.get_ifd(EXIF_IFD) == {EXPOSURE: 0.5}
    (tmp_path / "result").write_bytes(_upscaled(photo, format).read())
    photographs.check_result(tmp_path / "result", photo, format)
    result = Image.open(tmp_path / "result")
    assert (result.mode, result.size, result.getexif()[MAKE]) == ("RGB", (80, 48), "Lens Works")
    difference = np.asarray(result)[1::4, 1::4].astype(int) - picture
    assert np.abs(difference).mean() < (12 if format in photographs.LOSSY else 0.01)


def test_gamma_cicp_and_resolution_are_kept_in_png_and_kept_or_noted_elsewhere(tmp_path):
    chunks = {
        b"gAMA": struct.pack(">I", 100000),
        b"cICP": bytes([9, 16, 0, 1]),
        b"pHYs": struct.pack(">IIB", 11811, 11811, 1),  # 300 dpi
    }
    data = Image.fromarray(photograph(8, 9))
    for kind, content in chunks.items():
        data = with_chunk(data, kind, content)
    (tmp_path / "p.png").write_bytes(data)
    photo = photographs.read_photograph(tmp_path / "p.png")
    assert dict(photo.meaning) == chunks
    result = _upscaled(photo)
    assert dict(png.meaning(result)) == chunks
    assert Image.open(result).info["gamma"] == 1
    for format in ("jpg", "tif", "webp"):
        fitted = photographs.fitted(photo, format, 8)
        note = f"its cICP, gAMA cannot be kept in .{format}; --format=png keeps them"
        assert fitted.notes == (note,)
        result = Image.open(_upscaled(photo, format))
        dpi = result.getexif()[282] if format == "webp" else result.info["dpi"]
        assert np.allclose(float(dpi) if format == "webp" else dpi, 300, atol=0.1)


def test_chunks_that_mean_srgb_are_not_noted_as_lost(tmp_path):
    data = Image.fromarray(photograph(8, 9))
    for kind, content in ((b"sRGB", b"\0"), *photographs._SRGB.items()):
        data = with_chunk(data, kind, content)
    (tmp_path / "p.png").write_bytes(data)
    photo = photographs.read_photograph(tmp_path / "p.png")
    assert photographs.fitted(photo, "jpg", 8).notes == ()


def test_a_resolution_too_large_for_jpeg_is_noted(tmp_path):
    Image.fromarray(photograph(8, 9)).save(tmp_path / "p.png", dpi=(70000, 300))
    photo = photographs.read_photograph(tmp_path / "p.png")
    fitted = photographs.fitted(photo, "jpg", 8)
    assert fitted.notes == ("its pHYs cannot be kept in .jpg; --format=png keeps them",)
    assert "dpi" not in Image.open(_upscaled(photo, "jpg")).info
    assert photographs.fitted(photo, "tif", 8).notes == ()
    assert np.allclose(Image.open(_upscaled(photo, "tif")).info["dpi"], (70000, 300))


@pytest.mark.parametrize("source", ["jpg", "tif"])
def test_the_resolution_of_other_formats_is_kept_in_png(tmp_path, source):
    Image.fromarray(photograph(8, 9)).save(tmp_path / f"p.{source}", dpi=(240, 120))
    result = Image.open(_upscaled(photographs.read_photograph(tmp_path / f"p.{source}")))
    assert np.allclose(result.info["dpi"], (240, 120), atol=0.02)


def test_a_profile_too_large_for_png_is_applied_or_noted(tmp_path):
    large = SRGB + bytes(1_500_000)
    picture = Image.fromarray(photograph(8, 9))
    picture.save(tmp_path / "p.tif", icc_profile=large)
    photo = photographs.fitted(photographs.read_photograph(tmp_path / "p.tif"), "png", 8)
    line = "its color profile is too large for .png: its colors are converted to sRGB"
    assert photo.notes == (line,) and photo.icc == b""
    assert np.abs(photo.colors.astype(int) - np.asarray(picture)).max() <= 1
    Image.open(_upscaled(photo)).load()
    gray = photographs.Photograph(noise(8, 9), None, b"", large)
    [note] = photographs.fitted(gray, "png", 8).notes
    assert note == "its color profile is too large for .png: it is skipped"
    assert photographs.fitted(gray, "tif", 8) == gray


def test_a_large_profile_of_a_png_is_read(tmp_path):
    large = SRGB + bytes(1_500_000)
    Image.fromarray(photograph(8, 9)).save(tmp_path / "p.png", icc_profile=large)
    photo = photographs.read_photograph(tmp_path / "p.png")
    assert photo.icc == large and photo.notes == ()


def test_a_result_that_could_not_be_read_again_is_refused(tmp_path):
    photo = photographs.Photograph(photograph(8, 9), None, b"", b"")
    data = _upscaled(photo).getvalue()
    path = tmp_path / "a_x4.png"
    path.write_bytes(data)
    photographs.check_result(path, photo, "png")
    for damaged, reason in (
        (data[:-20], "could not be read again"),
        (data[:60] + bytes(9) + data[69:], "could not be read again"),
        (with_chunk(data, b"iCCP", b"p\0\0" + zlib.compress(bytes(2 << 20))), "read again"),
        (_upscaled(photo._replace(colors=photo.colors[:4])).read(), "as 36x16"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=reason):
            photographs.check_result(path, photo, "png")


@pytest.mark.parametrize(
    ("mode", "result"),
    [("1", "L"), ("L", "L"), ("LA", "LA"), ("P", "RGB"), ("PA", "RGBA"), ("RGB", "RGB"),
     ("RGBA", "RGBA"), ("RGBX", "RGB"), ("CMYK", "RGB"), ("YCbCr", "RGB"), ("HSV", "RGB"),
     ("LAB", "RGB"), ("I", "I;16"), ("F", "I;16"), ("I;16", "I;16"), ("La", "LA"),
     ("RGBa", "RGBA")],
)  # fmt: skip
def test_each_pillow_mode_has_its_mode_of_result(mode, result):
    rgb = Image.fromarray(photograph(20, 30))
    if mode == "LAB":
        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(rgb, *profiles, outputMode="LAB")
    elif mode == "I;16":
        image = Image.fromarray(noise(20, 30, dtype=np.uint16))
    elif mode in ("La", "RGBa", "PA"):
        image = rgb.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode]).convert(mode)
    else:
        image = rgb.convert(mode)
    upscaled = Image.open(_upscaled(photographs._photograph(image)))
    assert (upscaled.mode, upscaled.size) == (result, (120, 80))
    if result == "RGB":
        small = np.asarray(upscaled)[::4, ::4].astype(int)
        assert np.abs(small - np.asarray(rgb)).mean() < (20 if mode == "P" else 8)


def _seen(picture, background):
    """Lays RGB or gray and alpha over a background, [h, w] in 0..255."""
    values = picture.astype(float) / (np.iinfo(picture.dtype).max / 255)
    alpha = values[..., -1:] / 255
    return values[..., :-1] * alpha + background[..., None] * (1 - alpha)


def _alphas():
    y, x = np.mgrid[:48, :64]
    distance = np.hypot(y - 24, x - 32)
    return {
        "disk": np.clip((18 - distance) * 128, 0, 255),
        "glow": np.clip((22 - distance) * 12, 0, 255),
        "ring": 255 * (np.abs(distance - 15) < 1.5),
        "lines": 255 * ((x + y) % 11 == 0),
        "specks": 255 * (np.random.default_rng(1).random(y.shape) < 0.02),
        "half": 100 * (x > 40),
        "nothing": 0 * x,
    }


@pytest.mark.parametrize("kind", ["RGBA 8", "RGBA 16", "LA 8", "LA 16"])
def test_hidden_colors_do_not_show(bundled_network, kind):
    mode, bits = kind.split()
    dtype = np.dtype(f"uint{bits}")
    white = np.iinfo(dtype).max
    rng = np.random.default_rng(0)
    checker = (np.indices((192, 256)) // 8).sum(0) % 2 * 255
    for name, alpha in _alphas().items():
        alpha = np.round(alpha * (white / 255)).astype(dtype)
        channels = 3 if mode == "RGBA" else 1
        colors = photograph(48, 64)[..., :channels].astype(dtype) * (white // 255)
        results = []
        for hidden in (colors, 0, rng.integers(0, white, colors.shape)):
            shown = np.where(alpha[..., None] > 0, colors, hidden).astype(dtype)
            photo = photographs.Photograph(shown.squeeze(), alpha, b"", b"")
            rows = photographs.upscaled_rows(bundled_network, photo, tile=None)
            results.append(np.concatenate(list(rows)))
        for background in (0 * checker, 0 * checker + 255, checker):
            first, *others = (_seen(result, background) for result in results)
            for other in others:
                assert np.abs(other - first).max() <= 2, name


def test_a_shape_of_one_color_has_no_fringe(bundled_network):
    flat = np.full([48, 64, 3], (250, 230, 60), np.uint8)
    expected = upscaling.upscale(bundled_network, flat).astype(int)
    for name, alpha in _alphas().items():
        alpha = alpha.astype(np.uint8)
        photo = photographs.Photograph(flat * (alpha[..., None] > 0), alpha, b"", b"")
        sr = np.concatenate(list(photographs.upscaled_rows(bundled_network, photo, tile=None)))
        assert (np.abs(sr[..., :3] - expected) * (sr[..., 3:] > 0)).max() <= 1, name


def test_visible_colors_and_opaque_pictures_are_not_changed():
    colors = photograph(200, 130)
    assert transparency.filled(colors, np.full([200, 130], 255, np.uint8)) is colors
    for faint in (1, 20, 128):  # nothing around is more visible
        alpha = np.full([200, 130], faint, np.uint8)
        np.testing.assert_array_equal(transparency.filled(colors, alpha), colors)
    alpha = noise(200, 130)
    filled = transparency.filled(colors, alpha)
    opaque = alpha >= 64
    np.testing.assert_array_equal(filled[opaque], colors[opaque])
    change = np.abs(filled.astype(int) - colors) * (alpha[..., None] / 255)
    assert 0 < change.max() < 16


def test_hidden_colors_do_not_depend_on_bands(monkeypatch):
    colors, alpha = photograph(700, 90), 255 * (noise(700, 90) > 253)
    alpha = alpha.astype(np.uint8)
    bands = transparency.filled(colors, alpha)
    monkeypatch.setattr(transparency, "_BAND", 1024)
    np.testing.assert_array_equal(bands, transparency.filled(colors, alpha))


@pytest.mark.parametrize("format", ["png", "webp", "tif", "gif"])
def test_hidden_colors_of_files_do_not_show(bundled_network, tmp_path, format):
    results = []
    for hidden in (0, 255):
        pixels = np.full([24, 24, 4], 90, np.uint8)
        pixels[..., 3] = 255
        pixels[:, :12] = (hidden, hidden, hidden, 0)
        options = {"lossless": True, "exact": True} if format == "webp" else {}
        Image.fromarray(pixels).save(tmp_path / f"p.{format}", **options)
        photo = photographs.read_photograph(tmp_path / f"p.{format}")
        for target in ("png", "tif"):
            file = _upscaled(photo, target, tile=None, network=bundled_network)
            results.append(np.asarray(Image.open(file))[:, 48:])
        flat = np.asarray(Image.open(_upscaled(photo, "jpg")).convert("L")).astype(int)
        assert np.abs(flat[:, :36] - 255).max() <= 8 and np.abs(flat[:, 60:] - 90).max() <= 8
        np.testing.assert_array_equal(pictures.read_rgb(tmp_path / f"p.{format}")[:, :12], 255)
    assert all(np.abs(result[..., :3].astype(int) - 90).max() <= 2 for result in results)


def test_cmyk_with_a_damaged_profile_is_read():
    image = Image.fromarray(photograph(8, 8)).convert("CMYK")
    image.info["icc_profile"] = b"damaged"
    photo = photographs._photograph(image)
    assert photo.icc == b""
    np.testing.assert_array_equal(photo.colors, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bits_of_a_png_are_kept(tmp_path, channels):
    pixels = _visible(noise(30, 20, channels, dtype=np.uint16))
    pixels = pixels[..., 0] if channels == 1 else pixels
    (tmp_path / "p.png").write_bytes(_png(pixels))
    photo = photographs.read_photograph(tmp_path / "p.png")
    data = _upscaled(photo).getvalue()
    upscaled = tf.io.decode_png(data, dtype=tf.uint16).numpy()[1::4, 1::4]
    colors = 1 if channels < 3 else 3
    expected = pixels.reshape(30, 20, channels)[..., :colors]
    np.testing.assert_array_equal(upscaled[..., :colors], expected)
    assert upscaled.shape[-1] == channels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [None, "lzw", "zlib"])
@pytest.mark.parametrize("kind", ["rgb", "rgb and alpha", "planes"])
def test_16_bits_of_a_tiff_are_read(tmp_path, order, compression, kind):
    pixels = noise(30, 20, 4 if kind == "rgb and alpha" else 3, dtype=np.uint16)
    options = {"byteorder": order, "photometric": "rgb", "compression": compression}
    options |= {"extrasamples": ["unassalpha"]} if kind == "rgb and alpha" else {}
    options |= {"planarconfig": "separate"} if kind == "planes" else {}
    stored = np.moveaxis(pixels, -1, 0) if kind == "planes" else pixels
    tifffile.imwrite(tmp_path / "p.tif", stored, **options)
    photo = photographs.read_photograph(tmp_path / "p.tif")
    np.testing.assert_array_equal(photo.colors, pixels[..., :3])
    if kind == "rgb and alpha":
        np.testing.assert_array_equal(photo.alpha, pixels[..., 3])
    assert photo.notes == ()


def test_16_bits_that_are_read_as_8_are_noted(tmp_path):
    deep = noise(30, 20, 4, dtype=np.uint16)
    tifffile.imwrite(tmp_path / "cmyk.tif", deep, photometric="separated")
    (tmp_path / "p.ppm").write_bytes(b"P6 20 30 65535\n" + deep[..., :3].astype(">u2").tobytes())
    photos = {path.stem: photographs.read_photograph(path) for path in tmp_path.iterdir()}
    for photo in photos.values():
        assert photo.colors.dtype == np.uint8
        assert photo.notes == ("only 8 of its bits are read",)
    assert np.abs(photos["p"].colors - deep[..., :3] / 257).max() <= 1


def test_8_bits_in_planes_and_ppm_are_read_without_a_note(tmp_path):
    pixels = photograph(30, 20)
    rgb = np.moveaxis(pixels, -1, 0)
    tifffile.imwrite(tmp_path / "p.tif", rgb, photometric="rgb", planarconfig="separate")
    Image.fromarray(pixels).save(tmp_path / "p.ppm")
    for name in ("p.tif", "p.ppm"):
        photo = photographs.read_photograph(tmp_path / name)
        np.testing.assert_array_equal(photo.colors, pixels)
        assert photo.notes == ()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["png", "tif"])
def test_a_16_bit_picture_is_oriented(tmp_path, format, orientation):
    pixels = noise(6, 9, 3, dtype=np.uint16)
    if format == "png":
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = _png(pixels, exif=exif.tobytes().removeprefix(b"Exif\0\0"))
        (tmp_path / "p.png").write_bytes(data)
    else:
        tags = [(ORIENTATION, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / "p.tif", pixels, photometric="rgb", extratags=tags)
    photo = photographs.read_photograph(tmp_path / f"p.{format}")
    seen = Image.open(tmp_path / f"p.{format}")
    seen = np.asarray(ImageOps.exif_transpose(seen))  # the high bytes
    np.testing.assert_array_equal(photo.colors >> 8, seen)
    assert ORIENTATION not in _exif_of(photo)


def test_networks_compute_16_bit_pictures_at_full_depth():
    generator = networks.build_generator(residual_blocks=1, filters=8)
    ramp = np.linspace(20000, 21000, 40 * 40).reshape(40, 40).astype(np.uint16)
    network, rgb = keras_model.compiled(generator), np.stack([ramp] * 3, axis=-1)
    deep = upscaling.upscale(network, rgb, tile=39)
    flat = upscaling.upscale(network, (rgb >> 8).astype(np.uint8))
    assert deep.dtype == np.uint16
    assert len(np.unique(deep)) > 500 and len(np.unique(flat)) < 60
    assert np.abs(deep / 257 - flat).mean() < 3


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_is_upscaled_with_bicubic_without_seams(dtype):
    alpha = noise(50, 40, dtype=dtype)
    photo = photographs.Photograph(noise(50, 40, 3, dtype=dtype), alpha, b"", b"")
    rows = np.concatenate(list(photographs.upscaled_rows(NEAREST, photo, tile=13)))
    whole = Image.fromarray(alpha.astype(np.float32)).resize((160, 200), Image.Resampling.BICUBIC)
    expected = np.clip(np.round(np.asarray(whole)), 0, np.iinfo(dtype).max)
    # Pillow's sums depend a little on where its box begins.
    assert np.abs(rows[..., 3] - expected).max() <= (1 if dtype == np.uint16 else 0)
    seen = alpha > np.iinfo(dtype).max // 4
    np.testing.assert_array_equal(rows[::4, ::4, :3][seen], photo.colors[seen])


def test_losses_to_a_format_are_noted():
    clear = np.zeros([8, 8], np.uint16)
    photo = photographs.Photograph(noise(8, 8, 3, dtype=np.uint16), clear, b"x" * 70000, b"")
    kept = photographs.fitted(photo, "jpg", 16)
    assert kept.colors.dtype == np.uint8 and (kept.colors == 255).all() and kept.alpha is None
    assert "over white" in kept.notes[0] and "8 bits" in kept.notes[1] and "EXIF" in kept.notes[2]
    assert Image.open(_upscaled(kept, "jpg")).mode == "RGB"
    assert "8 bits" in photographs.fitted(photo, "tif", 16).notes[0]
    assert photographs.fitted(photo, "png", 8).notes == (
        "reduced to 8 bits, the most that this network takes",
    )
    assert photographs.fitted(photo, "png", 16) == photo
    deep_gray = photographs.Photograph(noise(8, 8, dtype=np.uint16), None, b"", b"")
    small = np.asarray(Image.open(_upscaled(deep_gray, "tif")))[::4, ::4]
    np.testing.assert_array_equal(small, deep_gray.colors)


def test_a_result_too_large_for_its_format_is_refused_before_upscaling():
    wide = photographs.Photograph(np.zeros([1, 4096, 3], np.uint8), None, b"", b"")
    with pytest.raises(ValueError, match="16384x4 pixels are more than a .webp file can have"):
        photographs.fitted(wide, "webp", 16)


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_pillow_writes_the_largest_size_of_each_format_and_no_more(ending):
    name, most = photographs.FORMATS[ending]
    Image.new("RGB", (most, 1)).save(io.BytesIO(), name)
    with pytest.raises((OSError, ValueError)):
        Image.new("RGB", (most + 1, 1)).save(io.BytesIO(), name)


def test_a_large_tiff_is_a_bigtiff(monkeypatch):
    exif = Image.Exif()
    exif[MAKE] = "Lens Works"
    exif.get_ifd(EXIF_IFD)[EXPOSURE] = 0.5
    exif = exif.tobytes().removeprefix(b"Exif\0\0")
    photo = photographs.Photograph(photograph(10, 20), None, exif, SRGB)
    monkeypatch.setattr(photographs, "BIG_TIFF", 40 * 80 * 3)
    assert _upscaled(photo, "tif").read(4) == b"II*\0"
    monkeypatch.setattr(photographs, "BIG_TIFF", 40 * 80 * 3 - 1)
    file = _upscaled(photo, "tif")
    assert file.read(4) == b"II+\0"
    result = Image.open(file)
    np.testing.assert_array_equal(np.asarray(result)[::4, ::4], photo.colors)
    kept = result.getexif()
    assert kept[MAKE] == "Lens Works" and kept.get_ifd(EXIF_IFD)[EXPOSURE] == 0.5
    assert result.info["icc_profile"] == SRGB


def test_the_first_frame_of_an_animation_is_read_with_a_note(tmp_path):
    frames = [Image.fromarray(photograph(20, 20, seed)) for seed in range(3)]
    frames[0].save(tmp_path / "p.webp", save_all=True, append_images=frames[1:], lossless=True)
    photo = photographs.read_photograph(tmp_path / "p.webp")
    assert photo.notes == ("only its first frame is read",)
    np.testing.assert_array_equal(photo.colors, np.asarray(frames[0]))


def test_a_picture_of_too_many_pixels_is_refused_with_the_flag_that_allows_it(
    tmp_path, monkeypatch
):
    save_photograph(tmp_path / "bomb.jpg", 100, 100)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match="^.*bomb.jpg: more than .* raise --max_megapixels.*$"):
        photographs.read_photograph(tmp_path / "bomb.jpg")


@pytest.fixture
def nearest_weights(monkeypatch):
    photographs._network.cache_clear()
    monkeypatch.setattr(fastest, "load_network", lambda *_, **__: (NEAREST, "float32"))
    yield
    photographs._network.cache_clear()


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 2), (5, 6, 3), (5, 6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, "<u2", ">u2"])
def test_from_python_arrays_become_arrays_of_their_kind(nearest_weights, shape, dtype):
    native = np.dtype(dtype).newbyteorder("=")
    picture = _visible(noise(*shape, dtype=native)).astype(dtype)
    sr = srgan_tf.upscale(picture)
    assert sr.dtype == dtype and sr.shape == (20, 24, *shape[2:])
    colors = {2: 1, 4: 3}.get(sr.shape[-1])
    np.testing.assert_array_equal(sr[1::4, 1::4, ...][..., :colors], picture[..., :colors])


def test_from_python_images_become_images(nearest_weights):
    image = Image.fromarray(photograph(10, 20))
    image.getexif()[ORIENTATION] = 6
    image.info["icc_profile"] = SRGB
    result = srgan_tf.upscale(image)
    assert (result.mode, result.size) == ("RGB", (40, 80)) and result.info["icc_profile"] == SRGB
    assert image.getexif()[ORIENTATION] == 6  # what was given stays as it is
    assert srgan_tf.upscale(Image.fromarray(noise(4, 4, dtype=np.uint16))).mode == "I;16"


def test_from_python_16_bit_gray_with_a_transparent_value_becomes_8_bit_gray_and_alpha(
    nearest_weights, tmp_path
):
    pixels = noise(4, 5, dtype=np.uint16)
    Image.fromarray(pixels).save(tmp_path / "p.png", transparency=int(pixels[1, 2]))
    result = srgan_tf.upscale(Image.open(tmp_path / "p.png"))
    assert (result.mode, result.size) == ("LA", (20, 16))
    gray, alpha = np.moveaxis(np.asarray(result), -1, 0)
    seen = pixels != pixels[1, 2]
    np.testing.assert_array_equal(gray[::4, ::4][seen], np.round(pixels / 257)[seen])
    assert alpha[6, 10] < 128 and alpha[14, 2] == 255


def test_from_python_other_types_and_shapes_are_refused(nearest_weights):
    with pytest.raises(TypeError, match="not list"):
        srgan_tf.upscale([[1]])
    for array in (np.zeros([4, 4]), np.zeros([4, 4, 5], np.uint8), np.zeros([4], np.uint8)):
        with pytest.raises(ValueError, match="upscale takes uint8 or uint16"):
            srgan_tf.upscale(array)
    with pytest.raises(AttributeError, match="no attribute 'downscale'"):
        _ = srgan_tf.downscale
