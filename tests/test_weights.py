import json

import h5py
import numpy as np
import pytest

from srgan_tf import folding, networks, runtimes, weights


@pytest.fixture(scope="module")
def generator():
    return networks.build_generator(residual_blocks=2, filters=8, init="random")


@pytest.mark.parametrize("name", ["any.weights.h5", "any.keras"])
def test_a_file_is_enough_whatever_the_number_of_blocks(generator, tmp_path, name):
    path = tmp_path / name
    if name.endswith(".keras"):
        generator.save(path)
    else:
        generator.save_weights(path)
    loaded, card = weights.load_generator(str(path))
    lr = np.random.default_rng(0).random((1, 6, 5, 3), np.float32)
    np.testing.assert_array_equal(loaded(lr, training=False), generator(lr, training=False))
    assert card["path"] == str(path) and len(card["sha256"]) == 64 and card["steps"] is None


@pytest.mark.parametrize("name", ["any.weights.h5", "any.keras"])
def test_convolutions_alone_are_those_of_the_generator(tmp_path, name):
    generator = networks.build_generator(residual_blocks=11, filters=4, init="random")
    rng = np.random.default_rng(0)
    generator.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in generator.get_weights()])
    path = tmp_path / name
    if name.endswith(".keras"):
        generator.save(path)
    else:
        generator.save_weights(path)
    expected, layers = folding.fold(generator), weights.load_layers(str(path))
    assert list(layers) == list(expected)
    for given, layer in zip(layers.values(), expected.values(), strict=True):
        for array, right in zip(given, layer, strict=True):
            np.testing.assert_array_equal(array, right)
    assert runtimes.receptive_field_of(layers) == runtimes.receptive_field(generator)


def test_a_run_folder_gives_its_last_weights_and_says_what_they_saw(generator, tmp_path):
    run = tmp_path / "my_run"
    run.mkdir()
    generator.save_weights(run / "generator.best.weights.h5")
    record = {"variant": "SRGAN-VGG54", "vgg": "hed", "config": {"steps": 500}}
    (run / "run.json").write_text(json.dumps(record))
    _, card = weights.load_generator(str(run))
    assert card["path"].endswith("generator.best.weights.h5") and card["steps"] is None
    generator.save_weights(run / "generator.weights.h5")
    _, card = weights.load_generator(str(run))
    assert card["path"].endswith("generator.weights.h5")
    expected = {"name": "my_run", "variant": "SRGAN-VGG54", "steps": 500, "vgg": "hed"}
    assert {key: card[key] for key in expected} == expected


def test_what_cannot_be_loaded_is_named_in_one_line(generator, tmp_path):
    (tmp_path / "noise.weights.h5").write_bytes(b"nothing of the kind")
    networks.build_discriminator(16, filters=4).save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "photo.jpg").write_bytes(b"")
    for name in ("noise.weights.h5", "other.weights.h5", "photo.jpg", "missing", "."):
        with pytest.raises(
            (ValueError, FileNotFoundError), match=name if name != "." else "no generator"
        ) as error:
            weights.load_generator(str(tmp_path / name) if name != "." else str(tmp_path))
        assert "\n" not in str(error.value)
        with pytest.raises(type(error.value), match=name if name != "." else "no generator"):
            weights.load_layers(str(tmp_path / name) if name != "." else str(tmp_path))


@pytest.mark.parametrize("layer", ["conv2d_3", "conv2d_7", "batch_normalization", "p_re_lu_1"])
def test_arrays_that_do_not_fit_each_other_are_no_generators(generator, tmp_path, layer):
    path = tmp_path / "any.weights.h5"
    generator.save_weights(path)
    with h5py.File(path, "a") as file:
        stored = file["layers"][layer]["vars"]
        array = stored["0"][()][..., 1:]
        del stored["0"]
        stored["0"] = array
    for load in (weights.load_generator, weights.load_layers):
        with pytest.raises(ValueError, match=f"{path}: not a generator's weights: "):
            load(str(path))
