"""Checkpoints and resuming, in the order in which it happens. Imports no TensorFlow.

`earlier_run` reads run.json and refuses other flags, `with_first_drop` and `as_started` adapt the
config to it, `require_same_findings` refuses other pictures or another VGG, and `restore` takes the
newest checkpoint that can be read.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from srgan_tf import files
from srgan_tf.training import run_folder
from srgan_tf.training.recipe import VERSION, Config, drop_step

if TYPE_CHECKING:
    import tensorflow as tf

# Flags that may change on resume: they affect the output or the speed, not the weights. The
# pictures themselves are compared, wherever they are now.
MAY_CHANGE = frozenset({
    "cache", "checkpoint_every", "dry_run", "keep_checkpoints", "log_every", "run_dir",
    "steps_per_call", "train_data", "val_data", "validate_every",
})  # fmt: skip


# Values of flags that the run.json of a run of the current version may lack.
_BEFORE_THE_FLAG = {"ema": 0.0, "validate_lpips": None}


def earlier_run(config: Config, *, has_state: bool, script: str = "train.py") -> dict | None:
    """Reads run.json and refuses a run that this one cannot resume.

    Args:
        config: The run as its flags request it now.
        has_state: True if the run folder holds a saved state to resume from.
        script: The script that trains now.

    Returns:
        The contents of run.json; None if the run starts at step 0.

    Raises:
        ValueError: The folder holds a run of another script, of an incompatible version or with
            other flags, or finished weights without a state; one line.
    """
    run_dir = Path(config.run_dir)
    record = run_folder.read_start(run_dir) if has_state or (run_dir / "run.json").exists() else {}
    if record:
        earlier_script = record.get("script") or "train.py"
        if earlier_script != script:
            raise ValueError(
                f"--run_dir={run_dir} holds a run of {earlier_script}: give another --run_dir"
            )
        before = _BEFORE_THE_FLAG | record["config"]
        may_change = MAY_CHANGE
        if config.steps > before["steps"]:
            # The rates of the steps already made depend on the number of steps.
            if config.learning_rate_schedule == "cosine":
                raise ValueError(
                    f"--steps={config.steps} (was {before['steps']}): a cosine schedule reaches 0 "
                    "at the last step, so other steps mean other rates from the first step on; "
                    "start a new run with another --run_dir and "
                    f"--init_generator={config.run_dir}"
                )
            may_change = may_change | {"steps"}
        drop = drop_step(config.learning_rate_drop_at, config.steps)
        if drop == _first_drop(record):  # flags.txt of a run with more steps sets this
            may_change = may_change | {"learning_rate_drop_at"}
        changed = [
            f"--{name}={value} (was {before[name]})"
            for name, value in dataclasses.asdict(config).items()
            if name not in may_change and before.get(name, value) != value
        ]
        if changed:
            raise ValueError(
                f"--run_dir={run_dir} holds a run with other flags: {', '.join(changed)}; give"
                " them as they were, or another --run_dir"
            )
    if has_state and record.get("recipe") != VERSION:
        raise ValueError(
            f"--run_dir={run_dir}: started by an incompatible version of this program (commit"
            f" {record.get('commit')}); use that version, or give another --run_dir"
        )
    if not has_state and (run_dir / "generator.weights.h5").exists():
        raise ValueError(
            f"--run_dir={run_dir} holds weights but no checkpoint to resume from: give another"
            " --run_dir, so that nothing is lost"
        )
    return record if has_state else None


def _first_drop(record: dict) -> int | None:
    """Returns the step after which the learning rate in run.json drops; None for never."""
    if "drop_step" in record:
        return record["drop_step"]
    before = record["config"]
    return drop_step(before["learning_rate_drop_at"], before["steps"])


def with_first_drop(config: Config, record: dict | None) -> Config:
    """Returns the config of a run that may be resumed with more steps than it started with.

    Additional steps come at the end, with the last learning rate. The learning rate drops after the
    same step as at first, so that the steps already made keep theirs.
    """
    if not record:
        return config
    drop = _first_drop(record)
    share = 1.0 if drop is None else drop / config.steps
    return dataclasses.replace(config, learning_rate_drop_at=share)


def as_started(config: Config, record: dict) -> Config:
    """Returns the config to build the networks of a resumed run with.

    A checkpoint has the weights, so the weights that the run started from are not loaded. Its VGG
    stays the one found at the start, although "auto" might find another now.
    """
    vgg_weights = config.vgg_weights
    if vgg_weights == "auto":
        vgg_weights = record["vgg"] or "auto"
    return dataclasses.replace(config, init_generator="none", vgg_weights=vgg_weights)


def require_same_findings(config: Config, record: dict, facts: dict) -> None:
    """Refuses to resume where the same flags now mean other pictures or another VGG.

    Args:
        config: The run.
        record: The contents of run.json.
        facts: What this start found, under the same keys.

    Raises:
        ValueError: They differ; one line.
    """
    run_dir = config.run_dir
    if record["vgg"] != facts["vgg"]:
        raise ValueError(
            f"--vgg_weights: {run_dir} was started with {record['vgg']}, not {facts['vgg']}; give"
            " that, or another --run_dir"
        )
    before, now = record["train_data"], facts["train_data"]
    if before["fingerprint"] != now["fingerprint"]:
        raise ValueError(
            f"--train_data={config.train_data}: not the pictures that {run_dir} was started with"
            f" ({before['pictures']} then, {now['pictures']} now); restore them, or give another"
            " --run_dir"
        )
    before, now = (found.get("validation", {}) for found in (record, facts))
    if before.get("fingerprint") != now.get("fingerprint"):
        raise ValueError(
            f"--val_data={now['data']}: not the pictures that {run_dir} was started with; restore"
            " them, or give another --run_dir"
        )


def checkpoints(folder: Path) -> list[str]:
    """Returns the paths of a folder's checkpoints, oldest first.

    It lists the files and ignores the list that TensorFlow kept in runs of older versions.
    """
    numbers = [path.stem.removeprefix("ckpt-") for path in folder.glob("ckpt-*.index")]
    steps = sorted(int(number) for number in numbers if number.isdecimal())
    return [os.fspath(folder / f"ckpt-{step}") for step in steps]


def save(checkpoint: tf.train.Checkpoint, folder: Path, step: int, keep: int) -> None:
    """Writes the checkpoint of a step and removes old ones.

    `tf.train.CheckpointManager` does not remove what lies in a folder with a bracket in its path.

    Args:
        checkpoint: What to save.
        folder: An existing folder.
        step: The step, by which the checkpoint is named.
        keep: How many checkpoints of this and earlier steps to keep.

    Raises:
        OSError, ValueError: It cannot be written; one line.
    """
    path = folder / f"ckpt-{step}"
    with files.naming(path, "cannot be saved"), files.plain_path(folder) as plain:
        checkpoint.write(os.fspath(plain / path.name))
        # Any newer one is damaged, since the run did not resume from it.
        earlier = [name for name in checkpoints(folder) if int(name.rpartition("-")[2]) <= step]
        for name in earlier[:-keep]:
            for file in [Path(f"{name}.index"), *folder.glob(f"{Path(name).name}.data-*")]:
                with contextlib.suppress(OSError):  # it only takes space
                    file.unlink()


def restore(checkpoint: tf.train.Checkpoint, folder: Path) -> str:
    """Restores the newest readable checkpoint of a folder and returns its path.

    Raises:
        ValueError: None can be read; one line.
    """
    for path in reversed(checkpoints(folder)):
        try:
            with files.naming(path, "cannot be read"), files.plain_path(folder) as plain:
                found = checkpoint.read(os.fspath(plain / Path(path).name))
                found.assert_existing_objects_matched()
                found.expect_partial()  # older versions also saved a counter of checkpoints
        except (OSError, ValueError) as error:
            logging.warning("%s: trying the one before it", error)
        else:
            return path
    raise ValueError(
        f"{folder}: none of its checkpoints can be read; give another --run_dir to start over"
    )
