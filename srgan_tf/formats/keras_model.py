"""A Keras generator for inference: batch norms folded, compiled with TensorFlow."""

import functools

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import folding, upscaling
from srgan_tf.layers import PReLU


@functools.lru_cache(maxsize=4)  # one trace for each generator, whatever the number of pictures
def compiled(generator: keras.Model, margin: int | None = None) -> upscaling.Upscaler:
    """Prepares a generator for `upscaling`, run with TensorFlow.

    Args:
        generator: From lr [N, h, w, 3] in [0, 1] to sr [N, 4h, 4w, 3] in [-1, 1].
        margin: The lr pixels that a tile needs on each side. By default it is computed if the
            generator is from `networks.build_generator`; any other runs in one piece.

    Returns:
        The network; a tile too large for memory raises MemoryError.
    """
    if margin is None:
        try:
            margin = folding.receptive_field(folding.fold(generator))
        except ValueError:
            logging.warning(upscaling.WHOLE, generator.name)

    # The signature has no sizes, so another size of picture or tile needs no new trace.
    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([], tf.float32)]
    )
    def call(lr, white):
        sr = generator(lr / white, training=False)
        return tf.clip_by_value(tf.round((sr + 1) * (white / 2)), 0, white)

    def run(lr):
        white = np.float32(np.iinfo(lr.dtype).max)
        try:
            return call(lr.astype(np.float32), white).numpy().astype(lr.dtype)
        except tf.errors.ResourceExhaustedError as error:
            raise upscaling.no_memory(lr) from error

    return upscaling.Upscaler(run, margin)


def fold_batch_norm(generator: keras.Model) -> keras.Model:
    """Rebuilds a generator in float32, its batch norms folded into the convolutions before them.

    Args:
        generator: From `networks.build_generator`, of any size and dtype policy.

    Returns:
        A model that computes the same function, from float32 lr [N, h, w, 3] in [0, 1] to float32
        sr [N, 4h, 4w, 3] in [-1, 1], not clipped.

    Raises:
        ValueError: It is not the paper's generator.
    """
    layers = folding.fold(generator)

    def conv(x, name):
        kernel, bias, slope = layers[name]
        layer = keras.layers.Conv2D(
            len(bias), kernel.shape[:2], padding="same", dtype="float32", name=name
        )
        x = layer(x)
        layer.set_weights([kernel, bias])
        if slope is None:
            return x
        prelu = PReLU(dtype="float32", name=f"{name}_prelu")
        x = prelu(x)
        prelu.set_weights([slope[None, None]])
        return x

    def add(x, y, name):
        return keras.layers.Add(dtype="float32", name=name)([x, y])

    def shuffle(x, name):
        return keras.ops.depth_to_space(x, 2)

    lr = keras.Input((None, None, 3), dtype="float32", name="lr")
    sr = folding.build(lr, layers, folding.Operations(conv, add, shuffle))
    return keras.Model(lr, sr, name="generator")
