"""What a newcomer does, as written in the README: `pytest -m slow tests/test_newcomer.py`.

Clones the last commit and installs packages, so it needs the package index.
"""

import os
import re
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT, rating_file, save_photograph
from PIL import Image

from srgan_tf.evaluation import mos_kit

pytestmark = pytest.mark.slow


def _run(*command, cwd, check=True):
    done = subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True)
    assert not check or done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A fresh clone of the last commit."""
    folder = tmp_path_factory.mktemp("newcomer") / "srgan_tf"
    _run("git", "clone", "-q", ROOT, folder, cwd=folder.parent)
    return folder


@pytest.fixture(scope="module")
def wheel(clone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    _run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, clone, cwd=folder)
    [path] = folder.glob("srgan_tf-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """The commands' folder of an environment with the wheel; the packages it needs are ours."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    _run(python, "-m", "pip", "install", "-q", "--no-deps", wheel, cwd=folder)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


def test_the_wheel_holds_the_package_the_scripts_and_the_flagfiles(clone, wheel):
    tracked = _run("git", "ls-files", cwd=clone).stdout.splitlines()
    package = {path for path in tracked if path.startswith("srgan_tf/")}
    top = {path for path in tracked if "/" not in path and path.endswith((".py", ".flags"))}
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == package | {f"srgan_tf/scripts/{name}" for name in top}
    assert {"srgan_tf/py.typed", "srgan_tf/pretrained/srresnet_mse.weights.h5"} <= names


@pytest.mark.parametrize("name", ["train", "evaluate", "upscale", "export"])
def test_an_installed_command_has_the_help_of_its_script(clone, installed, tmp_path, name):
    command = _run(installed / f"srgan-{name}", "--help", cwd=tmp_path, check=False).stdout
    script = _run(sys.executable, f"{name}.py", "--help", cwd=clone, check=False).stdout
    lines = [[line for line in text.splitlines() if not line.endswith(f"{name}.py:")]
             for text in (command, script)]  # fmt: skip
    assert lines[0] == lines[1] and len(lines[0]) > 20


def test_an_installed_command_finds_flagfiles_and_fails_in_one_line(installed, tmp_path):
    command = (installed / "srgan-train", "--flagfile=vgg54.flags", "--train_data=nowhere")
    failed = _run(*command, cwd=tmp_path, check=False)
    assert (failed.returncode, failed.stderr) == (1, "error: nowhere: no such folder\n")


def test_an_installed_package_upscales_by_command_and_from_python(installed, tmp_path):
    save_photograph(tmp_path / "photo.jpg", 12, 14)
    _run(installed / "srgan-upscale", "photo.jpg", cwd=tmp_path)
    assert Image.open(tmp_path / "photo_x4.png").size == (56, 48)
    code = "import PIL.Image, srgan_tf; print(srgan_tf.__file__); "
    code += "print(srgan_tf.upscale(PIL.Image.open('photo.jpg')).size)"
    path, size = _run(installed / "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert Path(path).is_relative_to(installed.parent) and size == "(56, 48)"


def _readme(language):
    """The README's blocks of code in a language, in order."""
    text = (ROOT / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def pictures(clone):
    """Small pictures in a clone, under the names that the README's commands have for them."""
    for folder in ("FOLDER", "Set5", "Set14", "BSD100", "holiday"):
        (clone / folder).mkdir()
        for number in range(4 if folder == "FOLDER" else 2):
            save_photograph(clone / folder / f"{number}.png", 64, 80, seed=number)
    save_photograph(clone / "photo.jpg", 12, 14)
    save_photograph(clone / "more.tif", 10, 12)


def test_a_newcomer_can_paste_every_command_of_the_readme(clone, pictures, tmp_path):
    path = f"{clone / '.venv' / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "XDG_CACHE_HOME": str(tmp_path)}

    def paste(block):
        done = subprocess.run(
            ["bash", "-ec", block], cwd=clone, env=environment, capture_output=True, text=True
        )
        print(f"$ {block}{done.stdout}{done.stderr}")
        assert done.returncode == 0
        return done.stdout

    first, tests, *others = _readme("sh")
    paste(first)
    assert Image.open(clone / "runs" / "first" / "validation.png").width > 0
    assert " passed" in paste(tests.replace('-m "not slow"', "tests/test_losses.py"))
    short = "--train_data=FOLDER --steps=2 --batch_size=1 --crop_size=32"
    for block in others:
        if "collect --kit" in block:
            make, collect, count = block.splitlines()
            paste(make)
            kit = mos_kit.read_kit(clone / "kit")
            # The collector runs until it is stopped; a rater saves ratings meanwhile.
            (clone / "kit" / "ann.json").write_bytes(rating_file(kit, "Ann", lambda item: 3))
            send = "curl -sf --data-binary @kit/ann.json localhost:8000/ratings"
            paste(f"{collect} & until {send}; do sleep 1; done; kill $!")
            paste(count)
        elif "docker" not in block:
            paste(block.replace("--train_data=FOLDER", short))
    for block in _readme("python"):
        subprocess.run([clone / ".venv" / "bin" / "python", "-c", block], cwd=clone, check=True)

    assert Image.open(clone / "photo_x4.png").size == (56, 48)
    for name in (
        "runs/srgan-vgg54/generator.weights.h5",
        "scores/report.html",
        "scores/mos.json",
        "large/0_x4.png",
        "large/more_x4.png",
        "export/srresnet_mse/1/saved_model.pb",
        "export/srresnet_mse.dynamic.tflite",
        ".venv/bin/srgan-train",
    ):
        assert (clone / name).exists(), name
