import keras
import numpy as np
import pytest
import tensorflow as tf

from srgan_tf import losses


def pictures(seed, size=16):
    generator = np.random.default_rng(seed)
    return tf.constant(generator.uniform(-1, 1, (2, size, size, 3)).astype(np.float32))


def test_mse_is_the_mean_over_pictures_positions_and_channels():
    hr, sr = pictures(0), pictures(1)
    assert float(losses.mse(hr, sr)) == pytest.approx(np.mean((hr.numpy() - sr.numpy()) ** 2))


def test_total_variation_equals_tensorflows():
    sr = pictures(0)
    expected = tf.reduce_mean(tf.image.total_variation(sr))
    assert float(losses.total_variation(sr)) == pytest.approx(float(expected), rel=1e-6)


def test_adversarial_losses_are_equations_2_and_6():
    hr_logits, sr_logits = tf.constant([[2.0], [-1.0]]), tf.constant([[0.5], [-3.0]])
    d_hr, d_sr = tf.sigmoid(hr_logits), tf.sigmoid(sr_logits)
    expected = float(tf.reduce_mean(-tf.math.log(d_sr)))
    assert float(losses.adversarial(sr_logits)) == pytest.approx(expected, rel=1e-5)
    expected = float(tf.reduce_mean(-tf.math.log(d_hr) - tf.math.log(1 - d_sr)))
    assert float(losses.discriminator(hr_logits, sr_logits)) == pytest.approx(expected, rel=1e-5)


def test_extreme_logits_have_finite_losses_and_gradients():
    logits = tf.constant([[-200.0]])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = losses.adversarial(logits)
    assert float(loss) == pytest.approx(200)
    np.testing.assert_allclose(tape.gradient(loss, logits), [[-1]])


def test_vgg_loss_compares_scaled_features_of_caffe_range():
    # A "VGG" that gives back what it is fed shows the range and the scale.
    identity = keras.Sequential([keras.Input((None, None, 3)), keras.layers.Identity()])
    hr, sr = pictures(0), pictures(1)
    expected = np.mean((127.5 / 12.75 * (hr.numpy() - sr.numpy())) ** 2)
    assert float(losses.vgg_loss(identity)(hr, sr)) == pytest.approx(expected, rel=1e-4)
