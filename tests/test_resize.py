import math

import numpy as np
import pytest
from conftest import photograph
from PIL import Image

from srgan_tf import resize


def _cubic(x):
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0


@pytest.mark.parametrize(("size_in", "size_out"), [(96, 24), (24, 96), (20, 7), (5, 13), (8, 8)])
def test_the_matrix_is_the_antialiased_cubic_with_a_repeated_border(size_in, size_out):
    scale = size_out / size_in
    stretch = min(scale, 1)
    expected = np.zeros((size_out, size_in))
    for row in range(size_out):
        center = (row + 0.5) / scale - 0.5
        margin = math.ceil(2 / stretch)
        for sample in range(math.floor(center) - margin, math.ceil(center) + margin + 1):
            weight = _cubic((center - sample) * stretch)
            expected[row, min(max(sample, 0), size_in - 1)] += weight
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(resize.bicubic_matrix(size_in, size_out), expected, atol=1e-12)


def test_weights_of_a_shrink_by_4_are_exact_in_float32():
    weights = resize.bicubic_matrix(96, 24) * 4096
    np.testing.assert_array_equal(weights, np.round(weights))


def test_the_benchmarks_lr_files_are_reproduced_exactly(shared):
    for hr_path in sorted((shared / "data" / "eval").glob("*/HR/*.png")):
        hr = np.asarray(Image.open(hr_path))
        lr = np.asarray(Image.open(hr_path.parents[1] / "LR_x4" / hr_path.name))
        np.testing.assert_array_equal(resize.imresize(hr, lr.shape[:2]), lr, str(hr_path))


def test_half_a_level_is_rounded_up_after_each_pass():
    # Halving (0, 1) gives exactly 1/2 of a level, which becomes 1. Rounding once at the end would
    # give 1/4, that is 0.
    picture = np.zeros((2, 2), np.uint8)
    picture[1] = [0, 1]
    np.testing.assert_array_equal(resize.imresize(picture, (1, 1)), [[1]])


def test_overshoot_is_clipped():
    picture = np.zeros((32, 32), np.uint8)
    picture[:, 16:] = 255
    enlarged = resize.imresize(picture, (128, 128))
    assert enlarged[:, :56].max() == 0 and enlarged[:, 72:].min() == 255


def test_the_axis_that_shrinks_more_is_resized_first():
    picture = photograph(40, 64)
    columns_first = resize.imresize(resize.imresize(picture, (40, 16)), (20, 16))
    rows_first = resize.imresize(resize.imresize(picture, (20, 64)), (20, 16))
    resized = resize.imresize(picture, (20, 16))
    np.testing.assert_array_equal(resized, columns_first)
    assert (resized != rows_first).any()


def test_gray_and_color_are_resized_equally():
    picture = photograph(48, 60)
    color = resize.imresize(picture, (12, 15))
    assert color.shape == (12, 15, 3) and color.dtype == np.uint8
    np.testing.assert_array_equal(resize.imresize(picture[..., 1], (12, 15)), color[..., 1])


@pytest.mark.parametrize("picture", [np.zeros((8, 8)), np.zeros(8, np.uint8)])
def test_anything_but_an_8_bit_picture_is_refused(picture):
    with pytest.raises(ValueError, match="uint8"):
        resize.imresize(picture, (2, 2))


def test_an_empty_size_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        resize.imresize(np.zeros((3, 3), np.uint8), (0, 0))
