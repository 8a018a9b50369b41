"""Generators by name: a run folder, a weights file, or bundled weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from srgan_tf import files, folding

if TYPE_CHECKING:  # cards and layers load without Keras
    import keras
    import numpy as np

_BUNDLED = Path(__file__).with_name("pretrained")
_SUFFIX = ".weights.h5"
_NO_WEIGHTS = "not a generator's weights"

# The ends of the dial between faithful and detailed.
BUNDLED_PAIR = ("srresnet_mse", "srgan_vgg54")


class Blend(NamedTuple):
    """A blend of the pictures of two networks: `detail` is the weight of the second, 0 to 1."""

    detail: float
    first: str
    second: str


def bundled() -> list[str]:
    """Returns the names of the bundled weights."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in _BUNDLED.glob(f"*{_SUFFIX}"))


def load_generator(spec: str) -> tuple[keras.Model, dict]:
    """Loads a trained generator, in float32 unless a .keras file states another dtype.

    Args:
        spec: A name from `bundled()`; a run folder, for its final weights, or the best ones if the
            run is unfinished; a .weights.h5 file of a generator of any number of blocks and
            filters; or a .keras file.

    Returns:
        The generator, and its card: name, path, sha256 of the file, variant, steps, vgg and ema
        (the momentum of `train.py --ema`), each None if unknown.

    Raises:
        FileNotFoundError, ValueError: Nothing has this name, or it is not a generator; one line.
    """
    card = read_card(spec)
    path = Path(card["path"])
    with files.naming(path, _NO_WEIGHTS):
        return _load(path), card


def load_layers(spec: str) -> dict[str, folding.Layer]:
    """Loads a trained generator's folded layers. A .weights.h5 file needs no Keras.

    Importing Keras would take longer than everything else.

    Args:
        spec: As in `load_generator`.

    Returns:
        Its convolutions by name, batch norms folded.

    Raises:
        FileNotFoundError, ValueError: As `load_generator`.
    """
    path = Path(read_card(spec)["path"])
    with files.naming(path, _NO_WEIGHTS):
        if path.suffix == ".keras":
            return folding.fold(_load(path))
        return folding.fold_arrays(_read(path))


def parse_blend(spec: str) -> Blend | None:
    """Parses the spec of a blend of two networks' pictures; returns None for other specs.

    Args:
        spec: "blend:DETAIL" for the bundled pair, the dial of `upscale.py --detail`, or
            "blend:DETAIL:FIRST:SECOND", where FIRST and SECOND are specs as in `load_generator`.
            DETAIL is the weight of the second's picture, 0 to 1. (If a path begins like this, write
            ./blend:... instead.)

    Raises:
        ValueError: The spec starts with "blend:" but does not have this form; one line.
    """
    if not spec.startswith("blend:"):
        return None
    number, *parts = spec.removeprefix("blend:").split(":")
    with contextlib.suppress(ValueError):
        if 0 <= float(number) <= 1 and (not parts or len(parts) == 2 and all(parts)):
            return Blend(float(number), *(parts or BUNDLED_PAIR))
    raise ValueError(
        f"{spec}: a blend is spelled blend:DETAIL or blend:DETAIL:FIRST:SECOND, DETAIL in 0..1"
    )


def read_card(spec: str) -> dict:
    """Reads the card that `load_generator` returns, without loading the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_generator`, except that the weights are not checked.
    """
    path = _find(spec)
    card = {
        "name": path.name.removesuffix(_SUFFIX),
        "path": str(path),
        "sha256": file_sha256(path),
        **dict.fromkeys(("variant", "steps", "vgg", "ema")),
    }
    run = path.parent / "run.json"
    beside = path.with_name(f"{card['name']}.json")
    with contextlib.suppress(Exception):  # another program's files, of any contents
        if beside.is_file():
            known = json.loads(beside.read_text())
            card |= {key: known[key] for key in ("variant", "steps", "vgg")}
            card["ema"] = known.get("ema")  # older cards have none
        elif run.is_file():
            record, steps = json.loads(run.read_text()), None
            if card["name"] == "generator":
                steps = record["config"]["steps"]
                # While a finished run continues, its weights have fewer steps than its config.
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                    steps = json.loads(path.with_name("scores.json").read_text())["steps"]
            card |= {
                "name": path.resolve().parent.name,
                "variant": record["variant"],
                "steps": steps,
                "vgg": record["vgg"],
                "ema": record["config"].get("ema"),
            }
    return card


def save_weights(generator: keras.Model, path: Path) -> None:
    """Writes a .weights.h5 file, atomically.

    Raises:
        OSError, ValueError: It cannot be written; one line that names it.
    """
    with files.naming(path, "cannot be written"), files.replacing(path) as temporary:
        generator.save_weights(temporary)


def file_sha256(path: Path) -> str:
    """Hashes a file, or the graph and variables of a SavedModel folder; in hexadecimal."""
    files = [path]
    if path.is_dir():
        files = [path / "saved_model.pb", *sorted((path / "variables").glob("*"))]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _find(spec: str) -> Path:
    path = Path(spec)
    if path.is_dir():
        for name in ("generator.weights.h5", "generator.best.weights.h5"):
            if (path / name).is_file():
                return path / name
        # An exported SavedModel's folder has the name of its weights.
        if spec not in bundled():
            raise FileNotFoundError(f"{spec}: no generator.weights.h5 in this folder")
    if path.is_file():
        if not path.name.endswith((_SUFFIX, ".keras")):
            raise ValueError(f"{spec}: give a {_SUFFIX} or .keras file, or a run folder")
        return path
    if spec in bundled():
        return _BUNDLED / f"{spec}{_SUFFIX}"
    names = ", ".join(bundled())
    raise FileNotFoundError(f"{spec}: no such run folder, file or bundled weights ({names})")


def _load(path: Path) -> keras.Model:
    import keras

    from srgan_tf import networks  # also registers the layers of .keras files

    if path.suffix == ".keras":
        if not zipfile.is_zipfile(path):
            raise ValueError("it is not a zip file, as .keras files are")
        return keras.models.load_model(path, compile=False)
    arrays = _read(path)
    generator = networks.build_generator(
        residual_blocks=sum(name.endswith("_conv1") for name in arrays),
        filters=arrays["conv_in"][0].shape[-1],
        init="random",
    )
    for name, values in arrays.items():
        generator.get_layer(name).set_weights(values)
    return generator


def _read(path: Path) -> dict[str, list[np.ndarray]]:
    """Reads a weights file, with the layer names of `networks`; Keras uses class and number."""
    import h5py

    if not h5py.is_hdf5(path):
        raise ValueError("it is not an HDF5 file, as .weights.h5 files are")
    with h5py.File(path) as file:
        layers = file["layers"]
        stored = []
        for kind in ("conv2d", "batch_normalization", "p_re_lu"):
            names = [name for name in layers if re.fullmatch(rf"{kind}(_\d+)?", name)]
            names.sort(key=lambda name: (len(name), name))  # conv2d, conv2d_1, ... conv2d_10
            stored.append([[v[()] for v in layers[name]["vars"].values()] for name in names])
        count = 0

        def add(_, item):
            nonlocal count
            count += hasattr(item, "shape")

        layers.visititems(add)
    # Two for each block, plus the first, the last, the trunk's and two sub-pixel ones.
    blocks = (len(stored[0]) - 5) // 2
    names = [[n for n in kind if n] for kind in zip(*folding.parts(blocks), strict=True)]
    if blocks < 1 or [len(kind) for kind in stored] != [len(kind) for kind in names]:
        kinds = zip(map(len, stored), ("convolutions", "batch norms", "PReLUs"), strict=True)
        raise ValueError("holds " + ", ".join(f"{number} {kind}" for number, kind in kinds))
    arrays = {}
    for kind, values in zip(names, stored, strict=True):
        arrays |= zip(kind, values, strict=True)
    used = sum(map(len, arrays.values()))
    if used != count:
        raise ValueError(f"holds {count} arrays where a generator has {used}")
    return arrays
