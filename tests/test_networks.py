import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from srgan_tf import layers, networks


def small_generator(**options):
    return networks.build_generator(residual_blocks=2, filters=8, **options)


def random_lr(height=12, width=20, seed=0):
    return np.random.default_rng(seed).random((2, height, width, 3), np.float32)


def test_the_generator_has_the_layers_of_figure_4():
    generator = networks.build_generator()
    convs = [layer for layer in generator.layers if isinstance(layer, keras.layers.Conv2D)]
    shapes = [tuple(conv.kernel.shape) for conv in convs]
    assert shapes == (
        [(9, 9, 3, 64)] + 33 * [(3, 3, 64, 64)] + 2 * [(3, 3, 64, 256)] + [(9, 9, 64, 3)]
    )
    assert sum(isinstance(layer, layers.PReLU) for layer in generator.layers) == 1 + 16 + 2
    norms = [x for x in generator.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 2 * 16 + 1
    with_bias = {conv.name for conv in convs if conv.use_bias}
    assert with_bias == {"conv_in", "upscale1_conv", "upscale2_conv", "conv_out"}


def test_the_discriminator_has_the_layers_of_figure_4():
    discriminator = networks.build_discriminator()
    convs = [x for x in discriminator.layers if isinstance(x, keras.layers.Conv2D)]
    assert [(conv.filters, conv.strides[0]) for conv in convs] == [
        (64, 1), (64, 2), (128, 1), (128, 2), (256, 1), (256, 2), (512, 1), (512, 2)
    ]  # fmt: skip
    norms = [x for x in discriminator.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 7
    dense = [x.units for x in discriminator.layers if isinstance(x, keras.layers.Dense)]
    assert dense == [1024, 1]
    assert discriminator.output_shape == (None, 1)


def test_the_generator_starts_as_a_nearest_neighbor_upscaler():
    generator = networks.build_generator(residual_blocks=3, filters=16)
    # The other channels of the last convolution begin small, not zero.
    out = generator.get_layer("conv_out")
    kernel, bias = out.get_weights()
    kernel[..., 3:, :] = 0
    kernel[:4], kernel[5:] = 0, 0
    kernel[:, :4], kernel[:, 5:] = 0, 0
    out.set_weights([np.where(np.abs(kernel) < 1, 0, kernel), bias])
    lr = random_lr()
    nearest = lr.repeat(4, axis=1).repeat(4, axis=2)
    for training in (False, True):
        sr = generator(lr, training=training)
        np.testing.assert_allclose((sr + 1) / 2, nearest, atol=1e-5)


def test_the_full_generator_starts_near_nearest_neighbor_and_a_random_one_does_not():
    lr = random_lr()
    nearest = lr.repeat(4, axis=1).repeat(4, axis=2) * 2 - 1
    errors = {
        init: float(np.mean((small_generator(init=init)(lr, training=False) - nearest) ** 2))
        for init in ("nearest", "random")
    }
    assert errors["nearest"] < 0.05 < 0.2 < errors["random"]


def _with_gradients(layer, x, weights, **options):
    """A layer's result, gradients and weights after one call."""
    layer.build(x.shape)
    layer.set_weights(weights)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x, **options)
        loss = tf.reduce_sum(tf.cast(y * tf.cos(y), tf.float32))
    return [y, *tape.gradient(loss, [x, *layer.trainable_weights]), *layer.weights]


def _random(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def test_prelu_and_its_gradients_equal_keras():
    slopes = np.array([-0.5, 0.0, 0.25, 1.5], np.float32).reshape(1, 1, 4)
    ours, theirs = (
        _with_gradients(layer, tf.constant(_random(2, 5, 6, 4)), [slopes])
        for layer in (layers.PReLU(), keras.layers.PReLU(shared_axes=[1, 2]))
    )
    for value, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(value, other, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 0.06), ("mixed_float16", 0.01)]
)
def test_batch_norm_and_its_gradients_equal_keras(dtype, tolerance):
    x = tf.constant(3 * _random(3, 5, 6, 4) + 1)
    weights = [*(1 + _random(4, 4) / 4)]
    ours, theirs = (
        _with_gradients(kind(dtype=dtype), x, weights, training=True)
        for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
    )
    assert not np.array_equal(ours[-2], weights[-2])
    for value, other in zip(ours, theirs, strict=True):
        assert value.dtype == other.dtype
        value, other = (np.asarray(v, np.float32) for v in (value, other))
        np.testing.assert_allclose(value, other, atol=tolerance * np.abs(other).max())


def test_batch_norm_trains_with_the_fused_kernel_and_keeps_keras_statistics():
    script = """
import numpy as np, tensorflow as tf, keras
from srgan_tf import layers, networks
x = tf.constant(np.random.default_rng(0).normal(size=(2, 2, 2, 16)).astype(np.float32))
for kind in (layers.BatchNormalization, keras.layers.BatchNormalization):
    layer = kind()
    tf.function(layer)(x, training=True)
    print(*np.concatenate(layer.get_weights()))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"TF_ENABLE_ONEDNN_OPTS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    ours, theirs = (np.array(line.split(), float) for line in done.stdout.splitlines())
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_batch_norm_uses_its_moving_statistics_outside_training(frozen):
    x = tf.constant(_random(3, 5, 6, 4))
    weights = [*(1 + _random(4, 4) / 4)]
    ours, theirs = (
        _with_gradients(kind(trainable=not frozen), x, weights, training=frozen)
        for kind in (layers.BatchNormalization, keras.layers.BatchNormalization)
    )
    for value, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(value, other)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 0.02), ("float16", 0.003)]
)
def test_the_convolution_of_2x2_pixels_at_a_time_equals_keras_in_the_inputs_dtype(dtype, tolerance):
    x = tf.cast(_random(2, 12, 6, 5), dtype)
    weights = [_random(9, 9, 5, 3) / 20, _random(3)]
    ours, theirs = (
        _with_gradients(kind(3, 9, padding="same", dtype="float32"), x, weights)
        for kind in (layers.Conv2D, keras.layers.Conv2D)
    )
    assert ours[0].dtype == np.float32
    errors = []
    for value, other in zip(ours, theirs, strict=True):
        value, other = (np.asarray(v, np.float32) for v in (value, other))
        errors.append(np.abs(value - other).max() / np.abs(other).max())
    assert max(errors) < tolerance
    assert dtype == "float32" or errors[0] > 1e-4  # not float32's products


def test_a_generator_survives_keras_and_weights_files(tmp_path):
    generator = small_generator(init="random")
    lr = random_lr()
    expected = generator(lr, training=False)
    generator.save(tmp_path / "g.keras")
    generator.save_weights(tmp_path / "g.weights.h5")
    loaded = keras.models.load_model(tmp_path / "g.keras")
    np.testing.assert_array_equal(loaded(lr, training=False), expected)
    other = small_generator()
    other.load_weights(tmp_path / "g.weights.h5")
    np.testing.assert_array_equal(other(lr, training=False), expected)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_pictures_and_logits_are_float32_under_mixed_precision(dtype):
    generator = small_generator(dtype=dtype)
    discriminator = networks.build_discriminator(32, filters=4, dtype=dtype)
    sr = generator(random_lr(8, 8), training=True)
    logits = discriminator(sr, training=True)
    assert generator.get_layer("block1_conv1").compute_dtype == dtype.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(sr.dtype) == "float32"
    assert keras.backend.standardize_dtype(logits.dtype) == "float32"
    last = generator.get_layer("conv_out")
    last.set_weights([np.zeros([9, 9, 8, 3]), np.full([3], -0.99902)])
    np.testing.assert_array_equal(generator(random_lr(8, 8)), np.float32(-0.99902))


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="this needs keras.layers.Conv2D"):
        layers.Conv2D(3, 9, strides=2)
    with pytest.raises(ValueError, match="init is 'zeros'"):
        networks.build_generator(init="zeros")
    with pytest.raises(ValueError, match="crop_size is 40"):
        networks.build_discriminator(40)
