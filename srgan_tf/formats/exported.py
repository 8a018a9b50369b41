"""Loads exported generators, and their cards, by path."""

import contextlib
import json
import os
from pathlib import Path

from srgan_tf import upscaling, weights


def is_exported(path: str | os.PathLike) -> bool:
    """Tells, by the file's ending or the folder's contents, whether `load` takes this path."""
    path = Path(path)
    return path.suffix.lower() in (".tflite", ".onnx") or (path / "saved_model.pb").is_file()


def load(path: str | os.PathLike) -> upscaling.Upscaler:
    """Loads an exported generator: a SavedModel folder, a .tflite or an .onnx file.

    Returns:
        The network. If the file records no margin, pictures run in one piece, with a warning. A
        tile too large for memory raises MemoryError.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It holds no generator that upscales by 4, or the package that runs it is
            missing; one line.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    network = _load(path)
    upscaling.check_scale(network, path)
    return network


def _load(path: Path) -> upscaling.Upscaler:
    # Each format's package is imported only where it is used: TensorFlow takes seconds.
    if path.is_dir():
        from srgan_tf.formats import saved_model

        return saved_model.load(path)
    if path.suffix.lower() == ".onnx":
        from srgan_tf.formats import onnx_file

        return onnx_file.load(path)
    from srgan_tf.formats import litert

    return litert.load(path)


def card_path(path: Path) -> Path:
    """Returns the path of the card of an exported file or SavedModel folder."""
    if path.is_dir():
        return path / "assets.extra" / "card.json"
    return path.with_name(f"{path.name}.json")


def read_card(spec: str) -> dict:
    """Reads the card of an exported file or SavedModel folder.

    Args:
        spec: A path that `load` takes.

    Returns:
        A card as from `weights.load_generator`, with the sha256 of the file itself. variant, steps,
        vgg and ema describe the exported weights; None if the card is missing or belongs to another
        file.
    """
    path = Path(spec)
    name = path.resolve().name
    if name.isdecimal():  # a SavedModel's version; the folder above has the name
        name = f"{path.resolve().parent.name}/{name}"
    card = {"name": name, "path": spec, "sha256": weights.file_sha256(path)}
    facts = dict.fromkeys(("variant", "steps", "vgg", "ema"))
    with contextlib.suppress(Exception):  # another program's file, of any contents
        known = json.loads(card_path(path).read_text())
        if path.is_dir() or known["megabytes"] == round(path.stat().st_size / 1e6, 3):
            facts = {key: known["weights"].get(key) for key in facts}
    return card | facts
