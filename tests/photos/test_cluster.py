import csv
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, photograph, save_photograph
from PIL import Image

pytest.importorskip("ray", reason="pip install -r requirements-cluster.txt")

import ray
from ray.cluster_utils import Cluster

from srgan_tf.photos import cluster, enlarge, listing


@pytest.fixture(scope="module")
def nodes(tmp_path_factory):
    """A cluster of one node with two CPUs, and a cache that it shares with plain runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        nodes = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 2,
                "object_store_memory": 80 * 2**20,
                "include_dashboard": False,
                "_system_config": {"worker_niceness": 0},
            },
        )
        yield nodes
        nodes.shutdown()


@pytest.fixture
def upscale(run_script, monkeypatch):
    """Runs upscale.py in this process: arguments to (exit code, stdout, stderr)."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    return lambda *arguments: run_script("upscale.py", *arguments)


def _files(folder):
    files = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _planned(*inputs, out_dir="out", say=print):
    """The jobs of a cluster run, by picture."""
    inputs = list(map(str, inputs))
    return dict(listing.jobs(inputs, out_dir, format="png", overwrite=False, say=say))


def _failed(out_dir):
    with open(out_dir / "failed.csv", newline="") as file:
        return dict(csv.reader(file))


def test_files_notes_and_failures_are_those_of_a_plain_run(nodes, upscale, tiny, tmp_path):
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    exif = Image.Exif()
    exif[271] = "Lens Works"
    save_photograph(folder / "a.jpg", 20, 30, exif=exif, dpi=(300, 300))
    save_photograph(folder / "a.png", 30, 20, seed=1)
    for number in range(12):
        save_photograph(folder / "deep" / f"{number}.png", 16, 17 + number, seed=number)
    Image.fromarray(photograph(12, 12)).quantize().save(
        folder / "two.gif", save_all=True, append_images=[Image.new("P", (12, 12))]
    )
    deep = np.random.default_rng(0).integers(0, 65535, [12, 14], np.uint16)
    Image.fromarray(deep).save(folder / "deep" / "16.png")
    (folder / "deep" / "bad, and odd.jpg").write_bytes(b"no picture")
    flags = folder, f"--weights={tiny}", "--format=jpg", "--quality=50", "--tile=24"
    code, _, err = upscale(*flags, f"--out_dir={tmp_path / 'plain'}")
    assert code == 1
    # Two actors take both CPUs of the node.
    on_cluster = *flags, f"--out_dir={tmp_path / 'out'}", f"--ray={nodes.address}", "--ray_cpus=1"
    cluster_code, _, cluster_err = upscale(*on_cluster)
    assert cluster_code == 1 and "1 of 17 pictures failed, see failed.csv" in cluster_err
    notes = {line for line in err.splitlines() if line.startswith(str(folder))}
    assert len(notes) == 3 and notes <= set(cluster_err.splitlines())
    bad = f"{folder / 'deep' / 'bad, and odd.jpg'}"
    reason = "cannot be read (not a picture that Pillow knows)"
    assert _failed(tmp_path / "out") == {"picture": "reason", bad: reason}
    results = _files(tmp_path / "out")
    assert results.pop("failed.csv")
    assert results == _files(tmp_path / "plain") and len(results) == 16


def test_names_are_those_of_a_plain_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ["in/a.jpg", "in/a.png", "in/b.jpg", "in/b_x4.jpg", "in/deep/b.png", "in/deep/c.tif"]
    for name in [*names, "other/c.png", "out/a_x4.png", "in/out/x_x4.png"]:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for inputs, out_dir in (
        (["in"], "out"),
        (["in/", "in/deep/c.tif", "other"], "out"),
        (["in/b.jpg", "in"], "new"),
        (["./in/b_x4.jpg"], "new"),
        (["in"], "in"),
        (["in"], "in/out"),
        ([str(tmp_path / "in")], str(tmp_path)),
    ):
        said, plain = [], []
        jobs = enlarge.plan(inputs, out_dir=out_dir, say=plain.append)
        expected = {str(job.source): str(job.target) for job in jobs if not job.target.exists()}
        assert _planned(*inputs, out_dir=out_dir, say=said.append) == expected
        assert set(plain) <= set(said)
    assert _planned("in/b.jpg", "in/deep", "in/b.jpg").keys() == {"in/b.jpg", *names[4:]}
    # As a shell expands it.
    assert _planned("in/*.jpg") == _planned("in/a.jpg", "in/b.jpg", "in/b_x4.jpg")
    assert _planned("in/**/[ab].png") == _planned("in/a.png", "in/deep/b.png")
    assert _planned(f"file://{tmp_path}/in", out_dir="o") == _planned(tmp_path / "in", out_dir="o")
    Path("other/b.jpg").touch()
    for inputs, message in (
        (["in", "nothing*.jpg"], r"nothing\*.jpg: no such file or folder"),
        (["in/b.jpg", "other"], "in/b.jpg and other/b.jpg would both become out/b.jpg_x4.png"),
        (["ftp://host/a.jpg"], "ftp://host/a.jpg: give a local name, s3:// or gs://"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            _planned(*inputs)


def test_the_results_of_a_list_keep_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("in/a.jpg", "in/a.png", "in/deep/a.jpg", "b.jpg"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    Path("list.txt").write_bytes(b"in/a.jpg\r\n\n./in/deep/a.jpg\nb.jpg\nb.jpg\nin/no\xff.jpg")
    assert _planned("@list.txt") == {
        "in/a.jpg": "out/in/a.jpg_x4.png",
        "in/deep/a.jpg": "out/in/deep/a_x4.png",
        "b.jpg": "out/b_x4.png",
        os.fsdecode(b"in/no\xff.jpg"): os.fsdecode(b"out/in/no\xff_x4.png"),
    }
    Path("list.txt").write_text(f"{tmp_path}/b.jpg\n")
    assert _planned("@list.txt") == {f"{tmp_path}/b.jpg": f"out{tmp_path}/b_x4.png"}
    with pytest.raises(ValueError, match="@list.txt: a list of pictures must be the only argument"):
        _planned("@list.txt", "b.jpg")
    for lines in (f"{tmp_path}/b.jpg\nb.jpg", "b.jpg\nin/../b.jpg", "b.jpg\ns3://a/b.jpg"):
        Path("list.txt").write_text(lines)
        with pytest.raises(ValueError, match="list.txt: .* could lead to the results of another"):
            _planned("@list.txt")


@pytest.fixture
def kill():
    """Starts to kill -9 each process that writes to a folder, up to a number of times."""
    stop = threading.Event()

    def watch(folder, times, killed):
        while not stop.wait(0.002) and len(killed) < times:
            for path in folder.glob(".making-*.png"):
                process = int(path.name.rsplit("-", 2)[1])
                if process not in killed:
                    killed.append(process)
                    os.kill(process, signal.SIGKILL)

    def start(folder, times):
        killed = []
        threads.append(threading.Thread(target=watch, args=(folder, times, killed)))
        threads[-1].start()
        return killed

    threads = []
    yield start
    stop.set()
    for thread in threads:
        thread.join()


def test_a_picture_that_kills_its_actor_is_tried_once_more_and_then_named(
    nodes, upscale, tiny, tmp_path, kill
):
    for name in ("once/large.jpg", "always/large.jpg", *(f"{number}.jpg" for number in range(300))):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        side = 700 if "large" in name else 8
        save_photograph(tmp_path / "in" / name, side, side)
    out = tmp_path / "out"
    once, always = kill(out / "once", 1), kill(out / "always", 9)
    code, _, err = upscale(
        tmp_path / "in", f"--weights={tiny}", "--precision=float32", f"--out_dir={out}",
        f"--ray={nodes.address}",
    )  # fmt: skip
    # Once where the other picture killed the actor that had started both.
    assert code == 1 and len(once) == 1 and len(always) in (1, 2), err
    names = {f"{number}_x4.png" for number in range(300)}
    assert _files(out).keys() == {*names, "once/large_x4.png", "failed.csv"}
    victim = str(tmp_path / "in" / "always" / "large.jpg")
    [_, failed] = _failed(out).items()
    assert failed == (victim, cluster._LOST)
    assert ": ".join(failed) in err


def test_a_killed_driver_leaves_whole_files_and_the_same_command_resumes(
    nodes, upscale, tiny, tmp_path
):
    (tmp_path / "in").mkdir()
    for number in range(8):
        save_photograph(tmp_path / "in" / f"{number}.jpg", 300, 300, seed=number)
    flags = [str(tmp_path / "in"), f"--weights={tiny}", "--precision=float32"]
    out = tmp_path / "out"
    on_cluster = [*flags, f"--out_dir={out}", f"--ray={nodes.address}"]
    driver = subprocess.Popen([sys.executable, "upscale.py", *on_cluster], cwd=ROOT)
    deadline = time.monotonic() + 120
    while not list(out.glob("[0-9]*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    left = {name: data for name, data in _files(out).items() if not name.startswith(".")}
    assert 0 < len(left) < 8
    upscale(*flags, f"--out_dir={tmp_path / 'plain'}")
    plain = _files(tmp_path / "plain")
    assert left.items() <= plain.items()
    (out / "failed.csv").write_text("of an earlier run")
    before = {path: path.stat().st_mtime_ns for path in out.glob("[0-9]*")}
    code, said, err = upscale(*on_cluster)
    assert code == 0 and f"{len(before)} of 8 skipped: already there" in said, err
    assert _files(out) == plain
    assert before == {path: path.stat().st_mtime_ns for path in before}
    code, said, _ = upscale(*on_cluster)
    assert code == 0 and "8 of 8 skipped: already there" in said


def test_an_unusable_cluster_or_store_is_one_line(nodes, upscale, tiny, tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.jpg", 20, 20)
    monkeypatch.chdir(tmp_path)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        port = silent.getsockname()[1]
        for flags, message in (
            (["--out_dir=out", f"--ray=127.0.0.1:{port}"], "nothing answers (Connection refused)"),
            (["--out_dir=out", "--ray=here"], "--ray=here: give local, auto or the HOST:PORT"),
            (["--out_dir=out", "--ray=ray://here:1"], "give local, auto or the HOST:PORT"),
            (["--ray=local"], "--ray writes all results to one folder: give --out_dir"),
            (["--ray_cpus=2"], "--ray_cpus is for --ray"),
            (
                ["--out_dir=a.jpg/in", f"--ray={nodes.address}"],
                "a.jpg/in: cannot be written to (Not a directory)",
            ),
            (["--out_dir=out", f"--ray={nodes.address}", "--ray_cpus=3"], "the 3 CPUs of"),
            (
                ["--out_dir=out", f"--ray={nodes.address}", "--tile=9"],
                "): tiles of 9 pixels are too small",
            ),
        ):
            code, _, err = upscale("a.jpg", f"--weights={tiny}", "--precision=float32", *flags)
            assert code == 1 and message in err, flags
            assert err.startswith("error: ") and err.count("\n") == 1, err
    assert _files(tmp_path).keys() == {"a.jpg"}


def test_a_cluster_that_breaks_is_one_line(monkeypatch):
    monkeypatch.setattr(ray, "init", lambda *_, **__: None)
    message = "^--ray=local: no room; finished pictures stay, and the same command resumes$"
    with pytest.raises(ValueError, match=message), cluster._connected("local"):
        raise ray.exceptions.ObjectStoreFullError("no room\nmore lines")


@pytest.mark.slow
def test_ten_thousand_pictures_become_the_files_of_a_plain_run_with_and_without_a_killed_node():
    subprocess.run([sys.executable, "benchmarks/fleet.py", "--rounds=1"], cwd=ROOT, check=True)


def test_a_node_with_another_version_of_a_package_is_named(nodes, upscale, tiny, tmp_path):
    save_photograph(tmp_path / "a.jpg", 20, 20)
    metadata = tmp_path / "other" / "pillow-1.2.3.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: pillow\nVersion: 1.2.3\n")
    other = nodes.add_node(num_cpus=1, env_vars={"PYTHONPATH": str(tmp_path / "other")})
    try:
        code, _, err = upscale(
            tmp_path / "a.jpg", f"--weights={tiny}", f"--out_dir={tmp_path / 'out'}",
            f"--ray={nodes.address}",
        )  # fmt: skip
    finally:
        nodes.remove_node(other)
    assert code == 1 and err.startswith("error: node ") and err.count("\n") == 1, err
    assert f"has pillow 1.2.3 instead of {Image.__version__}: install the same" in err
    assert not _files(tmp_path / "out")


def test_without_ray_a_line_says_how_to_install_it(upscale, tmp_path, monkeypatch):
    save_photograph(tmp_path / "a.jpg", 20, 20)
    monkeypatch.delitem(sys.modules, "srgan_tf.photos.cluster")
    monkeypatch.delattr("srgan_tf.photos.cluster")
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = upscale(tmp_path / "a.jpg", f"--out_dir={tmp_path / 'out'}", "--ray=local")
    assert code == 1 and err.count("\n") == 1
    assert err.endswith("pip install -r requirements-cluster.txt\n")
