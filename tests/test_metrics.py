import csv

import numpy as np
import pytest
import skimage.data
from skimage.metrics import structural_similarity

from srgan_tf import metrics


def _noisy_pair(height, width, channels=3, seed=0):
    generator = np.random.default_rng(seed)
    hr = generator.integers(0, 256, [height, width, channels], np.uint8)
    noise = generator.integers(-20, 21, hr.shape)
    return np.clip(hr + noise, 0, 255).astype(np.uint8), hr


def test_ssim_equals_daalas_own_tool(shared):
    path = shared / "golden" / "daala_ssim.csv"
    if not path.exists():
        pytest.skip("no daala_ssim.csv in SRGAN_SHARED")
    with path.open() as file:
        golden = list(csv.DictReader(file))
    assert golden
    for row in golden:
        picture = getattr(skimage.data, row["image"])()
        picture = picture[..., :3] if picture.ndim == 3 else picture
        height, width = (side // 4 * 4 for side in picture.shape[:2])
        hr = picture[:height, :width]
        sr = hr[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)
        if hr.ndim == 3:  # the tool was given luma rounded to 8 bits
            hr, sr = (np.round(metrics.luma(x)).astype(np.uint8) for x in (hr, sr))
        assert hr.shape == (int(row["height"]) + 8, int(row["width"]) + 8), row["image"]
        assert metrics.ssim(sr, hr) == pytest.approx(float(row["ssim"]), abs=1e-5), row["image"]
        assert metrics.psnr(sr, hr) == pytest.approx(float(row["psnr"]), abs=1e-5), row["image"]


@pytest.mark.parametrize("size", [(19, 40), (300, 64), (530, 33)])
def test_wangs_ssim_equals_scikit_image(size):
    sr, hr = _noisy_pair(*size)
    x, y = (metrics.luma(picture)[4:-4, 4:-4] for picture in (sr, hr))
    reference = structural_similarity(
        x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
    )
    assert metrics.ssim_wang(sr, hr) == pytest.approx(reference, abs=1e-6)


def _window(kernel, place, length):
    """A kernel around a place of a line, and zero elsewhere."""
    half = len(kernel) // 2
    line = np.zeros(length + 2 * half)
    line[place : place + len(kernel)] = kernel
    return line[half : half + length]


@pytest.mark.parametrize("size", [(20, 300), (300, 20), (601, 31), (1300, 40)])
def test_ssim_equals_the_definition_at_each_position(size):
    sr, hr = _noisy_pair(*size)
    x, y = (metrics.luma(picture)[4:-4, 4:-4] for picture in (sr, hr))
    height, width = x.shape
    down = metrics._daala_kernel(1.5 * height / 256, height)
    across = metrics._daala_kernel(1.5 * height / 256, width)
    generator = np.random.default_rng(1)
    maps = np.full(x.shape, np.nan)
    for where, _, similarity in metrics._ssim_tiles(x, y, down, across):
        maps[where] = similarity
    for _ in range(20):
        i, j = generator.integers(height), generator.integers(width)
        weights = np.outer(_window(down, i, height), _window(across, j, width))
        mean_x, mean_y, xx, yy, xy = (
            (weights * values).sum() / weights.sum() for values in (x, y, x * x, y * y, x * y)
        )
        c1, c2 = 2.55**2, 7.65**2
        expected = (2 * mean_x * mean_y + c1) * (2 * (xy - mean_x * mean_y) + c2)
        expected /= (mean_x**2 + mean_y**2 + c1) * (xx - mean_x**2 + yy - mean_y**2 + c2)
        assert maps[i, j] == pytest.approx(expected, abs=1e-9)


def test_a_border_of_four_pixels_is_ignored():
    sr, hr = _noisy_pair(64, 48)
    spoiled = sr.copy()
    spoiled[:4] = spoiled[-4:] = 0
    spoiled[:, :4] = spoiled[:, -4:] = 255
    for measure in (metrics.psnr, metrics.ssim, metrics.ssim_wang):
        assert measure(spoiled, hr) == measure(sr, hr)


def test_luma_is_studio_swing_and_gray_is_its_own_luma():
    black_white = np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8)
    np.testing.assert_allclose(metrics.luma(black_white), [[16, 235]], atol=1e-9)
    gray = np.array([[0, 255]], np.uint8)
    np.testing.assert_array_equal(metrics.luma(gray), [[0, 255]])


def test_equal_pictures_have_infinite_psnr_and_ssim_1():
    _, hr = _noisy_pair(40, 40)
    assert metrics.psnr(hr, hr) == float("inf")
    assert metrics.ssim(hr, hr) == pytest.approx(1, abs=1e-12)
    assert metrics.ssim_wang(hr, hr) == pytest.approx(1, abs=1e-12)


def test_unsuitable_pictures_are_refused():
    sr, hr = _noisy_pair(40, 40)
    for measure in (metrics.psnr, metrics.ssim, metrics.ssim_wang):
        with pytest.raises(ValueError, match="differ in shape"):
            measure(sr[1:], hr)
        with pytest.raises(ValueError, match="must be uint8"):
            measure(sr / 255, hr / 255)
        with pytest.raises(ValueError, match="too small to measure"):
            measure(sr[:8], hr[:8])
