r"""Measures how time and memory grow with batch, size of a picture and number of pictures.

    python benchmarks/growth.py

Each row is a process of its own. The last columns say what one more crop, megapixel of SR or
picture costs, beside the row before: they stay the same where growth is linear.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# From a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import functools
import tempfile

import numpy as np
import turns
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_integer("rounds", 3, "Times that each is run.", lower_bound=1)
flags.DEFINE_string("contender", None, "Be this one (the benchmark calls itself).")


def batch(size: int) -> None:
    """A training step of SRResNet."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # as train.py does
    import tensorflow as tf

    from srgan_tf import training

    model, _ = training.build_model(training.Config(run_dir=""))
    step = tf.function(model.train_step)
    crops = tf.random.uniform([size, 24, 24, 3]), tf.random.uniform([size, 96, 96, 3], -1)
    step(crops)
    turns.serve(lambda: step(crops)["loss"].numpy())


def picture(side: int) -> None:
    """A picture through the default of upscale.py."""
    from srgan_tf import inference, upscaling

    network, _ = inference.load_network("srresnet_mse")
    lr = np.random.default_rng(0).integers(0, 256, [side, side, 3], np.uint8)
    upscaling.upscale(network, lr)
    turns.serve(lambda: upscaling.upscale(network, lr))


def folder(count: int) -> None:
    """Pictures of 64x64 through the default of upscale.py, files and all."""
    from PIL import Image

    from srgan_tf import inference, photo_jobs

    network = inference.load_network("srresnet_mse")
    with tempfile.TemporaryDirectory() as given, tempfile.TemporaryDirectory() as made:
        rng = np.random.default_rng(0)
        for number in range(count):
            pixels = rng.integers(0, 256, [64, 64, 3], np.uint8)
            Image.fromarray(pixels).save(Path(given, f"{number}.png"))
        jobs = photo_jobs.plan([given], out_dir=made, format="png")
        photo_jobs.run(jobs[:1], lambda bits: network)
        turns.serve(lambda: photo_jobs.run(jobs, lambda bits: network))


CONTENDERS = {
    f"{kind.__name__} {size}": functools.partial(kind, size)
    for kind, sizes in ((batch, (4, 8, 16, 32)), (picture, (128, 256, 512)), (folder, (4, 8, 16)))
    for size in sizes
}


def main(_) -> None:
    """Runs each and prints what it took."""
    if FLAGS.contender:
        CONTENDERS[FLAGS.contender]()
        return
    print(turns.machine())
    print(f"{'':16}{'median s':>10}{'MB':>8}{'s for one more':>18}{'MB for one more':>18}")
    before = None
    for name in CONTENDERS:
        command = [sys.executable, __file__, f"--contender={name}"]
        [result] = turns.compare({name: command}, FLAGS.rounds).values()
        if isinstance(result, str):
            raise SystemExit(f"error: {name}: {result}")
        kind, size = name.split()
        units = 16 * int(size) ** 2 / 1e6 if kind == "picture" else int(size)
        seconds = float(np.median(result.seconds))
        growth = ""
        if before and before[0] == kind:
            more = units - before[1]
            growth = f"{(seconds - before[2]) / more:>18.3f}"
            growth += f"{(result.megabytes - before[3]) / more:>18.1f}"
        print(f"{name:16}{seconds:>10.2f}{result.megabytes:>8.0f}{growth}", flush=True)
        before = kind, units, seconds, result.megabytes


if __name__ == "__main__":
    app.run(main)
