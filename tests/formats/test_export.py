import base64
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import keras
import numpy as np
import onnx
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter
from conftest import ROOT, full_disk, noise, photograph, save_photograph
from google.protobuf import empty_pb2, unknown_fields
from PIL import Image
from tensorflow.core.framework import tensor_pb2

from srgan_tf import folding, metrics, pictures, resize, upscaling
from srgan_tf.evaluation.methods import load_methods
from srgan_tf.formats import (
    exported,
    exporting,
    keras_model,
    litert,
    onnx_file,
    parity,
)
from srgan_tf.formats.saved_model import write_saved_model
from srgan_tf.networks import build_generator


@pytest.fixture(scope="module")
def pairs():
    originals = [photograph(96, 80, seed=1), photograph(64, 120, seed=2)]
    return [(resize.imresize(hr, (hr.shape[0] // 4, hr.shape[1] // 4)), hr) for hr in originals]


@pytest.fixture(scope="module")
def calibration():
    return [photograph(40, 40, seed=seed) for seed in (3, 4, 5)]


@pytest.fixture(scope="module")
def saved_model(generator, tmp_path_factory):
    return write_saved_model(generator, tmp_path_factory.mktemp("export") / "saved")


@pytest.fixture
def write(generator, pairs):
    """Exports the generator as "tiny", in float32 unless told, as exporting.export does."""
    return functools.partial(
        exporting.export, generator, {"name": "tiny"}, quantize=["float32"], pairs=pairs
    )


@pytest.fixture
def write_tflite(generator, calibration):
    """Writes the generator as a .tflite file, as litert.write_tflite does."""
    return functools.partial(litert.write_tflite, generator, calibration=calibration)


@pytest.fixture
def export(run_script):
    """Runs export.py in this process: arguments to (exit code, stdout, stderr)."""
    return functools.partial(run_script, "export.py")


def test_folding_keeps_the_networks_output(generator):
    lr = np.random.default_rng(0).random([2, 13, 10, 3], np.float32)
    folded = keras_model.fold_batch_norm(generator)
    assert not any(isinstance(x, keras.layers.BatchNormalization) for x in folded.layers)
    np.testing.assert_allclose(folded(lr).numpy(), generator(lr, training=False).numpy(), atol=2e-5)


def test_a_generator_trained_in_bfloat16_is_folded_in_float32():
    generator = build_generator(residual_blocks=1, filters=4, dtype="mixed_bfloat16")
    folded = keras_model.fold_batch_norm(generator)
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}


@pytest.mark.parametrize("form", litert.QUANTIZE)
def test_a_tflite_file_upscales_as_its_generator(generator, write_tflite, pairs, tmp_path, form):
    path = write_tflite(tmp_path / "generator.tflite", quantize=form)
    found = parity.compare(path, parity.reference(generator, pairs))
    assert parity.out_of_bounds(form, found) is None, found
    assert found.psnr > 15  # it is a picture
    assert exported.load(path).margin == folding.receptive_field(folding.fold(generator))
    assert [p.name for p in tmp_path.iterdir()] == ["generator.tflite"]


def test_quantized_files_are_smaller(calibration, tmp_path):
    wide = build_generator(residual_blocks=1, filters=32)
    size = {
        form: litert.write_tflite(wide, tmp_path / form, quantize=form, calibration=calibration)
        .stat()
        .st_size
        for form in litert.QUANTIZE
    }
    assert size["float16"] < 0.6 * size["float32"]
    assert max(size["int8"], size["dynamic"]) < 0.4 * size["float32"]


@pytest.mark.parametrize("form", litert.QUANTIZE)
def test_xnnpack_runs_every_operation_of_a_tflite_file(write_tflite, tmp_path, form):
    path = write_tflite(tmp_path / "generator.tflite", quantize=form)
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    operations = interpreter._get_ops_details()
    kinds = {operation["op_name"] for operation in operations}
    known = {"CONV_2D", "PRELU", "ADD", "DEPTH_TO_SPACE", "QUANTIZE", "DEQUANTIZE"}
    assert kinds - {"DELEGATE"} <= known  # nothing of Flex, nothing custom
    delegates = [o for o in operations if o["op_name"] == "DELEGATE"]
    assert len(delegates) == 1
    [given], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["dtype"] == result["dtype"] == (np.uint8 if form == "int8" else np.float32)
    if form != "int8":
        assert given["index"] in delegates[0]["inputs"]
        assert delegates[0]["outputs"].tolist() == [result["index"]]
    if form not in ("dynamic", "int8"):
        return
    in_float = {
        tensor["name"]
        for tensor in interpreter.get_tensor_details()
        if tensor["name"].endswith("/kernel") and tensor["dtype"] == np.float32
    }
    carried = {f"{name}_carried/kernel" for name in folding.CARRIERS}
    assert in_float == {"conv_in/kernel"} | carried


def test_the_size_of_a_tflite_file_may_be_fixed(write_tflite, pairs, tmp_path):
    lr, _ = pairs[0]
    path = write_tflite(tmp_path / "fixed", input_size=lr.shape[:2], quantize="int8")
    interpreter = Interpreter(str(path))
    [given], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    assert given["shape_signature"].tolist() == [1, *lr.shape]
    assert result["shape_signature"].tolist() == [1, 4 * lr.shape[0], 4 * lr.shape[1], 3]
    assert given["dtype"] == result["dtype"] == np.uint8
    sr = upscaling.upscale(exported.load(path), lr)
    assert sr.shape == (4 * lr.shape[0], 4 * lr.shape[1], 3)
    # Tensors between are of the sizes that the file says, for compilers that trust it.
    sizes = {t["index"]: t["shape"].tolist() for t in interpreter.get_tensor_details()}
    interpreter.allocate_tensors()
    assert sizes == {t["index"]: t["shape"].tolist() for t in interpreter.get_tensor_details()}


def test_int8_needs_calibration_pictures(generator, tmp_path):
    with pytest.raises(ValueError, match="int8 needs calibration pictures"):
        litert.write_tflite(generator, tmp_path / "x.tflite", quantize="int8")
    with pytest.raises(ValueError, match="quantize is 'int4': give one of float32"):
        litert.write_tflite(generator, tmp_path / "x.tflite", quantize="int4")
    assert not list(tmp_path.iterdir())


def test_a_saved_model_upscales_as_its_generator(generator, saved_model, pairs):
    found = parity.compare(saved_model, parity.reference(generator, pairs))
    assert found.worst <= 1
    margin = folding.receptive_field(folding.fold(generator))
    assert exported.load(saved_model).margin == margin


def test_a_saved_model_holds_its_weights_once(generator, saved_model):
    size = (saved_model / "variables" / "variables.data-00000-of-00001").stat().st_size
    layers = folding.fold(generator).values()
    weights = sum(w.nbytes for layer in layers for w in layer if w is not None)
    assert size < 1.1 * weights + 10_000


def test_a_saved_model_takes_batches_of_any_size(generator, saved_model):
    signatures = tf.saved_model.load(str(saved_model)).signatures
    lr = np.stack([noise(9, 14, 3, seed=seed) for seed in range(3)])
    sr = signatures["serving_default"](lr=tf.constant(lr))["sr"].numpy()
    assert sr.shape == (3, 36, 56, 3) and sr.dtype == np.uint8
    given = lr / np.float32(255)
    sr_float = signatures["serve_float"](lr=tf.constant(given))["sr"].numpy()
    expected = generator(given, training=False).numpy()
    np.testing.assert_allclose(sr_float, expected, atol=2e-5)
    assert np.abs(sr - np.clip((expected + 1) * 127.5, 0, 255)).max() < 0.51


def _encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_a_saved_model_takes_encoded_pictures_of_several_sizes(generator, saved_model, tmp_path):
    serve = tf.saved_model.load(str(saved_model)).signatures["serve_bytes"]
    save_photograph(tmp_path / "photo.jpg", 21, 17, quality=95)
    encoded = [
        _encoded(Image.fromarray(noise(10, 12, 3)), "PNG"),
        (tmp_path / "photo.jpg").read_bytes(),
    ]
    result = serve(lr_bytes=tf.constant(encoded))["sr_bytes"].numpy()
    first, second = (np.array(Image.open(io.BytesIO(png))) for png in result)
    expected = upscaling.upscale(keras_model.compiled(generator), noise(10, 12, 3))
    assert np.abs(first.astype(int) - expected).max() <= 1
    assert second.shape == (84, 68, 3)


@pytest.mark.parametrize("signature", ["serving_default", "serve_float", "serve_bytes"])
def test_a_signature_refuses_every_wrong_shape_and_empty_input(saved_model, signature):
    model = tf.saved_model.load(str(saved_model))  # alive, for its variables
    serve = model.signatures[signature]
    [(name, spec)] = serve.structured_input_signature[1].items()
    shapes = [[], [2, 2], [0]]
    if signature != "serve_bytes":
        shapes = [[], [3], [7, 3], [5, 7, 3], [1, 1, 5, 7, 3], [1, 1, 1, 5, 7, 3]]
        shapes += [[1, 5, 7, channels] for channels in (0, 1, 2, 4)]
        shapes += [[0, 5, 7, 3], [1, 0, 7, 3], [1, 5, 0, 3]]
    for shape in shapes:
        with pytest.raises(tf.errors.InvalidArgumentError):
            serve(**{name: tf.zeros(shape, spec.dtype)})


@pytest.mark.parametrize("encoded", [b"", b"no picture", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n"])
def test_bytes_that_are_not_a_picture_are_an_invalid_argument(saved_model, encoded):
    model = tf.saved_model.load(str(saved_model))
    with pytest.raises(tf.errors.InvalidArgumentError):
        model.signatures["serve_bytes"](lr_bytes=tf.constant([encoded]))


@pytest.fixture(scope="module")
def serve_bytes(saved_model):
    """Runs serve_bytes on encoded pictures; checks each against what `pictures` reads of it."""
    model = tf.saved_model.load(str(saved_model))

    def check(*encoded):
        result = model.signatures["serve_bytes"](lr_bytes=tf.constant(encoded))["sr_bytes"]
        for given, png in zip(encoded, result.numpy(), strict=True):
            rgb = pictures.read_rgb(io.BytesIO(given), "given")
            expected = model.signatures["serving_default"](lr=rgb[None])["sr"][0]
            np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png))), expected)

    return check


def test_encoded_pictures_are_served_as_they_look(serve_bytes):
    image = Image.fromarray(photograph(9, 12))
    clear = Image.fromarray(noise(9, 12, 3, seed=1)[..., :1].repeat(4, axis=-1) ^ 0x3C)
    serve_bytes(
        _encoded(Image.new("RGBA", (8, 6), (0, 255, 0, 0)), "PNG"),  # hidden green
        _encoded(clear, "PNG"),
        _encoded(clear.convert("LA"), "PNG"),
        _encoded(image.quantize(8), "PNG", transparency=2),
        _encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3)),
        _encoded(image.convert("L"), "PNG", transparency=image.convert("L").getpixel((0, 0))),
        _encoded(image.convert("L").point(lambda v: 255 * (v > 99)).convert("1"), "PNG"),
        _encoded(image.convert("L"), "JPEG"),
        _encoded(image, "BMP"),
        _encoded(image, "GIF"),
    )


@pytest.mark.parametrize("order", ["<", ">"])
def test_encoded_jpegs_are_served_oriented(serve_bytes, order):
    image = Image.fromarray(photograph(10, 21))
    encoded = []
    for orientation in range(10):  # 0 and 9 are none
        exif = Image.Exif()
        exif.endian = order
        exif.update({0x010F: "longer than four bytes", 0x0112: orientation, 0x0131: "later"})
        encoded.append(_encoded(image, "JPEG", exif=exif, icc_profile=bytes(70_000)))
    jpeg = encoded[6]
    start = jpeg.index(b"Exif\0\0")
    other = b"\xff\xe1\x00\x0eExif-like\0\0\0"  # another APP1 before it
    encoded.append(jpeg[: start - 4] + other + jpeg[start - 4 :])
    serve_bytes(*encoded)


def test_damaged_exif_is_read_as_upright(serve_bytes):
    image, exif = Image.fromarray(photograph(10, 12)), Image.Exif()
    exif[0x010F] = "maker"
    jpeg = _encoded(image, "JPEG", exif=exif)
    tiff = jpeg.index(b"Exif\0\0") + 6
    directory = tiff + 4
    serve_bytes(
        jpeg,
        jpeg[:directory] + b"\xff\xff\xff\xff" + jpeg[directory + 4 :],  # beyond the file
        jpeg[: directory + 4] + b"\xff\xff" + jpeg[directory + 6 :],  # entries without an end
    )


def _tensorflow_serving(saved_model, body):
    """Answers a REST request by TensorFlow Serving's rules."""
    body = json.loads(body)
    signatures = tf.saved_model.load(str(saved_model)).signatures
    serve = signatures[body.get("signature_name", "serving_default")]
    specs = serve.structured_input_signature[1]
    [(name, spec)] = specs.items()
    rows = [row[name] if isinstance(row, dict) and name in row else row
            for row in body["instances"]]  # fmt: skip
    rows = [base64.b64decode(row["b64"]) if isinstance(row, dict) else row for row in rows]
    [(name, result)] = serve(**{name: tf.constant(rows, spec.dtype)}).items()
    if result.dtype != tf.string:
        return json.dumps({"predictions": result.numpy().tolist()}).encode()
    # Strings go back in base64 only under names that end so.
    assert name.endswith("_bytes")
    rows = [{"b64": base64.b64encode(row).decode()} for row in result.numpy()]
    return json.dumps({"predictions": rows}).encode()


def _documented(language, part):
    """The only block of code in docs/export.md in a language that has `part` in it."""
    text = (ROOT / "docs" / "export.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    [block] = [block for block in blocks if part in block]
    return block


@pytest.fixture
def beside_an_export(write_tflite, saved_model, tmp_path, monkeypatch):
    """Goes where the documented commands may run, beside photo.jpg and what has been exported."""
    save_photograph(tmp_path / "photo.jpg", 12, 14)
    (tmp_path / "export" / "srresnet_mse").mkdir(parents=True)
    (tmp_path / "export" / "srresnet_mse" / "1").symlink_to(saved_model)
    write_tflite(tmp_path / "export" / "srresnet_mse.dynamic.tflite", quantize="dynamic")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_documented_curl_call_fits_the_signature(saved_model, beside_an_export):
    echo, curl, decode = _documented("sh", "curl").rstrip().split(" |\n")
    assert "curl -s -d @- localhost:8501/v1/models/srresnet_mse:predict" in curl
    body = subprocess.run(["bash", "-c", echo], capture_output=True, check=True).stdout
    decode = decode.strip().replace("python", sys.executable, 1)
    answer = _tensorflow_serving(saved_model, body)
    subprocess.run(["bash", "-c", decode], input=answer, check=True)
    assert Image.open("photo_x4.png").size == (56, 48)


def test_the_documented_client_fits_the_signature(saved_model, beside_an_export, monkeypatch):
    def urlopen(url, body):
        return io.BytesIO(_tensorflow_serving(saved_model, body))

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    exec(_documented("python", "urlopen"), {})
    assert Image.open("photo_x4.png").size == (56, 48)


def test_the_documented_code_that_loads_files_runs(beside_an_export):
    by_tensorflow = {}
    exec(_documented("python", "tf.saved_model.load"), by_tensorflow)
    assert by_tensorflow["sr"].shape == (48, 56, 3)
    exec(_documented("python", "ai_edge_litert"), {})
    assert Image.open("photo_x4.png").size == (56, 48)


def _fields(message: bytes) -> dict[int, bytes]:
    """The fields of an encoded protobuf message by their numbers."""
    fields = unknown_fields.UnknownFieldSet(empty_pb2.Empty.FromString(message))
    return {field.field_number: field.data for field in fields}


def test_tensorflow_serving_can_warm_up(saved_model):
    signatures = tf.saved_model.load(str(saved_model)).signatures
    records = tf.data.TFRecordDataset(
        str(saved_model / "assets.extra" / "tf_serving_warmup_requests")
    )
    warmed = []
    for record in records.as_numpy_iterator():
        # By number, as in tensorflow_serving/apis/{prediction_log,predict,model}.proto.
        request = _fields(_fields(_fields(record)[6])[1])
        signature, entry = _fields(request[1])[3].decode(), _fields(request[2])
        value = tf.constant(tf.make_ndarray(tensor_pb2.TensorProto.FromString(entry[2])))
        signatures[signature](**{entry[1].decode(): value})
        warmed.append(signature)
    assert warmed == ["serving_default", "serve_bytes"]


def test_a_saved_model_runs_without_this_package(saved_model, tmp_path):
    script = """
import sys
sys.modules["srgan_tf"] = None  # importing it is an error now
import tensorflow as tf
signatures = tf.saved_model.load(sys.argv[1]).signatures
lr = tf.zeros([5, 6, 3], tf.uint8)
sr = signatures["serving_default"](lr=lr[None])["sr"][0]
png = signatures["serve_bytes"](lr_bytes=tf.io.encode_png(lr)[None])["sr_bytes"][0]
print(sr.shape, tf.io.decode_png(png).shape)
print(not any(name.startswith("srgan_tf.") for name in sys.modules))
from tensorflow.python.tools import saved_model_cli
sys.argv = ["saved_model_cli", "show", "--dir", sys.argv[1], "--all"]
saved_model_cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, saved_model],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("(20, 24, 3) (20, 24, 3)\nTrue")
    for name in ("serving_default", "serve_float", "serve_bytes"):
        assert f"signature_def['{name}']" in done.stdout
    assert "inputs['lr_bytes'] tensor_info:\n        dtype: DT_STRING" in done.stdout


def test_an_onnx_file_upscales_as_its_generator(generator, pairs, tmp_path):
    path = onnx_file.write_onnx(generator, tmp_path / "generator.onnx")
    found = parity.compare(path, parity.reference(generator, pairs))
    assert found.worst <= 1
    network = exported.load(path)
    assert network.margin == folding.receptive_field(folding.fold(generator))
    axes = onnx.load(path).graph.input[0].type.tensor_type.shape.dim
    assert [axis.dim_param for axis in axes] == ["N", "h", "w", ""]


def test_an_export_has_a_card_and_takes_the_next_version_number(generator, pairs, tmp_path):
    card = {"name": "tiny", "sha256": "0123"}
    for version in ("1", "2"):
        [written], _ = exporting.export(
            generator, card, tmp_path, formats=["savedmodel"], pairs=pairs
        )
        assert written.path == tmp_path / "tiny" / version
    found = json.loads((written.path / "assets.extra" / "card.json").read_text())
    assert found["weights"] == card and found["parity"]["pictures"] == 2
    assert "ignores color profiles" in found["limits"]
    card["name"] = "tiny.keras"
    [written], _ = exporting.export(
        generator, card, tmp_path, formats=["tflite"], quantize=["float32"], pairs=pairs,
        input_size=(20, 16), facts={"data": "made up"},
    )  # fmt: skip
    assert written.path == tmp_path / "tiny.float32.20x16.tflite"
    found = json.loads(written.path.with_name(f"{written.path.name}.json").read_text())
    assert found["output"] == {"shape": [1, 80, 64, 3], "range": [-1, 1], "dtype": "float32"}
    assert found["data"] == "made up" and found["parity"]["pictures"] == 2
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"tiny", "tiny.float32.20x16.tflite", "tiny.float32.20x16.tflite.json"}


def test_a_form_out_of_its_bound_is_named_and_the_others_are_written(
    export, tiny, photo_folder, tmp_path, monkeypatch
):
    arguments = (
        f"--weights={tiny}", f"--out_dir={tmp_path / 'out'}", f"--data={photo_folder}",
        "--format=tflite", "--quantize=float32,float16",
    )  # fmt: skip
    monkeypatch.setitem(parity.BOUNDS, "float16", (-1, None))
    code, out, err = export(*arguments)
    assert code == 1 and "tiny.float32.tflite" in out
    assert re.match("error: .*float16 differs by . levels of 255", err.splitlines()[-1])
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"tiny.float32.tflite", "tiny.float32.tflite.json"}


def test_nothing_is_written_where_every_form_misses_its_bound(write, tmp_path, monkeypatch):
    monkeypatch.setitem(parity.BOUNDS, "float16", (-1, None))
    with pytest.raises(ValueError, match="nothing exported: float16 differs by"):
        write(tmp_path / "out", formats=["tflite"], quantize=["float16"])
    assert not list(tmp_path.iterdir())  # nor a folder for it


@pytest.mark.parametrize("folder", ["ex [1]", "a*b?", "back\\slash", b"caf\xe9"])
def test_exports_are_written_and_loaded_whatever_the_folder_is_called(write, tmp_path, folder):
    written, failed = write(tmp_path / os.fsdecode(folder))
    assert not failed and len(written) == 3
    methods = load_methods([str(path) for _, path, _ in written])
    for method in methods[2:]:
        assert method.upscale(noise(5, 6, 3)).shape == (20, 24, 3)


@pytest.mark.parametrize("form", ["savedmodel", "tflite", "onnx"])
def test_a_full_disk_is_one_line_that_names_the_file(write, tmp_path, form):
    with pytest.raises(ValueError) as raised, full_disk(1000):
        write(tmp_path / "out", formats=[form])
    name = {"savedmodel": "saved_model", "tflite": "tiny.float32.tflite", "onnx": "tiny.onnx"}[form]
    line = str(raised.value)
    assert line.startswith(f"{tmp_path / 'out' / name}: cannot be written (")
    assert "File too large" in line and "\n" not in line and "Errno" not in line
    assert not list(tmp_path.iterdir())


def test_a_damaged_saved_model_is_one_line_that_names_the_folder(saved_model, tmp_path):
    folder = shutil.copytree(saved_model, tmp_path / "saved")
    for name in ("variables/variables.data-00000-of-00001", "saved_model.pb"):
        contents = (folder / name).read_bytes()
        for damaged in (contents[:-1], b"no protobuf", b""):
            (folder / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"^{folder}: no SavedModel with .*$") as raised:
                exported.load(folder)
            assert "\n" not in str(raised.value)
        (folder / name).write_bytes(contents)


def test_pairs_are_cut_to_the_size_that_a_file_takes(pairs):
    lr, hr = pairs[0]
    cut, mirrored = parity.crops(pairs, (20, 18))  # the second picture is 16 pixels high
    np.testing.assert_array_equal(cut[0], lr[2:22, 1:19])
    np.testing.assert_array_equal(cut[1], hr[8:88, 4:76])
    for picture in mirrored:
        size = picture.shape[0] // 20
        np.testing.assert_array_equal(picture[16 * size :], picture[12 * size : 16 * size][::-1])


def test_a_file_of_one_size_is_compared_at_that_size(write, tmp_path, monkeypatch):
    def resize_tensor_input(*args):
        raise AssertionError("resized")

    monkeypatch.setattr(Interpreter, "resize_tensor_input", resize_tensor_input)
    hr = photograph(64, 2160)
    pairs, size = [(resize.imresize(hr, (16, 540)), hr)], (12, upscaling.DEFAULT_TILE + 6)
    write(tmp_path, formats=["tflite"], input_size=size, pairs=pairs)


def test_pairs_of_any_size_are_brought_to_one_size():
    hr = np.arange(48 * 80 * 3).reshape(48, 80, 3).astype(np.uint8)
    lr = hr[::4, ::4]
    for size in ((5, 9), (12, 20), (30, 7), (25, 50)):
        [(small, large)] = parity.crops([(lr, hr)], size)
        assert small.shape == (*size, 3) and large.shape == (4 * size[0], 4 * size[1], 3)
        inner = np.s_[: min(12, size[0]), : min(20, size[1])]
        np.testing.assert_array_equal(large[::4, ::4][inner], small[inner])


def test_a_bound_is_in_levels_or_in_decibels():
    def found(pooled, worst):
        return parity.Parity(1.0, 30.0, -9.0, pooled, [-9.0], worst, 1.0)

    assert parity.out_of_bounds("float32", found(0.0, 1)) is None
    assert "differs by 2 levels" in parity.out_of_bounds("float32", found(0.0, 2))
    assert parity.out_of_bounds("dynamic", found(-0.04, 9)) is None
    assert "changes the pooled PSNR by -0.060" in parity.out_of_bounds("dynamic", found(-0.06, 1))
    assert "int8 changes" in parity.out_of_bounds("int8", found(float("nan"), 0))


def test_a_flat_picture_dominates_the_mean_psnr_but_not_the_pooled_errors(monkeypatch):
    def enlarged(lr, error):
        return (lr + error).repeat(4, axis=-3).repeat(4, axis=-2)

    flat, rough = (np.full([5, 5, 3], level, np.uint8) for level in (100, 50))
    expected = parity.Reference(
        pairs=[(lr, enlarged(lr, 0)) for lr in (flat, rough)],
        results=[enlarged(flat, 1), enlarged(rough, 20)],
        psnr=np.array([metrics.psnr(enlarged(flat, 1), enlarged(flat, 0)),
                       metrics.psnr(enlarged(rough, 20), enlarged(rough, 0))]),
    )  # fmt: skip
    network = upscaling.Upscaler(lambda lr: enlarged(lr, 2 if lr.max() == 100 else 20), 0)
    monkeypatch.setattr(exported, "load", lambda path: network)
    found = parity.compare(Path(__file__), expected)
    of_flat = -20 * np.log10(2)
    assert found.changes == pytest.approx([of_flat, 0])
    assert found.change == pytest.approx(of_flat / 2)
    assert found.pooled == pytest.approx(-10 * np.log10((2**2 + 20**2) / (1**2 + 20**2)))


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory):
    """The weights of another network, as two files: path.weights.h5 and path.keras."""
    picture = keras.Input((None, None, 3))
    other = keras.Model(picture, keras.layers.Conv2D(3, 3)(picture), name="other")
    path = tmp_path_factory.mktemp("weights") / "other"
    other.save_weights(f"{path}.weights.h5")
    other.save(f"{path}.keras")
    return path


def test_one_command_exports_what_evaluation_takes(export, tiny, photo_folder, tmp_path):
    code, out, err = export(
        f"--weights={tiny}", f"--out_dir={tmp_path}", f"--data={photo_folder}",
        f"--calibration_data={photo_folder}", "--format=savedmodel,tflite,tflite",
        "--quantize=dynamic,int8,int8",
    )  # fmt: skip
    assert code == 0, err
    forms = [line.split()[0] for line in out.splitlines()[2:-3]]
    assert forms == ["savedmodel", "dynamic", "int8"]
    files = [tmp_path / name for name in ("tiny/1", "tiny.dynamic.tflite", "tiny.int8.tflite")]
    methods = load_methods([str(path) for path in (tiny, *files)], tile=64)
    names = [method.name for method in methods[2:]]
    assert names == ["tiny", "tiny/1", "tiny.dynamic.tflite", "tiny.int8.tflite"]
    lr = noise(70, 11, 3)  # two tiles
    expected, saved, *quantized = [method.upscale(lr) for method in methods[2:]]
    assert np.abs(saved.astype(int) - expected).max() <= 1
    assert [sr.shape for sr in quantized] == [(280, 44, 3)] * 2


@pytest.mark.slow
def test_the_bundled_weights_keep_their_pictures_in_every_form(export, tmp_path):
    code, out, err = export(
        "--weights=srresnet_mse", f"--out_dir={tmp_path}", "--format=savedmodel,tflite"
    )
    assert code == 0, err
    files = [line.split()[-1] for line in out.splitlines()[2:-3]]
    assert len(files) == 1 + len(litert.QUANTIZE)
    methods = load_methods(["srresnet_mse", *files], tile=128)[2:]
    errors = np.zeros(len(methods))
    for path in pictures.sample_pictures():
        hr = pictures.read_rgb(path)[:512, :512]
        hr = hr[: hr.shape[0] // 4 * 4, : hr.shape[1] // 4 * 4]
        lr = resize.imresize(hr, (hr.shape[0] // 4, hr.shape[1] // 4))
        results = [method.upscale(lr) for method in methods]
        errors += [10 ** (-metrics.psnr(sr, hr) / 10) for sr in results]
        for exact in results[1:4]:  # the SavedModel, float32 and float16
            assert np.abs(exact.astype(int) - results[0]).max() <= 1, path
    changes = -10 * np.log10(errors / errors[0])
    assert abs(changes[4]) <= 0.05 and abs(changes[5]) <= 0.05, changes


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--weights=nowhere"], "error: nowhere: no such run folder, file or bundled weights"),
        (["--format=gguf"], "error: --format: there is no 'gguf', give some of savedmodel,tflite"),
        (["--quantize=int4"], "error: --quantize: there is no 'int4'"),
        (["--input_size=12"], "error: --input_size=12: give height,width of LR"),
        (["--input_size=0,5"], "error: --input_size=0,5: give height,width of LR"),
        (["weights.h5"], "error: what is 'weights.h5'?"),
        (["--format=savedmodel", "--quantize=int8"], "error: --quantize is for tflite, which is"),
        (["--format=savedmodel,onnx", "--input_size=9,9"], "not in --format=savedmodel,onnx"),
        (["--format=savedmodel", "--calibration_data=sample"], "neither is made"),
        (["--quantize=float16", "--calibration_data=sample"], "error: --calibration_data is for"),
        (["--calibration_data=nowhere", "--format=tflite"], "error: nowhere"),
        (["--out_dir=FILE"], "cannot be written to"),
        (["--weights=FILE"], "give a .weights.h5 or .keras file"),
        (["--weights=OTHER.keras"], "error: other is not the paper's generator, it has no layer"),
        (["--weights=OTHER.weights.h5"], "not a generator's weights"),
    ],
)
def test_a_mistake_is_reported_in_one_line(
    export, tiny, other_weights, tmp_path, arguments, message
):
    (tmp_path / "file").touch()
    given = [f"--weights={tiny}", f"--out_dir={tmp_path / 'out'}"]
    for argument in arguments:
        argument = argument.replace("FILE", str(tmp_path / "file"))
        given.append(argument.replace("OTHER", str(other_weights)))
    code, out, err = export(*given)
    assert code == 1 and out == ""
    assert message in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_missing_packages_are_named_before_anything_is_written(export, tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    code, _, err = export(
        f"--weights={tiny}", f"--out_dir={tmp_path / 'out'}", "--format=savedmodel,onnx"
    )
    assert code == 1 and err.splitlines()[-1].endswith("pip install onnxruntime")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantize, shares", [("float32", (0, 7)), ("int8", (4, 3))])
def test_photographs_are_divided_only_if_some_are_for_calibration(
    export, tiny, tmp_path, monkeypatch, quantize, shares
):
    def given(*_, calibration, pairs, **__):
        raise ValueError(f"{(len(calibration), len(pairs))}")

    monkeypatch.setattr(exporting, "export", given)
    _, _, err = export(
        f"--weights={tiny}", f"--out_dir={tmp_path}", "--format=tflite",
        f"--quantize={quantize}",
    )  # fmt: skip
    assert err.splitlines()[-1] == f"error: {shares}"
