import functools
import io
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import tensorflow as tf
from conftest import NEAREST, ROOT, noise, photograph, save_photograph
from PIL import Image

import srgan_tf
from srgan_tf import pictures, png, provenance, upscaling, weights
from srgan_tf.formats import exported, keras_model, litert, onnx_file, openvino_model
from srgan_tf.photos import enlarge, fastest


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A cache folder of this test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / "srgan_tf"


@pytest.fixture(scope="module")
def bundled_cache(tmp_path_factory):
    """A cache folder that tests of the bundled weights share: their fast forms take seconds."""
    return tmp_path_factory.mktemp("bundled")


@pytest.fixture
def bundled_forms(bundled_cache, cache, monkeypatch):
    """Makes the tests share `bundled_cache`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(bundled_cache))


@pytest.fixture
def upscale(run_script, monkeypatch):
    """Runs upscale.py in this process: arguments to (exit code, stdout, stderr)."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return functools.partial(run_script, "upscale.py")


def _run(jobs, network=NEAREST, **options):
    said, notes = [], []
    failed = enlarge.run(
        jobs, lambda bits: (network, "float32"), say=said.append, note=notes.append, **options
    )
    return len(failed), said, notes


def _files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def test_a_result_is_written_beside_its_picture(upscale, tiny, tmp_path):
    picture = save_photograph(tmp_path / "photo.jpg", 30, 40, quality=95)
    code, out, err = upscale(tmp_path / "photo.jpg", f"--weights={tiny}", "--precision=float32")
    assert code == 0 and "photo_x4.png: 160x120" in out and "float32" in out and "error" not in err
    assert _files(tmp_path) == ["photo.jpg", "photo_x4.png"]
    result = np.asarray(Image.open(tmp_path / "photo_x4.png"))
    assert np.abs(result[1::4, 1::4].astype(int) - picture).mean() < 20

    before = (tmp_path / "photo_x4.png").stat().st_mtime_ns
    code, out, _ = upscale(tmp_path / "photo.jpg", f"--weights={tiny}")
    assert code == 0 and "photo_x4.png skipped: already there" in out
    assert (tmp_path / "photo_x4.png").stat().st_mtime_ns == before
    upscale(tmp_path / "photo.jpg", f"--weights={tiny}", "--overwrite", "--precision=float32")
    assert (tmp_path / "photo_x4.png").stat().st_mtime_ns > before


def test_folders_keep_their_structure_and_unreadable_files_are_named(upscale, tiny, tmp_path):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    save_photograph(tmp_path / "in" / "a.jpg", 20, 30)
    save_photograph(tmp_path / "in" / "deep" / "b.PNG", 30, 20)
    (tmp_path / "in" / "deep" / "bad.jpg").write_bytes(b"no picture")
    save_photograph(tmp_path / "c.png", 20, 20)
    code, out, err = upscale(
        tmp_path / "in", tmp_path / "c.png", f"--out_dir={tmp_path / 'out'}", f"--weights={tiny}",
        "--format=jpg", "--quality=50", "--precision=float32",
    )  # fmt: skip
    assert code == 1 and "1 of 4 pictures failed" in err
    assert "deep/bad.jpg: cannot be read (not a picture that Pillow knows)" in err
    assert _files(tmp_path / "out") == ["a_x4.jpg", "c_x4.jpg", "deep/b_x4.jpg"]
    assert out.count("megapixels/s") == 3 and "100 %" not in err


def test_wrong_arguments_are_reported_in_one_line(upscale, tiny, tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.jpg", 200, 200)
    for arguments, message in (
        ([], "give pictures or folders"),
        (["missing.jpg"], "missing.jpg: no such file or folder"),
        (["a.jpg", "--weights=missing"], "missing: no such run folder"),
        (
            ["a.jpg", "--out_dir=a.jpg/in"],
            "error: a.jpg/in: cannot be written to (Not a directory)",
        ),
        (["a.jpg", "--quality=9"], "--quality is for --format=jpg and webp"),
        (
            ["a.jpg", f"--weights={tiny}", "--tile=9", "--precision=float32"],
            "tiles of 9 pixels are",
        ),
        (["a.jpg", f"--weights={tiny}", "--max_megapixels=0.01"], "raise --max_megapixels"),
    ):
        monkeypatch.chdir(tmp_path)
        code, _, err = upscale(*arguments)
        assert code == 1 and message in err and "Traceback" not in err, arguments
        assert all(line.count("error") < 2 for line in err.splitlines())
    assert _files(tmp_path) == ["a.jpg"]


_WITHOUT_TENSORFLOW = """
import runpy, sys
before = set(sys.modules)
sys.argv = ['upscale.py', *sys.argv[1:]]
try:
    runpy.run_path('upscale.py', run_name='__main__')
except SystemExit as end:
    assert not end.code
loaded = {name.partition('.')[0] for name in sys.modules.keys() - before}
assert not {'tensorflow', 'keras'} & loaded
"""


@pytest.mark.parametrize("form", ["weights", "tflite", "onnx"])
def test_upscaling_on_a_cpu_does_not_import_tensorflow(tiny, tmp_path, form):
    given = tiny
    if form == "weights":
        if fastest._may_have_gpu():
            pytest.skip("TensorFlow is to look for a GPU")
    else:
        pytest.importorskip({"tflite": "ai_edge_litert", "onnx": "onnxruntime"}[form])
        write = {"tflite": litert.write_tflite, "onnx": onnx_file.write_onnx}[form]
        given = write(weights.load_generator(str(tiny))[0], tmp_path / f"tiny.{form}")
    save_photograph(tmp_path / "a.png", 20, 20)
    command = [sys.executable, "-c", _WITHOUT_TENSORFLOW, tmp_path / "a.png", f"--weights={given}"]
    for _ in range(2):  # the first makes the fast forms, the second finds them
        done = subprocess.run([*command, "--overwrite"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0 and "a_x4.png: 80x80" in done.stdout, done.stderr


def test_tensorflow_looks_for_gpus_only_where_the_system_shows_signs_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind])
    for names, gpus in (((), []), (("absent*",), []), (("absent", "nul[l]"), ["GPU"])):
        monkeypatch.setattr(fastest, "_GPU_DEVICES", names)
        assert fastest._gpus() == gpus
    monkeypatch.setattr(fastest, "_GPU_DEVICES", ())
    (tmp_path / "tensorflow-plugins").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert fastest._gpus() == ["GPU"]


@pytest.mark.parametrize(("capability", "precision"), [((6, 1), "float32"), ((8, 9), "float16")])
def test_a_gpu_with_tensor_cores_computes_in_float16(tiny, monkeypatch, capability, precision):
    details = {"compute_capability": capability}
    monkeypatch.setattr(fastest, "_gpus", lambda: ["a GPU"])
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda gpu: details)
    network, told = fastest.load_network(str(tiny))
    assert told == precision
    assert upscaling.upscale(network, photograph(9, 9)).shape == (36, 36, 3)


def test_a_missing_package_is_reported_in_one_line(upscale, tiny, tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.png", 20, 20)
    monkeypatch.setitem(sys.modules, "keras", None)
    code, _, err = upscale(tmp_path / "a.png", f"--weights={tiny}", "--precision=float16")
    assert code == 1 and "keras" in err and err.endswith(": pip install -r requirements.txt\n")


def test_pictures_that_would_get_the_same_name_keep_their_endings(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        save_photograph(tmp_path / name, 8, 8)
    targets = [job.target.name for job in enlarge.plan([tmp_path])]
    assert targets == ["a.jpg_x4.png", "a.png_x4.png", "b_x4.png"]
    (tmp_path / "other").mkdir()
    save_photograph(tmp_path / "other" / "b.jpg", 8, 8)
    with pytest.raises(ValueError, match="b.jpg and .*b.jpg would both become .*give each its own"):
        enlarge.plan([tmp_path / "b.jpg", tmp_path / "other" / "b.jpg"], out_dir=tmp_path / "o")


@pytest.mark.parametrize("out_dir", [None, "out"])
def test_a_results_name_does_not_depend_on_what_else_is_given(tmp_path, monkeypatch, out_dir):
    monkeypatch.chdir(tmp_path)
    for folder, names in (("c", ("a.jpg", "a.png", "b.jpg", "e.jpg")), ("d", ("e.png", "b.txt"))):
        Path(folder).mkdir()
        for name in (*names, ".b.png"):
            Path(folder, name).touch()

    def plan(*given):
        return {job.source: job.target for job in enlarge.plan(given, out_dir=out_dir)}

    together = plan("c")
    assert [to.name for to in together.values()] == [
        "a.jpg_x4.png", "a.png_x4.png", "b_x4.png", "e_x4.png"
    ]  # fmt: skip
    for file, target in together.items():
        assert plan(file) == {file: target}
    # A folder that is only c's neighbor is no reason.
    assert plan("c/b.jpg", "d/e.png")[Path("d/e.png")].name == "e_x4.png"


@pytest.mark.parametrize("out_dir", [None, ".", "out"])
def test_results_are_not_upscaled_again(tmp_path, monkeypatch, out_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "deep").mkdir()
    for name in ("a.jpg", "a.png", "b.jpg", "deep/c.jpg"):
        save_photograph(tmp_path / name, 8, 8)
    jobs = enlarge.plan(["."], out_dir=out_dir, format="jpg")
    assert len(jobs) == 4 and _run(jobs, format="jpg")[0] == 0
    said = []
    assert enlarge.plan(["."], out_dir=out_dir, format="jpg", say=said.append) == jobs
    line = "skipped 4 named like results, such as a.jpg_x4.jpg"
    assert said == ([] if out_dir == "out" else [line])
    everything = [path for path in _files(tmp_path) if out_dir != "out" or "out/" not in path]
    again = enlarge.plan(everything, out_dir=out_dir, format="png")
    assert {job.source for job in again} == {job.source for job in jobs}
    assert enlarge.plan([jobs[0].target])[0].source == jobs[0].target  # by itself it is


def test_the_out_dir_may_be_above_the_folder_of_the_pictures(tmp_path):
    (tmp_path / "holiday").mkdir()
    save_photograph(tmp_path / "holiday" / "a.png", 8, 8)
    [job] = enlarge.plan([tmp_path / "holiday"], out_dir=tmp_path)
    assert job.target == tmp_path / "a_x4.png"


def test_a_tilde_in_a_flag_is_the_home_folder(upscale, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(tiny, tmp_path / "tiny.weights.h5")
    save_photograph(tmp_path / "a.png", 8, 8)
    code, _, stderr = upscale(tmp_path / "a.png", "--weights=~/tiny.weights.h5", "--out_dir=~/out")
    assert code == 0, stderr
    assert (tmp_path / "out" / "a_x4.png").exists()


def test_a_folder_without_pictures_is_named(tmp_path):
    with pytest.raises(ValueError, match="no pictures in this folder"):
        enlarge.plan([tmp_path])


def test_progress_counts_pixels_and_ends(tmp_path):
    for name, side in (("a.png", 40), ("b.png", 20)):
        save_photograph(tmp_path / name, side, side)
    (tmp_path / "c.png").write_bytes(b"")
    told = []
    jobs = enlarge.plan([tmp_path])
    _run(jobs, tile=22, progress=lambda fraction, what: told.append((round(fraction, 3), what)))
    fractions = [fraction for fraction, _ in told]
    assert fractions == sorted(fractions) and fractions[4:] == [0.8, 1.0, 1.0]
    assert "MP/s" in told[1][1] and told[1][1].endswith("a.png")


@pytest.mark.parametrize(
    ("error", "line"),
    [(MemoryError(), "not enough memory, set --tile smaller than 22"),
     (RuntimeError("odd\nin two lines"), "odd"), (KeyError(), "KeyError")],
)  # fmt: skip
def test_a_failed_picture_leaves_no_file_and_the_others_are_upscaled(tmp_path, error, line):
    for name in ("a.png", "b.png", "c.png"):
        save_photograph(tmp_path / name, 40, 40, seed=ord(name[0]))
    calls = []

    def call(lr):
        calls.append(lr)
        if len(calls) == 6:
            raise error
        return NEAREST.call(lr)

    jobs = enlarge.plan([tmp_path])
    failed, said, notes = _run(jobs, upscaling.Upscaler(call, margin=1), tile=22)
    assert failed == 1 and len(said) == 2
    assert notes == [f"{tmp_path / 'b.png'}: {line}"]
    assert _files(tmp_path) == ["a.png", "a_x4.png", "b.png", "c.png", "c_x4.png"]


def test_a_result_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.png", 40, 40)
    (tmp_path / "file").write_bytes(b"")
    job = enlarge.Job(tmp_path / "a.png", tmp_path / "file" / "a_x4.png")
    failed, _, [note] = _run([job])
    assert failed == 1 and str(tmp_path / "a.png") in note
    monkeypatch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    failed, _, [note] = _run(enlarge.plan([tmp_path / "a.png"]))
    assert failed == 1 and "a_x4.png: cannot be written (disk full)" in note
    assert _files(tmp_path) == ["a.png", "file"]


def test_failing_writers_and_full_disks_leave_no_files(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        save_photograph(tmp_path / name, 40, 40)

    def save(image, file, **_):
        file.write(b"some")
        raise struct.error("'L' format requires a number")

    jobs = enlarge.plan([tmp_path], format="tif")
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", save)
        failed, _, notes = _run(jobs, format="tif")
    assert failed == 2 and all("_x4.tif: cannot be written ('L' format" in line for line in notes)
    assert _files(tmp_path) == ["a.png", "b.png"]

    class FullDisk(io.BytesIO):
        def close(self):
            raise OSError("No space left on device")

    def opened(path, mode):
        path.touch()
        return FullDisk()

    network = upscaling.Upscaler(lambda lr: 1 / 0, margin=1)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", opened)
        failed, _, notes = _run(jobs[:1], network, format="tif")
    assert failed == 1 and notes == [f"{tmp_path / 'a.png'}: division by zero"]
    assert _files(tmp_path) == ["a.png", "b.png"]


_SLOW = """
import sys, time
from srgan_tf import upscaling
from srgan_tf.photos import enlarge
def call(lr):
    time.sleep(0.2)
    return lr.repeat(4, axis=1).repeat(4, axis=2)
network = upscaling.Upscaler(call, 1)
enlarge.run(enlarge.plan(sys.argv[1:]), lambda bits: (network, ""), tile=12)
"""


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_killed_run_leaves_no_partial_result_and_the_next_run_cleans_up(tmp_path):
    save_photograph(tmp_path / "a.png", 60, 60)
    process = subprocess.Popen([sys.executable, "-c", _SLOW, str(tmp_path)], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    [left] = tmp_path.glob(".*")
    assert not (tmp_path / "a_x4.png").exists()
    running = left.with_name(left.name.replace(f"-{process.pid}-", f"-{os.getppid()}-"))
    running.write_bytes(b"")  # as of a process that still runs
    assert _run(enlarge.plan([tmp_path]))[0] == 0
    assert _files(tmp_path) == [running.name, "a.png", "a_x4.png"]


def test_the_fast_forms_are_cached_and_rebuilt_when_damaged(tiny, cache, monkeypatch):
    write, said = mock.Mock(wraps=openvino_model.write), []
    monkeypatch.setattr(openvino_model, "write", write)
    lr = photograph(30, 30)
    generator, _ = weights.load_generator(str(tiny))
    expected = upscaling.upscale(keras_model.compiled(generator), lr).astype(int)

    def load():
        network, precision = fastest.load_network(str(tiny), precision="int8", say=said.append)
        assert precision == "int8"
        assert np.abs(upscaling.upscale(network, lr) - expected).mean() < 3

    load()
    load()
    assert write.call_count == 2 and said == ["building the fast forms of these weights, once"]
    [form], [figures] = cache.glob("*-int8.bin"), cache.glob("*.json")
    assert len(_files(cache)) == 5
    known = json.loads(figures.read_text())
    assert known["loss"]["float32"] == 0 and known["seconds"].keys() == known["loss"].keys()
    form.write_bytes(form.read_bytes()[:-9])
    load()
    figures.write_text("{")
    load()
    network, precision = fastest.load_network(str(tiny))
    assert write.call_count == 6 and precision in known["loss"]
    assert network.margin == keras_model.compiled(generator).margin


@pytest.mark.parametrize("form", ["float32", "int8"])
def test_the_result_does_not_depend_on_the_number_of_threads(bundled_forms, form):
    lr, results = photograph(50, 70), []
    for threads in (1, 2, None):
        network, _ = fastest.load_network("srresnet_mse", precision=form, threads=threads)
        results.append(upscaling.upscale(network, lr))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_each_network_of_a_blend_may_have_its_own_precision(tiny):
    spec = f"blend:0.5:{tiny}:{tiny}"
    mixed, precision = fastest.load_network(spec, precision="int8+float32")
    assert precision == "int8+float32"
    parts = [fastest.load_network(str(tiny), precision=each)[0] for each in precision.split("+")]
    lr = photograph(20, 30)
    expected = upscaling.upscale(upscaling.blended(*parts, 0.5), lr)
    np.testing.assert_array_equal(upscaling.upscale(mixed, lr), expected)


_BUILDS = """
import sys
from srgan_tf.photos import fastest
print("ready", flush=True)
fastest.load_network(sys.argv[1], precision="float32", say=print)
"""


def test_processes_that_start_together_build_the_forms_once(tiny):
    command = [sys.executable, "-c", _BUILDS, str(tiny)]
    running = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in "ab"]
    said = [process.communicate()[0].splitlines() for process in running]
    assert sorted(said) == [["ready"], ["ready", "building the fast forms of these weights, once"]]


def test_the_fastest_form_within_the_bound_on_loss_is_chosen():
    loss = {"float32": 0.0, "bfloat16": 0.01, "int8": 0.2}
    seconds = {"float32": 3.0, "bfloat16": 2.0, "int8": 1.0}
    assert fastest._choose(loss, seconds) == "bfloat16"
    assert fastest._choose(loss | {"int8": 0.05}, seconds) == "int8"
    assert fastest._choose(loss, seconds | {"bfloat16": 9.0}) == "float32"


def test_a_processor_with_bfloat16_tries_that_too(tiny, cache, monkeypatch):
    monkeypatch.setattr(provenance, "has_bfloat16", lambda: True)
    # Once with nothing kept and once with what that kept.
    monkeypatch.setattr(fastest, "_choose", lambda loss, seconds: "bfloat16")
    load = mock.Mock(wraps=openvino_model.load)
    monkeypatch.setattr(openvino_model, "load", load)
    for _ in range(2):
        network, precision = fastest.load_network(str(tiny))
        assert precision == "bfloat16"
        assert upscaling.upscale(network, photograph(9, 9)).shape == (36, 36, 3)
    [figures] = cache.glob("*.json")
    assert json.loads(figures.read_text())["seconds"].keys() == {"float32", "int8", "bfloat16"}
    # What is chosen, made and then kept, after the forms to compare.
    for call in load.call_args_list[-2:]:
        assert call.args[0].stem.endswith("-float32") and call.kwargs["bfloat16"]


def test_a_cached_form_depends_on_weights_versions_and_machine(monkeypatch):
    keys = {fastest._key("a"), fastest._key("b")}
    monkeypatch.setattr(fastest, "_processor", lambda: "another")
    keys.add(fastest._key("a"))
    monkeypatch.setattr(fastest.metadata, "version", lambda package: "9")
    keys.add(fastest._key("a"))
    assert len(keys) == 4


def test_upscaling_works_without_a_writable_cache(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    said = []
    network, _ = fastest.load_network(str(tiny), precision="int8", say=said.append)
    assert "cannot be cached in" in said[0]
    assert upscaling.upscale(network, photograph(9, 9)).shape == (36, 36, 3)


@pytest.mark.parametrize(
    ("form", "most", "share"),
    [
        ("float32", 1, 0),
        ("int8", 2, 0.03),
        ("tflite float32", 1, 0),
        ("tflite dynamic", 20, 0.1),
    ],
)
def test_tiles_change_float32_by_one_level_and_int8_by_little(
    bundled_forms, tmp_path, form, most, share
):
    if form.startswith("tflite"):
        generator, _ = weights.load_generator("srresnet_mse")
        path, quantize = tmp_path / "network.tflite", form.split()[1]
        litert.write_tflite(generator, path, quantize=quantize)
        network = exported.load(path)
    else:
        network, _ = fastest.load_network("srresnet_mse", precision=form)
    small = {path.stem: pictures.read_rgb(path)[::4, ::4] for path in pictures.sample_pictures()}
    # Dark beside bright: "dynamic" gets its ranges from what a tile holds of both.
    halves = [small[name][:96, :60] for name in ("hubble_deep_field", "astronaut")]
    lr = np.concatenate(halves, axis=1)
    whole = upscaling.upscale(network, lr).astype(int)
    difference = np.abs(upscaling.upscale(network, lr, tile=90) - whole)
    assert difference.max() <= most and (difference > 1).mean() <= share


def test_an_unknown_precision_is_reported_in_one_line():
    with pytest.raises(ValueError, match="^precision 'fp16': must be one of auto, float32, "):
        fastest.load_network("srresnet_mse", precision="fp16")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_is_close_to_float32(tiny, precision):
    lr = photograph(16, 16)
    exact, _ = fastest.load_network(str(tiny), precision="float32")
    mixed, told = fastest.load_network(str(tiny), precision=precision)
    difference = upscaling.upscale(mixed, lr).astype(int) - upscaling.upscale(exact, lr)
    assert told == precision and np.abs(difference).max() > 0 and np.abs(difference).mean() < 2


def test_16_bit_pictures_are_upscaled_in_float32(tiny):
    network, precision = fastest.load_network(str(tiny), bits=16)
    assert precision == "float32" and network.bits == 16
    assert upscaling.upscale(network, noise(9, 9, 3, dtype=np.uint16)).dtype == np.uint16


def test_tensorflow_upscales_where_openvino_is_missing(tiny, monkeypatch):
    # As when its own imports fail.
    monkeypatch.setitem(sys.modules, "srgan_tf.formats.openvino_model", None)
    monkeypatch.delattr("srgan_tf.formats.openvino_model", raising=False)
    assert fastest.load_network(str(tiny))[1] == "float32"
    with pytest.raises(
        ValueError, match="--precision=int8 is unavailable .*pip install -r requirements.txt"
    ):
        fastest.load_network(str(tiny), precision="int8")


_PLAIN = """
import runpy, sys
for name in ("ai_edge_litert", "flatbuffers", "tensorflow", "keras"):
    sys.modules[name] = None  # importing it is an error now
sys.argv = ["upscale.py", *sys.argv[1:]]
runpy.run_path("upscale.py", run_name="__main__")
"""


def test_int8_needs_neither_tensorflow_nor_litert(tiny, tmp_path):
    save_photograph(tmp_path / "a.png", 20, 20)
    done = subprocess.run(
        [sys.executable, "-c", _PLAIN, tmp_path / "a.png", f"--weights={tiny}", "--precision=int8"],
        cwd=ROOT, env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "a_x4.png").size == (80, 80)


def test_an_exported_network_runs_as_it_is(upscale, tiny, tmp_path):
    generator, _ = weights.load_generator(str(tiny))
    path = litert.write_tflite(generator, tmp_path / "net.tflite")
    save_photograph(tmp_path / "a.png", 20, 20)
    code, out, _ = upscale(tmp_path / "a.png", f"--weights={path}")
    assert code == 0 and "as exported" in out
    code, _, err = upscale(
        tmp_path / "a.png", f"--weights={path}", "--precision=int8", "--overwrite"
    )
    assert code == 1 and "its precision is that of its export" in err


_LARGE = """
import resource, sys
from srgan_tf import upscaling
from srgan_tf.photos import enlarge
network = upscaling.Upscaler(lambda lr: lr.repeat(4, axis=1).repeat(4, axis=2), 40)
assert not enlarge.run(enlarge.plan(sys.argv[1:]), lambda bits: (network, ""))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
"""


@pytest.mark.slow
def test_24_megapixels_take_less_than_a_copy_of_the_result(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    small = photograph(400, 600)
    Image.fromarray(small).resize((6000, 4000)).save(tmp_path / "a.jpg")
    out = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path)], cwd=ROOT, capture_output=True, check=True
    )
    gibibytes = float(out.stdout)
    result = Image.open(tmp_path / "a_x4.png")
    assert result.size == (24000, 16000)
    # The result would take 1.07.
    assert gibibytes < 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="wait4")
def test_24_megapixels_are_upscaled_within_6_gib(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    sample = pictures.read_rgb(pictures.sample_pictures()[0])  # 512x512
    Image.fromarray(np.tile(sample, [8, 12, 1])[:4000, :6000]).save(tmp_path / "a.jpg")
    with open(tmp_path / "log", "w+") as log:
        command = [sys.executable, "upscale.py", tmp_path / "a.jpg"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        log.seek(0)
        assert process.returncode == 0, log.read()
    assert Image.open(tmp_path / "a_x4.png").size == (24000, 16000)
    assert usage.ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20) < 6  # KiB on Linux


def _pictures_at(upscale, folder, *details):
    found = []
    for detail in details:
        flags = [f"--detail={detail}", "--precision=float32", "--overwrite", "--tile=90"]
        code, _, err = upscale(folder / "a.png", *flags)
        assert code == 0, err
        found.append(np.asarray(Image.open(folder / "a_x4.png")).astype(float))
    return found


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "I;16"])
def test_the_dial_blends_the_pictures_of_both_bundled_networks(
    bundled_forms, upscale, tmp_path, mode
):
    image = Image.fromarray(photograph(100, 40))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    image.convert(mode).save(tmp_path / "a.png")
    faithful, middle, detailed = _pictures_at(upscale, tmp_path, 0, 0.25, 1)
    assert np.abs(faithful - detailed).max() > 10
    # Each of the three is rounded once, and gray is then computed from rounded colors.
    difference = np.abs(middle - (0.75 * faithful + 0.25 * detailed))
    assert difference.max() <= (2 if mode == "I;16" else 1)


def test_srgan_tf_upscale_blends_as_the_command_does(bundled_forms, upscale, tmp_path):
    save_photograph(tmp_path / "a.png", 20, 30)
    [expected] = _pictures_at(upscale, tmp_path, 0.5)
    lr = np.asarray(Image.open(tmp_path / "a.png"))
    sr = srgan_tf.upscale(lr, detail=0.5, precision="float32")
    assert np.abs(sr - expected).max() <= 1
    with pytest.raises(ValueError, match="detail=0.5 blends the bundled pair"):
        srgan_tf.upscale(lr, weights="srgan_vgg54", detail=0.5)
    with pytest.raises(ValueError, match="DETAIL in 0..1"):
        srgan_tf.upscale(lr, detail=1.5)


@pytest.mark.parametrize(("detail", "name"), [(0, "srresnet_mse"), (1, "srgan_vgg54")])
def test_an_end_of_the_dial_runs_one_network(bundled_forms, detail, name):
    network, _ = fastest.load_network(f"blend:{detail}", precision="float32")
    alone, _ = fastest.load_network(name, precision="float32")
    lr = photograph(20, 20)
    np.testing.assert_array_equal(upscaling.upscale(network, lr), upscaling.upscale(alone, lr))
    assert network.tile == alone.tile  # a blend has smaller tiles


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--weights=a", "--detail=0.5"],
         "--detail blends the bundled pair: leave out --weights or --detail"),
        (["--detail=1.5"], "--detail=1.5 must be from 0 to 1"),
        (["--detail=-1"], "--detail=-1 must be from 0 to 1"),
        (["--detail=nan"], "--detail=nan must be from 0 to 1"),
        (["--weights=blend:2"], "blend:2: a blend is spelled blend:DETAIL or "
         "blend:DETAIL:FIRST:SECOND, DETAIL in 0..1"),
        (["--weights=blend:0.5:a"], "blend:0.5:a: a blend is spelled blend:DETAIL or "
         "blend:DETAIL:FIRST:SECOND, DETAIL in 0..1"),
    ],
)  # fmt: skip
def test_a_wrong_detail_or_blend_is_refused_in_one_line_before_any_work(
    upscale, tmp_path, flags, line
):
    code, out, err = upscale(tmp_path / "no such file", f"--out_dir={tmp_path / 'out'}", *flags)
    assert (code, out, err) == (1, "", f"error: {line}\n")
    assert not (tmp_path / "out").exists()


def test_networks_of_different_scale_are_not_blended():
    double = NEAREST._replace(call=lambda lr: lr.repeat(2, axis=1).repeat(2, axis=2))
    with pytest.raises(ValueError, match="upscale by different factors"):
        upscaling.upscale(upscaling.blended(NEAREST, double, 0.5), photograph(8, 8))


def test_only_networks_for_the_depths_of_the_pictures_are_loaded(tmp_path):
    asked = []

    def load(bits):
        asked.append(bits)
        return NEAREST, "float32"

    for name in ("a.png", "b.png"):
        Image.fromarray(np.zeros([8, 8], np.uint16)).save(tmp_path / name)
    assert not enlarge.run(enlarge.plan([tmp_path]), load) and asked == [16]


def test_an_exported_network_of_another_scale_is_refused_before_any_picture_is_upscaled(
    upscale, tmp_path
):
    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 3], tf.uint8, "lr")])
    def double(lr):
        return {"sr": tf.repeat(tf.repeat(lr, 2, 1), 2, 2)}

    module, folder = tf.Module(), tmp_path / "double"
    tf.saved_model.save(module, str(folder), signatures={"serving_default": double})
    save_photograph(tmp_path / "a.png", 8, 8)
    for spec in (folder, f"blend:0.5:{folder}:srresnet_mse"):
        code, out, err = upscale(tmp_path / "a.png", f"--weights={spec}")
        errors = [line for line in err.splitlines() if "no receptive field" not in line]
        line = f"error: {folder}: does not upscale by 4: it makes [1, 16, 16, 3] of [1, 8, 8, 3]"
        assert (code, out, errors) == (1, "", [line]) and not (tmp_path / "a_x4.png").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes")
def test_unread_endings_and_named_pipes_in_folders_are_named_and_skipped(upscale, tiny, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    save_photograph(folder / "a.png", 12, 12)
    # Its result has the longest name that the file system allows.
    long = "\u00fc" * 123 + "u.png"
    shutil.copy(folder / "a.png", folder / long)
    frames = [Image.fromarray(photograph(12, 12, seed)) for seed in range(2)]
    frames[0].save(folder / "b.apng", "PNG", save_all=True, append_images=frames[1:])
    os.mkfifo(folder / "pipe.png")
    for name in ("IMG_1.HEIC", "IMG_2.heic", "c.dng", ".d.heic", "e.heic.txt", "notes.txt"):
        (folder / name).write_bytes(b"x")
    code, out, err = upscale(folder, f"--weights={tiny}", f"--out_dir={tmp_path / 'out'}")
    assert code == 0, err
    assert [line for line in out.splitlines() if line.startswith("skipped")] == [
        f"skipped {folder / 'c.dng'}: .dng is not read",
        f"skipped 2 files, such as {folder / 'IMG_1.HEIC'}: .heic is not read",
        f"skipped {folder / 'pipe.png'}: no regular file",
    ]
    assert f"{folder / 'b.apng'}: only its first frame is read" in err
    results = ["a_x4.png", "b_x4.png", long.replace(".png", "_x4.png")]
    assert _files(tmp_path / "out") == results
    small = np.asarray(Image.open(tmp_path / "out" / "b_x4.png"))[1::4, 1::4].astype(int)
    assert np.abs(small - np.asarray(frames[0])).mean() < 20


def test_a_result_that_could_not_be_read_again_is_not_kept(tmp_path, monkeypatch):
    for name in ("a.png", "b.png"):
        save_photograph(tmp_path / name, 8, 8)
    chunk, broken = png._write_chunk, []

    def write(file, kind, data):
        if kind == b"pHYs":
            broken.append(kind)
            kind = b"\xff\xff\xff\xff"
        chunk(file, kind, data)

    save_photograph(tmp_path / "a.png", 8, 8, dpi=(72, 72))
    monkeypatch.setattr(png, "_write_chunk", write)
    failed, said, [note] = _run(enlarge.plan([tmp_path]))
    assert failed == 1 and broken and len(said) == 1
    reason = "cannot be written (it could not be read again"
    assert note.startswith(f"{tmp_path / 'a_x4.png'}: {reason}")
    assert _files(tmp_path) == ["a.png", "b.png", "b_x4.png"]
