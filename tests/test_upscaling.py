import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, noise

from srgan_tf import folding, upscaling
from srgan_tf.formats import exported, keras_model, litert, onnx_file
from srgan_tf.networks import build_generator


def test_a_network_of_another_scale_is_refused():
    twice = upscaling.Upscaler(lambda x: x.repeat(2, axis=1).repeat(2, axis=2), margin=0)
    tailed = upscaling.Upscaler(lambda lr: lr, margin=0, tail=twice)
    classifier = upscaling.Upscaler(lambda x: np.zeros([1, 1000], np.float32), margin=None)
    gray = upscaling.Upscaler(lambda x: np.zeros([1, 32, 32], np.uint8), margin=None)
    for network, made in ((twice, [10, 12, 3]), (tailed, [10, 12, 3]), (classifier, [1000])):
        line = f"this network does not upscale by 4: it makes {made} of [5, 6, 3]"
        with pytest.raises(ValueError, match=re.escape(line)):
            upscaling.upscale(network, np.zeros([5, 6, 3], np.uint8))
    for network, made in ((twice, [1, 16, 16, 3]), (classifier, [1, 1000]), (gray, [1, 32, 32])):
        line = f"net: does not upscale by 4: it makes {made} of [1, 8, 8, 3]"
        with pytest.raises(ValueError, match=re.escape(line)):
            upscaling.check_scale(network, "net")


def _of_another_program(generator, folder, dtype):
    """Writes a SavedModel and a .tflite file without the margin: their paths."""
    archive = keras.export.ExportArchive()
    archive.track(generator)

    def serve(lr):
        if dtype == tf.float32:
            return generator(lr, training=False)
        sr = generator(tf.cast(lr, tf.float32) / 255, training=False)
        return tf.cast(tf.clip_by_value((sr + 1) * 127.5 + 0.5, 0, 255), tf.uint8)

    archive.add_endpoint("serve", serve, [tf.TensorSpec([1, None, None, 3], dtype)])
    archive.write_out(folder / "net", verbose=False)
    converter = tf.lite.TFLiteConverter.from_saved_model(str(folder / "net"))
    (folder / "net.tflite").write_bytes(converter.convert())
    return folder / "net", folder / "net.tflite"


def _largest_difference(a, b):
    return int(np.abs(a.astype(int) - b).max())


def _levels(generator, lr):
    sr = generator(lr[None] / np.float32(255), training=False)[0].numpy()
    return np.clip(np.round((sr + 1) * 127.5), 0, 255).astype(np.uint8)


def test_the_papers_generator_has_a_margin_of_forty_pixels():
    assert folding.receptive_field(folding.fold(build_generator(filters=4))) == 40


def test_pixels_outside_the_receptive_field_do_not_change_the_result(generator):
    lr = tf.random.stateless_uniform([1, 41, 41, 3], seed=[1, 2])
    with tf.GradientTape() as tape:
        tape.watch(lr)
        sr = generator(lr, training=False)
        # The four by four pixels of lr pixel (20, 20), squared so that nothing cancels by sign.
        value = tf.reduce_sum(tf.square(sr[:, 80:84, 80:84]))
    rows = np.flatnonzero(np.abs(tape.gradient(value, lr).numpy()).sum(axis=(0, 2, 3)))
    margin = folding.receptive_field(folding.fold(generator))
    assert (rows.min(), rows.max()) == (20 - margin, 20 + margin)


def test_a_network_of_unknown_receptive_field_runs_in_one_piece(caplog):
    picture = keras.Input((None, None, 3))
    brighter = picture + keras.ops.mean(picture, axis=(1, 2), keepdims=True)
    four = keras.layers.UpSampling2D(4)(brighter)
    network = keras_model.compiled(keras.Model(picture, four, name="custom"))
    assert network.margin is None
    assert "custom: no receptive field recorded, so each picture is processed in" in caplog.text
    lr = noise(600, 3, 3)  # larger than the default tile
    sr = upscaling.upscale(network, lr, tile=100)
    expected = np.clip(np.round((lr / 255 + lr.mean(axis=(0, 1)) / 255 + 1) * 127.5), 0, 255)
    assert _largest_difference(sr[::4, ::4], expected) <= 1


@pytest.mark.parametrize("size", [(1, 1), (7, 50), (33, 61), (100, 23)])
def test_tiles_and_one_piece_have_the_same_result(generator, size):
    lr = noise(*size, 3)
    whole = _levels(generator, lr)
    for tile in (25, 31, 64):
        sr = upscaling.upscale(keras_model.compiled(generator), lr, tile=tile)
        assert sr.dtype == np.uint8 and sr.shape == (4 * size[0], 4 * size[1], 3)
        assert _largest_difference(sr, whole) <= 1


def test_tiles_of_a_picture_have_one_size_and_fill_it_without_gaps():
    for length in range(1, 200):
        for tile in (21, 22, 40, 64):
            spans = upscaling._spans(length, tile, 10)
            sizes = {end - start for start, end, _, _ in spans}
            assert len(sizes) == 1 and sizes.pop() <= tile
            assert [s[2] for s in spans] == [0, *(s[3] for s in spans[:-1])]
            assert spans[-1][3] == length
            for start, end, first, last in spans:
                assert first - start >= 10 or start == 0
                assert end - last >= 10 or end == length


def test_a_tails_tiles_have_one_size_and_lie_within_their_tile():
    for length in range(1, 200):
        spans = upscaling._spans(length, 40, 10)
        windows = upscaling._windows(spans, 3)
        assert len({end - start for start, end in windows}) == 1
        for (start, end, first, last), window in zip(spans, windows, strict=True):
            assert start <= window[0] <= max(first - 3, 0)
            assert min(last + 3, length) <= window[1] <= end


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_results_of_every_float_dtype_become_levels(dtype):
    def call(lr):
        return (lr.repeat(4, axis=1).repeat(4, axis=2) / 127.5 - 1).astype(dtype)

    lr = noise(5, 7, 3)
    expected = lr.repeat(4, axis=0).repeat(4, axis=1)
    sr = upscaling.upscale(upscaling.Upscaler(call, margin=0), lr)
    assert sr.dtype == np.uint8 and _largest_difference(sr, expected) == 0


def test_one_trace_serves_every_size(generator):
    traces = []
    traced = keras.Model(generator.inputs, generator.outputs)
    call = traced.call
    traced.call = lambda *args, **kwargs: (traces.append(1), call(*args, **kwargs))[1]
    for size in ((10, 10), (30, 12), (50, 60)):
        upscaling.upscale(keras_model.compiled(traced), noise(*size, 3), tile=32)
    assert len(traces) == 1


def test_a_tile_too_large_for_tensorflow_is_a_memory_error():
    def fail(x):
        raise MemoryError  # TensorFlow makes a ResourceExhaustedError of it, as of its own

    picture = keras.Input([None, None, 3])
    layer = keras.layers.Activation(lambda x: tf.py_function(fail, [x], tf.float32))
    network = keras_model.compiled(keras.Model(picture, layer(picture)))
    with pytest.raises(MemoryError, match="no memory for 7x5"):
        upscaling.upscale(network, noise(5, 7, 3))


def test_a_tile_within_the_margin_is_refused(generator):
    with pytest.raises(ValueError, match="a tile of 16 pixels is too small"):
        upscaling.upscale(keras_model.compiled(generator), noise(20, 20, 3), tile=16)


def test_anything_but_an_8_or_16_bit_rgb_picture_is_refused(generator):
    for picture in (np.zeros([8, 8], np.uint8), np.zeros([8, 8, 3]), np.zeros([0, 8, 3], np.uint8)):
        with pytest.raises(ValueError, match="upscale takes uint8"):
            upscaling.upscale(keras_model.compiled(generator), picture)


@pytest.mark.parametrize("dtype", [tf.float32, tf.uint8])
def test_files_of_other_programs_and_the_generator_have_the_same_result(generator, tmp_path, dtype):
    for path in _of_another_program(generator, tmp_path, dtype):
        assert exported.is_exported(path)
        network = exported.load(path)
        assert network.margin is None
        assert upscaling.checked_tile(network, 9) is None  # in one piece, whatever --tile is
        for size in ((40, 30), (12, 9)):
            lr = noise(*size, 3)
            sr = upscaling.upscale(network, lr)
            assert _largest_difference(sr, _levels(generator, lr)) <= 1


def test_a_tile_too_large_for_litert_is_a_memory_error(generator, tmp_path):
    network = exported.load(litert.write_tflite(generator, tmp_path / "net.tflite"))
    lr = noise(12, 9, 3)
    expected = network.call(lr[None])
    huge = np.broadcast_to(np.uint8(0), [1, 100_000, 100_000, 3])  # itself takes one byte
    for _ in range(2):
        with pytest.raises(MemoryError, match="net.tflite: no memory for 100000x100000"):
            network.call(huge)
    np.testing.assert_array_equal(network.call(lr[None]), expected)


_SHORT_OF_MEMORY = """
import resource, sys
import numpy as np
from srgan_tf.formats import exported, keras_model
network = exported.load(sys.argv[1])
with open("/proc/self/statm") as statm:
    used = int(statm.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**31, resource.RLIM_INFINITY))
try:
    network.call(np.zeros([1, 2500, 2500, 3], np.uint8))
except MemoryError as error:
    print(error)
print(network.call(np.zeros([1, 5, 5, 3], np.uint8)).shape)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_a_tile_too_large_for_onnx_runtime_is_a_memory_error(generator, tmp_path):
    path = onnx_file.write_onnx(generator, tmp_path / "net.onnx")
    command = [sys.executable, "-c", _SHORT_OF_MEMORY, path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{path}: no memory for 2500x2500\n(1, 20, 20, 3)\n", done.stderr


def test_a_file_that_is_not_an_exported_generator_is_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing.tflite: no such file"):
        exported.load(tmp_path / "missing.tflite")
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")
    with pytest.raises(ValueError, match="no .tflite file of a generator"):
        exported.load(broken)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no SavedModel with a serving_default"):
        exported.load(tmp_path / "empty")
    assert not exported.is_exported(tmp_path / "empty")
