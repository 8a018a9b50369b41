"""Layers of the paper's networks that are faster than Keras' own and compute the same function.

They keep the names of Keras' classes, because weights files identify layers by class.
"""

import keras


@keras.saving.register_keras_serializable(package="srgan_tf")
class PReLU(keras.layers.PReLU):
    """Keras' PReLU with one slope per channel, in fewer passes over memory.

    Keras computes `relu(x) - alpha * relu(-x)`, five elementwise operations. Three suffice for the
    same function and gradients.
    """

    def __init__(self, alpha_initializer="zeros", shared_axes=(1, 2), **kwargs):
        """Takes the arguments of `keras.layers.PReLU`; height and width share slopes."""
        super().__init__(alpha_initializer=alpha_initializer, shared_axes=shared_axes, **kwargs)

    def call(self, inputs):
        """Returns `inputs` where positive and `alpha * inputs` elsewhere, same shape and dtype."""
        return inputs + (self.alpha - 1) * keras.ops.minimum(inputs, 0)


@keras.saving.register_keras_serializable(package="srgan_tf")
class BatchNormalization(keras.layers.BatchNormalization):
    """Keras' batch norm, trained with TensorFlow's fused kernel on the TensorFlow backend.

    Keras uses a dozen elementwise operations, and as many again for the gradient, in float32 under
    every policy. The kernel computes the same outputs, gradients and moving statistics. It does not
    support `synchronized`, so Keras' code runs then, and it supports only the defaults of axis,
    scale, center and renorm.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalizes `inputs` [N, h, w, channels]; the result has the same shape and dtype."""
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
        # The kernel returns the unbiased variance; Keras' moving variance averages the biased one.
        count = tf.cast(tf.size(inputs) // tf.size(mean), tf.float32)
        for moving, now in (
            (self.moving_mean, mean),
            (self.moving_variance, variance * (count - 1) / count),
        ):
            moving.assign(moving * self.momentum + now * (1 - self.momentum))
        return outputs


@keras.saving.register_keras_serializable(package="srgan_tf")
class Conv2D(keras.layers.Conv2D):
    """Keras' "same" convolution for few output channels, computed for 2x2 pixels at a time.

    CPU kernels compute 8 or 16 channels even if only three are needed. A convolution of stride 2
    with a kernel that is larger by one, followed by a shuffle, computes twelve. That takes
    100 * 16 / 4 products per pixel instead of 81 * 8 or 81 * 16. The function is the same. Measured
    on CPUs only.

    Products have the dtype of the inputs; bias and result have the layer's dtype, which is float32
    in a network of mixed precision. Products in float32 did not improve gradients
    (benchmarks/README.md).
    """

    def __init__(self, filters, kernel_size, padding="same", **kwargs):
        """Takes the arguments of `keras.layers.Conv2D`, except `autocast`.

        Raises:
            ValueError: The padding is not "same", or there are strides, dilation, groups, an
                activation or no bias.
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
