"""A run's own record: flags.txt, run.json and metrics.jsonl. Imports no TensorFlow.

flags.txt       a flagfile that repeats the run
run.json        flags, versions, data, losses at the start; each resumption (`went_on`)
metrics.jsonl   losses and validation scores by step
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TextIO

from srgan_tf.files import write_text
from srgan_tf.provenance import here


def write_start(run_dir: Path, config: dict, facts: dict) -> None:
    """Writes flags.txt and run.json.

    Args:
        run_dir: The run folder.
        config: Flags by name.
        facts: Metadata known before the first step, for `json.dumps`.
    """
    _write_flags(run_dir, config)
    record = {"config": config, **here(), **facts}
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def _write_flags(run_dir: Path, config: dict) -> None:
    values = {name: str(v).lower() if isinstance(v, bool) else v for name, v in config.items()}
    lines = [f"--{name}={value}\n" for name, value in values.items() if value is not None]
    write_text(run_dir / "flags.txt", "".join(lines))


def read_start(run_dir: Path) -> dict:
    """Reads run.json; raises ValueError, one line, if it is damaged or not a run's."""
    path = run_dir / "run.json"
    try:
        record = json.loads(path.read_text())
        record["config"]["steps"], record["config"]["learning_rate_drop_at"]
        record["vgg"], record["train_data"]["fingerprint"]
    except Exception as error:  # another program's file, of any contents
        raise ValueError(f"{path}: not a run's record; give another --run_dir") from error
    return record


def add_resumption(run_dir: Path, step: int, config: dict, facts: dict) -> None:
    """Adds a resumption to run.json, since other versions or devices round differently.

    Args:
        run_dir: The run folder.
        step: Steps done.
        config: Flags by name; the number of steps may be larger now.
        facts: As in `write_start`.
    """
    record = read_start(run_dir)
    if config["steps"] != record["config"]["steps"]:
        record["config"]["steps"] = config["steps"]
        record["drop_step"] = facts["drop_step"]  # older runs lack it
        _write_flags(run_dir, config)
    machine = {name: facts[name] for name in ("device", "replicas")}
    resumption = {"step": step, **here(), **machine}
    record.setdefault("went_on", []).append(resumption)
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def open_metrics(run_dir: Path, first_step: int) -> TextIO:
    """Opens metrics.jsonl to continue after a step.

    Lines of steps that will be repeated are removed, and so is a line that a kill cut short.
    """
    path = run_dir / "metrics.jsonl"
    kept = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        with contextlib.suppress(Exception):  # cut short or damaged
            # A run that starts over also validates again at step 0.
            if 0 < first_step >= json.loads(line)["step"]:
                kept.append(line + "\n")
    write_text(path, "".join(kept))
    return path.open("a")
