"""A Keras generator to run: batch norms folded, compiled by TensorFlow."""

import keras

from srgan_tf import folding
from srgan_tf.layers import PReLU


def fold_batch_norm(generator: keras.Model) -> keras.Model:
    """Rebuilds a generator in float32, its batch norms folded into the convolutions before them.

    Args:
        generator: As `networks.build_generator` makes it, of any size and dtype policy.

    Returns:
        The same function, from float32 lr [N, h, w, 3] in [0, 1] to float32 sr [N, 4h, 4w, 3] in
        [-1, 1], not clipped.

    Raises:
        ValueError: It is another network.
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
    sr = folding.network(lr, layers, conv, add, shuffle)
    return keras.Model(lr, sr, name="generator")
