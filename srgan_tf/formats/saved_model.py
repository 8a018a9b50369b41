"""A generator as a SavedModel, for TensorFlow and TensorFlow Serving."""

import contextlib
import functools
import json
import os
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from srgan_tf import files, folding, upscaling
from srgan_tf.formats.keras_model import fold_batch_norm

# Holds the margin; TensorFlow copies and ignores what lies in assets.extra.
_METADATA = Path("assets.extra", "srgan_tf.json")

_PICTURES = [None, None, None, 3]

# For the card; docs/export.md lists the same.
BYTES_LIMITS = (
    "serve_bytes takes JPEG, PNG, GIF (its first frame) and BMP. It applies a JPEG's EXIF "
    "orientation, but not one in XMP or a PNG's eXIf. It lays a PNG's transparency over white, "
    "cuts 16 bits to 8, ignores color profiles, even CMYK's, and returns RGB without metadata."
)


def write_saved_model(generator: keras.Model, folder: str | os.PathLike) -> Path:
    """Writes a generator as a SavedModel, which runs without this package.

    Signatures, for batches of any size and pictures of any size:
        serving_default: lr uint8 [N, h, w, 3] -> sr uint8 [N, 4h, 4w, 3].
        serve_float: lr float32 [N, h, w, 3] in [0, 1] -> sr float32 [N, 4h, 4w, 3] in [-1, 1], not
            clipped.
        serve_bytes: lr_bytes, encoded JPEG or PNG [N], each of its own size -> sr_bytes, PNG [N].
            A JPEG's EXIF orientation is applied, and transparency laid over white. `BYTES_LIMITS`
            lists how TensorFlow's operations differ from `pictures`.

    An empty batch or picture, or another rank or number of channels, is an InvalidArgumentError.

    `assets.extra` holds the margin, and requests for the first and the last signature, with which
    TensorFlow Serving warms up.

    Args:
        generator: From `networks.build_generator`.
        folder: The folder to write, which must not exist yet.

    Returns:
        The folder.

    Raises:
        OSError, ValueError: The generator is not the paper's, or the folder cannot be written.
    """
    folded = fold_batch_norm(generator)

    def upscale(lr):
        sr = folded(tf.cast(lr, tf.float32) / 255, training=False)
        return tf.saturate_cast(tf.round((sr + 1) * 127.5), tf.uint8)

    def serve(lr):
        return {"sr": upscale(_checked(lr, _PICTURES))}

    def serve_float(lr):
        return {"sr": folded(_checked(lr, _PICTURES), training=False)}

    def serve_bytes(lr_bytes):
        # One at a time, because pictures may differ in size.
        sr_bytes = tf.map_fn(
            lambda encoded: tf.io.encode_png(upscale(_decoded(encoded)[None])[0]),
            _checked(lr_bytes, [None]),
            fn_output_signature=tf.string,
            parallel_iterations=1,
        )
        return {"sr_bytes": sr_bytes}

    archive = keras.export.ExportArchive()  # calling `track`, too, would write variables twice
    for name, function, signature in (
        ("serving_default", serve, tf.TensorSpec(_PICTURES, tf.uint8, "lr")),
        ("serve_float", serve_float, tf.TensorSpec(_PICTURES, tf.float32, "lr")),
        ("serve_bytes", serve_bytes, tf.TensorSpec([None], tf.string, "lr_bytes")),
    ):
        archive.add_endpoint(name, function, [signature])
    folder = Path(folder)
    margin = folding.receptive_field(folding.fold(generator))
    with files.naming(folder, "cannot be written"), files.plain_path(folder.parent) as parent:
        archive.write_out(str(parent / folder.name), verbose=False)
        _write_warm_up(parent / folder.name)
        (folder / _METADATA).write_text(json.dumps({"margin": margin}) + "\n")
    return folder


def load(folder: Path) -> upscaling.Upscaler:
    """Loads a SavedModel by its signature `serving_default`.

    The signature takes lr [N, h, w, 3], uint8 or float32 in [0, 1], and returns sr, uint8 or float
    in [-1, 1].

    Returns:
        The network. If the folder records no margin, pictures run in one piece. A tile too large
        for memory raises MemoryError.

    Raises:
        ValueError: The folder holds no such network.
    """
    what = "no SavedModel with a serving_default signature of one picture in and one out"
    with files.naming(folder, what), files.plain_path(folder) as plain:
        model = tf.saved_model.load(str(plain))
        serve = model.signatures["serving_default"]
        [(argument, spec)] = serve.structured_input_signature[1].items()
        [result] = serve.structured_outputs
    if not (spec.shape.rank == 4 and spec.dtype in (tf.uint8, tf.float32)):
        raise ValueError(
            f"{folder}: serving_default takes {spec.dtype.name} {spec.shape}, not pictures"
        )
    margin = None
    with contextlib.suppress(Exception):  # another program's file, of any contents
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


def _checked(given: tf.Tensor, shape: list[int | None]) -> tf.Tensor:
    """Returns a signature's input once its real shape fits and nothing in it is empty.

    TensorFlow does not enforce the shape in the signature, and kernels that trust it abort the
    process.
    """
    # Hides the promised shape, with which TensorFlow would drop the checks.
    given = tf.ensure_shape(tf.raw_ops.PlaceholderWithDefault(input=given, shape=None), shape)
    full = tf.debugging.Assert(tf.size(given) > 0, ["empty input of shape", tf.shape(given)])
    with tf.control_dependencies([full]):
        return tf.identity(given)


def _decoded(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes an encoded picture to uint8 [h, w, 3] as a person would expect to see it."""

    def png():
        picture = tf.cast(tf.io.decode_png(encoded, channels=4), tf.float32)
        alpha = picture[..., 3:] / 255
        # In gray of 1, 2 or 4 bits, opaque pixels have an alpha of 1, 3 or 15 in TensorFlow, not
        # 255. Gray is only ever opaque or clear.
        with tf.control_dependencies([picture]):  # by then these bytes are known to exist
            is_gray = tf.strings.substr(encoded, 25, 1) == b"\0"
        alpha = tf.where(is_gray, tf.sign(alpha), alpha)
        return tf.cast(tf.round(picture[..., :3] * alpha + 255 * (1 - alpha)), tf.uint8)

    def jpeg():
        # Decoded as Pillow does.
        lr = tf.io.decode_jpeg(encoded, channels=3, dct_method="INTEGER_ACCURATE")
        return _oriented(lr, _orientation(encoded))

    def other():
        lr = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        return tf.ensure_shape(lr, [None, None, 3])

    begins = functools.partial(tf.strings.substr, encoded, 0)
    cases = [(begins(4) == b"\x89PNG", png), (begins(2) == b"\xff\xd8", jpeg)]
    return tf.case(cases, other)


def _oriented(picture: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Applies an EXIF orientation, 1 to 8, to a picture [h, w, 3]; others change nothing."""

    def among(*orientations):
        return tf.reduce_any(orientation == tf.constant(orientations, tf.int64))

    def apply(when, change):
        return tf.cond(when, lambda: change(picture), lambda: picture)

    picture = apply(among(5, 6, 7, 8), lambda x: tf.transpose(x, [1, 0, 2]))
    picture = apply(among(2, 3, 6, 7), lambda x: tf.reverse(x, [1]))
    return apply(among(3, 4, 7, 8), lambda x: tf.reverse(x, [0]))


def _orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Returns the EXIF orientation in a JPEG's bytes, int64; 1 where there is none.

    A JPEG begins with segments of a marker and a length, big-endian; one of them, APP1, may hold
    EXIF, which is a TIFF without a picture in either byte order (CIPA DC-008).
    """
    values = tf.io.decode_raw(encoded, tf.uint8)
    end = tf.size(values, tf.int64)
    # Zeros after the end, so that a damaged length or offset reads no further.
    values = tf.concat([values, tf.zeros([16], tf.uint8)], 0)

    def number(at, count, little=False):
        at = tf.clip_by_value(tf.cast(at, tf.int64), 0, end)
        part = tf.cast(values[at:][:count], tf.int64)
        powers = tf.constant([256**n for n in range(count)], tf.int64)
        return tf.reduce_sum(part * tf.where(little, powers, powers[::-1]))

    def is_exif(at):
        return (number(at, 2) == 0xFFE1) & (number(at + 4, 6) == int.from_bytes(b"Exif\0\0"))

    def is_before(at):
        is_segment = (number(at, 1) == 0xFF) & (number(at + 1, 1) != 0xDA)  # which begins pixels
        return is_segment & ~is_exif(at)

    first = tf.constant(2, tf.int64)  # after the marker that begins the file
    [app1] = tf.while_loop(is_before, lambda at: [at + 2 + number(at + 2, 2)], [first])
    tiff = app1 + 10
    little = number(tiff, 2) == 0x4949
    directory = tiff + number(tiff + 4, 4, little)

    def is_another(entry):
        last = directory + 12 * number(directory, 2, little)
        return (entry < tf.minimum(last, end)) & (number(entry, 2, little) != 0x0112)

    [entry] = tf.while_loop(is_another, lambda entry: [entry + 12], [directory + 2])
    found = is_exif(app1) & (number(entry, 2, little) == 0x0112)
    return tf.where(found, number(entry + 8, 2, little), 1)


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

    tensorflow-serving-api has classes for these messages, but nothing else that is needed here.
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
