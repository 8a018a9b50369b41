from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

from srgan_tf.training import progress, run_folder

CONFIG = {
    "variant": "SRGAN-VGG54",
    "run_dir": "runs/first",
    "train_data": "sample",
    "mixed_precision": "float32",
    "ema": 0.0,
    "steps": 200_000,
}
FACTS = {
    "generator": "none",
    "train_data": {"spec": "sample", "pictures": 6, "left_out": 0},
    "validation": {"pictures": [], "data": "held out"},
    "lr_operator": "bicubic",
    "vgg": "vgg16",
    "replicas": 1,
    "strategy": "Default",
    "device": "CPU",
    "terms": {},
    "seconds_per_step": 6,
}


def test_a_start_report_shortens_a_run_that_takes_days():
    faster = ["--mixed_precision=mixed_bfloat16"]
    report = progress.start_report(CONFIG, FACTS | {"estimated_hours_left": 333.33}, faster)
    [line] = [line for line in report.splitlines() if line.startswith("long run:")]
    assert line.endswith(
        "--steps=4802 would take 8 h; "
        "faster: --mixed_precision=mixed_bfloat16, a smaller --batch_size"
    )
    assert "long run:" not in progress.start_report(
        CONFIG, FACTS | {"estimated_hours_left": 8}, faster
    )


def test_a_start_report_names_the_picture_only_of_a_run_that_makes_one():
    facts = FACTS | {"estimated_hours_left": 1}
    assert "validation.png" not in progress.start_report(CONFIG, facts, [])
    facts["validation"] = {"pictures": ["a.png"], "data": "held out"}
    assert "validation.png" in progress.start_report(CONFIG, facts, [])


@pytest.mark.parametrize("flagfile", sorted(path.name for path in ROOT.glob("*.flags")))
def test_a_run_on_sample_pictures_ends_with_the_command_for_your_own(flagfile):
    lines = (ROOT / flagfile).read_text().splitlines()
    [variant] = [line.partition("=")[2] for line in lines if line.startswith("--variant=")]
    report = progress.end_report(CONFIG | {"variant": variant}, ["--steps_per_call=20"])
    command = f"python train.py --flagfile={flagfile} --train_data=FOLDER --steps_per_call=20"
    assert report.splitlines()[-1].endswith(command)


def test_a_run_ends_with_where_its_results_are_and_what_to_do_with_them(tmp_path):
    (tmp_path / "validation.png").touch()
    config = CONFIG | {"run_dir": str(tmp_path), "train_data": "photos"}
    done, look, compare, upscale = progress.end_report(config, []).splitlines()
    assert f"{tmp_path}/generator.weights.h5, 200,000 steps" in done
    assert f"{tmp_path}/validation.png" in look
    assert compare.endswith(f"python evaluate.py --weights={tmp_path} --out_dir=scores")
    assert upscale.endswith(f"python upscale.py photo.jpg --weights={tmp_path}")
    *_, upscale = progress.end_report(config | {"run_dir": "run [v2]"}, []).splitlines()
    assert upscale.endswith("python upscale.py photo.jpg '--weights=run [v2]'")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full")
def test_logs_that_do_not_fit_on_the_disk_are_one_line_with_the_run_folder(tmp_path, monkeypatch):
    line = f"^{tmp_path}: its logs cannot be written .No space left on device.$"
    with open("/dev/full", "a") as full, pytest.raises(ValueError, match=line):
        monkeypatch.setattr(run_folder, "open_metrics", lambda *_: full)
        with progress.RunLog(tmp_path, 0, 10) as log:
            log.means(1, {"loss": 1.0}, 1e-4)


def test_the_discriminator_is_named_once_when_it_has_won_or_lost():
    watch = progress.DiscriminatorWatch()
    names = ["loss", "d_hr", "d_sr"]

    def steps(d_hr, d_sr, count=watch.SPAN):
        return watch.add(names, np.tile(np.float32([1, d_hr, d_sr]), (count, 1)))

    assert steps(0.99, 0.01, watch.SPAN - 1) is None
    line = steps(0.99, 0.01, 1)
    assert line.startswith("D(HR) 0.99, D(SR) 0.01 over 500 steps: D has won: ")
    assert steps(0.99, 0.01) is None
    assert steps(0.8, 0.2) is None
    assert "D has lost: " in steps(0.5, 0.5)
    assert watch.add(["loss"], np.ones([500, 1])) is None
