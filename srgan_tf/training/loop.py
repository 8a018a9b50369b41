"""The training run: strategy, loop, checkpoints, logs."""

import contextlib
import dataclasses
import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import command_line, data, files, gan, lpips, provenance, weights
from srgan_tf.training import adam, averaging, cluster, progress, recipe, resume, run_folder

# The validation score that chooses the best weights: without and with LPIPS.
_BEST_BY = "validation_loss", "validation_lpips"


class Stopped(Exception):
    """The signal `signum` ended the run after a checkpoint was written."""

    def __init__(self, signum: int, step: int):
        """Keeps the signal's number and the step that was saved."""
        super().__init__(f"stopped at step {step}: the same command resumes from there")
        self.signum = signum


def make_strategy() -> tf.distribute.Strategy:
    """Chooses how to distribute the work.

    Returns:
        MultiWorkerMirroredStrategy where TF_CONFIG is set, MirroredStrategy where there are several
        GPUs, TensorFlow's default strategy on one device.

    Raises:
        ValueError: TF_CONFIG describes no cluster with this machine in it, or its port cannot be
            opened, or another task does not start; one line.
    """
    if os.environ.get("TF_CONFIG"):
        return cluster.join()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


@cluster.naming_the_lost()
def train(config: recipe.Config, strategy: tf.distribute.Strategy | None = None) -> Path:
    """Trains to the last step, from the last checkpoint in the run folder.

    Args:
        config: The run.
        strategy: How to distribute it, by default `make_strategy()`.

    Returns:
        The run folder.

    Raises:
        ValueError, FileNotFoundError: The flags ask for something impossible, or a loss is not
            finite, or the machines differ or one is lost; one line.
        Stopped: SIGINT or SIGTERM arrived; a checkpoint was written first.
    """
    strategy = strategy or make_strategy()
    recipe.require_consistent(config)
    _require_supported(config, strategy)
    cluster.agree(strategy, _flags_and_versions(config))
    keras.utils.set_random_seed(config.seed)
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()

    run_dir = Path(config.run_dir)
    checkpoints = run_dir / "checkpoints"
    saved = resume.checkpoints(checkpoints)
    record = resume.earlier_run(config, has_state=bool(saved))
    config = resume.with_first_drop(config, record)
    with cluster.chief_first(strategy):
        train_source, val_source = _open_data(config)
    pairs = data.validation_pairs(val_source, count=config.val_pictures) if val_source else []

    built = resume.as_started(config, record) if record else config
    with strategy.scope():
        model, facts = build_model(built, synchronized=strategy.num_replicas_in_sync > 1)
        checkpoint = _checkpoint(model)
    facts["train_data"] = data.describe(train_source)
    facts["validation"] = {
        "data": config.val_data or "held out from the training data",
        "pictures": [name for name, _, _ in pairs],
        "fingerprint": data.describe(val_source)["fingerprint"] if val_source else None,
    }
    if record:
        resume.require_same_findings(config, record, facts)
        restored = resume.restore(checkpoint, checkpoints)
        facts["generator"] = f"{restored}, step {int(checkpoint.step.numpy())}"
    first_step = int(checkpoint.step.numpy())
    lpips_of = _validation_lpips(config, record, pairs)
    facts["best_by"] = "lpips" if lpips_of else "loss"
    cluster.agree(strategy, _start(checkpoint, facts))
    is_chief = cluster.is_chief(strategy)
    with contextlib.ExitStack() as stack:
        if is_chief and not config.dry_run:
            files.make_folder(checkpoints)
            busy = "another train.py is training there: stop it, or give another --run_dir"
            stack.enter_context(files.locked(run_dir, busy))
            if resume.checkpoints(checkpoints) != saved:
                raise ValueError(
                    f"{run_dir}: another train.py has trained there meanwhile: the same command "
                    "resumes from its last checkpoint"
                )
        batches = _distribute(config, strategy, train_source, first_step)
        run_steps = _step_function(config, strategy, model)

        # The probes use up batches and change weights; the weights are put back, and the run itself
        # starts with a new iterator at the batch of its first step.
        iterator = iter(batches)
        terms = _probe_terms(strategy, model, next(iterator))
        # Each timed step delays the first one that counts.
        seconds = _probe_speed(checkpoint, run_steps, iterator, 3 if config.dry_run else 1)
        facts |= {
            "variant": config.variant,
            "lr_operator": "Matlab's bicubic x1/4 of the crop, in 8 bits",
            "strategy": type(strategy.extended).__name__.removesuffix("Extended"),
            "replicas": strategy.num_replicas_in_sync,
            "device": _device(),
            "terms": terms,
            "seconds_per_step": round(seconds, 4),
            "estimated_hours_left": round(seconds * (config.steps - first_step) / 3600, 2),
        }
        faster = _faster_flags(config, strategy)
        if is_chief:
            print(progress.start_report(dataclasses.asdict(config), facts, faster), flush=True)
        if config.dry_run:
            return run_dir

        logs, log = stack.enter_context(contextlib.ExitStack()), None
        if is_chief:
            if record:
                run_folder.add_resumption(run_dir, first_step, dataclasses.asdict(config), facts)
            else:
                run_folder.write_start(run_dir, dataclasses.asdict(config), facts)
            log = logs.enter_context(progress.RunLog(run_dir, first_step, config.steps))
        received = logs.enter_context(command_line.caught_signals())
        # In scope: Keras assigns the averages by the strategy, only to variables of its own.
        with strategy.scope():
            generator_at = averaging.generator_at_step(config, model, train_source)

        def save(step):
            _require_finite_weights(model, step, checkpoints)
            if not is_chief:  # each machine has a full copy of all variables
                return
            try:
                resume.save(checkpoint, checkpoints, step, config.keep_checkpoints)
            except (OSError, ValueError) as error:  # the disk is full or the folder is gone
                raise ValueError(
                    f"{error}; the same command resumes from the one before"
                ) from error

        validate = None
        if log and pairs:
            validate = _validator(config, model, checkpoint, generator_at, lpips_of, pairs, log)
        try:
            scores = _loop(
                config, checkpoint, iter(batches), run_steps, validate, save, log, received
            )
        except Stopped:
            cluster.leave(strategy)
            raise
        logs.close()
        if is_chief:
            _finish(config, model, checkpoint, generator_at, lpips_of, pairs, scores)
            print(progress.end_report(dataclasses.asdict(config), faster))
        cluster.leave(strategy)
    return run_dir


def build_model(config: recipe.Config, *, synchronized: bool = False) -> tuple[gan.SRGAN, dict]:
    """Builds and compiles the model of a run.

    Args:
        config: The run.
        synchronized: Batch statistics over all replicas.

    Returns:
        The compiled model, and the facts to record, as `recipe.build` returns them.

    Raises:
        ValueError, FileNotFoundError: Weights are unavailable or do not fit; one line.
    """
    generator, discriminator, content, facts = recipe.build(config, synchronized=synchronized)
    model = gan.SRGAN(
        generator,
        content,
        discriminator=discriminator,
        adversarial_weight=config.adversarial_weight,
        total_variation_weight=config.total_variation_weight,
    )
    model.compile(
        recipe.optimizer(config, adam.Adam, ema=config.ema),
        None if discriminator is None else recipe.optimizer(config, adam.Adam),
    )
    return model, facts


def _require_supported(config: recipe.Config, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError, one line, for flags that do not work with the number of replicas."""
    replicas = strategy.num_replicas_in_sync
    if config.batch_size % replicas:
        raise ValueError(
            f"--batch_size={config.batch_size} cannot be divided among {replicas} replicas: give a"
            f" multiple of {replicas}"
        )
    if config.jit_compile and replicas > 1:
        raise ValueError("--jit_compile does not work with several replicas: leave it out")
    if config.mixed_precision == "mixed_float16" and replicas > 1:
        # Keras' loss scaling looks for overflows in one replica only.
        raise ValueError(
            "--mixed_precision=mixed_float16 does not work with several replicas: give "
            "mixed_bfloat16"
        )


def _flags_and_versions(config: recipe.Config) -> dict[str, object]:
    """Returns the flags and versions that all machines must share, for `agree`."""
    here = provenance.here()
    flags = {
        f"--{name}=": value
        for name, value in dataclasses.asdict(config).items()
        # Paths may differ: the pictures and the checkpoint are compared.
        if name not in ("run_dir", "train_data", "val_data", "cache")
    }
    packages = ("srgan-tf", "tensorflow", "keras")
    versions = {f"{name} ": here["versions"].get(name) for name in packages}
    return flags | versions | {"commit ": here["commit"]}


def _start(checkpoint: tf.train.Checkpoint, facts: dict) -> dict[str, object]:
    """Returns the data and the state that all machines must start with, for `agree`."""
    state = hashlib.sha256()
    for variable in _trained(checkpoint):
        state.update(variable.numpy().tobytes())
    train_data = facts["train_data"]
    return {
        "training pictures ": f"{train_data['pictures']} ({train_data['fingerprint'][:12]})",
        "validation pictures ": str(facts["validation"]["fingerprint"])[:12],
        "VGG19 weights ": facts["vgg"],
        "a start at step ": int(checkpoint.step.numpy()),
        "weights ": state.hexdigest()[:12],
    }


def explain(error: tf.errors.OpError) -> str:
    """Returns the cause in one line: a ValueError raised in a graph, else the first line."""
    lines = error.message.splitlines()
    raised = [line.removeprefix("ValueError: ") for line in lines if line.startswith("ValueError:")]
    frame = ("Graph execution error", "Detected at node", "<stack")
    # Frames of Python and of the graph are indented.
    own = [line for line in lines if line.strip() == line != "" and not line.startswith(frame)]
    return next(iter(raised or own), type(error).__name__)


def _open_data(config: recipe.Config) -> tuple[data.Source, data.Source | None]:
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


def _validation_lpips(config: recipe.Config, record: dict | None, pairs) -> Callable | None:
    """Returns LPIPS if it validates the run and chooses its best weights, else None.

    A resumed run keeps the choice of its start. If --validate_lpips is not set and the weights of
    LPIPS are missing, a run logs one line and falls back to the content loss.
    """
    wanted = config.validate_lpips
    if wanted is None:
        wanted = bool(config.adversarial_weight)
    if record:
        wanted = record.get("best_by") == "lpips"
    if not wanted or not pairs:
        return None
    smallest = min(min(hr.shape[:2]) for _, _, hr in pairs)
    try:
        if smallest < lpips.SMALLEST:
            raise ValueError(
                f"a validation picture has {smallest} pixels, and LPIPS needs {lpips.SMALLEST}"
            )
        return lpips.load()
    except ValueError as error:
        if config.validate_lpips or record:
            raise ValueError(f"--validate_lpips: {error}") from error
        logging.warning("the content loss chooses the best weights, not LPIPS: %s", error)
        return None


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


def _step_function(config: recipe.Config, strategy, model: gan.SRGAN) -> Callable:
    """Makes the function that trains.

    Returns:
        (iterator, count, stop) -> names of the logs; their values at each step, float32
        [count, names]; and whether any worker wants to stop.
    """
    names = []

    def train_step(batch):
        logs = model.train_step(batch)
        names[:] = logs
        return tf.stack(list(logs.values()))

    if config.jit_compile:
        train_step = tf.function(train_step, jit_compile=True)

    @tf.function
    def train_steps(iterator, count, stop):
        rows = tf.TensorArray(tf.float32, size=count)
        for i in tf.range(count):
            row = strategy.run(train_step, (next(iterator),))
            rows = rows.write(i, strategy.reduce(tf.distribute.ReduceOp.MEAN, row, axis=None))
        # Workers must stop at the same step, so one that got a signal tells the others.
        stop = strategy.run(lambda: tf.identity(stop))
        return rows.stack(), strategy.reduce(tf.distribute.ReduceOp.SUM, stop, axis=None)

    def run_steps(iterator, count, stop=False):
        rows, stop = train_steps(iterator, tf.constant(count), tf.constant(int(stop)))
        return names, rows.numpy(), bool(stop)

    return run_steps


def _probe_terms(strategy, model: gan.SRGAN, batch) -> dict[str, dict[str, float]]:
    """Returns the value and gradient norm of each loss term, which reveals a detached term."""

    def probe(batch):
        # Four crops of each replica are enough and save seconds.
        return model.probe_terms([each[:4] for each in batch])

    probed = tf.function(lambda batch: strategy.run(probe, (batch,)))(batch)
    mean = tf.nest.map_structure(
        lambda value: strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None), probed
    )
    return {
        name: {"value": float(value), "gradient_norm": float(norm)}
        for name, (value, norm) in mean.items()
    }


def _probe_speed(checkpoint: tf.train.Checkpoint, run_steps: Callable, iterator, count) -> float:
    """Times `count` real steps after a first one, undoes them, and returns seconds per step."""
    variables = _trained(checkpoint)
    before = [variable.numpy() for variable in variables]
    run_steps(iterator, 1)
    began = time.perf_counter()
    run_steps(iterator, count)
    seconds = (time.perf_counter() - began) / count
    for variable, value in zip(variables, before, strict=True):
        variable.assign(value)
    return seconds


def _validator(config, model, checkpoint, generator_at, lpips_of, pairs, log) -> Callable:
    """Makes the function that scores a step and writes its weights if they are the best so far."""

    def validate(step):
        generator = generator_at(step)
        scores = log.validate(step, generator, model.content, pairs, lpips_of)
        # Not PSNR, which a GAN lowers as it trains.
        loss = scores[_BEST_BY[bool(lpips_of)]]
        if loss < float(checkpoint.best_loss.numpy()):
            checkpoint.best_loss.assign(loss)
            path = Path(config.run_dir, "generator.best.weights.h5")
            weights.save_weights(generator, path)
        return scores

    return validate


def _loop(config, checkpoint, iterator, run_steps, validate, save, log, received) -> dict:
    """Trains from the checkpoint's step to the last.

    Args:
        config: The run.
        checkpoint: Its state.
        iterator: The batches from that step on.
        run_steps: From `_step_function`.
        validate: From `_validator`; None without validation pictures, and on all but the chief.
        save: Saves the checkpoint of a step.
        log: The `progress.RunLog`; None except on the chief.
        received: The signals that ask it to stop.

    Returns:
        The scores of the last validation; empty if there was no step left.
    """
    step = int(checkpoint.step.numpy())
    unlogged, scores = [], {}
    if validate and step == 0:
        scores = validate(step)
    while step < config.steps:
        count = recipe.next_return(config, step) - step
        names, rows, stop = run_steps(iterator, count, bool(received))
        _require_finite(names, rows, step, Path(config.run_dir, "checkpoints"))
        step += count
        checkpoint.step.assign(step)
        is_last = step == config.steps
        if log:
            unlogged.append(rows)
            log.watch(step, names, rows)
            last_row = dict(zip(names, rows[-1].tolist(), strict=True))
            log.progress(step, last_row, count * config.batch_size)
            if step % config.log_every == 0 or is_last:
                means = np.concatenate(unlogged).mean(axis=0, dtype=np.float64).tolist()
                unlogged.clear()
                rate = recipe.learning_rate(config, step)
                log.means(step, dict(zip(names, means, strict=True)), rate)
        if validate and (step % config.validate_every == 0 or is_last):
            scores = validate(step)
        if step % config.checkpoint_every == 0 or is_last or stop:
            save(step)
        if stop and not is_last:
            raise Stopped(received[0] if received else signal.SIGTERM, step)
    return scores


def _require_finite(names: list[str], rows: np.ndarray, step: int, checkpoints: Path) -> None:
    bad = ~np.isfinite(rows)
    if bad.any():
        row = int(np.argmax(bad.any(axis=1)))
        # The sum is bad whenever a term is, so name the term.
        name = next(n for n, is_bad in zip(names, bad[row], strict=True) if is_bad and n != "loss")
        value = rows[row, names.index(name)]
        raise ValueError(f"step {step + row + 1}: {name} is {value}; {_last_saved(checkpoints)}")


def _require_finite_weights(model: gan.SRGAN, step: int, checkpoints: Path) -> None:
    for variable in model.variables:
        if not np.isfinite(variable.numpy()).all():
            raise ValueError(
                f"step {step}: {variable.path} is not finite; {_last_saved(checkpoints)}"
            )


def _last_saved(checkpoints: Path) -> str:
    found = resume.checkpoints(checkpoints)
    saved = f"the last checkpoint is {found[-1]}" if found else "nothing was saved"
    return f"{saved}; start a new run with a lower --learning_rate"


def _checkpoint(model: gan.SRGAN) -> tf.train.Checkpoint:
    """Returns everything that a resumed run needs. The batches depend only on the step."""
    parts = {
        "generator": model.generator,
        "optimizer": model.optimizer,
        "step": tf.Variable(0, dtype=tf.int64, trainable=False),
        "best_loss": tf.Variable(np.inf, dtype=tf.float64, trainable=False),
    }
    if model.discriminator is not None:
        parts["discriminator"] = model.discriminator
        parts["discriminator_optimizer"] = model.discriminator_optimizer
    return tf.train.Checkpoint(**parts)


def _trained(checkpoint: tf.train.Checkpoint) -> list:
    """Returns all variables of networks and optimizers that a step changes."""
    parts = ("generator", "optimizer", "discriminator", "discriminator_optimizer")
    owners = [getattr(checkpoint, part) for part in parts if hasattr(checkpoint, part)]
    return [variable for owner in owners for variable in owner.variables]


def _device() -> str:
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        return f"{len(gpus)} x {details.get('device_name', 'GPU')}"
    return f"CPU with {os.cpu_count()} cores ({platform.machine()})"


def _faster_flags(config: recipe.Config, strategy: tf.distribute.Strategy) -> list[str]:
    """Lists the flags that speed up training on this machine and are not set."""
    found = []
    gpus = tf.config.list_physical_devices("GPU")
    if config.mixed_precision == "float32":
        if gpus:
            details = tf.config.experimental.get_device_details(gpus[0])
            capability = details.get("compute_capability", (0, 0))
            if capability >= (8, 0):
                found.append("--mixed_precision=mixed_bfloat16")
            elif capability >= (7, 0) and strategy.num_replicas_in_sync == 1:
                found.append("--mixed_precision=mixed_float16")
        elif provenance.has_bfloat16():
            found.append("--mixed_precision=mixed_bfloat16")
    if gpus and config.steps_per_call == 1:
        found.append("--steps_per_call=20")
    return found


def _finish(
    config, model: gan.SRGAN, checkpoint, generator_at, lpips_of, pairs, scores: dict
) -> None:
    """Writes the last weights and their scores."""
    path = Path(config.run_dir, "generator.weights.h5")
    generator = generator_at(config.steps)
    weights.save_weights(generator, path)
    if pairs:
        if not scores:  # resumed after the last step
            (content,) = model.content.values()
            scores, _ = progress.score(generator, content, pairs, lpips_of)
        best = f"best_{_BEST_BY[bool(lpips_of)]}"
        scores = scores | {best: float(checkpoint.best_loss.numpy())}
    record = {"steps": config.steps} | scores
    files.write_text(path.with_name("scores.json"), json.dumps(record, indent=2) + "\n")
