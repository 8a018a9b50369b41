"""Training on several machines, as several processes on this one."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, save_photograph

TINY = [
    "--residual_blocks=1",
    "--filters=8",
    "--crop_size=32",
    "--batch_size=6",
    "--val_pictures=1",
    "--content_loss=mse",
    "--adversarial_weight=1e-3",
    "--init_generator=none",
    "--novalidate_lpips",
    "--log_every=1",
    "--checkpoint_every=10",
    "--keep_checkpoints=10",
    "--steps=60",
]


def free_addresses(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("localhost", 0))
        return [f"localhost:{each.getsockname()[1]}" for each in sockets]


class Worker:
    """A train.py that is one task of a cluster, and what it has printed."""

    def __init__(self, addresses, index, temporary, *flags, **environment):
        temporary.mkdir(exist_ok=True)
        self.temporary = temporary
        task = {"type": "worker", "index": index}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        inherited = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "train.py", *TINY, *map(str, flags)],
            env=inherited | {"TF_CONFIG": cluster, "TMPDIR": str(temporary)} | environment,
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip())

    def wait_for(self, start):
        while not any(line.startswith(start) for line in self.lines):
            assert self.process.poll() is None, self.lines
            time.sleep(0.01)

    def end(self, code):
        """Waits for the end, asserts its code, and returns the lines that report its reason."""
        assert self.process.wait(timeout=600) == code, self.lines
        self.reader.join()
        # Lines of the run, which the chief alone prints, begin with the step.
        return [line for line in self.lines if line and not line.startswith("step ")]


@pytest.fixture
def start(tmp_path):
    """Starts tasks: (count, flags, {index: more flags}, {index: environment}) to the `Worker`s."""
    started = []

    def start(count, *flags, more=None, environment=None, addresses=None, missing=()):
        addresses = addresses or free_addresses(count)
        workers = [
            Worker(
                addresses,
                index,
                tmp_path / f"tmp{len(started) + index}",
                *flags,
                *(more or {}).get(index, ()),
                **(environment or {}).get(index, {}),
            )
            for index in range(count)
            if index not in missing
        ]
        started.extend(workers)
        return addresses, workers

    yield start
    for worker in started:
        worker.process.kill()
        worker.process.wait()


def checkpoint_arrays(path):
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(path))
    names = [n for n in reader.get_variable_to_shape_map() if n != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    return {name: reader.get_tensor(name) for name in names}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "killed"), [(2, 1), (2, 0), (3, 0), (3, 2)])
def test_a_lost_worker_is_named_and_the_run_resumes_bit_for_bit(
    count, killed, start, photo_folder, tmp_path
):
    flags = [f"--train_data={photo_folder}", f"--run_dir={tmp_path}/run"]
    # A folder of its own shows what another task than the chief writes.
    elsewhere = {1: [f"--run_dir={tmp_path}/elsewhere"]}
    addresses, workers = start(count, *flags, more=elsewhere)
    workers[0].wait_for("step 25/")
    workers[killed].process.kill()
    began = time.monotonic()
    for index, worker in enumerate(workers):
        if index != killed:
            (line,) = worker.end(1)
            assert line.startswith(f"error: worker {killed} ({addresses[killed]}) was lost (")
            assert line.endswith("; the same command on every machine resumes from the last "
                                 "checkpoint")  # fmt: skip
            assert not list(worker.temporary.iterdir())
    assert time.monotonic() - began < 120
    assert not (tmp_path / "elsewhere").exists()

    # Up to the kill nothing had stopped the run. Back at step 10, it must make step 20 again.
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints, tmp_path / "before")
    for path in checkpoints.glob("ckpt-[2-9]0.*"):
        path.unlink()
    _, workers = start(count, *flags)
    assert [worker.end(0) for worker in workers] == count * [[]]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert [each["step"] for each in record["went_on"]] == [10]
    before, again = (checkpoint_arrays(at / "ckpt-20") for at in (tmp_path / "before", checkpoints))
    assert before.keys() == again.keys()
    for name in before:
        assert np.array_equal(before[name], again[name]), name
    assert (tmp_path / "run" / "generator.weights.h5").exists()
    assert not any(list(worker.temporary.iterdir()) for worker in workers)


@pytest.mark.parametrize(
    ("addresses", "message"),
    [
        ({"worker": ["a:1", "a:1"]}, '"a:1" is in the cluster twice'),
        ({"ps": ["a:1"], "worker": ["b:1"]}, '"ps" of the cluster: train.py has only "chief" and'),
    ],
)
def test_a_cluster_that_cannot_train_is_refused(addresses, message, monkeypatch):
    from srgan_tf.training import cluster

    given = {"cluster": addresses, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(given))
    with pytest.raises(ValueError, match=f"^TF_CONFIG: {message}"):
        cluster.join()


def test_another_flag_and_another_version_are_refused_by_name(start, photo_folder, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(
        "import importlib.metadata as m\n"
        "version = m.version\n"
        "m.version = lambda name: '3.0' if name == 'keras' else version(name)\n"
    )
    _, workers = start(
        2,
        f"--train_data={photo_folder}",
        f"--run_dir={tmp_path}/run",
        more={1: ["--learning_rate=1e-3", "--cache"]},
        environment={1: {"PYTHONPATH": str(tmp_path)}},
    )
    lines = [worker.end(1) for worker in workers]
    import keras

    assert lines == 2 * [[
        "error: the machines do not agree: worker 1 has --learning_rate=0.001, the chief 0.0001; "
        f"worker 1 has keras 3.0, the chief {keras.__version__}"
    ]]  # fmt: skip
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_other_pictures_and_another_run_folder_are_refused_by_name(start, photo_folder, tmp_path):
    (tmp_path / "photos").mkdir()
    for number in range(8):
        save_photograph(tmp_path / "photos" / f"{number}.png", 64, 64 + number, seed=number)
    flags = [f"--train_data={photo_folder}", f"--run_dir={tmp_path}/run"]
    _, workers = start(2, *flags, more={1: [f"--train_data={tmp_path}/photos"]})
    lines = [worker.end(1) for worker in workers]
    assert lines[0] == lines[1]
    expected = r"error: .*: worker 1 has training pictures 7 \(\w+\), the chief 19 \(\w+\); .*"
    assert re.fullmatch(expected, *lines[0])
    assert not (tmp_path / "run").exists()

    _, workers = start(2, *flags, more={0: ["--steps=10"], 1: ["--steps=10"]})
    assert [worker.end(0) for worker in workers] == [[], []]
    _, workers = start(2, *flags, more={1: [f"--run_dir={tmp_path}/elsewhere"]})
    lines = [worker.end(1) for worker in workers]
    assert lines[0] == lines[1]
    assert "worker 1 has a start at step 0, the chief 10; worker 1 has weights " in lines[0][0]
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_worker_that_never_starts_is_named(start, photo_folder, tmp_path):
    flags = [f"--train_data={photo_folder}", f"--run_dir={tmp_path}/run"]
    began = time.monotonic()
    one, (chief,) = start(2, *flags, missing=[1])
    two, (other,) = start(2, *flags, missing=[0])
    nowhere = [*free_addresses(1), "nowhere.invalid:2222"]
    _, (third,) = start(2, *flags, addresses=nowhere, missing=[1])
    for worker, missing in (
        (chief, f"worker 1 ({one[1]}) did not start in 80 s (Connection refused)"),
        (other, f"worker 0 ({two[0]}) did not start in 80 s (Connection refused)"),
        (third, "worker 1 (nowhere.invalid:2222) did not start in 80 s (Name or service"),
    ):
        (line,) = worker.end(1)
        assert line.startswith(f"error: {missing}")
        assert not list(worker.temporary.iterdir())
    assert time.monotonic() - began < 150
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_machines_that_do_not_find_each_other_are_told_why(start, photo_folder, tmp_path):
    # Both tasks took themselves for the second, or the first port is another program's.
    with socket.create_server(("localhost", 0)) as other:
        addresses = [f"localhost:{other.getsockname()[1]}", *free_addresses(1)]
        _, (worker,) = start(2, f"--run_dir={tmp_path}/run", addresses=addresses, missing=[0])
        (line,) = worker.end(1)
    assert line.startswith("error: TF_CONFIG: ") and "task of its own" in line, line


@pytest.fixture
def stopped_worker(start, photo_folder, tmp_path):
    """Starts two workers and stops the second in the middle of the run."""
    addresses, workers = start(2, f"--train_data={photo_folder}", f"--run_dir={tmp_path}/run")
    workers[0].wait_for("step 25/")
    workers[1].process.send_signal(signal.SIGSTOP)
    return addresses, workers


@pytest.mark.slow
def test_a_slow_worker_is_not_taken_for_a_lost_one(stopped_worker):
    _, workers = stopped_worker
    time.sleep(20)
    workers[1].process.send_signal(signal.SIGCONT)
    assert [worker.end(0) for worker in workers] == [[], []]


@pytest.mark.slow
def test_a_worker_that_hangs_is_named(stopped_worker):
    addresses, workers = stopped_worker
    began = time.monotonic()
    (line,) = workers[0].end(1)
    assert time.monotonic() - began < 120
    assert line.startswith(f"error: worker 1 ({addresses[1]}) does not answer;")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_signal_to_one_worker_stops_all_after_a_checkpoint(index, start, photo_folder, tmp_path):
    flags = [f"--train_data={photo_folder}", f"--run_dir={tmp_path}/run"]
    _, workers = start(2, *flags)
    workers[0].wait_for("step 25/")
    workers[index].process.send_signal(signal.SIGTERM)
    for worker in workers:
        lines = worker.end(128 + signal.SIGTERM)
        step = re.match(r"stopped at step (\d+): the same command resumes", lines[-1])[1]
        assert (tmp_path / "run" / "checkpoints" / f"ckpt-{step}.index").exists()
