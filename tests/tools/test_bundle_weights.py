import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from absl import flags
from conftest import save_photograph

from srgan_tf import metrics, networks, pictures, resize, upscaling, weights
from srgan_tf.evaluation import scoring, sets, tables
from srgan_tf.evaluation.methods import bicubic, load_methods
from srgan_tf.formats import keras_model
from srgan_tf.training import run_folder


@pytest.fixture
def bundle_weights(load_script):
    load_script("train.py")  # whose flags it shares
    return load_script("tools/bundle_weights.py")


def test_bundled_float16_weights_differ_only_by_rounding(bundle_weights, tmp_path):
    generator = networks.build_generator(residual_blocks=2, filters=16)
    generator.save_weights(tmp_path / "full.weights.h5")
    half = bundle_weights.halve(tmp_path / "full.weights.h5", tmp_path / "half.weights.h5")
    assert half.stat().st_size < 0.75 * (tmp_path / "full.weights.h5").stat().st_size
    loaded, _ = weights.load_generator(str(half))
    lr = np.random.default_rng(0).random((1, 8, 8, 3), np.float32)
    difference = loaded(lr, training=False) - generator(lr, training=False)
    assert 0 < np.abs(difference).max() < 0.5 * 2 / 255


@pytest.fixture
def scored_run(config, tmp_path, monkeypatch):
    """Writes `run` as training does and `scores` as evaluation does, in the current folder."""
    monkeypatch.chdir(tmp_path)
    generator = networks.build_generator(residual_blocks=1, filters=8)
    run = config(variant="SRResNet-MSE", steps=7, augment=True)
    facts = {
        "variant": run.variant,
        "vgg": None,
        "device": "CPU",
        "drop_step": 3,
        "generator": "nearest start",
        "train_data": {"pictures": 3, "total_megapixels": 0.5},
    }
    for folder in ("run", "Set5", "scores"):
        Path(folder).mkdir()
    run_folder.write_start(Path("run"), dataclasses.asdict(run), facts)
    generator.save_weights("run/generator.weights.h5")
    save_photograph(Path("Set5/one.png"), 32, 32)
    methods = load_methods([f"{tmp_path}/run"], tile=64)
    results = scoring.evaluate(sets.open_sets(["Set5"]), methods)
    tables.write_scores(results, "scores", {})
    return results.means()["Set5"]["run"]


@pytest.fixture
def bundle(bundle_weights, monkeypatch, tmp_path, capsys):
    """Bundles `run` as "tiny" into a temporary folder: () to (exit code, out, err)."""
    monkeypatch.setattr(bundle_weights, "PRETRAINED", tmp_path / "pretrained")
    monkeypatch.setattr(weights, "_BUNDLED", tmp_path / "pretrained")
    arguments = ["--run_dir=run", "--name=tiny", "--scores=scores/scores.json", "--data=made up"]

    def bundle():
        code = bundle_weights.run(flags.FLAGS(["bundle_weights.py", *arguments]))
        return code, *capsys.readouterr()

    return bundle


def test_a_run_becomes_bundled_weights_with_a_card(scored_run, bundle):
    code, out, _ = bundle()
    assert code == 0 and out.startswith(f"{Path('pretrained/tiny.weights.h5').resolve()}: 0.")
    assert sorted(path.name for path in Path("pretrained").iterdir()) == [
        "tiny.json", "tiny.weights.h5"
    ]  # fmt: skip
    assert weights.bundled() == ["tiny"]
    _, known = weights.load_generator("tiny")
    assert (known["variant"], known["steps"]) == ("SRResNet-MSE", 7)
    card = json.loads(Path("pretrained/tiny.json").read_text())
    assert card["sha256"] == known["sha256"]
    assert card["flagfile"] == "srresnet_mse.flags"
    assert card["command"] == (
        "python train.py --train_data=FOLDER --variant=SRResNet-MSE --steps=7 "
        f"--learning_rate_drop_at={3 / 7} --augment=true"
    )
    assert card["data"] == {"description": "made up", "pictures": 3, "megapixels": 0.5}
    assert card["scores"] == {"Set5": pytest.approx(scored_run)}


def test_scores_of_other_weights_are_refused(scored_run, bundle):
    assert bundle()[0] == 0
    before = {path: path.read_bytes() for path in Path("pretrained").iterdir()}
    networks.build_generator(residual_blocks=1, filters=16).save_weights("run/generator.weights.h5")
    assert bundle() == (
        1,
        "",
        "error: scores/scores.json: no scores of the current run/generator.weights.h5, "
        "run evaluate.py on it (again)\n",
    )
    assert {path: path.read_bytes() for path in Path("pretrained").iterdir()} == before


@pytest.mark.parametrize(
    "path, text, reason",
    [
        ("run/generator.weights.h5", None, "No such file or directory: 'run/generator.weights.h5'"),
        ("run/run.json", None, "No such file or directory: 'run/run.json'"),
        (
            "run/run.json",
            "{}",
            "run is not a run folder, or scores/scores.json not from evaluate.py",
        ),
        ("scores/scores.json", "[]", "scores/scores.json not from evaluate.py (TypeError("),
        ("scores/scores.json", "{", "scores/scores.json: not JSON"),
    ],
)
def test_an_incomplete_run_is_reported_in_one_line(scored_run, bundle, path, text, reason):
    Path(path).unlink()
    if text is not None:
        Path(path).write_text(text)
    code, out, err = bundle()
    [line] = err.splitlines()
    assert code == 1 and not out and line.startswith("error: ") and reason in line
    assert not Path("pretrained").exists()


def test_the_bundled_weights_have_complete_cards():
    assert weights.bundled()
    for name in weights.bundled():
        generator, card = weights.load_generator(name)
        assert generator.count_params() > 1.5e6
        assert card["name"] == name and card["steps"] > 0 and card["variant"]
        path = Path(card["path"]).with_name(f"{name}.json")
        full = json.loads(path.read_text())
        for key in ("command", "commit", "data", "precision", "scores", "vgg", "versions"):
            assert key in full, key
        assert full.get("sha256", card["sha256"]) == card["sha256"]


def test_the_bundled_srresnet_beats_bicubic_on_photographs():
    generator, _ = weights.load_generator("srresnet_mse")
    samples = {path.stem: path for path in pictures.sample_pictures()}
    for name in ("astronaut", "coffee"):
        hr = pictures.middle(pictures.read_rgb(samples[name]), 128)
        lr = resize.imresize(hr, (32, 32))
        ours, baseline = (
            metrics.psnr(sr, hr)
            for sr in (upscaling.upscale(keras_model.compiled(generator), lr), bicubic(lr))
        )
        assert ours > baseline + 1, name
