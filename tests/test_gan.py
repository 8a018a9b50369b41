import keras
import numpy as np
import pytest
import tensorflow as tf

from srgan_tf import gan, losses, networks, vgg
from srgan_tf.training import adam


def batch(seed=0, count=4):
    generator = np.random.default_rng(seed)
    lr = generator.random((count, 8, 8, 3), np.float32)
    # Paler than the nearest-neighbor upscaling that a generator starts with.
    hr = (lr - 0.5).repeat(4, axis=1).repeat(4, axis=2)
    hr = (hr + generator.normal(0, 0.02, hr.shape)).astype(np.float32)
    return tf.constant(lr), tf.constant(hr)


def srgan(content=None, *, init="random", adversarial=True, **options):
    generator = networks.build_generator(residual_blocks=1, filters=8, init=init)
    discriminator = networks.build_discriminator(32, filters=4) if adversarial else None
    model = gan.SRGAN(
        generator, content or {"mse": losses.mse}, discriminator=discriminator, **options
    )
    second = keras.optimizers.Adam(1e-3) if adversarial else None
    model.compile(keras.optimizers.Adam(1e-3), second)
    return model


def values(variables):
    return [variable.numpy() for variable in variables]


def unchanged(before, variables):
    return all(np.array_equal(b, v) for b, v in zip(before, values(variables), strict=True))


def all_changed(before, variables):
    return not any(np.array_equal(b, v) for b, v in zip(before, values(variables), strict=True))


def test_srresnet_learns():
    model = srgan(adversarial=False, init="nearest")
    step = tf.function(model.train_step)
    first = float(step(batch())["loss"])
    for _ in range(30):
        last = float(step(batch())["loss"])
    assert last < 0.5 * first


def test_a_step_reports_the_terms_of_its_loss():
    model = srgan(total_variation_weight=2e-8)
    logs = model.train_step(batch())
    assert set(logs) == {
        "loss", "mse", "total_variation", "adversarial", "discriminator", "d_hr", "d_sr"
    }  # fmt: skip
    total = logs["mse"] + logs["total_variation"] + logs["adversarial"]
    assert float(logs["loss"]) == pytest.approx(float(total))
    assert 0 < float(logs["d_hr"]) < 1


def test_a_generator_update_does_not_change_the_discriminator_or_its_statistics():
    features, _ = vgg.build_features("block2_conv2", "vgg16")
    model = srgan({"vgg22": losses.vgg_loss(features)})
    watched = [*model.discriminator.variables, *features.variables]
    before, generator_before = values(watched), values(model.generator.variables)
    # The discriminator's own update is left out.
    model._train_discriminator = lambda hr, sr: {}
    model.train_step(batch())
    assert unchanged(before, watched)
    assert all_changed(generator_before, model.generator.variables)


def test_a_discriminator_update_does_not_change_the_generator_or_its_statistics():
    model = srgan()
    before = values(model.generator.variables)
    discriminator_before = values(model.discriminator.variables)
    _, hr = batch()
    model._train_discriminator(hr, tf.zeros_like(hr))
    assert unchanged(before, model.generator.variables)
    assert all_changed(discriminator_before, model.discriminator.variables)


@pytest.mark.parametrize(
    "term", ["mse", "block2_conv2", "block5_conv4", "total_variation", "adversarial"]
)
def test_every_term_has_a_gradient_in_every_weight_of_the_generator(term):
    lr, hr = batch()
    content = {"mse": losses.mse}
    if term.startswith("block"):
        features, _ = vgg.build_features(term, "vgg16")
        content = {term: losses.vgg_loss(features)}
    model = srgan(content, total_variation_weight=2e-8)
    with tf.GradientTape() as tape:
        value = model.generator_terms(hr, model.generator(lr, training=True))[term]
    gradients = tape.gradient(value, model.generator.trainable_variables)
    for variable, gradient in zip(model.generator.trainable_variables, gradients, strict=True):
        # The last convolution's bias shifts the picture, which total variation does not see.
        if (term, variable.path) == ("total_variation", "conv_out/bias"):
            continue
        assert gradient is not None and float(tf.norm(gradient)) > 0, variable.path


def test_the_probe_changes_nothing_and_shows_a_detached_term():
    model = srgan({"detached": lambda hr, sr: losses.mse(hr, tf.stop_gradient(sr))})
    before = values(model.variables)
    probed = model.probe_terms(batch())
    assert unchanged(before, model.variables)
    value, norm = probed["detached"]
    assert float(value) > 0 and float(norm) == 0
    assert float(probed["adversarial"][1]) > 0


def test_it_trains_with_fit_in_a_notebook():
    model = srgan()
    pairs = tf.data.Dataset.from_tensors(batch())
    history = model.fit(pairs.repeat(2), validation_data=pairs, epochs=2, verbose=0)
    assert {"loss", "mse", "d_sr", "val_mse", "val_psnr"} <= set(history.history)
    assert int(model.optimizer.iterations) == int(model.discriminator_optimizer.iterations) == 4


def test_each_network_needs_its_optimizer():
    model = srgan()
    with pytest.raises(ValueError, match="discriminator_optimizer"):
        model.compile(keras.optimizers.Adam())


def test_float16_scales_the_loss_of_both_networks():
    generator = networks.build_generator(residual_blocks=1, filters=8, dtype="mixed_float16")
    discriminator = networks.build_discriminator(32, filters=4, dtype="mixed_float16")
    model = gan.SRGAN(generator, {"mse": losses.mse}, discriminator=discriminator)
    optimizers = [
        keras.optimizers.LossScaleOptimizer(adam.Adam(1e-3), initial_scale=2.0**10)
        for _ in range(2)
    ]
    model.compile(*optimizers)
    before = values(generator.trainable_variables)
    logs = model.train_step(batch())
    assert np.isfinite(float(logs["loss"])) and float(logs["loss"]) < 10
    assert not unchanged(before, generator.trainable_variables)
