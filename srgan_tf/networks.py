"""Figure 4 of the paper: the generator and the discriminator as Keras functional models.

In its notation (k kernel size, n feature maps, s stride):

    generator       lr -> k9n64, PReLU ------------------------------------------.
                       -> 16 x [k3n64, BN, PReLU, k3n64, BN, sum with its input] |
                       -> k3n64, BN, sum with the first PReLU's output <---------'
                       -> 2 x [k3n256, PixelShuffler x2, PReLU] -> k9n3 -> sr

    discriminator   hr or sr -> k3n64s1, LeakyReLU
                       -> k3n64s2, n128s1, n128s2, n256s1, n256s2, n512s1, n512s2,
                          each with BN and LeakyReLU
                       -> dense 1024, LeakyReLU -> dense 1 (the sigmoid is in the losses)

Both use only `keras.layers` and `keras.ops`, so they run on every Keras backend.
"""

import keras
import numpy as np

from srgan_tf.layers import BatchNormalization, Conv2D, PReLU


def build_generator(
    *,
    residual_blocks: int = 16,
    filters: int = 64,
    init: str = "nearest",
    dtype: str = "float32",
    synchronized: bool = False,
) -> keras.Model:
    """Builds the generator, SRResNet (figure 4, top).

    Args:
        residual_blocks: B in the paper, 16 in all of its variants.
        filters: feature maps of every layer except the sub-pixel ones, which have four times as
            many.
        init: "nearest" starts as a nearest-neighbor upscaler (a departure: the paper does not
            describe its initialization); "random" is Glorot uniform throughout.
        dtype: Keras' dtype policy; the last bias and the result are float32 under every policy.
        synchronized: batch statistics over all replicas (TensorFlow only).

    Returns:
        A model from `lr` [N, h, w, 3] in [0, 1] to `sr` float32 [N, 4h, 4w, 3] in [-1, 1], not
        clipped. Height and width are free.

    Raises:
        ValueError: `init` is neither "nearest" nor "random".
    """
    if init not in ("nearest", "random"):
        raise ValueError(f"init is {init!r}: give 'nearest' or 'random'")

    def conv(filters, kernel_size, name, use_bias):
        return keras.layers.Conv2D(
            filters, kernel_size, padding="same", use_bias=use_bias, dtype=dtype, name=name
        )

    def batch_norm(name, gamma="ones"):
        return BatchNormalization(
            gamma_initializer=gamma, synchronized=synchronized, dtype=dtype, name=name
        )

    def prelu(name):
        # The paper does not state the initial slope; He et al., whom it cites, use 0.25.
        slope = keras.initializers.Constant(0.25)
        return PReLU(alpha_initializer=slope, dtype=dtype, name=name)

    # With gamma 0 a residual block starts as the identity.
    closing_gamma = "zeros" if init == "nearest" else "ones"

    lr = keras.Input((None, None, 3), name="lr")
    x = conv(filters, 9, "conv_in", use_bias=True)(lr)
    x = skip = prelu("prelu_in")(x)

    for i in range(1, residual_blocks + 1):
        y = conv(filters, 3, f"block{i}_conv1", use_bias=False)(x)
        y = batch_norm(f"block{i}_bn1")(y)
        y = prelu(f"block{i}_prelu")(y)
        y = conv(filters, 3, f"block{i}_conv2", use_bias=False)(y)
        y = batch_norm(f"block{i}_bn2", closing_gamma)(y)
        x = keras.layers.Add(dtype=dtype, name=f"block{i}_sum")([x, y])

    x = conv(filters, 3, "conv_trunk", use_bias=False)(x)
    x = batch_norm("bn_trunk", closing_gamma)(x)
    x = keras.layers.Add(dtype=dtype, name="trunk_sum")([skip, x])

    for i in (1, 2):
        x = conv(4 * filters, 3, f"upscale{i}_conv", use_bias=True)(x)
        x = keras.ops.depth_to_space(x, 2)
        x = prelu(f"upscale{i}_prelu")(x)

    sr = Conv2D(3, 9, dtype="float32", name="conv_out")(x)
    generator = keras.Model(lr, sr, name="generator")
    if init == "nearest":
        _start_as_nearest_neighbor(generator)
    return generator


def _start_as_nearest_neighbor(generator: keras.Model) -> None:
    """Sets the weights so that the network starts as a nearest-neighbor upscaler.

    Channels 0 to 2 carry R, G and B from end to end, through the center taps. They are never
    negative, so no PReLU changes them. All other weights stay random. Each sub-pixel convolution
    starts with the same kernel for its four positions, so that training need not remove a
    checkerboard pattern first (Aitken et al., arXiv 1707.02937).
    """
    rgb = np.arange(3)

    conv_in = generator.get_layer("conv_in")
    kernel, bias = conv_in.get_weights()
    kernel[..., rgb] = 0
    kernel[4, 4, rgb, rgb] = 1
    conv_in.set_weights([kernel, bias])

    for name in ("upscale1_conv", "upscale2_conv"):
        conv = generator.get_layer(name)
        kernel, bias = conv.get_weights()
        # depth_to_space reads its channels as (row, column, feature).
        kernel = kernel[..., : kernel.shape[-1] // 4]
        kernel[..., rgb] = 0
        kernel[1, 1, rgb, rgb] = 1
        conv.set_weights([np.tile(kernel, 4), bias])

    conv_out = generator.get_layer("conv_out")
    kernel, bias = conv_out.get_weights()
    kernel *= 0.1
    kernel[4, 4, rgb, rgb] = 2  # [0, 1] -> [-1, 1]
    conv_out.set_weights([kernel, np.full_like(bias, -1)])


def build_discriminator(
    crop_size: int = 96, *, filters: int = 64, dtype: str = "float32", synchronized: bool = False
) -> keras.Model:
    """Builds the discriminator (figure 4, bottom).

    Args:
        crop_size: height and width of its pictures, a multiple of 16.
        filters: feature maps of the first layer, 64 in the paper; the last has eight times as many.
        dtype: Keras' dtype policy; the logit is float32 under every policy.
        synchronized: batch statistics over all replicas (TensorFlow only).

    Returns:
        A model from pictures [N, crop_size, crop_size, 3] in [-1, 1] to logits float32 [N, 1].
        The paper's D is their sigmoid, which is part of the losses.

    Raises:
        ValueError: `crop_size` is not a positive multiple of 16.
    """
    if crop_size < 16 or crop_size % 16:
        raise ValueError(f"crop_size is {crop_size}: the discriminator needs a multiple of 16")

    def leaky_relu(name):
        return keras.layers.LeakyReLU(0.2, dtype=dtype, name=name)

    picture = keras.Input((crop_size, crop_size, 3), name="picture")
    x = keras.layers.Conv2D(filters, 3, padding="same", dtype=dtype, name="conv1")(picture)
    x = leaky_relu("lrelu1")(x)
    layers = ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2), (8, 1), (8, 2))
    for i, (width, strides) in enumerate(layers, start=2):
        x = keras.layers.Conv2D(
            width * filters,
            3,
            strides,
            padding="same",
            use_bias=False,
            dtype=dtype,
            name=f"conv{i}",
        )(x)
        x = BatchNormalization(synchronized=synchronized, dtype=dtype, name=f"bn{i}")(x)
        x = leaky_relu(f"lrelu{i}")(x)
    x = keras.layers.Flatten(dtype=dtype, name="flatten")(x)
    x = keras.layers.Dense(16 * filters, dtype=dtype, name="dense1")(x)
    x = leaky_relu("lrelu9")(x)
    logit = keras.layers.Dense(1, dtype="float32", name="logit")(x)
    return keras.Model(picture, logit, name="discriminator")
