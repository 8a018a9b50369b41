"""SRResNet and SRGAN as one `keras.Model`: equation 3, and one update of each network per step."""

from collections.abc import Callable

import keras
import tensorflow as tf

from srgan_tf import losses


class SRGAN(keras.Model):
    """A generator, with or without a discriminator, and the step that trains them.

    `SRGAN(generator, {"mse": losses.mse})` is SRResNet-MSE; with a discriminator it is SRGAN-MSE.
    Train it with `fit` on one device, or with `strategy.run(model.train_step, ...)`.
    """

    def __init__(
        self,
        generator: keras.Model,
        content: dict[str, Callable],
        *,
        discriminator: keras.Model | None = None,
        adversarial_weight: float = 1e-3,
        total_variation_weight: float = 0.0,
    ):
        """Joins the networks and the losses.

        Args:
            generator: From `networks.build_generator`.
            content: Name and function of the content loss, for logs and `generator_terms`.
            discriminator: From `networks.build_discriminator`, for SRGAN.
            adversarial_weight: Weight of the adversarial loss, 1e-3 in equation 3.
            total_variation_weight: 2e-8 in SRResNet-VGG22, 0 elsewhere.
        """
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.content = content
        self.adversarial_weight = adversarial_weight
        self.total_variation_weight = total_variation_weight
        self.discriminator_optimizer = None
        self.built = True

    def compile(
        self,
        optimizer: keras.optimizers.Optimizer,
        discriminator_optimizer: keras.optimizers.Optimizer | None = None,
        **kwargs,
    ) -> None:
        """Sets the optimizers and creates their variables, so that a checkpoint restores them.

        Args:
            optimizer: The generator's.
            discriminator_optimizer: The discriminator's, required if there is one.
            **kwargs: For `keras.Model.compile`.

        Raises:
            ValueError: The discriminator or its optimizer is missing.
        """
        if (discriminator_optimizer is None) != (self.discriminator is None):
            raise ValueError("give a discriminator_optimizer where there is a discriminator")
        super().compile(optimizer=optimizer, jit_compile=kwargs.pop("jit_compile", False), **kwargs)
        self.optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer = discriminator_optimizer
        if discriminator_optimizer is not None:
            discriminator_optimizer.build(self.discriminator.trainable_variables)

    def call(self, lr, training=False):
        """Upscales `lr` [N, h, w, 3] in [0, 1] to `sr` [N, 4h, 4w, 3] in [-1, 1]."""
        return self.generator(lr, training=training)

    def generator_terms(self, hr: tf.Tensor, sr: tf.Tensor) -> dict[str, tf.Tensor]:
        """Computes the weighted terms of the generator's loss, whose sum is equation 3.

        Args:
            hr: float32 [N, H, W, 3] in [-1, 1].
            sr: The generator's output, the same shape and range.

        Returns:
            Float32 scalars by name.
        """
        terms = {name: loss(hr, sr) for name, loss in self.content.items()}
        if self.total_variation_weight:
            terms["total_variation"] = self.total_variation_weight * losses.total_variation(sr)
        if self.discriminator is not None:
            # Batch statistics, as in the discriminator's own update; `stateless_call` returns new
            # moving statistics instead of assigning them.
            sr_logits, _ = self.discriminator.stateless_call(
                self.discriminator.trainable_variables,
                self.discriminator.non_trainable_variables,
                sr,
                training=True,
            )
            terms["adversarial"] = self.adversarial_weight * losses.adversarial(sr_logits)
        return terms

    def train_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Updates the discriminator once, then the generator once (section 2.2).

        Args:
            data: lr float32 [N, h, w, 3] in [0, 1] and hr float32 [N, 4h, 4w, 3] in [-1, 1]; under
                a strategy this replica's share of the batch.

        Returns:
            Float32 scalars, means over this replica's pictures: the weighted terms, their sum
            `loss`, and with a discriminator its loss and the mean of D(hr) and D(sr).
        """
        lr, hr = data
        with tf.GradientTape() as tape:
            sr = self.generator(lr, training=True)
            with tape.stop_recording():
                logs = {} if self.discriminator is None else self._train_discriminator(hr, sr)
            terms = self.generator_terms(hr, sr)
            loss = tf.add_n(list(terms.values()))
            scaled = self.optimizer.scale_loss(_replica_share(loss))
        variables = self.generator.trainable_variables
        self.optimizer.apply(tape.gradient(scaled, variables), variables)
        return {"loss": loss, **terms, **logs}

    def _train_discriminator(self, hr: tf.Tensor, sr: tf.Tensor) -> dict[str, tf.Tensor]:
        with tf.GradientTape() as tape:
            hr_logits = self.discriminator(hr, training=True)
            sr_logits = self.discriminator(sr, training=True)
            loss = losses.discriminator(hr_logits, sr_logits)
            scaled = self.discriminator_optimizer.scale_loss(_replica_share(loss))
        variables = self.discriminator.trainable_variables
        self.discriminator_optimizer.apply(tape.gradient(scaled, variables), variables)
        return {
            "discriminator": loss,
            "d_hr": tf.reduce_mean(tf.sigmoid(hr_logits)),
            "d_sr": tf.reduce_mean(tf.sigmoid(sr_logits)),
        }

    def probe_terms(
        self, data: tuple[tf.Tensor, tf.Tensor]
    ) -> dict[str, tuple[tf.Tensor, tf.Tensor]]:
        """Evaluates each term of the generator's loss separately, without any update.

        Args:
            data: As in `train_step`.

        Returns:
            By name, each term's value and the norm of its gradient with respect to the generator's
            weights; under a strategy, over the global batch. A norm of 0 reveals a term that is
            detached or has vanished.
        """
        lr, hr = data
        variables = self.generator.trainable_variables
        with tf.GradientTape(persistent=True) as tape:
            sr, _ = self.generator.stateless_call(
                variables, self.generator.non_trainable_variables, lr, training=True
            )
            terms = self.generator_terms(hr, sr)
        context, mean = tf.distribute.get_replica_context(), tf.distribute.ReduceOp.MEAN
        result = {}
        for name, term in terms.items():
            gradients = tape.gradient(
                term,
                [v.value for v in variables],
                unconnected_gradients=tf.UnconnectedGradients.ZERO,
            )
            result[name] = term, tf.linalg.global_norm(context.all_reduce(mean, gradients))
        return result

    def test_step(self, data: tuple[tf.Tensor, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Scores a batch with frozen batch statistics.

        Args:
            data: As in `train_step`; any height and width.

        Returns:
            Float32 scalars: the content loss and the mean `psnr` over RGB in dB. The paper's own
            PSNR, on luma, is in `metrics`.
        """
        lr, hr = data
        sr = self.generator(lr, training=False)
        psnr = tf.image.psnr(hr + 1, tf.clip_by_value(sr, -1, 1) + 1, max_val=2)
        content = {name: loss(hr, sr) for name, loss in self.content.items()}
        return {**content, "psnr": tf.reduce_mean(psnr)}


def _replica_share(loss: tf.Tensor) -> tf.Tensor:
    # Optimizers sum the gradients of all replicas; the loss is the mean over the global batch.
    return loss / tf.distribute.get_strategy().num_replicas_in_sync
