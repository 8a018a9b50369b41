"""A run's own record: flags.txt, run.json and metrics.jsonl. No TensorFlow.

flags.txt       a flagfile that repeats the run
run.json        flags, versions, data, losses at the start; when it went on, and where
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
        facts: What was found out before the first step, for `json.dumps`.
    """
    flags = "".join(f"--{name}={_flag_text(value)}\n" for name, value in config.items())
    write_text(run_dir / "flags.txt", flags)
    record = {"config": config, **here(), **facts}
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def read_start(run_dir: Path) -> dict:
    """Reads what `write_start` wrote; raises ValueError, one line, where it is something else."""
    path = run_dir / "run.json"
    try:
        record = json.loads(path.read_text())
        record["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a run's record; give another --run_dir") from error
    return record


def add_resumption(run_dir: Path, step: int, facts: dict) -> None:
    """Adds to run.json that the run goes on: other versions or devices round otherwise.

    Args:
        run_dir: The run folder.
        step: Where it goes on.
        facts: As in `write_start`.
    """
    record = read_start(run_dir)
    machine = {name: facts[name] for name in ("device", "replicas")}
    resumption = {"step": step, **here(), **machine}
    record.setdefault("went_on", []).append(resumption)
    write_text(run_dir / "run.json", json.dumps(record, indent=2) + "\n")


def _flag_text(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def open_metrics(run_dir: Path, first_step: int) -> TextIO:
    """Opens metrics.jsonl to go on after a step.

    Lines of steps that will be done again go; so does a line that a kill cut short.
    """
    path = run_dir / "metrics.jsonl"
    kept = []
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            # A run that begins anew also validates anew at step 0.
            if 0 < first_step >= json.loads(line)["step"]:
                kept.append(line + "\n")
    write_text(path, "".join(kept))
    return path.open("a")
