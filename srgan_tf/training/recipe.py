"""The flags of a run and the networks, losses and optimizers they select; any Keras backend."""

import dataclasses
from collections.abc import Callable

import keras

from srgan_tf import files, losses, networks, vgg, weights

# Raise this when a change makes the same flags and pictures lead to other weights. Runs of an
# earlier version are then refused instead of resumed. 2: Adam's epsilon is 1e-8. 3: Adam in one
# kernel. 4: batch norms in one kernel; the last convolution computes two by two pixels at a time.
# 5: it computes in bfloat16 or float16, too, under a mixed policy. Not raised when replacements of
# damaged pictures changed: few runs meet one, and all would have been refused.
VERSION = 5

# Training batches that the averaged network's batch statistics are measured on, see --ema.
AVERAGING_BATCHES = 100


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags of a run. train.py defines each of them, with its default, bounds and help."""

    run_dir: str
    variant: str
    train_data: str
    val_data: str
    val_pictures: int
    steps: int
    batch_size: int
    crop_size: int
    content_loss: str
    vgg_weights: str
    adversarial_weight: float
    total_variation_weight: float
    residual_blocks: int
    filters: int
    init: str
    init_generator: str
    learning_rate: float
    learning_rate_schedule: str
    learning_rate_drop_at: float
    warmup_steps: int
    ema: float
    augment: bool
    sample_by_area: bool
    cache: bool
    mixed_precision: str
    jit_compile: bool
    steps_per_call: int
    deterministic: bool
    seed: int
    log_every: int
    validate_every: int
    validate_lpips: bool | None
    checkpoint_every: int
    keep_checkpoints: int
    dry_run: bool


def require_consistent(config: Config) -> None:
    """Refuses flags that contradict each other.

    Raises:
        ValueError: Flags contradict each other; one line.
    """
    if not files.is_utf8(config.run_dir):
        raise ValueError(f"--run_dir={config.run_dir}: TensorBoard needs a path in UTF-8")
    if config.warmup_steps and config.learning_rate_schedule != "cosine":
        raise ValueError("--warmup_steps belongs to --learning_rate_schedule=cosine")
    if config.warmup_steps >= config.steps:
        raise ValueError(
            f"--warmup_steps={config.warmup_steps} is not below --steps={config.steps}"
        )
    if not 0 <= config.ema < 1:
        raise ValueError(f"--ema={config.ema}: must be at least 0 and below 1, such as 0.999")
    if config.val_data and not config.val_pictures:
        raise ValueError(
            f"--val_data={config.val_data}: --val_pictures=0 uses none of them; leave out one flag"
        )
    if config.crop_size % 4:
        raise ValueError(f"--crop_size={config.crop_size}: must be a multiple of 4")
    if config.adversarial_weight and config.crop_size % 16:
        raise ValueError(f"--crop_size={config.crop_size}: SRGAN needs a multiple of 16")
    if config.adversarial_weight and not config.init_generator:
        raise ValueError(
            "--init_generator: SRGAN starts from SRResNet-MSE; give its run folder or weights, or"
            " start as --init says with --init_generator=none"
        )


def next_return(config: Config, step: int) -> int:
    """Returns the step after which a call that starts at `step` must return to Python."""
    periods = (config.log_every, config.validate_every, config.checkpoint_every)
    events = [(step // period + 1) * period for period in periods]
    return min(config.steps, step + config.steps_per_call, *events)


def build(
    config: Config, *, synchronized: bool = False
) -> tuple[keras.Model, keras.Model | None, dict[str, Callable], dict]:
    """Builds the networks and the content loss of a run.

    Args:
        config: The run.
        synchronized: Batch statistics over all replicas.

    Returns:
        The generator; the discriminator, or None; the content loss by its name; and facts to
        record: this version, the VGG weights, the start of the generator, and the step after which
        the learning rate drops.

    Raises:
        ValueError, FileNotFoundError: Weights are unavailable or do not fit; one line.
    """
    dtype = config.mixed_precision
    facts = {
        "recipe": VERSION,
        "vgg": None,
        "generator": f"{config.init} start",
        "drop_step": drop_step(config.learning_rate_drop_at, config.steps),
    }
    generator = networks.build_generator(
        residual_blocks=config.residual_blocks,
        filters=config.filters,
        init=config.init,
        dtype=dtype,
        synchronized=synchronized,
    )
    if config.init_generator not in ("", "none"):
        start, card = weights.load_generator(config.init_generator)
        if [w.shape for w in start.weights] != [w.shape for w in generator.weights]:
            raise ValueError(
                f"--init_generator={config.init_generator}: its blocks or filters do not match"
                " --residual_blocks and --filters"
            )
        generator.set_weights(start.get_weights())
        facts["generator"] = (
            f"{card['path']} ({card['variant'] or 'unknown variant'}, {card['steps'] or 'unknown'}"
            f" steps, sha256 {card['sha256'][:12]})"
        )

    if config.content_loss == "mse":
        content = {"mse": losses.mse}
    else:
        features, loaded = vgg.build_features(config.content_loss, config.vgg_weights, dtype=dtype)
        facts["vgg"] = loaded
        content = {config.content_loss: losses.vgg_loss(features)}

    discriminator = None
    if config.adversarial_weight:
        discriminator = networks.build_discriminator(
            config.crop_size, dtype=dtype, synchronized=synchronized
        )
    return generator, discriminator, content, facts


def drop_step(learning_rate_drop_at: float, steps: int) -> int | None:
    """Returns the step after which the learning rate drops to a tenth; None if it never does."""
    drop_at = round(learning_rate_drop_at * steps)
    return drop_at if drop_at < steps else None


def learning_rates(config: Config) -> Callable | float:
    """Returns the learning rate over the steps, for a Keras optimizer.

    Args:
        config: The run.

    Returns:
        A Keras schedule, from the number of steps done to the learning rate of the next step; or
        the learning rate itself if it never changes.
    """
    if config.learning_rate_schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            0.0 if config.warmup_steps else config.learning_rate,
            config.steps - config.warmup_steps,
            warmup_target=config.learning_rate if config.warmup_steps else None,
            warmup_steps=config.warmup_steps,
        )
    drop_at = drop_step(config.learning_rate_drop_at, config.steps)
    if drop_at is None:
        return config.learning_rate
    # At its boundary Keras still uses the higher rate, and it counts the first step as 0.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [drop_at - 1], [config.learning_rate, config.learning_rate / 10]
    )


def learning_rate(config: Config, step: int) -> float:
    """Returns the learning rate of a step, counted from 1."""
    rates = learning_rates(config)
    return float(rates(step - 1)) if callable(rates) else rates


def optimizer(
    config: Config, adam: type[keras.optimizers.Adam] = keras.optimizers.Adam, *, ema: float = 0
) -> keras.optimizers.Optimizer:
    """Returns the Adam of a run, for one network (section 3.2).

    Args:
        config: The run.
        adam: `srgan_tf.training.adam.Adam` where TensorFlow is the backend.
        ema: Momentum of averaged weights, kept beside the trained ones; 0 for none.
    """
    # 1e-8 is Adam's own epsilon (Kingma and Ba). Keras' 1e-7 is large beside these gradients, which
    # are means over pixels, and slows the first thousand steps down.
    average = {"use_ema": True, "ema_momentum": ema, "ema_overwrite_frequency": None} if ema else {}
    optimizer = adam(learning_rates(config), beta_1=0.9, epsilon=1e-8, **average)
    if config.mixed_precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer
