import csv
import functools
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, photograph
from PIL import Image

from srgan_tf import command_line, files, lpips, metrics, pictures, resize, upscaling, weights
from srgan_tf.evaluation import report, scoring, tables
from srgan_tf.evaluation.methods import Method, load_methods, match_channels, nearest
from srgan_tf.evaluation.sets import open_sets, read_pair
from srgan_tf.formats import exported, exporting


@pytest.fixture
def evaluate(run_script):
    """Runs evaluate.py in this process: arguments to (exit code, stdout, stderr)."""
    return functools.partial(run_script, "evaluate.py")


def _save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


@pytest.fixture
def flat_set(tmp_path):
    folder = tmp_path / "flat"
    for i, size in enumerate([(40, 52), (43, 41)]):
        _save(folder / f"picture{i}.png", photograph(*size, seed=i))
    return folder


def _rows(out_dir):
    with (out_dir / "scores.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def score(flat_set, tmp_path):
    """Scores methods on the pictures of `flat_set`, and keeps the results in `out`."""

    def score(methods, **options):
        sets = open_sets([str(flat_set)])
        return scoring.evaluate(sets, methods, out_dir=tmp_path / "out", **options)

    return score


def _counting(method, calls):
    """A copy of a method that records its calls."""

    def upscale(lr):
        calls.append(lr.shape)
        return method.upscale(lr)

    return Method(method.name, upscale, method.sha256, method.card)


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def test_without_arguments_the_sample_pictures_are_scored(evaluate, monkeypatch):
    monkeypatch.setattr(weights, "bundled", lambda: [])
    few = [path for path in pictures.sample_pictures() if path.stem in ("chelsea", "rocket")]
    monkeypatch.setattr(pictures, "sample_pictures", lambda: few)
    code, out, err = evaluate()
    assert code == 0
    assert "sample, 2 pictures, LR made from HR with Matlab's bicubic" in out
    assert "nearest " in out and "bicubic " in out


@pytest.mark.parametrize("name", ["Set5", "Set14", "BSD100"])
def test_nearest_and_bicubic_match_the_papers_rows(shared, name):
    sets = open_sets([str(shared / "data/eval" / name)])
    methods = load_methods([])
    results = scoring.evaluate(sets, methods)
    assert not results.skipped
    assert results.counts() == {name: {"Set5": 5, "Set14": 14, "BSD100": 100}[name]}
    for method in methods:
        ours, paper = results.means()[name][method.name], tables.PAPER[name][method.name]
        # The paper's figures have two decimals, so ours are rounded to two.
        assert round(ours["psnr"], 2) == pytest.approx(paper[0], abs=0.02 + 1e-9)
        assert ours["ssim"] == pytest.approx(paper[1], abs=0.001)


def test_lr_made_here_scores_the_same_as_a_sets_own_lr_files(tmp_path, flat_set):
    for path in flat_set.iterdir():
        hr = pictures.read_rgb(path)
        height, width = hr.shape[0] // 4 * 4, hr.shape[1] // 4 * 4
        lr = resize.imresize(hr[:height, :width], (height // 4, width // 4))
        _save(tmp_path / "paired" / "HR" / path.name, hr[:height, :width])
        _save(tmp_path / "paired" / "LR_x4" / path.with_stem(f"{path.stem}x4").name, lr)
    sets = open_sets([str(flat_set), str(tmp_path / "paired")])
    results = scoring.evaluate(sets, load_methods([]))
    assert not results.skipped
    means = results.means()
    assert means["flat"] == means["paired"]
    assert [s.lr for s in sets] == ["made from HR with Matlab's bicubic", "from LR_x4"]


def test_a_set_named_twice_counts_once(flat_set):
    assert len(open_sets([str(flat_set), f"{flat_set}/", str(flat_set)])) == 1


def test_sets_of_the_same_name_are_named_by_their_folders(tmp_path):
    for parent in "ab":
        _save(tmp_path / parent / "Set5" / "one.png", photograph(32, 32))
    sets = open_sets([str(tmp_path / parent / "Set5") for parent in "ab"])
    assert [s.name for s in sets] == [str(tmp_path / parent / "Set5") for parent in "ab"]


@pytest.mark.parametrize("out_dir", ["photos/scores", "photos"])
def test_results_kept_among_the_originals_are_not_scored(evaluate, tmp_path, monkeypatch, out_dir):
    monkeypatch.chdir(tmp_path)
    _save(Path("photos/one.png"), photograph(32, 32))
    arguments = ["--data=photos", "--weights=", f"--out_dir={out_dir}"]
    for _ in range(2):
        code, out, _ = evaluate(*arguments)
        assert code == 0 and "photos, 1 picture," in out


def test_a_grayscale_file_is_scored_on_its_own_values(tmp_path, tiny):
    hr = photograph(48, 40)[..., 0]
    _save(tmp_path / "gray" / "one.png", hr)
    methods = load_methods([str(tiny)], tile=64)
    results = scoring.evaluate(open_sets([str(tmp_path / "gray")]), methods)
    lr = resize.imresize(hr, (12, 10))
    scores = {row.method: row.scores for row in results.rows}
    assert scores["bicubic"]["psnr"] == metrics.psnr(resize.imresize(lr, (48, 40)), hr)
    # A network that starts as nearest neighbor produces about the same gray in three channels.
    assert scores["tiny"]["psnr"] == pytest.approx(scores["nearest"]["psnr"], abs=1)


def test_results_are_converted_to_the_channels_of_the_original():
    color = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [7, 7, 7]]], np.uint8)
    gray = match_channels(color, color[..., 0])
    np.testing.assert_array_equal(gray, [[76, 150, 29, 7]])
    np.testing.assert_array_equal(match_channels(gray, color)[..., 2], gray)


def test_pictures_that_cannot_be_scored_are_named_and_skipped(evaluate, tmp_path):
    folder = tmp_path / "set"
    for name in ("good", "lonely", "mismatched"):
        _save(folder / "HR" / f"{name}.png", photograph(40, 40))
    _save(folder / "HR" / "small.png", photograph(40, 16))
    _save(folder / "LR_x4" / "good.png", photograph(10, 10))
    _save(folder / "LR_x4" / "mismatched.png", photograph(10, 11))
    _save(folder / "LR_x4" / "small.png", photograph(10, 4))
    _save(folder / "LR_x4" / "orphan.png", photograph(10, 10))
    (folder / "HR" / "broken.png").write_bytes(b"no picture")
    _save(folder / "LR_x4" / "broken.png", photograph(10, 10))
    code, out, err = evaluate(f"--data={folder}", "--weights=", f"--out_dir={tmp_path / 'out'}")
    assert code == 2
    assert "set, 1 picture, LR from LR_x4" in out
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 5
    for name, reason in {
        "HR/broken.png": "cannot be read",
        "HR/lonely.png": "no picture of this name in",
        "LR_x4/orphan.png": "no picture of this name in",
        "LR_x4/mismatched.png": "11x10 is not a quarter of its original's 40x40",
        "HR/small.png": "too small to score (16x40, at least 20x20)",
    }.items():
        [line] = [line for line in skipped if str(folder / name) in line]
        assert reason in line
    document = json.loads((tmp_path / "out/scores.json").read_text())
    assert len(document["left_out"]) == 5
    assert "LR_x4/orphan.png" in (tmp_path / "out/report.html").read_text()


def test_a_picture_that_one_method_fails_on_is_skipped_for_all_methods(
    evaluate, tmp_path, monkeypatch
):
    failures = {
        36: (MemoryError(), "not enough memory, a smaller --tile takes less"),
        40: (RuntimeError("no tensor\nhere"), "by broken (no tensor)"),
        44: (tf.errors.InternalError(None, None, ""), "by broken (InternalError)"),
    }

    def fail(lr):
        if 4 * len(lr) in failures:
            raise failures[4 * len(lr)][0]
        return nearest(lr)

    psnr = metrics.psnr

    def score(sr, hr):
        if len(hr) == 48:
            raise MemoryError("too large")
        return psnr(sr, hr)

    for size in (*failures, 48, 52):
        _save(tmp_path / "set" / f"{size}.png", photograph(size, 32))
    card = {"name": "broken", "path": "somewhere"}
    broken = Method("broken", fail, "its hash", card)
    methods = [*load_methods([]), broken]
    monkeypatch.setattr("srgan_tf.evaluation.methods.load_methods", lambda *_, **__: methods)
    monkeypatch.setattr(metrics, "psnr", score)
    out_dir = tmp_path / "out"
    code, out, err = evaluate(f"--data={tmp_path / 'set'}", f"--out_dir={out_dir}")
    assert code == 2 and "set, 1 picture, LR made" in out
    assert [(row["picture"], row["method"]) for row in _rows(out_dir)] == [
        ("52", "nearest"), ("52", "bicubic"), ("52", "broken")
    ]  # fmt: skip
    skipped = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(skipped) == 4 and skipped[-1].endswith("48.png: cannot be scored (too large)")
    for line, (size, (_, reason)) in zip(skipped, failures.items(), strict=False):
        assert f"{size}.png: cannot be upscaled by broken (" in line and reason in line


def test_no_scored_picture_is_an_error(evaluate, tmp_path):
    _save(tmp_path / "set" / "small.png", photograph(8, 8))
    code, _, err = evaluate(f"--data={tmp_path / 'set'}", "--weights=")
    assert code == 1
    assert err.splitlines()[-1] == "error: none of the pictures could be scored"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data=/no/such/folder"], "error: /no/such/folder: no such folder"),
        (["--data={tmp}"], "no pictures to score on"),
        (["--weights=/no/such/run"], "error: /no/such/run: no such run folder"),
        (["--weights=/no/such.tflite"], "error: /no/such.tflite: no such file"),
        (["--fresh"], "error: --fresh needs --out_dir"),
        (["--out_dir={tmp}/run"], "/run: a run folder, whose scores.json is the run's own; give"),
        (
            ["--weights=", "--out_dir={tmp}/run/run.json"],
            "run.json: cannot be written to (File exi",
        ),
        (["--data={tmp}/pictures", "--out_dir={tmp}"], "/pictures: results are kept there, choose"),
        (["--weights=srresnet_mse", "--tile=80"], "srresnet_mse needs a margin of 40 on each side"),
        (["--dial=0.5,2"], "error: blend:2: a blend is spelled blend:DETAIL or"),
        (["--weights=blend:0.5:one"], "error: blend:0.5:one: a blend is spelled"),
        (["--weights=blend:0.5:/no/such:srresnet_mse"], "error: /no/such: no such run folder"),
    ],
)
def test_a_wrong_flag_is_reported_in_one_line(evaluate, tmp_path, arguments, message):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").touch()
    (tmp_path / "pictures").mkdir()
    code, out, err = evaluate(*(argument.format(tmp=tmp_path) for argument in arguments))
    assert code == 1 and not out
    [line] = err.splitlines()
    assert message in line


def test_scores_are_written_with_their_metadata(evaluate, flat_set, tiny, tmp_path):
    card = {"variant": "SRGAN-VGG54", "steps": 1234, "vgg": "hed"}
    given = shutil.copy(tiny, tmp_path)
    (tmp_path / "tiny.json").write_text(json.dumps(card))
    named = flat_set.rename(tmp_path / "Set5")
    out_dir = tmp_path / "out"
    code, out, _ = evaluate(f"--data={named}", f"--weights={given}", f"--out_dir={out_dir}")
    assert code == 0

    lines = out.splitlines()
    ours = next(i for i, line in enumerate(lines) if line.startswith("tiny"))
    assert lines[ours + 1].split() == ["(paper)", "29.40", "0.8472"]
    assert "tiny: SRGAN-VGG54, 1,234 steps, VGG: hed (not comparable with the paper), sha" in out

    rows = _rows(out_dir)
    assert list(rows[0]) == ["set", "picture", "method", "psnr", "ssim", "ssim_wang"]
    assert len(rows) == 2 * 3
    document = json.loads((out_dir / "scores.json").read_text())
    mean = np.mean([float(row["psnr"]) for row in rows if row["method"] == "tiny"])
    assert document["means"]["Set5"]["tiny"]["psnr"] == pytest.approx(mean, abs=1e-6)
    assert len(document["methods"]["tiny"]["sha256"]) == 64
    assert document["flags"]["weights"] == [str(given)]
    assert document["versions"]["keras"] == keras.__version__
    assert document["paper"]["Set5"]["tiny"] == {"psnr": 29.40, "ssim": 0.8472, "mos": 3.58}


@pytest.mark.parametrize(
    ("vgg", "text"),
    [
        ("imagenet", "Keras' VGG19"),
        ("vgg16", "torchvision's VGG16"),
        ("my/vgg19.h5", "my/vgg19.h5"),
        (None, "none"),
    ],
)
def test_tables_name_the_vgg_and_the_averaging_of_the_weights(vgg, text):
    card = {"path": "somewhere", "variant": "SRGAN-VGG54", "steps": 5, "vgg": vgg, "ema": 0.99}
    results = scoring.Results([], [Method("mine", nearest, "0" * 64, card)], [], [], {})
    [line] = tables.method_lines(results)
    facts = f"SRGAN-VGG54, 5 steps, VGG: {text}, averaged with ema 0.99"
    assert line == f"mine: {facts}, sha256 {'0' * 12}, somewhere"


def test_an_interrupted_evaluation_resumes(score, flat_set, tmp_path, tiny):
    methods = load_methods([str(tiny)], tile=64)
    whole = scoring.evaluate(open_sets([str(flat_set)]), methods)

    calls = []
    stopping = [*methods[:2], Method("tiny", _interrupt, methods[2].sha256, {"name": 1})]
    with pytest.raises(KeyboardInterrupt):
        score(stopping)
    log = tmp_path / "out" / "kept.jsonl"
    log.write_text(log.read_text() + '{"key": "cut sho')

    counting = [_counting(method, calls) for method in methods]
    resumed = score(counting)
    assert len(calls) == 4  # the first picture's nearest and bicubic were kept
    assert [row.scores for row in resumed.rows] == [row.scores for row in whole.rows]

    calls.clear()
    assert score(counting).rows == resumed.rows and not calls


def test_new_weights_new_pictures_and_fresh_are_recomputed(score, flat_set, tmp_path):
    calls = []
    methods = [_counting(method, calls) for method in load_methods([])]
    trained = Method("bicubic", methods[1].upscale, "other hash", {"name": "bicubic"})
    for given, options, count in (
        (methods, {}, 4), ([methods[0], trained], {}, 2), (methods, {"fresh": True}, 4)
    ):  # fmt: skip
        score(given, **options)
        assert len(calls) == count
        calls.clear()

    _save(flat_set / "picture0.png", photograph(40, 52, seed=9))
    results = score(methods)
    assert len(calls) == 2
    for row in results.rows:
        kept = pictures.read_rgb(tmp_path / "out" / row.file)
        original = pictures.read_rgb(tmp_path / "out" / results.originals[row.set, row.picture])
        assert metrics.psnr(kept, original) == row.scores["psnr"]


def test_an_interrupted_write_leaves_no_partial_file(score, tmp_path, monkeypatch):
    out_dir = tmp_path / "out"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "replace", _interrupt)
        score(load_methods([]))
    assert not list(out_dir.rglob("*.png"))

    results = score(load_methods([]))
    names = ["scores.csv", "scores.json", "report.html"]
    monkeypatch.setattr(os, "replace", _interrupt)
    for name in names:
        (out_dir / name).write_text("old")
    for write in (lambda: tables.write_scores(results, out_dir, {}),
                  lambda: report.write_report(results, out_dir)):  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            write()
    assert [(out_dir / name).read_text() for name in names] == ["old"] * 3


def test_a_damaged_kept_picture_is_recomputed(score, tmp_path):
    calls = []
    methods = [_counting(method, calls) for method in load_methods([])]
    first = score(methods)
    calls.clear()
    names = [*(row.file for row in first.rows[:3]), next(iter(first.originals.values()))]
    cut, changed, gone, original = paths = [tmp_path / "out" / name for name in names]
    whole = {path: path.read_bytes() for path in paths}
    cut.write_bytes(whole[cut][:-100])
    changed.write_bytes(whole[changed].replace(b"IDAT", b"IDAT\x55"))
    gone.unlink()
    original.write_bytes(b"")
    assert score(methods).rows == first.rows
    assert len(calls) == 3
    assert {path: path.read_bytes() for path in whole} == whole


def test_damaged_lines_of_kept_results_are_recomputed(score, tmp_path):
    first = score(load_methods([]))
    log = tmp_path / "out" / "kept.jsonl"
    lines = [line for line in log.read_text().splitlines() if line]
    for damaged in ("null", "{}", "[" * 100_000, lines[1].replace('"scores": {', '"scores": 7, {')):
        log.write_bytes("\n".join([lines[0], damaged, *lines[2:]]).encode() + b"\n\xff\n")
        assert score(load_methods([])).rows == first.rows
        score(load_methods([]), fresh=True)


@pytest.mark.skipif(os.name != "posix", reason="locks, and names in any bytes")
def test_a_second_evaluation_into_the_same_folder_is_refused(evaluate, flat_set, tmp_path):
    out_dir = tmp_path / "out"
    out_dir.mkdir()
    arguments = [f"--data={flat_set}", "--weights=", f"--out_dir={out_dir}"]
    with files.locked(out_dir, ""):
        code, out, err = evaluate(*arguments)
    line = f"error: {out_dir}: another evaluate.py writes there: wait for it, or give another"
    assert code == 1 and not out and err.startswith(line) and not list(out_dir.iterdir())
    assert evaluate(*arguments)[0] == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names in any bytes")
def test_the_bytes_of_names_survive_in_all_files(tmp_path):
    folder = tmp_path / os.fsdecode(b"s\xe9t [v2]")
    name = b"caf\xe9 \xe6\x97\xa5"
    _save(folder / os.fsdecode(name + b".png"), photograph(32, 32))
    (folder / os.fsdecode(b"cut\xe9.png")).write_bytes(b"no picture")
    out_dir = tmp_path / os.fsdecode(b"o\xfct")
    command = [sys.executable, "evaluate.py", f"--data={folder}", "--weights="]
    command.append(f"--out_dir={out_dir}")
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True)
    assert done.returncode == 2 and b"nearest" in done.stdout, done.stderr
    assert rb"cut\udce9.png: cannot be read" in done.stderr
    table = (out_dir / "scores.csv").read_bytes().splitlines()
    assert table[1].startswith(b"s\xe9t [v2]," + name + b",nearest,")
    document = json.loads((out_dir / "scores.json").read_text())
    assert os.fsencode(document["sets"].popitem()[0]) == b"s\xe9t [v2]"
    assert os.fsencode(document["left_out"][0]).startswith(os.fsencode(folder) + b"/cut\xe9.png:")
    page = (out_dir / "report.html").read_bytes()
    assert b"s\xe9t [v2]" in page and json.dumps(os.fsdecode(name)).encode() in page
    assert report.write_opinions(out_dir).read_bytes() == page
    for line in filter(None, (out_dir / "kept.jsonl").read_text().splitlines()):
        assert (out_dir / json.loads(line)["file"]).is_file()


def test_fresh_removes_only_kept_pictures(score, flat_set, tmp_path):
    out_dir = tmp_path / "out"
    score(load_methods([]))
    others = [_save(out_dir / "pictures/mine.png", photograph(8, 8)), flat_set / "picture0.png"]
    with (out_dir / "kept.jsonl").open("a") as log:
        log.write('{"key": "forged", "file": "pictures/../../flat/picture0.png"}\n')
    results = score(load_methods([])[:1], fresh=True)
    left = {path.relative_to(out_dir).as_posix() for path in out_dir.rglob("*.png")}
    kept = {row.file for row in results.rows} | set(results.originals.values())
    assert left == kept | {"pictures/mine.png"}
    assert all(path.is_file() for path in others)


def test_exported_files_are_described_by_their_cards(tmp_path, tiny):
    generator, card = weights.load_generator(str(tiny))
    card |= {"variant": "SRGAN-MSE", "steps": 7, "vgg": None}
    lr = photograph(16, 16)
    written, _ = exporting.export(
        generator, card, tmp_path, formats=["savedmodel", "tflite"], quantize=["float32"],
        pairs=[(lr, nearest(lr))],
    )  # fmt: skip
    specs = [str(path) for _, path, _ in written]
    methods = load_methods(specs, tile=64)
    results = scoring.Results([], methods, [], [], {})
    for line, name in zip(
        tables.method_lines(results), ("tiny/1", "tiny.float32.tflite"), strict=True
    ):
        assert line.startswith(f"{name}: SRGAN-MSE, 7 steps, VGG: none, sha256 ")
    assert tables.paper_scores("Set5", methods[-1].variant)["psnr"] == 30.64

    with open(specs[1], "ab") as file:  # no longer the file that the card describes
        file.write(b"\0" * 1000)
    changed = Method("changed", nearest, "0" * 64, exported.read_card(specs[1]))
    [line] = tables.method_lines(scoring.Results([], [changed], [], [], {}))
    assert line.startswith("changed: variant unknown, steps unknown, VGG unknown, sha256 ")


def test_methods_of_the_same_name_are_named_by_their_specs(tmp_path, tiny, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(weights, "_BUNDLED", tiny.parent)
    for run in ("runs/tiny", "bicubic"):
        Path(run).mkdir(parents=True)
        Path(run, "run.json").write_text('{"variant": "a", "vgg": null, "config": {"steps": 1}}')
        shutil.copy(tiny, Path(run, "generator.weights.h5"))
    for specs, names in {
        ("tiny", "runs/tiny"): ["tiny", "runs/tiny"],
        ("runs/tiny", "tiny"): ["runs/tiny", "tiny"],
        ("bicubic",): ["./bicubic"],
        ("runs/tiny", "./runs/tiny"): ["tiny"],
    }.items():
        methods = load_methods(specs, tile=64)
        assert [method.name for method in methods] == ["nearest", "bicubic", *names]


def test_lpips_without_its_weights_is_an_error_in_one_line(evaluate, flat_set, monkeypatch):
    def load():
        raise ValueError("no AlexNet: pip install it")

    monkeypatch.setattr(lpips, "load", load)
    arguments = [f"--data={flat_set}", "--weights="]
    assert evaluate(*arguments)[0] == 0
    assert evaluate(*arguments, "--lpips") == (1, "", "error: no AlexNet: pip install it\n")


def test_lpips_is_measured_on_kept_pictures(evaluate, flat_set, tmp_path, monkeypatch):
    def distance(sr, hr):
        assert sr.shape == hr.shape and sr.dtype == hr.dtype == np.uint8
        return np.abs(sr.astype(float) - hr).mean()

    _save(flat_set / "small.png", photograph(28, 28))  # large enough for all but AlexNet
    arguments = [f"--data={flat_set}", "--weights=", f"--out_dir={tmp_path / 'out'}"]
    assert evaluate(*arguments)[0] == 0
    monkeypatch.setattr(lpips, "load", lambda: distance)
    # These would fail if they were called.
    monkeypatch.setattr("srgan_tf.evaluation.methods.bicubic", None)
    monkeypatch.setattr(Image.Image, "save", None)
    code, out, err = evaluate(*arguments, "--lpips")
    assert code == 2 and "LPIPS" in out and "small.png: too small to score" in err
    assert "LPIPS (AlexNet): perceptual distance to the original, lower is better" in out
    rows = _rows(tmp_path / "out")
    assert list(rows[0])[-1] == "lpips" and all(float(row["lpips"]) > 0 for row in rows)
    means = json.loads((tmp_path / "out" / "scores.json").read_text())["means"]["flat"]
    assert means["bicubic"]["lpips"] > 0
    assert "LPIPS" in (tmp_path / "out" / "report.html").read_text().split("</table>")[0]


@pytest.fixture
def pair(tmp_path, tiny, monkeypatch):
    """Bundles two tiny networks as the ends of the dial."""
    folder = tmp_path / "pretrained"
    folder.mkdir()
    monkeypatch.setattr(weights, "_BUNDLED", folder)
    generator, _ = weights.load_generator(str(tiny))
    for number, name in enumerate(weights.BUNDLED_PAIR):
        generator.get_layer("conv_out").bias.assign([0.1 * number] * 3)
        generator.save_weights(folder / f"{name}.weights.h5")
    return weights.BUNDLED_PAIR


def test_a_blend_averages_the_pictures_of_two_networks(pair):
    *_, first, second, blend = load_methods([*pair, f"blend:0.25:{pair[0]}:{pair[1]}"], tile=64)
    lr = photograph(12, 10)
    a, b, c = (method.upscale(lr).astype(float) for method in (first, second, blend))
    assert np.abs(a - b).max() > 5
    assert c.dtype == float and np.abs(c - (0.75 * a + 0.25 * b)).max() <= 0.5


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("listed", [True, False])
def test_networks_run_once_per_picture_for_all_positions_of_the_dial(
    pair, flat_set, tmp_path, monkeypatch, keep, listed
):
    upscale = mock.Mock(wraps=upscaling.upscale)
    monkeypatch.setattr(upscaling, "upscale", upscale)
    blends = ["blend:0.25", "blend:0.75"]
    specs = ["blend:0", *blends, "blend:1"] if listed else blends
    methods = load_methods(specs, tile=64)
    sets = open_sets([str(flat_set)])
    out_dir = tmp_path / "out" if keep else None
    results = scoring.evaluate(sets, methods, out_dir=out_dir)
    assert not results.skipped and upscale.call_count == 2 * 2
    [dial] = results.dials()
    assert [detail for detail, _ in dial] == ([0, 0.25, 0.75, 1] if listed else [0.25, 0.75])
    assert [m.name for _, m in dial] == ([pair[0], *blends, pair[1]] if listed else blends)
    for row in results.rows:  # as if each method had run alone
        if row.method in blends:
            [method] = [method for method in methods if method.name == row.method]
            [source] = [p for s in sets for p in s.pairs if p.name == row.picture]
            lr, hr = read_pair(source)
            assert row.scores["psnr"] == metrics.psnr(method.upscale(lr), hr)


def test_the_dial_is_scored_and_described(evaluate, pair, flat_set, tmp_path):
    arguments = [f"--data={flat_set}", "--dial=0,0.5,1", f"--out_dir={tmp_path / 'out'}"]
    code, out, _ = evaluate(*arguments)
    assert code == 0
    methods = list(dict.fromkeys(row["method"] for row in _rows(tmp_path / "out")))
    assert methods == ["nearest", "bicubic", *sorted(pair), "blend:0.5"]
    assert f"blend:0.5: 0.5 of {pair[0]}, 0.5 of {pair[1]}" in out
    document = json.loads((tmp_path / "out/scores.json").read_text())
    assert document["methods"]["blend:0.5"]["detail"] == 0.5


def test_an_infinite_psnr_leaves_valid_json(evaluate, tmp_path):
    _save(tmp_path / "flat" / "one.png", np.full([32, 32, 3], 90, np.uint8))
    out_dir = tmp_path / "out"
    code, out, _ = evaluate(f"--data={tmp_path / 'flat'}", "--weights=", f"--out_dir={out_dir}")
    assert code == 0 and "inf" in out
    document = json.loads((out_dir / "scores.json").read_text())
    assert document["means"]["flat"]["nearest"]["psnr"] is None


def test_an_interruption_is_reported_in_one_line(evaluate, flat_set, monkeypatch):
    monkeypatch.setattr(scoring, "evaluate", _interrupt)
    arguments = [f"--data={flat_set}", "--weights="]
    assert evaluate(*arguments) == (130, "", "interrupted: nothing was kept\n")
    _, _, err = evaluate(*arguments, "--out_dir=somewhere")
    assert err == "interrupted: the same command resumes from here\n"


class _Terminal(io.StringIO):
    def isatty(self):
        return True

    def fileno(self):
        return 1


def test_the_progress_bar_is_repainted_on_a_terminal_only(monkeypatch):
    monkeypatch.setattr(os, "get_terminal_size", lambda fd: os.terminal_size((60, 20)))
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(command_line.time, "monotonic", lambda: next(clock))
    stream = _Terminal()
    progress = command_line.progress_bar(stream)
    progress(0, "Set5 001: nearest")
    progress(0.25, "Set5 002: nearest")
    assert "\n" not in stream.getvalue()
    assert "[#####...............]  25 %  0:00:30 left  Set5 002: nea" in stream.getvalue()
    progress(1.0, "")
    assert stream.getvalue().endswith("\r\x1b[K")

    stream = io.StringIO()
    progress = command_line.progress_bar(stream)
    for i in range(101):
        progress(i / 100, "a picture")
    assert len(stream.getvalue().splitlines()) == 9
    assert "\r" not in stream.getvalue()
