"""Resuming a run, in the order in which it happens; needs no TensorFlow.

`earlier_run` reads run.json and refuses other flags, `as_started` adapts the config to it,
`require_same_findings` refuses other pictures or another VGG, and `restore` takes the newest
checkpoint that can be read.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING

from absl import logging

from srgan_tf import pictures
from srgan_tf.training import run_folder
from srgan_tf.training.recipe import VERSION, Config

if TYPE_CHECKING:
    import tensorflow as tf

# Flags that may change on resume: they affect what is displayed, or the speed, not the weights.
# The pictures themselves are compared, wherever they lie now.
MAY_CHANGE = frozenset({
    "cache", "checkpoint_every", "dry_run", "keep_checkpoints", "log_every", "run_dir",
    "steps_per_call", "train_data", "val_data", "validate_every",
})  # fmt: skip


# Values of flags that runs of today's version may lack in their run.json.
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
        ValueError: The folder holds a run of another script, with other flags or by an incompatible
            version, or finished weights without a state; one line.
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
        changed = [
            f"--{name}={value} (was {before[name]})"
            for name, value in dataclasses.asdict(config).items()
            if name not in MAY_CHANGE and before.get(name, value) != value
        ]
        if changed:
            raise ValueError(
                f"--run_dir={run_dir} holds a run with other flags: {', '.join(changed)}; give"
                " these as they were, or another --run_dir"
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


def as_started(config: Config, record: dict) -> Config:
    """Returns the config to build the networks of a resumed run with.

    The run has its weights and does not need those that it started from. Its VGG stays the one
    found at the start, although "auto" might find another now.
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

    Files decide, not TensorFlow's own list of them, which may be lost.
    """
    numbers = [path.stem.removeprefix("ckpt-") for path in folder.glob("ckpt-*.index")]
    steps = sorted(int(number) for number in numbers if number.isdecimal())
    return [os.fspath(folder / f"ckpt-{step}") for step in steps]


def restore(checkpoint: tf.train.Checkpoint, folder: Path) -> str:
    """Restores the newest readable checkpoint of a folder that holds some; returns its path.

    Raises:
        ValueError: None can be read; one line.
    """
    for path in reversed(checkpoints(folder)):
        try:
            checkpoint.restore(path).assert_existing_objects_matched()
        except Exception as error:  # a damaged file can raise anything, an IndexError for one
            reason = pictures.one_line(error)
            logging.warning("%s cannot be read (%s): trying the one before it", path, reason)
        else:
            return path
    raise ValueError(
        f"{folder}: none of its checkpoints can be read; give another --run_dir to start over"
    )
