r"""Measures how long it takes from a command to its first result.

    python benchmarks/start_up.py

To the end of a run of one step (`train.py` on sample pictures, without validation), to the first
enlarged picture (`upscale.py`, its fast form made before or not), and to `--help`; beside it what
importing TensorFlow alone takes, without which only `--help` can do.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import turns
from absl import app, flags
from PIL import Image

ROOT = Path(__file__).parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 3, "Times that each is run.", lower_bound=1)


def measure(name: str, command: list[str], before=lambda: None, **environment) -> None:
    """Prints one row: the median, the least and the most."""
    seconds = []
    for _ in range(FLAGS.rounds):
        before()
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            check="--help" not in command,  # absl answers it with exit code 1
            capture_output=True,
            env=os.environ | environment,
        )
        seconds.append(time.perf_counter() - start)
    print(
        f"{name:44} {np.median(seconds):7.1f} {min(seconds):7.1f} {max(seconds):7.1f}", flush=True
    )


def main(_) -> None:
    """Measures each in turn."""
    print(turns.machine())
    print(f"{'seconds':44} {'median':>7} {'min':>7} {'max':>7}")
    measure("import tensorflow", ["-c", "import tensorflow"])
    measure("upscale.py --help", ["upscale.py", "--help"])
    with tempfile.TemporaryDirectory() as folder:
        for name in ("srresnet_mse", "vgg54"):
            run = Path(folder, name)
            command = ["train.py", f"--flagfile={name}.flags", f"--run_dir={run}", "--steps=1"]
            measure(
                f"train.py --flagfile={name}.flags, one step",
                [*command, "--vgg_weights=hed", "--val_pictures=0"],
                before=lambda run=run: shutil.rmtree(run, ignore_errors=True),
            )
        photo, cache = Path(folder, "photo.png"), Path(folder, "cache")
        Image.fromarray(np.full([64, 64, 3], 128, np.uint8)).save(photo)
        command = ["upscale.py", str(photo), "--overwrite"]
        measure(
            "upscale.py, 64x64, for the first time",
            command,
            before=lambda: shutil.rmtree(cache, ignore_errors=True),
            XDG_CACHE_HOME=str(cache),
        )
        measure("upscale.py, 64x64", command, XDG_CACHE_HOME=str(cache))


if __name__ == "__main__":
    app.run(main)
