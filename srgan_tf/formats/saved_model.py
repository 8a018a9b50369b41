"""A generator as a SavedModel, for TensorFlow and TensorFlow Serving."""

import contextlib
import json
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import folding, upscaling
from srgan_tf.formats.keras_model import fold_batch_norm

# Holds the margin; TensorFlow copies and ignores what lies in assets.extra.
_METADATA = Path("assets.extra", "srgan_tf.json")


def write_saved_model(generator: keras.Model, folder: str | os.PathLike) -> Path:
    """Writes a generator as a SavedModel, which runs without this package.

    Signatures, for batches of any size and pictures of any size:
        serving_default: lr uint8 [N, h, w, 3] -> sr uint8 [N, 4h, 4w, 3].
        serve_float: lr float32 [N, h, w, 3] in [0, 1] -> sr float32 [N, 4h, 4w, 3] in [-1, 1], not
            clipped.
        serve_bytes: lr_bytes, encoded JPEG or PNG [N], each of its own size -> sr_bytes, PNG [N].
            The EXIF orientation is ignored.

    `assets.extra` holds the margin, and requests of the first and the last kind, with which
    TensorFlow Serving warms up.

    Args:
        generator: From `networks.build_generator`.
        folder: The folder to write, which must not exist yet.

    Returns:
        The folder.

    Raises:
        ValueError: The generator is not the paper's.
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
    margin = folding.receptive_field(folding.fold(generator))
    Path(folder, _METADATA).write_text(json.dumps({"margin": margin}) + "\n")
    return Path(folder)


def load(folder: Path) -> upscaling.Upscaler:
    """Loads a SavedModel by its signature `serving_default`.

    That takes lr [N, h, w, 3], uint8 or float32 in [0, 1], and returns sr, uint8 or float in
    [-1, 1].

    Returns:
        The network, in one piece where the folder records no margin. A tile too large for memory
        raises MemoryError.

    Raises:
        ValueError: The folder holds no such network.
    """
    try:
        model = tf.saved_model.load(str(folder))
        serve = model.signatures["serving_default"]
        [(argument, spec)] = serve.structured_input_signature[1].items()
        [result] = serve.structured_outputs
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"{folder}: no SavedModel with a serving_default signature of one picture in and one "
            "out"
        ) from error
    if not (spec.shape.rank == 4 and spec.dtype in (tf.uint8, tf.float32)):
        raise ValueError(
            f"{folder}: serving_default takes {spec.dtype.name} {spec.shape}, not pictures"
        )
    margin = None
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        margin = int(json.loads((folder / _METADATA).read_text())["margin"])
    if margin is None:
        logging.warning(upscaling.WHOLE, folder)

    def call(lr):
        given = tf.constant(upscaling.as_float(lr) if spec.dtype == tf.float32 else lr)
        try:
            return serve(**{argument: given})[result].numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise upscaling.no_memory(lr, folder) from error

    call.model = model  # the signature alone does not keep the variables alive
    bits = 16 if spec.dtype == serve.structured_outputs[result].dtype == tf.float32 else 8
    return upscaling.Upscaler(call, margin, bits)


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
