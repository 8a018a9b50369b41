"""The averaged generator of a run with --ema: Keras' moving average and matching statistics."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from srgan_tf import data, gan, layers, networks
from srgan_tf.training import recipe


def generator_at_step(
    config: recipe.Config, model: gan.SRGAN, source: data.Source
) -> Callable[[int], keras.Model]:
    """Makes the function that returns the generator to validate and to write.

    Without --ema it is the model's own generator, with --ema one that has the optimizer's averages.
    The current network's batch statistics do not fit the averages, so they are recomputed as means
    over the training batches from the step on: a pure function of weights, seed and step.

    Args:
        config: The run.
        model: Its model, whose optimizer keeps the averages.
        source: The training pictures.

    Returns:
        A function from the number of steps done to the generator. At step 0 there is no average
        yet, so it returns the model's own.
    """
    if not config.ema:
        return lambda step: model.generator
    averaged = networks.build_generator(
        residual_blocks=config.residual_blocks, filters=config.filters, dtype=config.mixed_precision
    )
    for layer in averaged.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.momentum = 0.0  # a call then returns the statistics of its batch

    @tf.function
    def batch_statistics(lr):
        variables = averaged.trainable_variables, averaged.non_trainable_variables
        return averaged.stateless_call(*variables, lr, training=True)[1]

    @functools.lru_cache(maxsize=1)  # the last step is validated, then written
    def at_step(step: int) -> keras.Model:
        if not step:
            return model.generator
        model.optimizer.finalize_variable_values(averaged.trainable_variables)
        batches = data.training_batches(
            source,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=step,
            crop_size=config.crop_size,
            augment=config.augment,
            sample_by_area=config.sample_by_area,
        )
        measured = [batch_statistics(lr) for lr, _ in batches.take(recipe.AVERAGING_BATCHES)]
        statistics = zip(*measured, strict=True)
        for variable, values in zip(averaged.non_trainable_variables, statistics, strict=True):
            variable.assign(np.mean([value.numpy() for value in values], axis=0))
        return averaged

    return at_step
