import keras
import numpy as np
import pytest
import tensorflow as tf

from srgan_tf.training import adam


def _after_steps(kind, rate, start, gradients):
    """Returns the weights and the optimizer's own variables after the steps."""
    variables = [keras.Variable(w) for w in start]
    optimizer = kind(rate, beta_1=0.9, epsilon=1e-8)
    optimizer.build(variables)
    step = tf.function(lambda *given: optimizer.apply(given, variables))
    for each in gradients:
        step(*(tf.constant(g, tf.float32) for g in each))
    return [v.numpy() for v in (*variables, *optimizer.variables)]


@pytest.mark.parametrize("rate", [1e-2, keras.optimizers.schedules.CosineDecay(1e-2, 8)])
def test_one_kernel_computes_the_same_as_keras_adam(rate):
    rng = np.random.default_rng(1)
    start = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 3, 2, 4), (4,), ())]
    gradients = [[rng.normal(0, 10.0**-n, w.shape) for w in start] for n in range(5)]
    expected, found = (
        _after_steps(kind, rate, start, gradients) for kind in (keras.optimizers.Adam, adam.Adam)
    )
    for value, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-4, atol=5e-7)
    for value, first in zip(found, start, strict=False):
        assert np.abs(value - first).min() > 1e-3
