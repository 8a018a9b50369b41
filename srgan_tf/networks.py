"""The paper's figure 4: generator and discriminator as Keras functional models.

Only `keras.layers` and `keras.ops`, so that both networks run on every Keras backend; with
TensorFlow as the backend batch norms train by its own kernel. PReLU, BatchNormalization and Conv2D
keep the names of Keras' classes, by which weights files tell layers apart.
"""

import keras
import numpy as np


@keras.saving.register_keras_serializable(package="srgan_tf")
class PReLU(keras.layers.PReLU):
    """Keras' PReLU with one slope per channel, in fewer passes over memory.

    Keras computes `relu(x) - alpha * relu(-x)`. Here the positive part is reached from `x` itself:
    three elementwise operations instead of five, the same function and the same gradients.
    """

    def __init__(self, alpha_initializer="zeros", shared_axes=(1, 2), **kwargs):
        """Takes the arguments of `keras.layers.PReLU`; slopes are shared over height and width."""
        super().__init__(alpha_initializer=alpha_initializer, shared_axes=shared_axes, **kwargs)

    def call(self, inputs):
        """Returns `inputs` where positive and `alpha * inputs` elsewhere, same shape and dtype."""
        return inputs + (self.alpha - 1) * keras.ops.minimum(inputs, 0)


@keras.saving.register_keras_serializable(package="srgan_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch norm, which trains by TensorFlow's kernel for it where that is the backend.

    Keras' is a dozen elementwise operations and as many again for the gradient, in float32 under
    every policy. The kernel's function, gradients and moving statistics are the same. With
    `synchronized` it is Keras'. Of axis, scale, center and renorm it knows the defaults.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs` [N, h, w, channels]; the same shape and dtype."""
        trains = training and self.trainable and mask is None
        if not trains or self.synchronized or keras.backend.backend() != "tensorflow":
            return super().call(inputs, training=training, mask=mask)
        import tensorflow as tf

        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=[],
            variance=[],
            epsilon=self.epsilon,
        )
        # The kernel gives the unbiased variance; Keras' moving variance is of the biased one.
        count = tf.cast(tf.size(inputs) // tf.size(mean), tf.float32)
        for moving, now in (
            (self.moving_mean, mean),
            (self.moving_variance, variance * (count - 1) / count),
        ):
            moving.assign(moving * self.momentum + now * (1 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable(package="srgan_tf")
class Conv2D(keras.layers.Conv2D):
    """Keras' "same" convolution, for few channels out: it makes two by two pixels at a time.

    Kernels compute 8 or 16 channels where three are asked for. As a convolution of stride 2 by a
    kernel that is one larger, and a shuffle, three are twelve: 100 * 16 / 4 products a pixel
    instead of 81 * 8 or 81 * 16. The function is the same. Measured on CPUs only.

    Products are made in the dtype of the inputs; bias and result have the layer's own. In a network
    of mixed precision the latter is float32. Products in float32, too, made gradients no better
    (benchmarks/README.md).
    """

    def __init__(self, filters, kernel_size, padding="same", **kwargs):
        """Takes the arguments of `keras.layers.Conv2D`, but for `autocast`.

        Raises:
            ValueError: Not "same", or with strides, dilation, groups, an activation or no bias.
        """
        super().__init__(filters, kernel_size, padding=padding, autocast=False, **kwargs)
        given = self.padding, self.strides, self.dilation_rate, self.groups, self.use_bias
        linear = self.activation is keras.activations.linear
        if given != ("same", (1, 1), (1, 1), 1, True) or not linear:
            raise ValueError(f"{self.name}: this needs keras.layers.Conv2D")

    def call(self, inputs):
        """Convolves `inputs` [N, h, w, channels], of even h and w, to [N, h, w, filters]."""
        kernel = keras.ops.cast(self.kernel, inputs.dtype)
        kernels = [
            keras.ops.pad(kernel, [(row, 1 - row), (column, 1 - column), (0, 0), (0, 0)])
            for row in (0, 1)
            for column in (0, 1)
        ]
        kernel = keras.ops.concatenate(kernels, axis=-1)
        outputs = keras.ops.conv(inputs, kernel, strides=2, padding="same")
        outputs = keras.ops.depth_to_space(outputs, 2)
        return keras.ops.cast(outputs, self.compute_dtype) + self.bias


def build_generator(
    *,
    residual_blocks: int = 16,
    filters: int = 64,
    init: str = "nearest",
    dtype: str = "float32",
    synchronized: bool = False,
) -> keras.Model:
    """Builds the generator, SRResNet (figure 4, top): 16 residual blocks, two sub-pixel layers.

    Args:
        residual_blocks: B in the paper, 16 in all of its variants.
        filters: feature maps of every layer but the sub-pixel ones, which have four times as many.
        init: "nearest" starts as a nearest-neighbour upscaler (a departure from the paper, which
            says nothing of its start); "random" is Glorot uniform throughout.
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
        # The paper gives no first slope; 0.25 is that of its reference for PReLU (He et al.).
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
        _start_as_nearest_neighbour(generator)
    return generator


def _start_as_nearest_neighbour(generator: keras.Model) -> None:
    """Sets the first weights so that the network begins as a nearest-neighbour upscaler.

    Channels 0 to 2 carry R, G and B from end to end, through the centre taps. They are never
    negative, so every PReLU leaves them as they are. All other weights stay random, but each
    sub-pixel convolution begins with the same kernel for its four positions, so that no
    checkerboard is there to be unlearned (Aitken et al., arXiv 1707.02937).
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
    """Builds the discriminator (figure 4, bottom): eight convolutions and two dense layers.

    Args:
        crop_size: height and width of the pictures it judges, a multiple of 16.
        filters: feature maps of the first layer, 64 in the paper; the last has eight times as many.
        dtype: Keras' dtype policy; the logit is float32 under every policy.
        synchronized: batch statistics over all replicas (TensorFlow only).

    Returns:
        A model from pictures [N, crop_size, crop_size, 3] in [-1, 1] to logits float32 [N, 1]:
        D of the paper is their sigmoid, which the losses contain.

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
