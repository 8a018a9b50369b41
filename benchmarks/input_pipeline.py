r"""Measures how many crops a second the input pipeline delivers, and how many for each core.

    python benchmarks/input_pipeline.py [--data=FOLDER]

Each kind of source is made of the same pictures: JPEG files, PNG files, decoded pictures kept in
memory, and a TFDS data set in array_record form, built for the occasion. They take turns, each time
from the same first step on. What a training step needs is --batch_size crops in --step_seconds.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

# From a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
import turns
from absl import app, flags, logging
from PIL import Image

from srgan_tf import data, pictures

FLAGS = flags.FLAGS
flags.DEFINE_string("data", None, "Folder of pictures; without it, the sample pictures cut small.")
flags.DEFINE_integer("pictures", 200, "Use at most so many pictures.", lower_bound=1)
flags.DEFINE_integer("batch_size", 16, "Crops in a batch.", lower_bound=1)
flags.DEFINE_integer("rounds", 5, "Turns of each source.", lower_bound=1)
flags.DEFINE_float("seconds", 3, "Length of a turn.", lower_bound=0.1)
flags.DEFINE_float(
    "step_seconds",
    1.25,
    "What a training step takes; 1.25 is SRResNet's with 16 crops on two cores (training.py).",
    lower_bound=0.001,
)
flags.DEFINE_bool("augment", False, "Flip and rotate the crops.")
flags.DEFINE_bool("determinism", False, "Ask TensorFlow for determinism, as a training run may.")


def sample_tiles() -> Iterator[np.ndarray]:
    """Cuts the sample pictures into tiles the size of BSDS500's: uint8 [320, 480, 3]."""
    for path in pictures.sample_pictures():
        picture = pictures.read_rgb(path)
        height, width = picture.shape[:2]
        for top in range(0, height - 319, 160):
            for left in range(0, width - 479, 240):
                yield picture[top : top + 320, left : left + 480]


def write_files(chosen: list[np.ndarray], folder: Path, suffix: str) -> None:
    """Writes pictures as files, JPEG in the quality that cameras and ImageNet have."""
    folder.mkdir()
    for number, picture in enumerate(chosen):
        Image.fromarray(picture).save(folder / f"{number:05}{suffix}", quality=95)


def write_tfds(folder: Path, data_dir: Path) -> None:
    """Makes the files of a folder a TFDS data set `pictures`, as array_record."""
    image = tfds.features.Image(encoding_format="jpeg")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="pictures",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": image}),
        split_datasets={
            "train": ((path.name, {"image": path}) for path in pictures.find_pictures(folder))
        },
        data_dir=data_dir,
        file_format="array_record",
    )


def open_batches(spec: str, **options) -> tf.data.Dataset:
    """Makes the stream of training batches of a source."""
    source = data.open_source(spec)
    return data.training_batches(
        source, seed=1, batch_size=FLAGS.batch_size, augment=FLAGS.augment, **options
    )


def measure(batches: tf.data.Dataset) -> tuple[float, float]:
    """Crops a second by the clock, and by the time that all cores spent."""
    # A new one each time: one that waited for its turn would begin with full buffers, and would
    # have filled them in another's.
    iterator = iter(batches)
    for _ in range(5):
        next(iterator)
    start, start_busy, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < FLAGS.seconds:
        next(iterator)
        count += FLAGS.batch_size
    return count / (time.perf_counter() - start), count / (time.process_time() - start_busy)


def main(_) -> None:
    """Builds the sources in a temporary folder and lets them take turns."""
    logging.set_verbosity(logging.ERROR)
    tfds.disable_progress_bar()
    if FLAGS.determinism:
        tf.keras.utils.set_random_seed(1)
        tf.config.experimental.enable_op_determinism()
    if FLAGS.data:
        source = data.open_source(FLAGS.data)
        found = (source.read_rgb(index) for index in range(len(source)))
    else:
        found = sample_tiles()
    chosen = list(itertools.islice(found, FLAGS.pictures))
    megapixels = np.mean([picture.shape[0] * picture.shape[1] for picture in chosen]) / 1e6
    print(turns.machine())
    print(f"{len(chosen)} pictures of {megapixels:.2f} megapixels, crops a second")
    needed = FLAGS.batch_size / FLAGS.step_seconds
    print(f"a step of {FLAGS.batch_size} crops in {FLAGS.step_seconds} s needs {needed:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        jpegs, pngs, prepared = (Path(folder, name) for name in ("jpeg", "png", "tfds"))
        write_files(chosen, jpegs, ".jpg")
        write_files(chosen, pngs, ".png")
        write_tfds(jpegs, prepared)
        os.environ["TFDS_DATA_DIR"] = str(prepared)
        sources = {
            "JPEG files": open_batches(str(jpegs)),
            "PNG files": open_batches(str(pngs)),
            "memory (--cache)": open_batches(str(jpegs), cache=True),
            "TFDS, array_record": open_batches("tfds:pictures"),
        }
        rates = {name: [] for name in sources}
        for turn in range(FLAGS.rounds):
            for name in turns.rotated(list(sources), turn):
                rates[name].append(measure(sources[name]))
    print(
        f"{'':22}{'median':>8}{'min':>8}{'max':>8}{'per core':>10}{'times what a step needs':>25}"
    )
    for name, measured in rates.items():
        by_clock, by_core = zip(*measured, strict=True)
        median = np.median(by_clock)
        print(
            f"{name:22}{median:>8.0f}{min(by_clock):>8.0f}{max(by_clock):>8.0f}"
            f"{np.median(by_core):>10.0f}{median / needed:>25.1f}"
        )


if __name__ == "__main__":
    app.run(main)
