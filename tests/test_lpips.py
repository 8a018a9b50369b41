import csv

import numpy as np
import pytest
from conftest import photograph

from srgan_tf import lpips, pictures, resize


@pytest.fixture(scope="module")
def distance():
    return lpips.load()


def _degraded(hr, method):
    if method == "nearest":
        return hr[::4, ::4].repeat(4, axis=0).repeat(4, axis=1)
    if method == "bicubic":
        lr = resize.imresize(hr, (hr.shape[0] // 4, hr.shape[1] // 4))
        return resize.imresize(lr, hr.shape[:2])
    return np.random.default_rng(0).integers(0, 256, hr.shape, np.uint8)


@pytest.mark.parametrize(
    ("method", "gray", "expected"),
    [
        ("nearest", False, 0.242730),
        ("bicubic", False, 0.117623),
        ("noise", False, 1.470185),
        ("nearest", True, 0.700857),
    ],
)
def test_distances_equal_stored_values(distance, method, gray, expected):
    hr = photograph(96, 128)
    hr = hr[..., 1] if gray else hr
    assert distance(_degraded(hr, method), hr) == pytest.approx(expected, abs=1e-5)


def test_distances_of_set5_and_set14_equal_the_official_codes(distance, shared):
    with open(shared / "golden" / "lpips_alex.csv") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 38
    for row in rows:
        folder = shared / "data" / "eval" / row["set"]
        hr = pictures.read_scoring(folder / "HR" / row["picture"])
        lr = pictures.read_scoring(folder / "LR_x4" / row["picture"])
        if row["method"] == "nearest":
            sr = lr.repeat(4, axis=0).repeat(4, axis=1)
        else:
            sr = resize.imresize(lr, hr.shape[:2])
        expected = float(row["lpips_alex"])
        assert distance(sr, hr) == pytest.approx(expected, abs=1e-5), row


def test_the_distance_is_symmetric_and_zero_for_equal_pictures(distance):
    one, other = photograph(64, 48, seed=1), photograph(64, 48, seed=2)
    assert distance(one, one) == 0
    assert distance(one, other) == pytest.approx(distance(other, one), rel=1e-6)
    assert distance(one, other) > 0.2


@pytest.mark.parametrize("size", [31, 32, 47, 101])
def test_pictures_of_any_size_are_measured(distance, size):
    assert np.isfinite(distance(photograph(size, 31, 1), photograph(size, 31, 2)))


@pytest.mark.parametrize(
    ("sr", "hr", "message"),
    [
        (np.zeros((40, 40, 3), np.float32), np.zeros((40, 40, 3), np.uint8), "uint8"),
        (np.zeros((40, 40, 3), np.uint8), np.zeros((40, 44, 3), np.uint8), "differ in shape"),
        (np.zeros((40, 40, 4), np.uint8), np.zeros((40, 40, 4), np.uint8), r"\[H, W, 3\]"),
        (np.zeros((30, 40, 3), np.uint8), np.zeros((30, 40, 3), np.uint8), "40x30 is too small"),
    ],
)
def test_unsuitable_pictures_are_refused(distance, sr, hr, message):
    with pytest.raises(ValueError, match=message):
        distance(sr, hr)
