"""Pictures to test with: made up, small, and the same in every run."""

import contextlib
import dataclasses
import hashlib
import importlib.util
import io
import json
import os
import struct
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from pathlib import Path

import numpy as np
import pytest
from absl import flags
from PIL import Image

from srgan_tf import png, upscaling
from srgan_tf.evaluation import methods, mos_kit, ratings, scoring, sets

ROOT = Path(__file__).parents[1]

# Repeats pixels; says that it sees one around, so that pictures are cut into tiles.
NEAREST = upscaling.Upscaler(lambda lr: lr.repeat(4, axis=1).repeat(4, axis=2), margin=1)

SHARED = Path(os.environ.get("SRGAN_SHARED", Path(__file__).parents[2] / "shared"))


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A colorful picture, smooth with some edges, uint8 [height, width, 3]."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    picture = np.array(smooth)
    top, left = generator.integers(0, height // 2), generator.integers(0, width // 2)
    picture[top : top + height // 3, left : left + width // 3] ^= 0x55
    return picture


def noise(*shape: int, seed: int = 0, dtype=np.uint8) -> np.ndarray:
    """A picture of random values of the type's full range."""
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, most, shape, dtype, endpoint=True)


def save_photograph(path: Path, height: int, width: int, seed: int = 0, **options) -> np.ndarray:
    """Writes a made-up photograph, JPEG without loss of color resolution unless told."""
    picture = photograph(height, width, seed)
    Image.fromarray(picture).save(path, **options)
    return picture


def scored(folder: Path, sizes: list, also: list[methods.Method], **options) -> scoring.Results:
    """Scores nearest, bicubic and others on made-up pictures; the results are in folder/out."""
    (folder / "Set5").mkdir()
    for number, size in enumerate(sizes):
        save_photograph(folder / "Set5" / f"{number} #%.png", *size, seed=number)
    opened, compared = sets.open_sets([str(folder / "Set5")]), [*methods.load_methods([]), *also]
    return scoring.evaluate(opened, compared, out_dir=folder / "out", **options)


def rating_file(kit: mos_kit.Kit, alias: str, score, /, **changes) -> bytes:
    """What a kit's page saves for a rater who scores each `mos_kit.Item` as a function does."""
    document = {
        "format": 1,
        "kit": kit.id,
        "alias": alias,
        "seed": hashlib.md5(alias.encode()).hexdigest(),
        "calibration": list(kit.calibration.items()),
        "ratings": [[file, int(score(item))] for file, item in kit.items.items()],
        **changes,
    }
    return json.dumps({**document, "checksum": ratings.checksum(document)}).encode()


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """Makes a PNG file of chunks (kind, data)."""
    file = io.BytesIO()
    for kind, data in chunks:
        png._write_chunk(file, kind, data)
    return b"\x89PNG\r\n\x1a\n" + file.getvalue()


def with_chunk(given: bytes | Image.Image, kind: bytes, data: bytes) -> bytes:
    """Inserts a chunk into a PNG file, or the PNG of an image, before its pixels."""
    if isinstance(given, Image.Image):
        file = io.BytesIO()
        given.save(file, "PNG")
        given = file.getvalue()
    return given[:33] + png_of((kind, data))[8:] + given[33:]


def tiff(*images: dict, pixels: bytes) -> bytes:
    """Makes a TIFF of LONG tags {tag: value}, one picture for each, all with the same pixels.

    A value of "next" is the place of the next picture, which is then no further page.
    """
    file, start = b"II*\0" + struct.pack("<I", 8 + len(pixels)) + pixels, 8 + len(pixels)
    for number, tags in enumerate(images):
        tags = dict(sorted((tags | {259: 1, 273: 8, 279: len(pixels)}).items()))
        end = start + 2 + 12 * len(tags) + 4
        file += struct.pack("<H", len(tags))
        for tag, value in tags.items():
            file += struct.pack("<HHII", tag, 4, 1, end if value == "next" else value)
        is_last = number == len(images) - 1 or "next" in tags.values()
        file += struct.pack("<I", 0 if is_last else end)
        start = end
    return file


@contextlib.contextmanager
def full_disk(size: int):
    """Limits new files to a size in bytes, which fails as a full disk does."""
    if sys.platform != "linux":
        pytest.skip("setrlimit")
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def load_script(monkeypatch):
    """Imports a script of the repository in this process: its path to its module."""
    loaded = {}

    def load(path: str):
        if path not in loaded:
            name = Path(path).stem
            spec = importlib.util.spec_from_file_location(name, ROOT / path)
            loaded[path] = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, loaded[path])
            spec.loader.exec_module(loaded[path])
        return loaded[path]

    yield load
    for script in loaded.values():  # other scripts have flags of the same names
        for flag in flags.FLAGS.get_flags_for_module(script.__name__):
            delattr(flags.FLAGS, flag.name)


@pytest.fixture
def run_script(load_script, capsys):
    """Runs a script in this process: (path, *arguments) to (exit code, stdout, stderr)."""

    def run(path: str, *arguments):
        script = load_script(path)
        flags.FLAGS.unparse_flags()
        for flag in flags.FLAGS.get_flags_for_module(script.__name__):
            flag.unparse()
        code = script.run(flags.FLAGS([path, *map(str, arguments)]))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def config(load_script):
    """Builds a run's `recipe.Config` from the defaults of train.py's flags and changes to them."""
    train = load_script("train.py")
    return lambda **changes: dataclasses.replace(train.read_config("run"), **changes)


@pytest.fixture(scope="session")
def _chromium(tmp_path_factory):
    import chromium

    if not (chromium.BINARY.exists() and chromium.DRIVER.exists()):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    driver = chromium.Chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def browser(_chromium):
    """A headless Chromium (`chromium.Chromium`) with empty logs, or a skip."""
    _chromium.problems(), _chromium.requests()
    return _chromium


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of benchmark pictures and golden values (SRGAN_SHARED), or a skip."""
    if not (SHARED / "data" / "eval").is_dir():
        pytest.skip("no pictures in SRGAN_SHARED")
    return SHARED


@pytest.fixture(scope="session")
def photo_folder(tmp_path_factory) -> Path:
    """A folder of 20 ordinary pictures of several sizes, JPEG and PNG, some further down."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more" / "deep").mkdir(parents=True)
    for number in range(20):
        parent = folder / ["", "more", "more/deep"][number % 3]
        name = f"{number:02}" + (".png" if number % 4 == 3 else ".jpg")
        save_photograph(parent / name, 100 + 3 * number, 160 - 2 * number, seed=number)
    return folder


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """The weights file of a tiny generator, which enlarges as nearest neighbor, a little off."""
    import keras

    from srgan_tf import networks

    keras.utils.set_random_seed(2)
    path = tmp_path_factory.mktemp("weights") / "tiny.weights.h5"
    networks.build_generator(residual_blocks=1, filters=8).save_weights(path)
    return path


@pytest.fixture(scope="session")
def generator():
    """A tiny generator that upscales recognizably, and whose every layer matters."""
    import keras

    from srgan_tf import networks

    keras.utils.set_random_seed(1)
    generator = networks.build_generator(residual_blocks=2, filters=8)
    trained = np.random.default_rng(1)
    for layer in generator.layers:
        old = layer.get_weights()
        if isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = (trained.uniform(0.5, 1.5, w.shape) for w in old)
            layer.set_weights([gamma / 5, beta / 20 - 0.05, mean / 5, variance])
        elif isinstance(layer, keras.layers.PReLU):  # some slopes below 0 or above 1
            layer.set_weights([trained.uniform(-0.2, 1.4, w.shape) for w in old])
    return generator


@pytest.fixture(scope="session")
def tfds_folder(tmp_path_factory) -> Path:
    """A TFDS data directory that holds `tiny_photos`, prepared as array_record.

    20 pictures in "train", 4 in "validation", under "hr" beside a shrunken "lr" as in DIV2K. To be
    read with TFDS_DATA_DIR set to it, as `tfds:tiny_photos[:SPLIT]`.
    """
    import tensorflow_datasets as tfds

    def examples(numbers):
        for number in numbers:
            hr = photograph(100 + 2 * number, 150, seed=number)
            yield number, {"lr": hr[::4, ::4], "hr": hr, "label": number}

    image = tfds.features.Image(encoding_format="jpeg")
    features = {"lr": tfds.features.Image(), "hr": image, "label": np.int64}
    folder = tmp_path_factory.mktemp("tfds")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny_photos",
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={"train": examples(range(20)), "validation": examples(range(20, 24))},
        data_dir=folder,
        file_format="array_record",
    )
    return folder
