"""Training on several machines: joining, losing a machine, agreeing on one run, ending together.

When a machine is lost, TensorFlow stops a collective operation with an obscure error, or not at all
if the main thread does something else. So each task also probes the ports of the others. A port
accepts connections as long as its process lives, however busy that is.
"""

import atexit
import contextlib
import json
import logging
import os
import queue
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

# TensorFlow has no public switch for its coordination service and for the time it waits to join.
from tensorflow.python.distribute.collective_all_reduce_strategy import CollectiveAllReduceExtended
from tensorflow.python.eager import context

from srgan_tf import files

# Seconds within which the other tasks must start, or the run ends.
ARRIVAL_SECONDS = 80
# Seconds between two probes of a task, and the timeout of a probe.
PROBE_SECONDS = 5
# A task that fails this many probes in a row is lost.
TRIES = 3
# A task may be stopped for three times this long, for example by a debugger, with its port open.
ANSWER_SECONDS = 20
# Seconds that the main thread has to end by itself, if it does not hang in TensorFlow.
GRACE_SECONDS = 10

# The other tasks by device, as "worker 1 (host:port)"; empty where there are none to wait for.
_peers: dict[str, str] = {}
# What is wrong with those that fail their probes.
_missing: dict[str, str] = {}
# The line to end with, for whoever reports it first. The lock is never released, so there is one.
_verdict: queue.SimpleQueue[str] = queue.SimpleQueue()
_judged = threading.Lock()


def join() -> tf.distribute.Strategy:
    """Waits for the other tasks of TF_CONFIG and joins them.

    From then on until `leave`, the loss of another task ends this process with one line.

    Returns:
        The strategy of the cluster.

    Raises:
        ValueError: TF_CONFIG describes no cluster with this machine in it, or its port cannot be
            opened; one line.
    """
    cluster, own = _cluster(os.environ["TF_CONFIG"])
    addresses = {(kind, index): address
                 for kind in cluster for index, address in enumerate(cluster[kind])}  # fmt: skip
    addresses.pop(own)
    for (kind, index), address in addresses.items():
        _peers[f"/job:{kind}/replica:0/task:{index}"] = f"{kind} {index} ({address})"
    # TensorFlow removes its generated code only if the interpreter exits normally.
    tempfile.tempdir = temporary = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    for name, address in zip(_peers.values(), addresses.values(), strict=True):
        threading.Thread(target=_watch, args=(name, address, temporary), daemon=True).start()
    # The coordination service holds Python's lock while it waits for tasks that never start.
    # Without it, TensorFlow checks the health of processes itself and logs that in many lines.
    context.context().configure_coordination_service("")
    tf.get_logger().setLevel(logging.CRITICAL)
    # Longer than `_watch` takes to name a task that did not start.
    timeout = ARRIVAL_SECONDS + 4 * PROBE_SECONDS
    CollectiveAllReduceExtended._check_health_initial_timeout = timeout
    # A process waits one interval when it ends. A task is checked three times before it is lost.
    CollectiveAllReduceExtended._check_health_interval = PROBE_SECONDS
    CollectiveAllReduceExtended._check_health_timeout = ANSWER_SECONDS
    with files.naming("TF_CONFIG", "the cluster cannot be joined"), naming_the_lost():
        try:
            return tf.distribute.MultiWorkerMirroredStrategy()
        except RuntimeError as error:
            if "Timeout" not in str(error):
                raise
            # All ports are open, so some machines have the same task, or another cluster.
            raise ValueError(
                f"the machines did not find each other in {timeout} s: each needs the same cluster"
                " and its own task"
            ) from error


def _cluster(text: str) -> tuple[dict[str, list[str]], tuple[str, int]]:
    """Parses a TF_CONFIG: the addresses by type, and this machine's type and index.

    Raises:
        ValueError: It is not what TensorFlow's guide asks for; one line.
    """

    def wrong(what):
        return ValueError(f"TF_CONFIG: {what}")

    try:
        given = json.loads(text)
    except ValueError as error:
        raise wrong(f"not JSON ({error})") from error
    cluster, task = (given.get(key) if isinstance(given, dict) else None
                     for key in ("cluster", "task"))  # fmt: skip
    if not isinstance(cluster, dict) or not cluster:
        raise wrong('no "cluster" of addresses by type, such as {"worker": ["host:port"]}')
    seen = set()
    for kind, addresses in cluster.items():
        if kind not in ("chief", "worker"):
            raise wrong(f'"{kind}" of the cluster: train.py has only "chief" and "worker"')
        if not isinstance(addresses, list) or not addresses:
            raise wrong(f'"{kind}" of the cluster is not a list of addresses')
        for address in addresses:
            host, _, port = str(address).rpartition(":")
            if not (host and port.isdecimal() and 0 < int(port) < 65536):
                raise wrong(f'"{address}" is not of the form host:port, with a port below 65536')
            if address in seen:
                raise wrong(f'"{address}" is in the cluster twice')
            seen.add(address)
    if not isinstance(task, dict) or not {"type", "index"} <= task.keys():
        raise wrong('no "task" with the type and index of this machine')
    kind, index = task["type"], task["index"]
    if not isinstance(kind, str) or kind not in cluster:
        raise wrong(f'task type "{kind}" is not in the cluster, which has {", ".join(cluster)}')
    if not str(index).isdecimal() or int(index) >= len(cluster[kind]):
        raise wrong(f'task index {index} is not below {len(cluster[kind])}, the number of "{kind}"')
    return cluster, (kind, int(index))


def _watch(name: str, address: str, temporary: str) -> None:
    """Probes a task's port until `leave`; ends this process if the task is lost."""
    host, _, port = address.rpartition(":")
    has_started, began, failures = False, time.monotonic(), 0
    while _peers:
        try:
            socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
        except (OSError, UnicodeError) as error:  # UnicodeError: not a name of a host
            failures += 1
            if failures >= TRIES:
                what = "was lost" if has_started else f"did not start in {ARRIVAL_SECONDS} s"
                _missing[name] = f"{name} {what} ({files.one_line(error)})"
                if has_started or time.monotonic() - began > ARRIVAL_SECONDS:
                    _end(temporary)
        else:
            has_started, failures = True, 0
            _missing.pop(name, None)
        time.sleep(PROBE_SECONDS)


def _end(temporary: str) -> None:
    """Ends this process with one line, even if its main thread hangs in TensorFlow."""
    if not _judged.acquire(blocking=False):
        return
    _verdict.put("; ".join(_missing.values()))
    time.sleep(GRACE_SECONDS)
    with contextlib.suppress(queue.Empty):
        print(f"error: {_resumable(_verdict.get_nowait())}", file=sys.stderr, flush=True)
    shutil.rmtree(temporary, ignore_errors=True)
    os._exit(1)


def _resumable(line: str) -> str:
    return f"{line}; the same command on every machine resumes from the last checkpoint"


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Turns TensorFlow's error about a lost task into one line that names the task.

    Raises:
        ValueError: A task was lost.
    """
    try:
        yield
    except (
        tf.errors.UnavailableError,
        tf.errors.FailedPreconditionError,  # the task has been started again
        tf.errors.DeadlineExceededError,
    ) as error:
        if not _peers:
            raise
        try:
            line = _verdict.get(timeout=(TRIES + 1) * 2 * PROBE_SECONDS)
        except queue.Empty:  # its port is open: it was started again, or it is stopped
            named = [name for device, name in _peers.items() if device in error.message]
            if not named:
                raise
            line = f"{named[0]} does not answer"
            _peers.clear()  # this line is the only one
        raise ValueError(_resumable(line)) from error


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Tells whether this task is the one that writes; True if there is only one machine."""
    return _task(strategy) == _chief(strategy)


def _task(strategy) -> str:
    """Returns this task's name, such as "worker 1"."""
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return "chief 0"
    return f"{resolver.task_type} {resolver.task_id}"


def _chief(strategy) -> str:
    resolver = strategy.cluster_resolver
    if resolver is None or resolver.task_type is None:
        return "chief 0"
    return "chief 0" if "chief" in resolver.cluster_spec().as_dict() else "worker 0"


def agree(strategy: tf.distribute.Strategy, facts: dict[str, object]) -> None:
    """Compares this task's facts with the other tasks' facts.

    Args:
        strategy: The run's.
        facts: JSON values by the text to print before them, such as "--steps=".

    Raises:
        ValueError: They differ; one line, the same on every machine, that names each difference.
    """
    if not _peers:
        return
    texts = _gather(strategy, json.dumps([_task(strategy), facts]))
    facts_of = dict(json.loads(text) for text in texts)
    chiefs = facts_of[_chief(strategy)]
    differences = [
        f"{task} has {label}{others[label]}, the chief {chiefs[label]}"
        for task, others in facts_of.items()
        for label in chiefs
        if others[label] != chiefs[label]
    ]
    if differences:
        _peers.clear()  # all end now, some earlier than others
        raise ValueError(f"the machines do not agree: {'; '.join(differences)}")


def _gather(strategy: tf.distribute.Strategy, line: str = "") -> list[str]:
    """Returns the lines of all tasks, once each has called this."""
    # float32, because all libraries for communication between GPUs support it.
    codes = tf.constant(list(f"{line}\n".encode()), tf.float32)
    values = strategy.experimental_distribute_values_from_function(lambda _: codes)
    return bytes(strategy.gather(values, axis=0).numpy().astype(np.uint8)).decode().splitlines()


@contextlib.contextmanager
def chief_first(strategy: tf.distribute.Strategy) -> Iterator[None]:
    """Runs its body first on the chief, then on the others, which find what the chief cached."""
    if _peers and not is_chief(strategy):
        _gather(strategy)
    yield
    if _peers and is_chief(strategy):
        _gather(strategy)


def leave(strategy: tf.distribute.Strategy) -> None:
    """Waits until all tasks have reached the same end; from then on none counts as lost."""
    if _peers:
        _gather(strategy)
        _peers.clear()
