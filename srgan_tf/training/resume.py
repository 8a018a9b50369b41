"""Resuming a run: what may change, what is refused, and which checkpoint is taken."""

import dataclasses
from pathlib import Path

from srgan_tf.training import recipe, run_folder
from srgan_tf.training.recipe import VERSION, Config

# What may differ when a run goes on: it changes what is seen or how fast, not the weights. That
# pictures are those of the start is seen by themselves, wherever they lie now.
MAY_CHANGE = frozenset({
    "cache", "checkpoint_every", "dry_run", "keep_checkpoints", "log_every", "run_dir",
    "steps_per_call", "train_data", "val_data", "validate_every",
})  # fmt: skip


def refuse_changes(config: Config, before: dict) -> None:
    """Refuses to go on with a run by other flags than those that it was started with.

    Args:
        config: The run as it is asked for.
        before: The config of its start, as run.json has it.

    Raises:
        ValueError: They differ; one line.
    """
    changed = [
        f"--{name}={value} (was {before[name]})"
        for name, value in dataclasses.asdict(config).items()
        if name not in MAY_CHANGE and name in before and before[name] != value
    ]
    if changed:
        raise ValueError(
            f"--run_dir={config.run_dir} holds a run with other flags: {', '.join(changed)}; "
            "give these as they were, or another --run_dir"
        )


def refuse_to_write_over(run_dir: Path, missing: str) -> None:
    """Refuses to start where a run has ended but cannot be gone on with.

    Args:
        run_dir: The run folder.
        missing: What one would go on from, for the error.

    Raises:
        ValueError: There are final weights; one line.
    """
    if (run_dir / "generator.weights.h5").exists():
        raise ValueError(
            f"--run_dir={run_dir} holds weights but no {missing} to go on from: give another, so "
            "that nothing is lost"
        )


def refuse_other_version(config: Config, record: dict) -> None:
    """Refuses to go on with a run that another version started, whose steps were others.

    Args:
        config: The run.
        record: What run.json has of its start.

    Raises:
        ValueError: Its `VERSION` is another; one line.
    """
    if record.get("recipe") != VERSION:
        raise ValueError(
            f"--run_dir={config.run_dir}: started by a version of this program (commit"
            f" {record.get('commit')}) that trained otherwise; use that, or give another --run_dir"
        )


def going_on(config: Config, vgg_found: str | None) -> Config:
    """Gives the config to `build` a run that goes on by.

    It has its weights, and does not need those that it started from. Its VGG stays the one that was
    found at its start, though "auto" might find another now.
    """
    vgg_weights = config.vgg_weights
    if vgg_weights == "auto":
        vgg_weights = vgg_found or "auto"
    return dataclasses.replace(config, init_generator="none", vgg_weights=vgg_weights)


def _refuse_other_run(config: recipe.Config, run_dir: Path) -> None:
    """Refuses to go on with other settings than those a run folder was started with."""
    if not (run_dir / "run.json").exists():
        return
    record = run_folder.read_start(run_dir)
    if "script" in record:
        raise ValueError(
            f"--run_dir={run_dir} holds a run of {record['script']}: give another --run_dir"
        )
    refuse_changes(config, record["config"])


def _refuse_other_findings(config: recipe.Config, facts: dict) -> None:
    """Refuses to go on where the same flags now mean other steps, pictures or another VGG."""
    run_dir = Path(config.run_dir)
    before = run_folder.read_start(run_dir)
    refuse_other_version(config, before)
    if before["vgg"] != facts["vgg"]:
        raise ValueError(
            f"--vgg_weights: {run_dir} was started with {before['vgg']}, not {facts['vgg']}; give"
            " that, or another --run_dir"
        )
    if before["train_data"]["fingerprint"] != facts["train_data"]["fingerprint"]:
        raise ValueError(
            f"--train_data={facts['train_data']['spec']}: not the pictures that {run_dir} was"
            f" started with ({before['train_data']['pictures']} then,"
            f" {facts['train_data']['pictures']} now); restore them, or give another --run_dir"
        )
    if before["validation"]["fingerprint"] != facts["validation"]["fingerprint"]:
        raise ValueError(
            f"--val_data={facts['validation']['data']}: not the pictures that {run_dir} was"
            " started with; restore them, or give another --run_dir"
        )
