"""The paper's losses: equation 2, and equations 4 to 6, which equation 3 sums with weights.

They use only `keras.ops` and take pictures in [-1, 1] or logits. Every loss is a float32 scalar,
the mean over the given pictures.
"""

from collections.abc import Callable

import keras

from srgan_tf import vgg


def mse(hr, sr):
    """Equation 4: the mean squared difference of pictures [N, H, W, 3] in [-1, 1]."""
    return keras.ops.mean(keras.ops.square(hr - sr))


def vgg_loss(features: keras.Model) -> Callable:
    """Equation 5: builds the loss on VGG19 features phi_i,j.

    The features are scaled by 1/12.75, and so the loss by about 0.006 (section 3.2). The mean is
    over positions and channels. A sum over channels, another reading of the equation, would be
    hundreds of times the MSE, which the paper's scale is meant to match.

    Args:
        features: From `vgg.build_features`.

    Returns:
        A function of (hr, sr), pictures [N, H, W, 3] in [-1, 1].
    """

    def phi(picture):
        return keras.ops.cast(features(vgg.caffe_range(picture), training=False), "float32") / 12.75

    def loss(hr, sr):
        return keras.ops.mean(keras.ops.square(phi(hr) - phi(sr)))

    return loss


def adversarial(sr_logits):
    """Equation 6, -log D(G(lr)), from logits [N, 1]; the mean over the batch, not its sum."""
    return keras.ops.mean(keras.ops.softplus(-sr_logits))


def discriminator(hr_logits, sr_logits):
    """Equation 2 for D, -log D(hr) - log(1 - D(G(lr))), from logits [N, 1]."""
    hr_loss = keras.ops.mean(keras.ops.softplus(-hr_logits))
    sr_loss = keras.ops.mean(keras.ops.softplus(sr_logits))
    return hr_loss + sr_loss


def total_variation(sr):
    """Sum of absolute differences of neighbors in a picture [N, H, W, 3], mean over pictures.

    It regularizes SRResNet-VGG22, with weight 2e-8 (section 3.2, after Johnson et al.), and equals
    `tf.image.total_variation`.
    """
    down = keras.ops.abs(sr[:, 1:] - sr[:, :-1])
    right = keras.ops.abs(sr[:, :, 1:] - sr[:, :, :-1])
    per_picture = keras.ops.sum(down, axis=(1, 2, 3)) + keras.ops.sum(right, axis=(1, 2, 3))
    return keras.ops.mean(per_picture)
