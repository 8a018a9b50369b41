import json
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
from conftest import ROOT

from srgan_tf import folding, networks, weights


@pytest.fixture(scope="module")
def generator():
    return networks.build_generator(residual_blocks=2, filters=8, init="random")


def _saved(generator, path):
    if path.suffix == ".keras":
        generator.save(path)
    else:
        generator.save_weights(path)
    return path


@pytest.mark.parametrize("name", ["any.weights.h5", "any.keras"])
def test_a_weights_file_alone_determines_blocks_and_filters(generator, tmp_path, name):
    path = _saved(generator, tmp_path / name)
    loaded, card = weights.load_generator(str(path))
    lr = np.random.default_rng(0).random((1, 6, 5, 3), np.float32)
    np.testing.assert_array_equal(loaded(lr, training=False), generator(lr, training=False))
    assert card["path"] == str(path) and len(card["sha256"]) == 64 and card["steps"] is None


@pytest.mark.parametrize("name", ["any.weights.h5", "any.keras"])
def test_layers_loaded_without_keras_equal_the_generators(tmp_path, name):
    generator = networks.build_generator(residual_blocks=11, filters=4, init="random")
    rng = np.random.default_rng(0)
    generator.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in generator.get_weights()])
    path = _saved(generator, tmp_path / name)
    expected, layers = folding.fold(generator), weights.load_layers(str(path))
    assert list(layers) == list(expected)
    for given, layer in zip(layers.values(), expected.values(), strict=True):
        for array, right in zip(given, layer, strict=True):
            np.testing.assert_array_equal(array, right)


def test_a_run_folder_loads_its_last_weights_with_variant_steps_vgg_and_ema(generator, tmp_path):
    run = tmp_path / "my_run"
    run.mkdir()
    generator.save_weights(run / "generator.best.weights.h5")
    record = {"variant": "SRGAN-VGG54", "vgg": "hed", "config": {"steps": 500, "ema": 0.9}}
    (run / "run.json").write_text(json.dumps(record))
    _, card = weights.load_generator(str(run))
    assert card["path"].endswith("generator.best.weights.h5") and card["steps"] is None
    generator.save_weights(run / "generator.weights.h5")
    _, card = weights.load_generator(str(run))
    assert card["path"].endswith("generator.weights.h5")
    for scores in ('{"means": {}}', "damaged"):  # evaluate.py's, or no JSON
        (run / "scores.json").write_text(scores)
        assert weights.read_card(str(run)) == card
    expected = {"name": "my_run", "variant": "SRGAN-VGG54", "steps": 500, "vgg": "hed", "ema": 0.9}
    assert {key: card[key] for key in expected} == expected
    (run / "scores.json").write_text('{"steps": 300}')  # before the run was continued
    assert weights.read_card(str(run))["steps"] == 300


def test_unrelated_files_beside_weights_are_ignored(generator, tmp_path, monkeypatch):
    generator.save_weights(tmp_path / "any.weights.h5")
    for name in ("any.json", "run.json"):
        (tmp_path / name).write_text('{"class_name": "Functional"}')
    card = weights.read_card(str(tmp_path / "any.weights.h5"))
    assert (card["name"], card["variant"]) == ("any", None)
    (tmp_path / "srresnet_mse" / "1").mkdir(parents=True)  # as export.py makes it
    monkeypatch.chdir(tmp_path)
    assert weights.read_card("srresnet_mse")["steps"] == 24000


def test_weights_that_cannot_be_loaded_are_named_in_one_line(generator, tmp_path):
    (tmp_path / "noise.weights.h5").write_bytes(b"nothing of the kind")
    networks.build_discriminator(16, filters=4).save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "noise.keras").write_bytes(b"nothing of the kind")
    (tmp_path / "photo.jpg").write_bytes(b"")
    names = ("noise.weights.h5", "noise.keras", "other.weights.h5", "photo.jpg", "missing")
    for path, said in [(tmp_path / name, name) for name in names] + [(tmp_path, "no generator")]:
        for load in (weights.load_generator, weights.load_layers):
            with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
                load(str(path))
            assert "\n" not in str(error.value) and "not found" not in str(error.value)


@pytest.mark.parametrize(
    ("array", "shape", "said"),
    [
        ("conv2d_3/vars/0", (3, 3, 8, 7), "block2_conv1"),
        ("conv2d_3/vars/0", (4, 4, 8, 8), "block2_conv1"),
        ("conv2d_7/vars/0", (3, 3, 8, 8), "upscale2_conv"),
        ("conv2d_8/vars/1", None, "conv_out"),
        ("batch_normalization/vars/0", (1,), "block1_bn1"),
        ("batch_normalization/vars/3", None, "block1_bn1"),
        ("p_re_lu_1/vars/0", (1, 1, 7), "block1_prelu"),
        ("dense/vars/0", (8, 8), "holds 39 arrays where a generator has 38"),
        ("conv2d_9/vars/0", (3, 3, 8, 8), "holds 10 convolutions, 5 batch norms, 5 PReLUs"),
    ],
)
def test_arrays_of_another_network_are_refused(generator, tmp_path, array, shape, said):
    path = tmp_path / "any.weights.h5"
    generator.save_weights(path)
    with h5py.File(path, "a") as file:
        layers = file["layers"]
        if array in layers:
            del layers[array]
        if shape:
            layers[array] = np.ones(shape, np.float32)
    for load in (weights.load_generator, weights.load_layers):
        with pytest.raises(ValueError, match=f"{path}: not a generator's weights .*{said}"):
            load(str(path))


def test_a_keras_file_loads_without_other_imports(generator, tmp_path):
    generator.save(tmp_path / "any.keras")
    code = "import sys; from srgan_tf import weights; weights.load_generator(sys.argv[1])"
    command = [sys.executable, "-c", code, tmp_path / "any.keras"]
    subprocess.run(command, cwd=ROOT, check=True)


def test_a_keras_file_of_another_network_is_named(tmp_path):
    picture = keras.Input([None, None, 3])
    path = tmp_path / "other.keras"
    keras.Model(picture, keras.layers.Conv2D(3, 3)(picture)).save(path)
    with pytest.raises(ValueError, match=f"{path}: not a generator's weights .* it has no layer"):
        weights.load_layers(str(path))


@pytest.mark.parametrize("package", ["h5py", "keras"])
def test_a_missing_package_is_named_instead_of_the_weights(monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=package):
        weights.load_generator("srresnet_mse")
