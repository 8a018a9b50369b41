"""Upscales pictures on a Ray cluster, into the files of a run without Ray.

Ray Data schedules, retries and scales. Its blocks hold names only: pictures never pass through
Ray's object store. Actors return the errors of pictures as results, because an exception would
cost Ray a whole task.
"""

import contextlib
import csv
import functools
import importlib.metadata
import io
import itertools
import logging
import math
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.fs
import ray
import ray.data
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

import srgan_tf
from srgan_tf import command_line, files, upscaling
from srgan_tf.photos import enlarge, fastest, listing, photographs, stores

# Names the pictures that failed, in the folder of the results.
FAILED = "failed.csv"
# A task costs Ray 10 ms and more. Within a task, each report covers a few pictures.
_MOST_IN_A_TASK = 256
_MOST_IN_A_REPORT = 32
_MOST_PASSES = 4
_NAMES_IN_A_BLOCK = 10_000
_MOST_CPUS = 8
# Both networks with the default tile, and two photographs of 24 megapixels.
_MEMORY = 2 * 2**30
_OBJECT_STORE = 128 * 2**20  # holds names only
_SECONDS_TO_ANSWER = 15
# What decides the bytes of a result, besides Python. Ray compares its own version.
_PACKAGES = ("numpy", "pillow", "openvino", "tifffile", "imagecodecs")
_LOST = "its process ended, though nothing ran beside it: too little memory, or a broken node"


class Options(NamedTuple):
    """How to upscale, the same for all pictures.

    Attributes:
        spec: The network, as in `fastest.load_network`.
        precision: One of `fastest.PRECISIONS`.
        format: One of `photographs.FORMATS`.
        quality: As in `photographs.open_writer`.
        tile: As in `upscaling.upscale`.
        max_megapixels: As in `photographs.refuse_above`.
        overwrite: Also upscale pictures that already have their result.
    """

    spec: str
    precision: str
    format: str
    quality: int
    tile: int | None
    max_megapixels: float
    overwrite: bool


class _Pool(NamedTuple):
    """The actors that a cluster has room for.

    Attributes:
        nodes: By the identifiers of the nodes that can hold one, their names.
        actors: How many they hold now.
        cpus: Of each actor.
        gpus: Of each actor, 1 or 0.
        memory: What each reserves, in bytes: Ray counts it by node.
        most_memory: That of the largest node.
        tasks: Those that each has or waits for; all of them are lost when it dies.
    """

    nodes: dict[str, str]
    actors: int
    cpus: int
    gpus: int
    memory: float
    most_memory: float
    tasks: int = 2


def run(
    inputs: Sequence[str],
    out_dir: str,
    options: Options,
    *,
    address: str,
    cpus: int | None = None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
    say: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
) -> tuple[int, int]:
    """Upscales pictures on a cluster; the files are those of a run without Ray.

    Args:
        inputs: Files, folders and patterns, or one "@FILE" with a name on each line; local,
            s3://, gs:// or file://.
        out_dir: Where results go, local or remote, and the file `FAILED` if a picture fails.
        options: How to upscale.
        address: Of the cluster, "auto" for this machine's, or "local" for one that ends with it.
        cpus: The CPUs of each actor, which loads the network once; by default those of the
            smallest node, or an equal part of them.
        progress: Receives the fraction done, in 0..1, and counts and speed.
        say: Receives lines that count the skipped pictures.
        note: Receives a line for each picture that failed, and for each loss in others.

    Returns:
        How many pictures failed, and of how many.

    Raises:
        FileNotFoundError, ValueError: The pictures, the folder of the results, the network or the
            cluster cannot be used; one line.
    """
    _check_address(address)
    out_dir = stores.plain(out_dir)
    jobs = listing.jobs(
        inputs, out_dir, format=options.format, overwrite=options.overwrite, say=say
    )
    tables = list(_tables(jobs))
    total = sum(map(len, tables))
    failed_file = stores.join(out_dir, FAILED)
    if stores.exists(failed_file):  # of an earlier run
        stores.remove(failed_file)
    if not total:
        return 0, 0
    started, reported = np.zeros([2, total], bool)
    failures, done = [], 0

    def receive(reports: Iterable[dict]) -> None:
        nonlocal done
        start = None
        for report in reports:
            started[report["started"]] = True
            reported[report["done"]] = True
            done += len(report["done"])
            for line in report["notes"]:
                note(os.fsdecode(line))
            for name, reason in zip(report["failed"], report["reasons"], strict=True):
                failures.append((os.fsdecode(name), os.fsdecode(reason)))
            if not report["done"]:  # an actor has only begun
                continue
            start = start or (time.monotonic(), done)
            rate = (done - start[1]) / max(time.monotonic() - start[0], 1e-3)
            counts = f"{done - len(failures)} done, {len(failures)} failed"
            progress(done / total, f"{counts}, {rate:.1f} pictures/s")

    def upscale(waiting: list[pa.Table], pool: _Pool, most_in_a_task: int) -> list[pa.Table]:
        """Upscales pictures and returns those that were lost with their actors."""
        lost = waiting
        for _ in range(_MOST_PASSES):
            if not waiting:
                break
            size = sum(map(len, waiting)) // (8 * pool.actors)
            size = max(1, min(size, most_in_a_task))
            receive(_upscaled(waiting, size, pool, actor))
            lost = _unreported(lost, reported, options.overwrite)
            # For a while Ray gives a dead actor more tasks. They are lost, but were never started.
            waiting = _chosen(lost, ~started)
        return lost

    with contextlib.ExitStack() as stack:
        staging = stack.enter_context(contextlib.ExitStack())
        token = staging.enter_context(stores.token(out_dir))
        stack.enter_context(_connected(address))
        pool = _pool(cpus)
        first = os.fsdecode(tables[0]["source"][0].as_py())
        shared = list(filter(stores.exists, [token, first]))  # a list may name what does not exist
        precisions = _check_nodes(pool, options, out_dir, shared)
        staging.close()
        actor = {
            "options": options,
            "folder": os.getcwd(),
            "threads": pool.cpus,
            "precisions": precisions,
        }
        progress(0.0, "")  # starts the clock of a bar
        try:
            lost = upscale(tables, pool, _MOST_IN_A_TASK)
            for table in lost:
                started[table["number"].to_numpy()] = False
            alone = pool._replace(actors=len(pool.nodes), memory=pool.most_memory, tasks=1)
            for table in upscale(lost, alone, 1):
                for name in map(os.fsdecode, table["source"].to_pylist()):
                    failures.append((name, _LOST))
                    note(f"{name}: {_LOST}")
                for target in map(os.fsdecode, table["target"].to_pylist()):
                    if not stores.is_remote(target):
                        files.clear_leftovers(Path(target).parent)
        finally:
            if failures:
                _write_failed(failed_file, failures)
        progress(1.0, "")
    return len(failures), total


def _upscaled(tables: list[pa.Table], size: int, pool: _Pool, actor: dict) -> Iterator[dict]:
    """Lets Ray Data upscale pictures and yields the rows of `_report`, in any order.

    What a task has not reported when its actor dies is dropped; `run` tries it again.

    Args:
        tables: From `_tables`.
        size: The pictures of a task.
        pool: The actors.
        actor: The arguments of `_Actor`.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1
    # Each row becomes a block, and so a task, and so does what a task returns.
    context.target_max_block_size = context.target_min_block_size = 1
    rows = ray.data.from_arrow(tables).map_batches(
        # Without a CPU: actors that hold all of them would wait for it forever.
        _as_row,
        batch_size=size,
        batch_format="pyarrow",
        num_cpus=0,
    )
    results = rows.map_batches(
        _Actor,
        fn_constructor_kwargs=actor,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(
            min_size=1, initial_size=pool.actors, max_tasks_in_flight_per_actor=pool.tasks
        ),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        memory=pool.memory,
        max_task_retries=0,
    )
    for batch in results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _as_row(task: pa.Table) -> pa.Table:
    """Packs the pictures of a task into one row."""
    return pa.table({name: [task[name].to_pylist()] for name in task.column_names})


class _Actor:
    """Upscales the pictures of its tasks with the network that it loads for the first."""

    def __init__(self, options: Options, folder: str, threads: int, precisions: dict[str, str]):
        """Takes the driver's folder, which relative names start from."""
        _enter(folder)
        self._options, self._threads = options, threads
        photographs.refuse_above(options.max_megapixels)
        self._precision = options.precision
        if options.precision == "auto":
            self._precision = precisions.get(fastest.machine(), "auto")
        self._load = functools.cache(self._load_network)

    def _load_network(self, bits: int) -> tuple[upscaling.Upscaler, str]:
        precision = self._options.precision if bits == 16 else self._precision
        return fastest.load_network(
            self._options.spec, precision=precision, bits=bits, threads=self._threads
        )

    def __call__(self, task: pa.Table) -> Iterator[dict[str, list]]:
        """Upscales the pictures of a task; yields the reports of a few at a time."""
        [row] = task.to_pylist()
        parts = [
            {name: values[start : start + _MOST_IN_A_REPORT] for name, values in row.items()}
            for start in range(0, len(row["number"]), _MOST_IN_A_REPORT)
        ]
        yield _report(parts[0]["number"], [], [], {})
        for part, following in zip(parts, [*parts[1:], {"number": []}], strict=True):
            notes: list[str] = []
            names, targets = (list(map(os.fsdecode, part[key])) for key in ("source", "target"))
            try:
                failures = self._upscale(names, targets, notes.append)
            except Exception as error:  # of the network; an exception would lose the task
                failures = dict.fromkeys(names, files.one_line(error))
                notes += [f"{name}: {reason}" for name, reason in failures.items()]
            yield _report(following["number"], part["number"], notes, failures)

    def _upscale(
        self, names: list[str], targets: list[str], note: Callable[[str], None]
    ) -> dict[str, str]:
        """Upscales pictures, remote ones by copies, and returns why some of them failed."""
        failures: dict[str, str] = {}

        def fail(name: str, reason: str) -> None:
            failures[name] = reason
            note(f"{name}: {reason}")

        with tempfile.TemporaryDirectory() as copies, ThreadPoolExecutor(_MOST_IN_A_REPORT) as pool:
            jobs = {
                enlarge.Job(
                    _path(name, Path(copies, f"{number}")),
                    _path(target, Path(copies, f"{number}_x4")),
                ): (name, target)
                for number, (name, target) in enumerate(zip(names, targets, strict=True))
            }
            remote = [job for job, (name, _) in jobs.items() if stores.is_remote(name)]
            reasons = pool.map(
                stores.fetch, (jobs[j][0] for j in remote), (j.source for j in remote)
            )
            for job, reason in zip(remote, reasons, strict=True):
                if reason:
                    fail(jobs[job][0], reason)
            ready = [job for job, (name, _) in jobs.items() if name not in failures]

            def named(line: str) -> str:
                for job in ready:
                    for path, name in zip(job, jobs[job], strict=True):
                        line = line.replace(str(path), name)
                return line

            failed = enlarge.run(
                ready,
                self._load,
                format=self._options.format,
                quality=self._options.quality,
                tile=self._options.tile,
                note=lambda line: note(named(line)),
                threads=self._threads,
            )
            for job, line in failed.items():
                name, _ = jobs[job]
                failures[name] = named(line).removeprefix(f"{name}: ")
            done = [job for job in ready if job not in failed and stores.is_remote(jobs[job][1])]
            reasons = pool.map(stores.put, (job.target for job in done), (jobs[j][1] for j in done))
            for job, reason in zip(done, reasons, strict=True):
                if reason:
                    fail(jobs[job][0], reason)
        return failures


def _report(
    started: list[int], done: list[int], notes: list[str], failures: dict[str, str]
) -> dict[str, list]:
    """Returns a row for the driver: numbers of pictures, notes on those done, why some failed."""
    row = {
        "started": started,
        "done": done,
        "notes": map(os.fsencode, notes),
        "failed": map(os.fsencode, failures),
        "reasons": map(os.fsencode, failures.values()),
    }
    return {name: [list(values)] for name, values in row.items()}


def _path(name: str, folder: Path) -> Path:
    """Returns a local name's path, or that of a copy in a folder, with the name for errors."""
    return Path(folder, stores.split(name)[1]) if stores.is_remote(name) else Path(name)


def _unreported(tables: list[pa.Table], reported: np.ndarray, overwrite: bool) -> list[pa.Table]:
    """Returns what no task reported, without the pictures that have their result nonetheless."""
    lost = _chosen(tables, ~reported)
    if overwrite:
        return lost
    for table in lost:
        there = [stores.exists(os.fsdecode(name)) for name in table["target"].to_pylist()]
        reported[table["number"].to_numpy()[there]] = True
    return _chosen(lost, ~reported)


def _chosen(tables: list[pa.Table], wanted: np.ndarray) -> list[pa.Table]:
    """Returns the pictures whose numbers are wanted."""
    chosen = (table.filter(pa.array(wanted[table["number"].to_numpy()])) for table in tables)
    return [table for table in chosen if len(table)]


def _write_failed(path: str, failures: list[tuple[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("picture", "reason"), *sorted(failures)])
    with files.naming(path, "cannot be written"):
        stores.write(path, text.getvalue().encode(errors="surrogateescape"))


# The cluster


def _check_address(address: str) -> None:
    """Refuses an address where no cluster answers.

    Raises:
        ValueError: Nothing answers, or it is no address.
    """
    if address in ("local", "auto"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        raise ValueError(
            f"--ray={address}: give local, auto or the HOST:PORT of `ray start`, and start the "
            "command on a node of that cluster"
        )
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_ANSWER).close()
    except (OSError, OverflowError) as error:
        raise ValueError(f"--ray={address}: nothing answers ({files.one_line(error)})") from error
    # ray.init waits without end for what accepts a connection and is no cluster.
    status = [sys.executable, "-m", "ray.scripts.scripts", "status", f"--address={address}"]
    try:
        subprocess.run(status, capture_output=True, timeout=_SECONDS_TO_ANSWER)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"--ray={address}: no Ray cluster answers there") from error


@contextlib.contextmanager
def _connected(address: str) -> Iterator[None]:
    """Connects to a cluster, or starts one, without Ray's own output.

    Raises:
        ValueError: It is no cluster that this process can use, or it broke; one line.
    """
    package = Path(srgan_tf.__file__).parent
    with contextlib.ExitStack() as stack:
        stack.enter_context(command_line.native_logs_hidden())
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.CRITICAL)
        options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
        if address == "local":
            search = [str(package.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
            options["runtime_env"] = {"env_vars": {"PYTHONPATH": os.pathsep.join(search)}}
            options |= {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
            # Ray lowers the priority of its workers: beside other work they would come last.
            options["_system_config"] = {"worker_niceness": 0}
        else:
            options["runtime_env"] = {"py_modules": [str(package)]}
        try:
            stack.callback(ray.shutdown)
            ray.init(address, **options)
        except Exception as error:  # Ray raises errors of all kinds, some of many lines
            raise ValueError(f"--ray={address}: {' '.join(str(error).split())}") from error
        try:
            yield
        except (ray.exceptions.RayError, ray.data.exceptions.SystemException) as error:
            reason = files.one_line(getattr(error, "cause", None) or error)
            raise ValueError(
                f"--ray={address}: {reason}; finished pictures stay, and the same command resumes"
            ) from error


def _pool(cpus: int | None) -> _Pool:
    """Sizes the actors for the nodes of the cluster; those without CPUs are left alone.

    Raises:
        ValueError: No node has room for one.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    gpus = int(any(node["Resources"].get("GPU") for node in nodes))
    if gpus:
        nodes = [node for node in nodes if node["Resources"].get("GPU")]
    if cpus is None:
        # An equal part of the smallest node, so that none of its CPUs is left over.
        least = min(
            (node["Resources"]["CPU"] / node["Resources"].get("GPU", 1) for node in nodes),
            default=0,
        )
        cpus = max(1, int(least / math.ceil(least / _MOST_CPUS)) if least else 1)
    nodes = [node for node in nodes if node["Resources"]["CPU"] >= cpus]
    if not nodes:
        raise ValueError(f"no node of the cluster has the {cpus} CPUs of --ray_cpus")
    memories = [node["Resources"]["memory"] for node in nodes]
    memory = min(_MEMORY, *memories)
    room = [
        min(resources["CPU"] // cpus, resources["memory"] // memory, resources.get("GPU", math.inf))
        for resources in (node["Resources"] for node in nodes)
    ]
    return _Pool(
        {
            node["NodeID"]: f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            for node in nodes
        },
        max(1, int(sum(room))),
        cpus,
        gpus,
        memory,
        max(memories),
    )


def _check_nodes(pool: _Pool, options: Options, out_dir: str, shared: list[str]) -> dict[str, str]:
    """Checks that each node can do the work, and builds the fast forms of the network there.

    Returns:
        By `fastest.machine`, the precision that "auto" is there, so that two machines of a kind do
        not choose differently.

    Raises:
        ValueError: A node cannot; one line that names it.
    """
    here, precisions = _versions(), {}
    answers = [
        _look.options(
            num_gpus=pool.gpus, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        ).remote(options, os.getcwd(), here, out_dir, shared)
        for node in pool.nodes
    ]
    for name, answer in zip(pool.nodes.values(), answers, strict=True):
        try:
            problem, machine, precision = ray.get(answer)
        except ray.exceptions.RayError as error:
            problem = files.one_line(getattr(error, "cause", None) or error)
        if problem:
            raise ValueError(f"node {name}: {problem}")
        precisions.setdefault(machine, precision)
    return precisions


@ray.remote(num_cpus=0, max_retries=0)
def _look(
    options: Options, folder: str, wanted: dict[str, str], out_dir: str, shared: list[str]
) -> tuple[str | None, str, str]:
    """Returns what keeps a node from the work, its `fastest.machine` and what "auto" is there.

    Args:
        options: How to upscale.
        folder: The driver's working folder.
        wanted: The driver's `_versions`.
        out_dir: Where results go.
        shared: What the node must see, first a file in `out_dir`.
    """
    found = _versions()
    different = [
        f"{package} {found.get(package, 'missing')} instead of {wanted.get(package, 'none')}"
        for package in {**wanted, **found}
        if found.get(package) != wanted.get(package)
    ]
    if different:
        return f"has {', '.join(different)}: install the same on all nodes", "", ""
    _enter(folder)
    try:
        for name in shared:
            if not stores.exists(name):
                raise ValueError(f"{name}: not found: nodes must share pictures and --out_dir")
        token = f"{shared[0]}-{ray.get_runtime_context().get_node_id()}"
        with files.naming(out_dir, "cannot be written to"):
            stores.write(token, b"")
            stores.remove(token)
        network, precision = fastest.load_network(options.spec, precision=options.precision)
        upscaling.checked_tile(network, options.tile)
    except Exception as error:
        return files.one_line(error), "", ""
    return None, fastest.machine(), "auto" if precision == "as exported" else precision


def _versions() -> dict[str, str]:
    found = {"Python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _enter(folder: str) -> None:
    """Makes the driver's working folder this process', if the node has it."""
    with contextlib.suppress(OSError):
        os.chdir(folder)


def _tables(jobs: Iterable[tuple[str, str]]) -> Iterator[pa.Table]:
    """Numbers pictures and packs their names, which takes a tenth of Python's strings' memory."""
    numbers = itertools.count()
    while part := list(itertools.islice(jobs, _NAMES_IN_A_BLOCK)):
        sources, targets = zip(*part, strict=True)
        yield pa.table(
            {
                "number": pa.array(itertools.islice(numbers, len(part)), pa.int64()),
                "source": pa.array(map(os.fsencode, sources), pa.binary()),
                "target": pa.array(map(os.fsencode, targets), pa.binary()),
            }
        )
