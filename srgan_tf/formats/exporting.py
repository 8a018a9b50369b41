"""Writes generators for other programs, with batch norms folded: SavedModel, LiteRT, ONNX."""

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from srgan_tf import files, folding
from srgan_tf.formats import exported, parity
from srgan_tf.formats.litert import QUANTIZE, check_form, write_tflite
from srgan_tf.formats.onnx_file import write_onnx
from srgan_tf.formats.saved_model import BYTES_LIMITS, write_saved_model

FORMATS = ("savedmodel", "tflite", "onnx")


class Written(NamedTuple):
    """An exported file or folder, and how it compares with the Keras model."""

    form: str
    path: Path
    parity: parity.Parity


def export(
    generator: keras.Model,
    card: dict,
    out_dir: str | os.PathLike,
    *,
    formats: Sequence[str] = FORMATS,
    quantize: Sequence[str] = QUANTIZE,
    input_size: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
    pairs: Sequence[tuple[np.ndarray, np.ndarray]],
    facts: dict | None = None,
) -> tuple[list[Written], list[str]]:
    """Writes a generator in several forms, each with a card, after comparing them on pictures.

    The card has the name: the SavedModel is NAME/1 (or the next free number), the others are
    NAME.QUANTIZE[.HxW].tflite and NAME.onnx. Their cards append .json to the whole name; the
    SavedModel's is in its `assets.extra`. Nothing appears in `out_dir` before every form is written
    and compared. A form that misses its bound in `parity.BOUNDS` is not kept; the others are.

    Args:
        generator: From `networks.build_generator`.
        card: Its card from `weights.load_generator`.
        out_dir: The folder for all files, created if it is missing.
        formats: Some of `FORMATS`; one named twice is written once.
        quantize: Some of `QUANTIZE`, for .tflite files, in the same way.
        input_size: As in `write_tflite`. All forms are then compared on crops of this size.
        calibration: As in `write_tflite`.
        pairs: Pictures to compare on: lr uint8 [h, w, 3] and hr uint8 [4h, 4w, 3].
        facts: Further entries of the cards, for `json.dumps`.

    Returns:
        The written forms, in the order above, and a line for each that misses its bound.

    Raises:
        ValueError: All forms miss their bounds, `out_dir` cannot be written to, or a function that
            writes a form raises it.
    """
    out_dir, name = Path(out_dir), card["name"].removesuffix(".keras")
    size = f".{input_size[0]}x{input_size[1]}" if input_size else ""
    forms = list(dict.fromkeys(quantize)) if "tflite" in formats else []
    # Mistakes are reported before anything is computed.
    folding.fold(generator)
    for form in forms:
        check_form(form, calibration)
    packages = ("onnx", "onnxruntime") if "onnx" in formats else ()
    if missing := [package for package in packages if not importlib.util.find_spec(package)]:
        raise ValueError(f"to write and try an .onnx file, pip install {' '.join(missing)}")
    tile = None
    if input_size:
        pairs, tile = parity.crops(pairs, input_size), max(input_size)
    with staging(out_dir) as staged:
        expected = parity.reference(generator, pairs)
        made = {}
        if "savedmodel" in formats:
            made["savedmodel"] = write_saved_model(generator, staged / "saved_model")
        for form in forms:
            made[form] = write_tflite(
                generator,
                staged / f"{name}.{form}{size}.tflite",
                quantize=form,
                input_size=input_size,
                calibration=calibration,
            )
        if "onnx" in formats:
            made["onnx"] = write_onnx(generator, staged / f"{name}.onnx")

        found = {form: parity.compare(path, expected, tile=tile) for form, path in made.items()}
        missed = {form: parity.out_of_bounds(form, found[form]) for form in found}
        failed = [line for line in missed.values() if line]
        if len(failed) == len(made):
            raise ValueError(f"nothing exported: {'; '.join(failed)}")

        written = []
        for form, path in made.items():
            if missed[form]:
                continue
            description = _describe(form, input_size, card, found[form], len(pairs), facts or {})
            card_path = exported.card_path(path)
            card_path.write_text(json.dumps(description, indent=2) + "\n")
            if path.is_dir():
                target = _next_version(out_dir / name)
                path.rename(target)
            else:
                target = out_dir / path.name
                card_path.replace(out_dir / card_path.name)
                path.replace(target)
            written.append(Written(form, target, found[form]))
    return written, failed


@contextlib.contextmanager
def staging(out_dir: Path) -> Iterator[Path]:
    """Makes a temporary folder in `out_dir`; if that is new and stays empty, it is removed, too."""
    new = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    files.make_folder(out_dir)
    try:
        with files.staging(out_dir) as staged:
            try:
                yield Path(staged)
            except (OSError, ValueError) as error:  # named so that it means something to the user
                text = str(error).replace(staged, os.fspath(out_dir))
                raise ValueError(text) from error
    finally:
        with contextlib.suppress(OSError):  # not empty
            for folder in new:
                folder.rmdir()


def _next_version(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    numbers = [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]
    return folder / str(max(numbers, default=0) + 1)


def _describe(form, input_size, card, scores: parity.Parity, pictures: int, facts: dict) -> dict:
    whole = form in ("savedmodel", "int8")
    batch = 1 if form in QUANTIZE else "N"
    height, width = input_size if input_size and form in QUANTIZE else ("h", "w")
    times_4 = [4 * side if isinstance(side, int) else f"4{side}" for side in (height, width)]
    kind = {"dtype": "uint8", "range": [0, 255]} if whole else {"dtype": "float32"}
    return {
        "form": form,
        "scale": 4,
        "input": {"shape": [batch, height, width, 3], "range": [0, 1], **kind},
        "output": {"shape": [batch, *times_4, 3], "range": [-1, 1], **kind},
        "color": "RGB",
        **({"limits": BYTES_LIMITS} if form == "savedmodel" else {}),
        "weights": card,
        "parity": {
            "pictures": pictures,
            "psnr": round(scores.psnr, 4),
            "psnr_change": round(scores.change, 4),
            "psnr_change_pooled": round(scores.pooled, 4),
            "psnr_change_of_each": [round(change, 4) for change in scores.changes],
            "worst_difference_in_levels": scores.worst,
            "seconds_per_megapixel_of_sr": round(scores.seconds, 4),
        },
        "megabytes": round(scores.megabytes, 3),
        **facts,
    }
