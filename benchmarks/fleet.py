r"""Compares upscale.py --ray with a run without Ray: the same files, speed, memory.

    python benchmarks/fleet.py

Many small pictures, crops of sample photographs, are upscaled without Ray, with --ray=local, and on
three simulated nodes of this machine, one of which is killed halfway. Speed is that between the
first twentieth of the results and the last one, by the times of the files. The memory of the driver
and of Ray's object store is also measured for a tenth of the pictures. Runs with and without Ray
take turns, and the median of their ratios is printed. Exit code: 1 if a run ends with other files
than the first.
"""

import contextlib
import filecmp
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# From a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import turns
from absl import app, flags
from PIL import Image

from srgan_tf import pictures

ROOT = Path(__file__).parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_integer("count", 10_000, "Pictures.", lower_bound=4)
flags.DEFINE_integer("side", 24, "Height and width of each, in pixels.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Times that runs with and without Ray take turns.", lower_bound=1)
flags.DEFINE_bool("nodes", True, "Also run on three simulated nodes.")
flags.DEFINE_float("detail", 0.5, "As in upscale.py; 0 and 1 take half the time.")

_IN_A_FOLDER = 1000
_MEGABYTE = 2**20


class Run(NamedTuple):
    """What a run took.

    Attributes:
        speed: Pictures per second, once it had started.
        driver: The driver's peak memory in MB.
        store: The peak of what Ray's object stores hold, in MB.
    """

    speed: float
    driver: float
    store: float


def make_pictures(folder: Path, count: int, side: int) -> None:
    """Cuts squares out of sample photographs at random, alternately PNG and JPEG.

    Photographs that are too small are enlarged first.
    """
    rng = np.random.default_rng(0)
    photographs = []
    for path in pictures.sample_pictures():
        photograph = Image.fromarray(pictures.read_rgb(path))
        factor = max((side + 1) / min(photograph.size), 1)
        size = [math.ceil(factor * length) for length in photograph.size]
        photographs.append(np.asarray(photograph.resize(size, Image.Resampling.BICUBIC)))
    for number in range(count):
        photograph = photographs[number % len(photographs)]
        top, left = (rng.integers(0, length - side) for length in photograph.shape[:2])
        path = folder / f"{number // _IN_A_FOLDER}" / f"{number}.{('png', 'jpg')[number % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph[top : top + side, left : left + side]).save(path, quality=95)


def results(folder: Path) -> list[Path]:
    """Lists all files of a folder, in the order in which they were written."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)


def upscaled(
    given: Path, out: Path, *arguments: str, halfway: Callable[[], None] = lambda: None
) -> Run:
    """Runs upscale.py and watches it.

    Args:
        given: The folder of the pictures.
        out: The folder for the results, which is emptied.
        *arguments: More flags.
        halfway: Called once, when half of the results are there.

    Raises:
        SystemExit: It failed.
    """
    shutil.rmtree(out, ignore_errors=True)
    total = len(results(given))
    command = [sys.executable, str(ROOT / "upscale.py"), str(given), f"--out_dir={out}"]
    command += [f"--detail={FLAGS.detail}", *arguments]
    driver = store = 0.0
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        waiting = True
        while process.poll() is None:
            driver = max(driver, _megabytes(process.pid, "VmHWM"))
            store = max(store, sum(_megabytes(each, "RssShmem") for each in _processes("raylet")))
            if waiting and sum(len(names) for _, _, names in os.walk(out)) > total / 2:
                waiting = False
                halfway()
            time.sleep(1)
        log.seek(0)
        if process.returncode:
            raise SystemExit(f"error: {' '.join(arguments)}: {turns.last_line(log.read())}")
    done = [path.stat().st_mtime for path in results(out)]
    first = len(done) // 20
    return Run((len(done) - 1 - first) / (done[-1] - done[first]), driver, store)


def _processes(name: str) -> Iterator[int]:
    for path in Path("/proc").glob("[0-9]*/comm"):
        with contextlib.suppress(OSError):
            if path.read_text().strip() == name:
                yield int(path.parent.name)


def _megabytes(process: int, key: str) -> float:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(key):
                return int(line.split()[1]) * 1024 / _MEGABYTE
    return 0.0


def differing(one: Path, other: Path) -> list[str]:
    """Lists the files that only one folder has, or that differ."""
    names = {path.relative_to(folder) for folder in (one, other) for path in results(folder)}
    _, different, missing = filecmp.cmpfiles(one, other, sorted(map(str, names)), shallow=False)
    return different + missing


def on_three_nodes(given: Path, out: Path) -> Run:
    """Upscales on three nodes of one CPU, one of which is killed halfway."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 * _MEGABYTE}
    head = {"include_dashboard": False, "_system_config": {"worker_niceness": 0}}
    cluster = Cluster(initialize_head=True, head_node_args=options | head)
    try:
        cluster.add_node(**options)
        victim = cluster.add_node(**options)
        return upscaled(
            given,
            out,
            f"--ray={cluster.address}",
            halfway=lambda: cluster.remove_node(victim, allow_graceful=False),
        )
    finally:
        cluster.shutdown()


def row(name: str, run: Run, ratio: str = "") -> None:
    """Prints a line of the table."""
    print(f"{name:28}{run.speed:>12.1f}{ratio:>8}{run.driver:>11.0f}{run.store:>10.0f}", flush=True)


def main(_) -> int:
    """Runs all and prints one table."""
    print(turns.machine())
    print(f"{FLAGS.count} pictures of {FLAGS.side}x{FLAGS.side}")
    print(f"{'':28}{'pictures/s':>12}{'ratio':>8}{'driver MB':>11}{'store MB':>10}")
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        few, given, plain, out = (Path(folder, name) for name in ("few", "given", "plain", "out"))
        make_pictures(given, FLAGS.count, FLAGS.side)
        make_pictures(few, max(FLAGS.count // 10, 2), FLAGS.side)
        upscaled(few, out)  # makes the fast forms
        row("--ray=local, a tenth", upscaled(few, out, "--ray=local"))
        ratios = []
        for _ in range(FLAGS.rounds):
            alone = upscaled(given, plain)
            row("without Ray", alone)
            run = upscaled(given, out, "--ray=local")
            ratios.append(run.speed / alone.speed)
            row("--ray=local", run, f"{ratios[-1]:.2f}")
            wrong += differing(plain, out)
        print(f"median ratio of --ray=local: {statistics.median(ratios):.2f}")
        if FLAGS.nodes:
            run = on_three_nodes(given, out)
            row("three nodes, one killed", run, f"{run.speed / alone.speed:.2f}")
            wrong += differing(plain, out)
    for name in wrong[:10]:
        print(f"{name}: differs", file=sys.stderr)
    print(f"{len(wrong)} files differ" if wrong else "all runs wrote the same files")
    return 1 if wrong else 0


if __name__ == "__main__":
    app.run(main)
