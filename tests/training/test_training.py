import dataclasses
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, full_disk

# A small network on small crops: a step takes milliseconds.
SMALL = {"crop_size": 32, "batch_size": 4, "residual_blocks": 1, "filters": 8, "val_pictures": 0}
TINY = [f"--{name}={value}" for name, value in (SMALL | {"val_pictures": 1}).items()]
FAMILIES = {
    "srresnet": ["--content_loss=mse"],
    "srgan": ["--content_loss=mse", "--adversarial_weight=1e-3", "--init_generator=none"],
}


def command(*flags):
    return [sys.executable, str(ROOT / "train.py"), *TINY, *map(str, flags)]


def train(*flags, code=0, **environment):
    done = subprocess.run(
        command(*flags),
        env={**os.environ, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def errors(done):
    return [line for line in done.stderr.splitlines() if line.startswith(("error:", "FATAL"))]


def checkpoint_arrays(run_dir, step):
    """All that a checkpoint holds, by name."""
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(Path(run_dir) / "checkpoints" / f"ckpt-{step}"))
    names = [n for n in reader.get_variable_to_shape_map() if n != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: reader.get_tensor(name) for name in names if "save_counter" not in name}


def assert_same_state(first, second, step):
    np.testing.assert_equal(checkpoint_arrays(first, step), checkpoint_arrays(second, step))


def generator_arrays(path):
    from srgan_tf import weights

    generator, _ = weights.load_generator(str(path))
    return {variable.path: variable.numpy() for variable in generator.weights}


def logged(run_dir):
    lines = (Path(run_dir) / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def run(config, photo_folder, tmp_path):
    """Trains in this process, in a folder of tmp_path: (name, flags) to the run's run.json."""
    from srgan_tf.training import loop

    def run(name, **flags):
        run_dir = tmp_path / name
        given = {"train_data": str(photo_folder), "run_dir": str(run_dir)} | SMALL | flags
        loop.train(config(**given))
        return json.loads((run_dir / "run.json").read_text())

    return run


def interfered(step, interfere, *flags, code):
    """Runs train.py, interferes with its process after a step, and returns what it says then."""
    process = subprocess.Popen(
        command(*flags), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    for line in process.stderr:
        if line.startswith(f"step {step}/"):
            interfere(process)
            break
    timer = threading.Timer(120, process.kill)  # it should have ended by then
    timer.start()
    rest = process.stderr.read()
    timer.cancel()
    assert process.wait() == code and "Traceback" not in rest
    return rest


@pytest.mark.parametrize("family", FAMILIES)
def test_a_killed_run_ends_with_the_same_bytes(family, photo_folder, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    flags = [*FAMILIES[family], f"--train_data={photo_folder}", "--steps=30", "--log_every=1"]
    flags += ["--checkpoint_every=5", "--validate_every=10", "--augment"]
    train(*flags, f"--run_dir={whole}")

    kill_at = random.SystemRandom().randrange(7, 16)
    print(f"killed at step {kill_at}")
    kill = subprocess.Popen.kill
    interfered(kill_at, kill, *flags, f"--run_dir={killed}", code=-signal.SIGKILL)
    assert not (killed / "generator.weights.h5").exists()

    done = train(*flags, f"--run_dir={killed}")
    resumed_at = int(re.search(r"ckpt-\d+, step (\d+)", done.stdout)[1])
    assert 0 < resumed_at < 30  # it trained on between its line and the kill
    assert_same_state(whole, killed, 30)
    record = json.loads((killed / "run.json").read_text())
    assert [start["step"] for start in record["went_on"]] == [resumed_at]
    for name in ("generator.weights.h5", "generator.best.weights.h5"):
        np.testing.assert_equal(generator_arrays(whole / name), generator_arrays(killed / name))
    lines = [logged(run_dir) for run_dir in (whole, killed)]
    for line in sum(lines, []):
        line.pop("images_per_second", None)
    assert lines[0] == lines[1]


def test_averaging_leaves_the_training_alone_and_resumes_to_the_same_bytes(
    run, tmp_path, monkeypatch
):
    from srgan_tf.training import recipe

    monkeypatch.setattr(recipe, "AVERAGING_BATCHES", 5)
    options = {"steps": 4, "val_pictures": 1, "validate_every": 2, "checkpoint_every": 2}
    plain, whole, resumed = (tmp_path / name for name in ("plain", "whole", "resumed"))
    record = run("plain", **options)
    run("whole", ema=0.5, **options)
    shutil.copytree(whole, resumed)
    for path in resumed.glob("checkpoints/ckpt-4.*"):
        path.unlink()
    (resumed / "generator.weights.h5").unlink()
    run("resumed", ema=0.5, **options)

    before, after = checkpoint_arrays(plain, 4), checkpoint_arrays(whole, 4)
    np.testing.assert_equal(after, checkpoint_arrays(resumed, 4))
    optimizer = "optimizer/_variables"  # where the averages are among Adam's own variables
    same = [name for name in before if not name.startswith((optimizer, "best_loss"))]
    assert len(same) > 10
    np.testing.assert_equal({n: before[n] for n in same}, {n: after[n] for n in same})
    for name in ("generator.weights.h5", "generator.best.weights.h5"):
        np.testing.assert_equal(generator_arrays(whole / name), generator_arrays(resumed / name))

    trained, averaged = (generator_arrays(path / "generator.weights.h5") for path in (plain, whole))
    assert all(not np.array_equal(trained[name], averaged[name]) for name in trained)
    # The average of four steps of Adam is within them.
    kernel = "conv_in/kernel"
    assert 0 < np.abs(trained[kernel] - averaged[kernel]).max() < 4e-4

    del record["config"]["ema"]  # as runs before this flag
    (plain / "run.json").write_text(json.dumps(record))
    run("plain", **options)
    with pytest.raises(ValueError, match=r"other flags: --ema=0.5 \(was 0.0\)"):
        run("plain", ema=0.5, **options)


def test_lpips_chooses_the_best_weights_of_a_gan_where_it_is_available(run, tmp_path, monkeypatch):
    from srgan_tf import lpips

    options = {"val_pictures": 1, "steps": 1, "adversarial_weight": 1e-3}
    options |= {"init_generator": "none", "deterministic": False}

    def scores(name, **changes):
        run(name, **options, **changes)
        return json.loads((tmp_path / name / "scores.json").read_text())

    with_lpips = scores("with")
    found = [row["validation_lpips"] for row in logged(tmp_path / "with") if len(row) == 4]
    assert len(found) == 2 and min(found) == with_lpips["best_validation_lpips"]
    assert "validation_lpips" not in scores("without", validate_lpips=False)

    def missing():
        raise ValueError("no weights")

    monkeypatch.setattr(lpips, "load", missing)
    assert "best_validation_loss" in scores("missing")
    with pytest.raises(ValueError, match="^--validate_lpips: no weights$"):
        scores("required", validate_lpips=True)


def test_a_signal_saves_a_checkpoint_that_the_same_command_resumes_from(photo_folder, tmp_path):
    flags = [f"--train_data={photo_folder}", f"--run_dir={tmp_path}"]
    flags += ["--steps=100000", "--log_every=1"]
    rest = interfered(3, subprocess.Popen.terminate, *flags, code=128 + signal.SIGTERM)
    step = int(re.search(r"stopped at step (\d+)", rest)[1])
    done = train(*flags, "--dry_run")
    assert f"ckpt-{step}, step {step}" in done.stdout


def test_pictures_that_vanish_during_a_run_end_it_in_one_line(photo_folder, tmp_path):
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    flags = [f"--train_data={photos}", f"--run_dir={tmp_path}/run"]
    flags += ["--steps=100000", "--log_every=1"]
    rest = interfered(3, lambda process: shutil.rmtree(photos), *flags, code=1)
    [line] = [line for line in rest.splitlines() if line.startswith("error:")]
    assert line == (
        f"error: {photos}: none of its pictures can be read; the same command resumes from the "
        "last checkpoint"
    )


def test_an_error_of_tensorflow_is_reported_by_its_cause():
    import tensorflow as tf

    from srgan_tf.training import loop

    text = (
        "Graph execution error:\n\nDetected at node conv defined at (most recent call last):\n"
        '  File "train.py", line 1, in main\n\nOOM when allocating tensor\n\t [[{{node conv}}]]'
    )
    error = tf.errors.ResourceExhaustedError(None, None, text)
    assert loop.explain(error) == "OOM when allocating tensor"


def test_a_dry_run_prints_the_plan_and_writes_nothing(photo_folder, tmp_path):
    run_dir = tmp_path / "run"
    done = train(
        *FAMILIES["srgan"], f"--train_data={photo_folder}", f"--run_dir={run_dir}", "--dry_run"
    )
    expected = (
        "19 used, 0 skipped|nearest start|Matlab|term mse|term adversarial|s a step|h to step"
    )
    for text in expected.split("|"):
        assert text in done.stdout, text
    assert not run_dir.exists()


@pytest.mark.parametrize("damage", ["rubbish index", "index cut by a byte", "data cut by a byte"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(damage, photo_folder, tmp_path):
    from srgan_tf import networks

    start = tmp_path / "start.weights.h5"
    networks.build_generator(residual_blocks=1, filters=8).save_weights(start)
    flags = [f"--train_data={photo_folder}", f"--run_dir={tmp_path}", "--checkpoint_every=2"]
    flags.append(f"--init_generator={start}")
    train(*flags, "--steps=4")
    before = checkpoint_arrays(tmp_path, 4)
    start.unlink()  # a resumed run does not need its start
    kind = "index" if "index" in damage else "data-00000-of-00001"
    damaged = tmp_path / "checkpoints" / f"ckpt-4.{kind}"
    damaged.write_bytes(b"rubbish" if "rubbish" in damage else damaged.read_bytes()[:-1])
    (tmp_path / "checkpoints" / "ckpt-9 (copy).index").touch()
    done = train(*flags, "--steps=4")
    assert "ckpt-4: cannot be read" in done.stderr
    assert "ckpt-2, step 2" in done.stdout
    np.testing.assert_equal(before, checkpoint_arrays(tmp_path, 4))


def test_a_run_resumes_whatever_its_folder_is_called(run, tmp_path):
    name = "a*b?/run [v2]/back\\slash"
    run(name, steps=5, checkpoint_every=1, keep_checkpoints=2)
    steps = [path.stem for path in (tmp_path / name).glob("checkpoints/*.index")]
    assert sorted(steps) == ["ckpt-4", "ckpt-5"]
    # As if killed before the last step.
    (tmp_path / name / "checkpoints" / "ckpt-5.index").unlink()
    run(name, steps=5, checkpoint_every=1, keep_checkpoints=2)
    run("whole", steps=5)
    # TensorFlow's reader would not find it.
    renamed = shutil.move(tmp_path / name, tmp_path / "renamed")
    assert_same_state(tmp_path / "whole", renamed, 5)


def test_a_checkpoint_after_a_damaged_one_is_kept(run, tmp_path, monkeypatch):
    from srgan_tf.training import resume

    options = {"steps": 3, "checkpoint_every": 1, "deterministic": False}
    run("run", keep_checkpoints=3, **options)
    for step in (2, 3):
        (tmp_path / "run" / "checkpoints" / f"ckpt-{step}.index").write_bytes(b"rubbish")
    saved, save = [], resume.save

    def saving(checkpoint, folder, step, keep):
        save(checkpoint, folder, step, keep)
        saved.append((step, (folder / f"ckpt-{step}.index").stat().st_size > 7))

    monkeypatch.setattr(resume, "save", saving)
    run("run", keep_checkpoints=1, **options)
    assert saved == [(2, True), (3, True)]


def test_more_steps_continue_a_finished_run(run, tmp_path):
    from srgan_tf import weights

    # At a constant rate.
    run("constant", steps=2, learning_rate=1e-2)
    assert run("constant", steps=4, learning_rate=1e-2)["config"]["steps"] == 4
    run("constant_whole", steps=4, learning_rate=1e-2)
    assert_same_state(tmp_path / "constant", tmp_path / "constant_whole", 4)
    assert weights.read_card(str(tmp_path / "constant"))["steps"] == 4
    assert json.loads((tmp_path / "constant" / "scores.json").read_text())["steps"] == 4

    # The rate stays at a tenth after the step at which it dropped.
    def dropping(name, steps, share):
        return run(name, steps=steps, learning_rate=1e-2, learning_rate_drop_at=share)

    dropping("step", 2, 0.5)
    for share in (0.5, 0.25):  # the command with more steps, then flags.txt
        record = dropping("step", 4, share)
    assert "--learning_rate_drop_at=0.25\n" in (tmp_path / "step" / "flags.txt").read_text()
    assert [start["step"] for start in record["went_on"]] == [2, 4]
    dropping("step_whole", 4, 0.25)
    assert_same_state(tmp_path / "step", tmp_path / "step_whole", 4)
    with pytest.raises(ValueError, match=r"--steps=3 \(was 4\)"):
        dropping("step", 3, 0.5)
    with pytest.raises(ValueError, match=r"--learning_rate_drop_at=0.75 \(was 0.5\)"):
        dropping("step", 8, 0.75)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 0.25), (0.996, 1.0)])
def test_a_run_without_a_recorded_drop_keeps_its_first_drop(config, tmp_path, share, expected):
    from srgan_tf.training import resume, run_folder

    first = config(run_dir=str(tmp_path), steps=100, learning_rate_drop_at=share)
    facts = {"recipe": 5, "vgg": None, "train_data": {"fingerprint": ""}}
    run_folder.write_start(tmp_path, dataclasses.asdict(first), facts)
    machine = {"device": "CPU", "replicas": 1, "drop_step": 50 if share == 0.5 else None}
    for _ in range(2):
        longer = dataclasses.replace(first, steps=200)
        record = resume.earlier_run(longer, has_state=True)
        longer = resume.with_first_drop(longer, record)
        assert longer.learning_rate_drop_at == expected
        run_folder.add_resumption(tmp_path, 100, dataclasses.asdict(longer), machine)


def test_more_steps_are_refused_with_a_cosine_schedule(config, tmp_path):
    from srgan_tf.training import resume, run_folder

    first = config(run_dir=str(tmp_path), learning_rate_schedule="cosine", steps=10)
    facts = {"recipe": 0, "vgg": None, "train_data": {"fingerprint": ""}}
    run_folder.write_start(tmp_path, dataclasses.asdict(first), facts)
    message = "--steps=20 (was 10): a cosine schedule reaches 0 at the last step"
    with pytest.raises(ValueError, match=re.escape(message)):
        resume.earlier_run(dataclasses.replace(first, steps=20), has_state=True)


@pytest.mark.parametrize("text", ["", "[1]", "{}", "[" * 100_000, '{"config": {"steps": 1}}'])
def test_a_file_that_is_not_a_run_record_is_named(config, tmp_path, text):
    from srgan_tf.training import resume

    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match="run.json: not a run's record"):
        resume.earlier_run(config(run_dir=str(tmp_path)), has_state=True)


def test_a_second_run_in_the_same_folder_is_refused(run, tmp_path):
    from srgan_tf import files

    line = f"^{tmp_path}: another train.py is training there"
    with files.locked(tmp_path, ""), pytest.raises(ValueError, match=line):
        run("", deterministic=False)
    assert not (tmp_path / "run.json").exists()


def test_a_run_that_another_process_has_continued_meanwhile_is_refused(run, tmp_path, monkeypatch):
    from srgan_tf.training import loop

    build = loop.build_model

    def build_while_another_trains(*args, **kwargs):
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / "ckpt-5.index").touch()
        return build(*args, **kwargs)

    monkeypatch.setattr(loop, "build_model", build_while_another_trains)
    with pytest.raises(ValueError, match="another train.py has trained there meanwhile"):
        run("", deterministic=False)
    assert not (tmp_path / "run.json").exists()


def test_a_checkpoint_that_does_not_fit_on_the_disk_is_one_line(run, tmp_path):
    with pytest.raises(ValueError) as raised, full_disk(30_000):
        run("", steps=1, deterministic=False)
    line = f"{tmp_path}/checkpoints/ckpt-1: cannot be saved ("
    text = str(raised.value)
    assert text.startswith(line) and "File too large" in text
    assert "\n" not in text and "{{" not in text


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("notjson", "not JSON"),
        ("[]", 'no "cluster" of addresses'),
        ({"task": {"type": "worker", "index": 0}}, 'no "cluster" of addresses'),
        ({"cluster": {"worker": "a:1"}}, '"worker" of the cluster is not a list'),
        ({"cluster": {"worker": ["a:1"]}}, 'no "task" with the type and index'),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": "worker"}}, 'no "task" with'),
        ({"cluster": {"worker": ["a"]}}, '"a" is not of the form host:port'),
        ({"cluster": {"worker": ["a:x"]}}, '"a:x" is not of the form host:port'),
        ({"cluster": {"worker": ["a:1", ":2"]}}, '":2" is not of the form host:port'),
        ({"cluster": {"worker": ["a:99999"]}}, "port below 65536"),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "ps", "index": 0}},
            'task type "ps" is not in the cluster, which has worker',
        ),
        ({"cluster": {"worker": ["a:1"]}, "task": {"type": [], "index": 0}}, 'task type "[]"'),
        (
            {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 2}},
            "task index 2 is not below 2",
        ),
        (
            {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": -1}},
            "task index -1 is not below 1",
        ),
    ],
)
def test_a_mistake_in_tf_config_is_named(given, message, monkeypatch):
    from srgan_tf.training import loop

    monkeypatch.setenv("TF_CONFIG", given if isinstance(given, str) else json.dumps(given))
    with pytest.raises(ValueError, match="^TF_CONFIG: ") as raised:
        loop.make_strategy()
    assert message in str(raised.value)


def test_a_loss_that_is_not_finite_stops_the_run(photo_folder, tmp_path):
    flags = ["--learning_rate=1e18", "--steps=50", f"--train_data={photo_folder}"]
    done = train(*flags, f"--run_dir={tmp_path}", "--val_pictures=0", code=1)
    (line,) = errors(done)
    assert re.search(r"step \d+: mse is (nan|inf)", line)
    assert "nothing was saved" in line
    assert not list((tmp_path / "checkpoints").iterdir())


def test_changed_flags_and_a_lost_checkpoint_are_refused(run, tmp_path):
    run("run", steps=1)
    with pytest.raises(ValueError, match=r"--learning_rate=0.5 \(was 0.0001\)"):
        run("run", steps=1, learning_rate=0.5)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(ValueError, match="holds weights but no checkpoint to resume from"):
        run("run", steps=1)
    assert (tmp_path / "run" / "generator.weights.h5").exists()


def test_float16_is_refused_with_several_replicas(config, tmp_path):
    from srgan_tf.training import loop

    two = types.SimpleNamespace(num_replicas_in_sync=2)
    with pytest.raises(ValueError, match="--mixed_precision=mixed_float16 does not work"):
        loop.train(config(run_dir=str(tmp_path / "run"), mixed_precision="mixed_float16"), two)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("message", "wrong"),
    [
        ("SRGAN starts from SRResNet-MSE", {"adversarial_weight": 1e-3}),
        ("empty: no pictures", {"train_data": "empty"}),
        ("nowhere: no such", {"init_generator": "nowhere"}),
        ("--content_loss: VGG19 has no layer 'conv9'", {"content_loss": "conv9"}),
        ("a_file/checkpoints: cannot be written to", {"run_dir": "a_file"}),
        ("TensorBoard needs a path in UTF-8", {"run_dir": "caf\udce9"}),
        ("--warmup_steps belongs to", {"warmup_steps": 5}),
        ("--ema=1: must be at least 0 and below 1", {"ema": 1}),
        ("--val_data=sample: --val_pictures=0", {"val_data": "sample", "val_pictures": 0}),
        (
            "--warmup_steps=5 is not below --steps=5",
            {"warmup_steps": 5, "steps": 5, "learning_rate_schedule": "cosine"},
        ),
        (
            "--crop_size=40: SRGAN needs a multiple of 16",
            {"crop_size": 40, "adversarial_weight": 1e-3, "init_generator": "none"},
        ),
    ],
)
def test_flags_that_cannot_be_trained_are_refused(message, wrong, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("a_file").touch()
    with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
        run("run", deterministic=False, **wrong)
    assert "\n" not in str(raised.value)
    assert not Path("run").exists()


def test_a_run_resumes_only_with_its_pictures_its_vgg_and_its_version(run, photo_folder, tmp_path):
    pictures, validation = (
        shutil.copytree(photo_folder, tmp_path / name) for name in ("pictures", "validation")
    )
    options = {"train_data": str(pictures), "val_data": str(validation), "val_pictures": 1}
    options |= {"content_loss": "block1_conv2", "vgg_weights": "vgg16", "deterministic": False}
    run("run", steps=1, **options)
    record = tmp_path / "run" / "run.json"
    text = record.read_text()

    def refused(message):
        with pytest.raises(ValueError, match=message):
            run("run", steps=1, **options)
        record.write_text(text)

    record.write_text(text.replace('"vgg": "vgg16"', '"vgg": "imagenet"'))
    refused("--vgg_weights: .* started with imagenet, not vgg16")
    record.write_text(text.replace('"recipe": ', '"recipe": 1'))
    refused("--run_dir=.* an incompatible version")
    shutil.copy(pictures / "00.jpg", validation / "one_more.jpg")
    refused("--val_data=.*not the pictures")
    shutil.copy(pictures / "00.jpg", pictures / "one_more.jpg")
    refused("--train_data=.*not the pictures.*20 then, 21 now")


def test_a_run_keeps_the_vgg_that_auto_found_at_its_start(run, tmp_path, monkeypatch):
    from srgan_tf import vgg

    def refuse(vgg19):
        raise ValueError("no network")

    monkeypatch.setattr(vgg, "_load_imagenet", refuse)
    options = {"content_loss": "block1_conv2", "checkpoint_every": 1, "deterministic": False}
    run("run", steps=2, **options)
    # As if killed after the first step, with the download available before it resumes.
    (tmp_path / "run" / "checkpoints" / "ckpt-2.index").unlink()
    monkeypatch.setattr(vgg, "_load_imagenet", lambda vgg19: None)
    record = run("run", steps=2, **options)
    assert record["vgg"] == "vgg16" and record["went_on"][0]["step"] == 1


def test_a_run_resumes_after_its_pictures_have_moved(run, photo_folder, tmp_path, capsys):
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(photo_folder, here)
    run("run", steps=2, train_data=str(here))
    here.rename(there)
    run("run", steps=2, train_data=str(there))
    assert "ckpt-2, step 2" in capsys.readouterr().out


def test_a_terminal_of_80_columns_shows_the_most_watched_values(tmp_path, monkeypatch):
    from srgan_tf.training import progress

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    values = {"loss": 0.0717, "block5_conv4": 0.071, "adversarial": 0.000693}
    values |= {"discriminator": 1.2, "d_hr": 0.612, "d_sr": 0.388}
    with progress.RunLog(tmp_path, 123_000, 200_000) as log:
        log.progress(123_456, values, 16)
    shown = terminal.getvalue().split("\x1b[2K")[1].splitlines()[0]
    assert len(shown) < 80
    for text in ("step 123456/200000", "ETA", "images/s", "D(HR) 0.61", "D(SR) 0.39"):
        assert text in shown


def test_flags_txt_repeats_the_run(photo_folder, tmp_path):
    train(f"--train_data={photo_folder}", f"--run_dir={tmp_path}/first", "--steps=3")
    first = tmp_path / "first"
    record = json.loads((first / "run.json").read_text())
    assert record["versions"]["tensorflow"] and record["train_data"]["pictures"] == 19
    assert record["terms"]["mse"]["gradient_norm"] > 0
    scores = json.loads((first / "scores.json").read_text())
    assert scores["steps"] == 3 and 10 < scores["validation_psnr"] < 60
    assert (first / "validation.png").exists()
    assert list((first / "tensorboard").iterdir())

    train(f"--flagfile={first}/flags.txt", f"--run_dir={tmp_path}/second")
    assert_same_state(first, tmp_path / "second", 3)


def test_steps_per_call_and_number_of_checkpoints_do_not_change_the_weights(run, tmp_path):
    run("one", steps=7)
    run("three", steps=7, steps_per_call=3, checkpoint_every=5, keep_checkpoints=1)
    assert_same_state(tmp_path / "one", tmp_path / "three", 7)
    assert len(list((tmp_path / "three" / "checkpoints").glob("*.index"))) == 1


TWO_REPLICAS = """
import dataclasses, sys
import tensorflow as tf
import train
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, 2 * [tf.config.LogicalDeviceConfiguration()])
from srgan_tf.training import loop
config = dataclasses.replace(
    train.read_config(sys.argv[1]), train_data=sys.argv[2], steps=6, log_every=1,
    batch_size=4, crop_size=32, residual_blocks=1, filters=8, val_pictures=1,
    adversarial_weight=1e-3, init_generator="none", ema=0.5,
    checkpoint_every=1, keep_checkpoints=6,
)
loop.train(config, tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
"""


SIX_STEPS = [
    *FAMILIES["srgan"],
    "--steps=6",
    "--ema=0.5",
    "--log_every=1",
    "--checkpoint_every=1",
    "--keep_checkpoints=6",
]


@pytest.fixture(scope="module")
def one_process(photo_folder, tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("one_process")
    train(*SIX_STEPS, f"--train_data={photo_folder}", f"--run_dir={run_dir}")
    return run_dir


def assert_close(one, many):
    """Asserts that two runs differ only by the order of float32 sums.

    One step shows it: losses and batch statistics agree to 1e-4, gradients (Adam's moments) to 2 %
    of their norm, since a sum that lands on the other side of a LeakyReLU's kink changes slope, and
    weights to a hundredth of Adam's step of 1e-4. Up to 1 % of them may differ more: Adam divides a
    gradient by its own size, so that where it is only rounding its sign is random. From there on
    the two runs drift apart, and losses are held to 3 %.
    """
    for first, second in zip(logged(one), logged(many), strict=True):
        for name in first.keys() - {"images_per_second"}:
            bound = 1e-4 if first["step"] <= 1 else 3e-2
            assert first[name] == pytest.approx(second[name], rel=bound), (first["step"], name)

    first, second = checkpoint_arrays(one, 1), checkpoint_arrays(many, 1)
    assert first.keys() == second.keys()
    strayed = total = 0
    for name in first:
        difference = np.abs(first[name].astype(np.float64) - second[name])
        if "_trainable_variables" in name:
            assert difference.max() <= 2.01e-4, name
            strayed += (difference > 1e-6).sum()
            total += difference.size
        elif "best_loss" not in name:
            bound = 1e-4 if "moving" in name else 2e-2
            assert np.linalg.norm(difference) <= bound * np.linalg.norm(first[name]), name
    assert total > 1e6 and strayed < 0.01 * total


def test_two_replicas_train_as_one(one_process, photo_folder, tmp_path):
    program = [sys.executable, "-c", TWO_REPLICAS, str(tmp_path), str(photo_folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "2 (Mirrored)" in done.stdout
    assert_close(one_process, tmp_path)
    one, two = (json.loads((run / "run.json").read_text()) for run in (one_process, tmp_path))
    for name, term in one["terms"].items():
        assert two["terms"][name] == pytest.approx(term, rel=2e-2), name


def test_two_workers_train_as_one(one_process, photo_folder, tmp_path):
    sockets = [socket.socket() for _ in range(2)]
    for s in sockets:
        s.bind(("localhost", 0))
    addresses = [f"localhost:{s.getsockname()[1]}" for s in sockets]
    for s in sockets:
        s.close()
    workers = []
    for index in range(2):
        cluster = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        workers.append(
            subprocess.Popen(
                command(*SIX_STEPS, f"--train_data={photo_folder}", f"--run_dir={tmp_path}/run"),
                env={**os.environ, "TF_CONFIG": json.dumps(cluster)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [worker.communicate(timeout=300) for worker in workers]
    finally:
        for worker in workers:
            worker.kill()  # one that waits for the other
    assert [worker.returncode for worker in workers] == [0, 0], outputs
    assert "2 (CollectiveAllReduce)" in outputs[0][0]
    assert outputs[1][0] == ""  # only the chief speaks
    assert_close(one_process, tmp_path / "run")


FLAGFILES = sorted(path.name for path in ROOT.glob("*.flags"))


def train_by_flagfile(flagfile, data, run_dir, **environment):
    # The whole network on 96x96 crops, but two of them, two steps.
    program = [
        sys.executable,
        "train.py",
        f"--flagfile={flagfile}",
        f"--train_data={data}",
        f"--run_dir={run_dir}",
        "--vgg_weights=vgg16",
        "--batch_size=2",
        "--steps=2",
        "--val_pictures=0",
    ]
    done = subprocess.run(
        program, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("for trying out" in done.stderr) == (data == "sample")
    (line,) = logged(run_dir)
    assert line["step"] == 2 and all(np.isfinite(value) for value in line.values())
    is_gan = not flagfile.startswith("srresnet")
    assert ("d_sr" in line) == is_gan
    start = json.loads((run_dir / "run.json").read_text())["generator"]
    assert ("srresnet_mse.weights.h5 (SRResNet-MSE" if is_gan else "nearest start") in start


@pytest.mark.parametrize("flagfile", FLAGFILES)
def test_each_flagfile_trains_as_a_user_would_run_it(flagfile, tmp_path):
    train_by_flagfile(flagfile, "sample", tmp_path)


@pytest.mark.parametrize(
    "flagfile",
    # One is enough by default: all variants read pictures in the same way.
    [name if name == "mse.flags" else pytest.param(name, marks=pytest.mark.slow)
     for name in FLAGFILES],
)  # fmt: skip
def test_each_flagfile_trains_on_a_tfds_data_set(flagfile, tfds_folder, tmp_path):
    train_by_flagfile(flagfile, "tfds:tiny_photos:train", tmp_path, TFDS_DATA_DIR=str(tfds_folder))


def test_the_five_flagfiles_are_the_papers_five_variants():
    variants = {}
    for path in ROOT.glob("*.flags"):
        lines = [x for x in path.read_text().splitlines() if x.startswith("--")]
        flags = dict(line[2:].split("=", 1) for line in lines)
        variants[flags["variant"]] = flags
    content = {name: flags["content_loss"] for name, flags in variants.items()}
    assert content == {
        "SRResNet-MSE": "mse",
        "SRResNet-VGG22": "block2_conv2",
        "SRGAN-MSE": "mse",
        "SRGAN-VGG22": "block2_conv2",
        "SRGAN-VGG54": "block5_conv4",
    }
    for name, flags in variants.items():
        is_gan = name.startswith("SRGAN")
        assert flags["batch_size"] == "16" and flags["crop_size"] == "96"
        assert float(flags["learning_rate"]) == 1e-4
        assert float(flags["learning_rate_drop_at"]) == (0.5 if is_gan else 1)
        assert flags.get("init_generator") == ("srresnet_mse" if is_gan else None)
        assert int(flags["steps"]) == (200_000 if is_gan else 1_000_000)
        assert float(flags["adversarial_weight"]) == (1e-3 if is_gan else 0)
        assert float(flags["total_variation_weight"]) == (2e-8 if name == "SRResNet-VGG22" else 0)


def test_learning_rates_drop_as_in_the_paper(config):
    from srgan_tf.training import recipe

    rates = recipe.learning_rates(config(steps=200_000, learning_rate_drop_at=0.5))
    steps = (0, 99_999, 100_000, 199_999)
    np.testing.assert_allclose([float(rates(s)) for s in steps], [1e-4, 1e-4, 1e-5, 1e-5])
    assert recipe.learning_rates(config(steps=1000)) == 1e-4
    cosine = config(steps=1000, learning_rate_schedule="cosine", warmup_steps=100)
    rates = recipe.learning_rates(cosine)
    values = [float(rates(step)) for step in (0, 50, 100, 550, 1000)]
    np.testing.assert_allclose(values, [0, 5e-5, 1e-4, 5e-5, 0], atol=1e-10)


@pytest.mark.parametrize("family", ["srresnet", pytest.param("srgan", marks=pytest.mark.slow)])
def test_xla_trains(family, photo_folder, tmp_path):
    flags = [*FAMILIES[family], f"--train_data={photo_folder}", "--steps=2", "--val_pictures=0"]
    train(*flags, f"--run_dir={tmp_path}", "--jit_compile")


def test_float16_trains(photo_folder, tmp_path):
    flags = [*FAMILIES["srgan"], f"--train_data={photo_folder}", "--steps=2", "--val_pictures=0"]
    train(*flags, f"--run_dir={tmp_path}", "--mixed_precision=mixed_float16", "--cache")
