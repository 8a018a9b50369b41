"""Generators by name: a run folder, a weights file, or weights that come with the package."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from srgan_tf import files, folding, pictures

if TYPE_CHECKING:  # what only describes weights need not wait for Keras
    import keras
    import numpy as np

_BUNDLED = Path(__file__).with_name("pretrained")
_SUFFIX = ".weights.h5"


def bundled() -> list[str]:
    """Names of the weights that come with the package."""
    return sorted(path.name.removesuffix(_SUFFIX) for path in _BUNDLED.glob(f"*{_SUFFIX}"))


def load_generator(spec: str) -> tuple[keras.Model, dict]:
    """Loads a trained generator, in float32 but for a .keras file, which says itself.

    Args:
        spec: A name of `bundled()`; a run folder, whose final weights are taken, or the best where
            it is not finished; a .weights.h5 file of a generator of any number of blocks and
            filters; or a .keras file.

    Returns:
        The generator, and its card: name, path, sha256 of the file, variant, steps and vgg, each
        None where it is not known.

    Raises:
        FileNotFoundError, ValueError: There is nothing of this name, or it is no generator; one
            line.
    """
    card = describe(spec)
    path = Path(card["path"])
    with _naming(path):
        return _load(path), card


def load_layers(spec: str) -> dict[str, folding.Layer]:
    """Loads a trained generator as `folding.fold` gives it.

    From a .weights.h5 file without Keras, for which one would wait longer than for all the rest.

    Args:
        spec: As in `load_generator`.

    Returns:
        Its convolutions by name, batch norms folded.

    Raises:
        FileNotFoundError, ValueError: As `load_generator`.
    """
    path = Path(describe(spec)["path"])
    with _naming(path):
        if path.suffix == ".keras":
            return folding.fold(_load(path))
        return folding.fold_arrays(_read(path))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Makes errors name the file, but for those of missing packages."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:  # h5py and Keras raise whatever the damage leads to.
        reason = pictures.one_line(error)
        raise ValueError(f"{path}: not a generator's weights: {reason}") from error


def describe(spec: str) -> dict:
    """Gives the card that `load_generator` gives, without loading the weights.

    Raises:
        FileNotFoundError, ValueError: As `load_generator`, but for what is wrong with the weights.
    """
    path = _find(spec)
    card = {
        "name": path.name.removesuffix(_SUFFIX),
        "path": str(path),
        "sha256": file_sha256(path),
        "variant": None,
        "steps": None,
        "vgg": None,
    }
    run = path.parent / "run.json"
    beside = path.with_name(f"{card['name']}.json")
    with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # another program's files
        if beside.is_file():
            known = json.loads(beside.read_text())
            card |= {key: known[key] for key in ("variant", "steps", "vgg")}
        elif run.is_file():
            record = json.loads(run.read_text())
            card |= {
                "name": path.resolve().parent.name,
                "variant": record["variant"],
                "steps": record["config"]["steps"] if card["name"] == "generator" else None,
                "vgg": record["vgg"],
            }
    return card


def save_weights(generator: keras.Model, path: Path) -> None:
    """Writes a .weights.h5 file, whole or not at all."""
    with files.replacing(path) as beside:
        generator.save_weights(beside)


def card_path(exported: Path) -> Path:
    """Says where the card of a file or SavedModel folder is that `exporting.export` writes."""
    if exported.is_dir():
        return exported / "assets.extra" / "card.json"
    return exported.with_name(f"{exported.name}.json")


def exported_card(spec: str) -> dict:
    """Says what is known of a file or SavedModel folder that `exporting.export` wrote.

    Args:
        spec: As `runtimes.load_exported` takes it.

    Returns:
        A card as `load_generator`'s, sha256 being that of the file itself. variant, steps and vgg
        are those of the weights in it; None where no card lies beside it, or that of another file.
    """
    path = Path(spec)
    name = path.resolve().name
    if name.isdecimal():  # a SavedModel's version; what it is of is the folder above
        name = f"{path.resolve().parent.name}/{name}"
    card = {"name": name, "path": spec, "sha256": file_sha256(path)}
    facts = dict.fromkeys(("variant", "steps", "vgg"))
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(card_path(path).read_text())
        if path.is_dir() or known["megabytes"] == round(path.stat().st_size / 1e6, 3):
            facts = {key: known["weights"][key] for key in facts}
    return card | facts


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

    from srgan_tf import networks  # which also registers what a .keras file is made of

    if path.suffix == ".keras":
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip file, as .keras files are")
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
    """Reads the arrays of a weights file by our names for layers; Keras' are class and number."""
    import h5py

    if not h5py.is_hdf5(path):
        raise ValueError("it is no HDF5 file, as .weights.h5 files are")
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
    # Two for each block, besides the first, the last, the trunk's and two sub-pixel ones.
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
