import json
from pathlib import Path

import numpy as np
import pytest

from srgan_tf import networks, weights


@pytest.fixture
def bundle_weights(load_script):
    return load_script("tools/bundle_weights.py")


def test_halved_weights_load_and_differ_by_no_more_than_float16_rounds(bundle_weights, tmp_path):
    generator = networks.build_generator(residual_blocks=2, filters=16)
    generator.save_weights(tmp_path / "full.weights.h5")
    half = bundle_weights.halve(tmp_path / "full.weights.h5", tmp_path / "half.weights.h5")
    assert half.stat().st_size < 0.75 * (tmp_path / "full.weights.h5").stat().st_size
    loaded, _ = weights.load_generator(str(half))
    lr = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    difference = loaded(lr, training=False) - generator(lr, training=False)
    assert 0 < np.abs(difference).max() < 0.5 * 2 / 255


def test_the_bundled_weights_load_and_have_a_whole_card():
    for name in weights.bundled():
        generator, card = weights.load_generator(name)
        assert generator.count_params() > 1.5e6
        assert card["name"] == name and card["steps"] > 0 and card["variant"]
        path = Path(card["path"]).with_name(f"{name}.json")
        full = json.loads(path.read_text())
        for key in ("command", "commit", "data", "precision", "scores", "vgg", "versions"):
            assert key in full, key
        assert full["scores"]["Set5"]["psnr"] > 30
