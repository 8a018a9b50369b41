r"""Measures how time and memory grow with batch, size of a picture and number of pictures.

    python benchmarks/growth.py

Each row is a process of its own; those of a kind take turns. The last columns say what one more
crop, megapixel of SR or picture costs, beside the row before: they stay the same where growth is
linear. Pictures are no larger than upscale.py's tiles: beyond 768 pixels they overlap by 80, and
memory grows by the result alone. Half of the network is in tiles of 192 already.
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
flags.DEFINE_integer("rounds", 3, "Turns of each size.", lower_bound=1)
flags.DEFINE_enum("kind", None, ["batch", "picture", "folder"], "Run this alone; else all.")
flags.DEFINE_string("contender", None, "Be this one (the benchmark calls itself).")


def batch(size: int) -> None:
    """A training step of SRResNet."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # as train.py does
    import tensorflow as tf

    import train
    from srgan_tf.training import loop

    model, _ = loop.build_model(train.read_config(""))
    step = tf.function(model.train_step)
    crops = tf.random.uniform([size, 24, 24, 3]), tf.random.uniform([size, 96, 96, 3], -1)
    step(crops)
    turns.serve(lambda: step(crops)["loss"].numpy())


def picture(side: int) -> None:
    """A picture through the default of upscale.py."""
    from srgan_tf import upscaling
    from srgan_tf.photos import fastest

    network, _ = fastest.load_network("srresnet_mse")
    lr = np.random.default_rng(0).integers(0, 256, [side, side, 3], np.uint8)
    upscaling.upscale(network, lr)
    turns.serve(lambda: upscaling.upscale(network, lr))


def folder(count: int) -> None:
    """Pictures of 64x64 through the default of upscale.py, files and all."""
    from PIL import Image

    from srgan_tf.photos import enlarge, fastest

    network = fastest.load_network("srresnet_mse")
    with tempfile.TemporaryDirectory() as given, tempfile.TemporaryDirectory() as made:
        rng = np.random.default_rng(0)
        for number in range(count):
            pixels = rng.integers(0, 256, [64, 64, 3], np.uint8)
            Image.fromarray(pixels).save(Path(given, f"{number}.png"))
        jobs = enlarge.plan([given], out_dir=made, format="png")
        enlarge.run(jobs[:1], lambda bits: network)
        turns.serve(lambda: enlarge.run(jobs, lambda bits: network))


SIZES = {batch: (8, 16, 32), picture: (96, 192, 384), folder: (4, 8, 16)}
CONTENDERS = {
    f"{kind.__name__} {size}": functools.partial(kind, size)
    for kind, sizes in SIZES.items()
    for size in sizes
}


def print_rows(kind: str, sizes: tuple[int, ...]) -> None:
    """Lets the sizes of a kind take turns and prints what each took."""
    names = [f"{kind} {size}" for size in sizes]
    commands = {name: [sys.executable, __file__, f"--contender={name}"] for name in names}
    # The first process of all makes the kept forms, which takes memory that the others do not.
    turns.compare({names[0]: commands[names[0]]}, 1)
    results = turns.compare(commands, FLAGS.rounds)
    before = None
    for size, (name, result) in zip(sizes, results.items(), strict=True):
        if isinstance(result, str):
            raise SystemExit(f"error: {name}: {result}")
        units = 16 * size**2 / 1e6 if kind == "picture" else size
        seconds, growth = float(np.median(result.seconds)), ""
        if before:
            more = units - before[0]
            growth = f"{(seconds - before[1]) / more:>18.3f}"
            growth += f"{(result.megabytes - before[2]) / more:>18.1f}"
        print(f"{name:16}{seconds:>10.2f}{result.megabytes:>8.0f}{growth}", flush=True)
        before = units, seconds, result.megabytes


def main(_) -> None:
    """Runs all kinds and prints one table."""
    if FLAGS.contender:
        CONTENDERS[FLAGS.contender]()
        return
    print(turns.machine())
    print(f"{'':16}{'median s':>10}{'MB':>8}{'s for one more':>18}{'MB for one more':>18}")
    for kind, sizes in SIZES.items():
        if FLAGS.kind in (None, kind.__name__):
            print_rows(kind.__name__, sizes)


if __name__ == "__main__":
    app.run(main)
