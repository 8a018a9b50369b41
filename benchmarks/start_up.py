r"""Measures how long it takes from a command to its first result.

    python benchmarks/start_up.py

To the end of a run of one step (`train.py` on sample pictures, without validation), to the first
enlarged picture (`upscale.py`, its fast forms made before or not), and to `--help`; beside it what
imports take. Commands take turns.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import turns
from absl import app, flags
from PIL import Image

ROOT = Path(__file__).parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 3, "Times that each is run.", lower_bound=1)


class Command(NamedTuple):
    """What is run; `removes` is deleted before each time."""

    arguments: list[str]
    removes: Path | None = None
    code: int = 0


def measure(name: str, command: Command, cache: Path) -> float:
    """Runs a command once and says how many seconds that took."""
    if command.removes:
        shutil.rmtree(command.removes, ignore_errors=True)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *command.arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        env=os.environ | {"XDG_CACHE_HOME": str(cache)},
    )
    seconds = time.perf_counter() - start
    if done.returncode != command.code:
        raise SystemExit(f"error: {name}: {turns.last_line(done.stderr)}")
    return seconds


def commands(folder: Path, cache: Path) -> dict[str, Command]:
    """What is measured, by name."""
    photo = folder / "photo.png"
    Image.fromarray(np.full([64, 64, 3], 128, np.uint8)).save(photo)
    upscale = ["upscale.py", str(photo), "--overwrite"]
    made = {
        "imports of train.py": Command(["-c", "import tensorflow, keras"]),
        "imports of upscale.py": Command(
            ["-c", "import srgan_tf.formats.openvino_model, srgan_tf.photos.enlarge"]
        ),
        "upscale.py --help": Command(["upscale.py", "--help"], code=1),  # absl's
        "upscale.py, 64x64, for the first time": Command(upscale, removes=cache),
        "upscale.py, 64x64": Command(upscale),
    }
    for variant in ("srresnet_mse", "vgg54"):
        run = folder / variant
        train = ["train.py", f"--flagfile={variant}.flags", f"--run_dir={run}", "--steps=1"]
        train += ["--vgg_weights=vgg16", "--val_pictures=0"]
        made[f"train.py --flagfile={variant}.flags, one step"] = Command(train, removes=run)
    return made


def main(_) -> None:
    """Lets the commands take turns and prints the table."""
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder, "cache")
        measured = commands(Path(folder), cache)
        seconds = {name: [] for name in measured}
        # The first round does not count: it also reads the libraries from the disk.
        for turn in range(FLAGS.rounds + 1):
            for name in turns.rotated(list(measured), turn):
                print(f"turn {turn} of {FLAGS.rounds}: {name}", file=sys.stderr, flush=True)
                seconds[name].append(measure(name, measured[name], cache))
    print(turns.machine())
    print(f"{'seconds':50}{'median':>8}{'min':>8}{'max':>8}")
    for name, (_, *each) in seconds.items():
        print(f"{name:50}{np.median(each):>8.1f}{min(each):>8.1f}{max(each):>8.1f}")


if __name__ == "__main__":
    app.run(main)
