"""Generators as files for other programs: SavedModel, LiteRT, ONNX; batch norms folded, float32."""

import contextlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from srgan_tf import folding, networks, parity, pictures, records, runtimes, weights

FORMATS = ("savedmodel", "tflite", "onnx")
QUANTIZE = ("float32", "float16", "dynamic", "int8")
# Calibration takes the middle of larger pictures: all tensors of a picture are kept at once.
_CALIBRATION_SIZE = 96


def fold_batch_norm(generator: keras.Model) -> keras.Model:
    """Rebuilds a generator in float32, its batch norms folded into the convolutions before them.

    Args:
        generator: As `networks.build_generator` makes it, of any size and dtype policy.

    Returns:
        The same function, from float32 lr [N, h, w, 3] in [0, 1] to float32 sr [N, 4h, 4w, 3] in
        [-1, 1], not clipped.

    Raises:
        ValueError: It is another network.
    """
    layers = folding.fold(generator)

    def conv(x, name):
        kernel, bias, slope = layers[name]
        layer = keras.layers.Conv2D(
            len(bias), kernel.shape[:2], padding="same", dtype="float32", name=name
        )
        x = layer(x)
        layer.set_weights([kernel, bias])
        if slope is None:
            return x
        prelu = networks.PReLU(dtype="float32", name=f"{name}_prelu")
        x = prelu(x)
        prelu.set_weights([slope[None, None]])
        return x

    def add(x, y, name):
        return keras.layers.Add(dtype="float32", name=name)([x, y])

    def shuffle(x, name):
        return keras.ops.depth_to_space(x, 2)

    lr = keras.Input((None, None, 3), dtype="float32", name="lr")
    sr = folding.network(lr, layers, conv, add, shuffle)
    return keras.Model(lr, sr, name="generator")


def write_tflite(
    generator: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "float32",
    input_size: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> Path:
    """Writes a generator for LiteRT, of built-in operations alone.

    The file takes lr float32 [1, h, w, 3] in [0, 1] and gives sr float32 [1, 4h, 4w, 3] in [-1, 1],
    not clipped; with "int8" both are uint8 pictures.

    Args:
        generator: As `networks.build_generator` makes it.
        path: The file to write; one that is there is replaced.
        quantize: One of `QUANTIZE`. "float32"; "float16": weights of half the size, computed in
            float32; "dynamic": kernels in 8 bits, activations too as each convolution begins;
            "int8": integers from end to end.
        input_size: Height and width of lr, for delegates that need them fixed; None leaves both
            open (`resize_tensor_input`).
        calibration: Pictures lr, uint8 [h, w, 3]. "int8" needs some, to know the ranges of its
            tensors; "dynamic" comes a little closer with them.

    Returns:
        The path.

    Raises:
        ValueError: The generator is another network, a quantisation is not known, or there are no
            pictures for "int8".
    """
    _refuse_form(quantize, calibration)
    # Here, so that the rest of the package runs without LiteRT.
    from srgan_tf import litert

    layers = folding.fold(generator)
    calibration = [pictures.middle(picture, _CALIBRATION_SIZE) for picture in calibration]
    if quantize == "int8":
        # The last layer's result in [0, 1], of which uint8 is a multiple.
        last = layers["conv_out"]
        layers["conv_out"] = folding.Layer(last.kernel / 2, (last.bias + 1) / 2, None)
        layers = litert.equalised(layers, litert.calibrate(layers, calibration))
        statistics = litert.calibrate(layers, calibration)
        model = litert.in_int8(layers, statistics, input_size=input_size)
    else:
        means = None
        if quantize == "dynamic" and calibration:
            means = litert.calibrate(layers, calibration)
        weights = "int8" if quantize == "dynamic" else quantize
        model = litert.in_float(layers, weights=weights, input_size=input_size, means=means)
    with records.replacing(Path(path)) as beside:
        beside.write_bytes(model)
    return Path(path)


def _refuse_form(quantize: str, calibration: Sequence[np.ndarray]) -> None:
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize is {quantize!r}: give one of {', '.join(QUANTIZE)}")
    if quantize == "int8" and not len(calibration):
        raise ValueError("int8 needs calibration pictures, and there are none")


def write_saved_model(generator: keras.Model, folder: str | os.PathLike) -> Path:
    """Writes a generator as a SavedModel, which TensorFlow runs by itself, and TensorFlow Serving.

    Signatures, for batches of any size and pictures of any size:
        serving_default: lr uint8 [N, h, w, 3] -> sr uint8 [N, 4h, 4w, 3].
        serve_float: lr float32 [N, h, w, 3] in [0, 1] -> sr float32 [N, 4h, 4w, 3] in [-1, 1], not
            clipped.
        serve_bytes: lr_bytes, encoded JPEG or PNG [N], each of its own size -> sr_bytes, PNG [N].
            An EXIF turn is not heeded.

    Requests of the first and the last kind lie in `assets.extra`, where TensorFlow Serving finds
    what to run before it takes the first real one.

    Args:
        generator: As `networks.build_generator` makes it.
        folder: The folder to write, which is not there yet.

    Returns:
        The folder.

    Raises:
        ValueError: The generator is another network.
    """
    folded = fold_batch_norm(generator)

    def upscale(lr):
        sr = folded(tf.cast(lr, tf.float32) / 255, training=False)
        return tf.saturate_cast(tf.round((sr + 1) * 127.5), tf.uint8)

    def upscale_bytes(lr_bytes):
        # Not a batch at once: pictures may differ in size.
        lr = tf.io.decode_image(lr_bytes, channels=3, expand_animations=False)
        lr = tf.ensure_shape(lr, [None, None, 3])
        return tf.io.encode_png(upscale(lr[None])[0])

    def serve_bytes(lr_bytes):
        sr_bytes = tf.map_fn(
            upscale_bytes, lr_bytes, fn_output_signature=tf.string, parallel_iterations=1
        )
        return {"sr_bytes": sr_bytes}

    any_pictures = [None, None, None, 3]
    archive = keras.export.ExportArchive()  # `track` too would write all variables twice
    for name, function, signature in (
        (
            "serving_default",
            lambda lr: {"sr": upscale(lr)},
            tf.TensorSpec(any_pictures, tf.uint8, "lr"),
        ),
        (
            "serve_float",
            lambda lr: {"sr": folded(lr, training=False)},
            tf.TensorSpec(any_pictures, tf.float32, "lr"),
        ),
        ("serve_bytes", serve_bytes, tf.TensorSpec([None], tf.string, "lr_bytes")),
    ):
        archive.add_endpoint(name, function, [signature])
    archive.write_out(str(folder), verbose=False)
    _write_warm_up(Path(folder))
    return Path(folder)


def _write_warm_up(folder: Path) -> None:
    """Writes requests for TensorFlow Serving: a TFRecord of PredictionLog messages."""
    picture = np.full([64, 64, 3], 128, np.uint8)
    requests = {
        "serving_default": ("lr", picture[None]),
        "serve_bytes": ("lr_bytes", np.array([tf.io.encode_png(picture).numpy()])),
    }
    extra = folder / "assets.extra"
    extra.mkdir(exist_ok=True)
    with tf.io.TFRecordWriter(str(extra / "tf_serving_warmup_requests")) as writer:
        for signature, (name, value) in requests.items():
            tensor = tf.make_tensor_proto(value).SerializeToString()
            # By number, as in tensorflow_serving/apis/{model,predict,prediction_log}.proto.
            model_spec = _message({3: signature.encode()})
            entry = _message({1: name.encode(), 2: tensor})
            predict_request = _message({1: model_spec, 2: entry})
            predict_log = _message({1: predict_request})
            writer.write(_message({6: predict_log}))


def _message(fields: dict[int, bytes]) -> bytes:
    """Encodes a protobuf message whose fields are strings or messages.

    The classes are in tensorflow-serving-api, which brings nothing else that is needed here.
    """
    encoded = bytearray()
    for number, value in fields.items():
        encoded.append(number << 3 | 2)
        length = len(value)
        while length > 127:
            encoded.append(length & 127 | 128)
            length >>= 7
        encoded.append(length)
        encoded += value
    return bytes(encoded)


def write_onnx(generator: keras.Model, path: str | os.PathLike) -> Path:
    """Writes a generator as ONNX, opset 17.

    It is written operation by operation as `folding.network` goes through them, like a .tflite
    file: tf2onnx, whose file gives the same values, would be one more package to install.

    The file takes lr float32 [N, h, w, 3] in [0, 1], N, h and w of any size, and gives sr float32
    [N, 4h, 4w, 3] in [-1, 1], not clipped.

    Args:
        generator: As `networks.build_generator` makes it.
        path: The file to write; one that is there is replaced.

    Returns:
        The path.

    Raises:
        ValueError: The generator is another network, or the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError("to write an .onnx file, pip install onnx") from error

    layers = folding.fold(generator)
    nodes, weights = [], []

    def weight(name, values):
        weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(kind, given, name, **attributes):
        nodes.append(onnx.helper.make_node(kind, given, [name], name, **attributes))
        return name

    def conv(x, name):
        kernel, bias, slope = layers[name]
        height, width = kernel.shape[:2]
        given = [
            x,
            weight(f"{name}/kernel", kernel.transpose(3, 2, 0, 1)),
            weight(f"{name}/bias", bias),
        ]
        y = node("Conv", given, name, pads=[height // 2, width // 2] * 2)
        if slope is None:
            return y
        return node("PRelu", [y, weight(f"{name}/slope", slope[:, None, None])], f"{name}_prelu")

    def add(x, y, name):
        return node("Add", [x, y], name)

    def shuffle(x, name):
        return node("DepthToSpace", [x], f"{name}_chw", blocksize=2, mode="DCR")

    lr = node("Transpose", ["lr"], "lr_chw", perm=[0, 3, 1, 2])
    sr = folding.network(lr, layers, conv, add, shuffle)
    node("Transpose", [sr], "sr", perm=[0, 2, 3, 1])
    pictures = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)
        for name, axes in (("lr", ["N", "h", "w", 3]), ("sr", ["N", "4h", "4w", 3]))
    )
    graph = onnx.helper.make_graph(nodes, "generator", [next(pictures)], [next(pictures)], weights)
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    # For tiles, which must overlap by it.
    reach = str(runtimes.receptive_field(generator))
    onnx.helper.set_model_props(model, {"reach": reach})
    onnx.checker.check_model(model)
    with records.replacing(Path(path)) as beside:
        beside.write_bytes(model.SerializeToString())
    return Path(path)


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
) -> list[Written]:
    """Writes a generator in several forms, each with a card, after comparing all on pictures.

    Names are those of the card: NAME/1 (or the next free number) for the SavedModel,
    NAME.QUANTIZE[.HxW].tflite and NAME.onnx. Cards have .json behind the whole name, or are
    in the SavedModel's `assets.extra`. Nothing appears in `out_dir` before everything is written
    and compared.

    Args:
        generator: As `networks.build_generator` makes it.
        card: What `weights.load_generator` knows of it.
        out_dir: The folder for all, made if it is not there.
        formats: Of `FORMATS`; one that is named twice is written once.
        quantize: Of `QUANTIZE`, for .tflite files, likewise.
        input_size: As in `write_tflite`. All is then compared on crops of this size.
        calibration: As in `write_tflite`.
        pairs: Pictures to compare on: lr uint8 [h, w, 3] and hr uint8 [4h, 4w, 3].
        facts: What else is to stand in the cards, for `json.dumps`.

    Returns:
        What was written, in this order.

    Raises:
        ValueError: A file differs from the Keras model by more than `parity.BOUNDS` allows,
            `out_dir` cannot be written to, or as in the functions that write the forms.
    """
    out_dir, name = Path(out_dir), card["name"].removesuffix(".keras")
    size = f".{input_size[0]}x{input_size[1]}" if input_size else ""
    forms = list(dict.fromkeys(quantize)) if "tflite" in formats else []
    # What can be refused before anything is computed.
    folding.fold(generator)
    for form in forms:
        _refuse_form(form, calibration)
    packages = ("onnx", "onnxruntime") if "onnx" in formats else ()
    if missing := [package for package in packages if not importlib.util.find_spec(package)]:
        raise ValueError(f"to write and try an .onnx file, pip install {' '.join(missing)}")
    tile = None
    if input_size:
        pairs, tile = parity.crops(pairs, input_size), max(input_size)
    with _staging(out_dir) as staging:
        expected = parity.reference(generator, pairs)
        made = {}
        if "savedmodel" in formats:
            made["savedmodel"] = write_saved_model(generator, staging / "saved_model")
        for form in forms:
            made[form] = write_tflite(
                generator,
                staging / f"{name}.{form}{size}.tflite",
                quantize=form,
                input_size=input_size,
                calibration=calibration,
            )
        if "onnx" in formats:
            made["onnx"] = write_onnx(generator, staging / f"{name}.onnx")

        found = {form: parity.compare(path, expected, tile=tile) for form, path in made.items()}
        wrong = filter(None, (parity.out_of_bounds(form, found[form]) for form in found))
        if wrong := "; ".join(wrong):
            raise ValueError(f"nothing exported: {wrong} (leave it out by --quantize or --format)")

        written = []
        for form, path in made.items():
            description = _describe(form, input_size, card, found[form], len(pairs), facts or {})
            card_path = weights.card_path(path)
            card_path.write_text(json.dumps(description, indent=2) + "\n")
            if path.is_dir():
                target = _next_version(out_dir / name)
                path.rename(target)
            else:
                target = out_dir / path.name
                card_path.replace(out_dir / card_path.name)
                path.replace(target)
            written.append(Written(form, target, found[form]))
    return written


@contextlib.contextmanager
def _staging(out_dir: Path) -> Iterator[Path]:
    """Makes a folder in `out_dir` that is gone afterwards, with `out_dir` if nothing came of it."""
    new = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    records.make_folder(out_dir)
    try:
        with records.staging(out_dir) as staged:
            yield Path(staged)
    finally:
        with contextlib.suppress(OSError):  # it is not empty
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
        "colour": "RGB",
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
