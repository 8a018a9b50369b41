"""Keras' Adam with TensorFlow's own kernel."""

import keras
import tensorflow as tf


class Adam(keras.optimizers.Adam):
    """Adam (Kingma and Ba, arXiv 1412.6980), which updates each variable with one operation.

    Keras' own takes 30 for each variable, so Adam is half of the graph of an SRResNet step. That
    costs seconds at each start, and on a GPU thousands of small kernels a step. This Adam computes
    the same, except for rounding, and has the same checkpoints. It does not support AMSGrad.
    """

    def _backend_update_step(self, grads, trainable_variables, learning_rate):
        # Corrects both moments once for all variables. Powers of 0 disable the kernel's own.
        step = tf.cast(self.iterations + 1, tf.float32)
        correction = tf.sqrt(1 - self.beta_2**step) / (1 - self.beta_1**step)
        super()._backend_update_step(grads, trainable_variables, learning_rate * correction)

    def update_step(self, gradient, variable, learning_rate):
        """Updates one variable; `learning_rate` includes the correction."""
        index = self._get_variable_index(variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=self._momentums[index].value.handle,
            v=self._velocities[index].value.handle,
            beta1_power=0.0,
            beta2_power=0.0,
            lr=learning_rate,
            beta1=self.beta_1,
            beta2=self.beta_2,
            epsilon=self.epsilon,
            grad=gradient,
        )
