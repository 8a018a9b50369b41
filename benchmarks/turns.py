"""Contenders, each in a process of its own, that take turns: A B C, B C A, and so on.

What else the machine does then hits all of them alike, and none lives on another's threads or
memory, but for what is held `beside` it. A benchmark calls `compare` with commands that call
`serve`.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np


class Result(NamedTuple):
    """What a contender did.

    Attributes:
        seconds: That the work took, in each of its turns.
        megabytes: The most memory that its process held.
        answer: What `serve` was given to compare with others, or None.
        facts: What else it said of itself.
        beside: Seconds of the work beside it, turn by turn, where it has any.
    """

    seconds: list[float]
    megabytes: float
    answer: np.ndarray | None
    facts: dict
    beside: Sequence[float] = ()


def serve(
    work: Callable[[], None],
    answer: np.ndarray | None = None,
    *,
    times: int = 1,
    beside: Callable[[], None] | None = None,
    **facts,
) -> None:
    """Works for each line that comes in and says how long it took; called by a contender.

    Args:
        work: What is measured; it has been run before, so that nothing is left to be prepared.
        answer: To compare with the other contenders' answers.
        times: How often a turn does the work; its seconds are those of once.
        beside: What is held against `work` in the same process: each turn does both, and turns
            alternate in which comes first.
        **facts: For `Result.facts`.
    """
    replies = os.fdopen(int(os.environ["TURNS_REPLIES"]), "w", buffering=1)
    if answer is not None:
        np.save(os.environ["TURNS_ANSWER"], answer)
    print(json.dumps(facts), file=replies)
    works = [work] if beside is None else [work, beside]
    for turn, _ in enumerate(sys.stdin):
        seconds = [0.0] * len(works)
        for which in rotated(list(range(len(works))), turn):
            start = time.perf_counter()
            for _ in range(times):
                works[which]()
            seconds[which] = (time.perf_counter() - start) / times
        print(json.dumps(seconds), file=replies)
    # Not getrusage: its peak is also that of the process which this one was started from.
    status = Path("/proc/self/status").read_text().splitlines()
    kilobytes = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps(kilobytes / 1024), file=replies)


def rotated(items: list, turn: int) -> list:
    """The order in a round: each begins with the item after the one that the last began with."""
    first = turn % max(len(items), 1)
    return items[first:] + items[:first]


def last_line(text: str) -> str:
    """The last line that says something, where an error's reason stands."""
    return ([line for line in text.splitlines() if line.strip()] or ["no word"])[-1]


def compare(commands: dict[str, list[str]], rounds: int) -> dict[str, Result | str]:
    """Lets contenders take turns.

    Args:
        commands: For each name what to run; it must call `serve`.
        rounds: Turns of each.

    Returns:
        The results by name; of a contender that failed, the last line that it wrote.
    """
    with tempfile.TemporaryDirectory() as folder:
        running, results, seconds = {}, {}, {}
        for number, (name, command) in enumerate(commands.items()):
            print(f"preparing {name}", file=sys.stderr, flush=True)
            contender = _start(command, Path(folder, str(number)))
            if (facts := _reply(contender)) is None:
                results[name] = contender.last_words()
            else:
                running[name], seconds[name] = (contender, facts), []
        for turn in range(rounds):
            for name, (contender, _) in rotated(list(running.items()), turn):
                if name in results:
                    continue
                print(f"turn {turn + 1} of {rounds}: {name}", file=sys.stderr, flush=True)
                with contextlib.suppress(BrokenPipeError):  # it is dead: no reply comes
                    contender.process.stdin.write(b"\n")
                    contender.process.stdin.flush()
                took = _reply(contender)
                if took is None:
                    results[name] = contender.last_words()
                else:
                    seconds[name].append(took)
        for name, (contender, facts) in running.items():
            with contextlib.suppress(BrokenPipeError):
                contender.process.stdin.close()
            megabytes = _reply(contender)
            if name not in results and megabytes is None:
                results[name] = contender.last_words()
            elif name not in results:
                answer = contender.answer
                answer = np.load(answer) if answer.exists() else None
                own, *beside = zip(*seconds[name], strict=True)
                results[name] = Result(list(own), megabytes, answer, facts, *map(list, beside))
            contender.process.wait()
    return {name: results[name] for name in commands}


class _Contender(NamedTuple):
    process: subprocess.Popen
    replies: object
    log: Path
    answer: Path

    def last_words(self) -> str:
        return last_line(self.log.read_text(errors="replace"))


def _start(command: list[str], stem: Path) -> _Contender:
    reading, writing = os.pipe()
    log, answer = stem.with_suffix(".log"), stem.with_suffix(".npy")
    environment = os.environ | {"TURNS_REPLIES": str(writing), "TURNS_ANSWER": str(answer)}
    with log.open("w") as words:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=words,
            stderr=words,
            pass_fds=[writing],
            env=environment,
        )
    os.close(writing)
    return _Contender(process, os.fdopen(reading), log, answer)


def _reply(contender: _Contender):
    line = contender.replies.readline()
    return json.loads(line) if line else None


def peak_gflops(dtype: str) -> float:
    """Measures the most GFLOP/s that a contender's library reaches on this machine in one product.

    The products are PyTorch's of large square matrices and OpenVINO's 3x3 convolution of 256
    channels, whose kernels are oneDNN's. The faster depends on the processor.

    Args:
        dtype: "float32", "bfloat16" or "int8" (OpenVINO's only).
    """
    speeds = [_convolution_gflops(dtype)]
    if dtype != "int8":
        import torch

        torch.set_num_threads(os.cpu_count())  # as the contenders do
        size = 3072
        a, b = (torch.rand(size, size, dtype=getattr(torch, dtype)) for _ in range(2))
        speeds.append(2e-9 * size**3 / _least_seconds(lambda: torch.mm(a, b)))
    return max(speeds)


def _convolution_gflops(dtype: str) -> float:
    import openvino
    from openvino import opset13 as ops

    channels, size = 256, 64
    x = lr = ops.parameter([1, channels, size, size], np.float32)
    kernel = np.random.default_rng(1).integers(-127, 128, [channels, channels, 3, 3], np.int8)
    if dtype == "int8":
        ends = [np.float32(end) for end in (0, 1, 0, 1)]
        x = ops.fake_quantize(x, *ends, levels=256)
    weights = ops.multiply(ops.convert(ops.constant(kernel), "f32"), np.float32(1 / 127))
    y = ops.convolution(x, weights, [1, 1], [1, 1], [1, 1], [1, 1])
    hint = "bf16" if dtype == "bfloat16" else "f32"
    options = {"INFERENCE_NUM_THREADS": os.cpu_count(), "INFERENCE_PRECISION_HINT": hint}
    request = openvino.compile_model(openvino.Model([y], [lr]), "CPU", options)
    request = request.create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.ones([1, channels, size, size], np.float32)))
    return 2e-9 * 9 * channels**2 * size**2 / _least_seconds(request.infer)


def _least_seconds(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def machine() -> str:
    """The processor, in a line."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    flags = next(line for line in lines if line.startswith("flags")).split()
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
    return f"{model}, {os.cpu_count()} cores, {' '.join(f for f in wanted if f in flags)}"


def table(results: dict[str, Result | str], ours: str) -> str:
    """Lays results out: medians, the least and the most, the ratio of ours to each.

    Args:
        results: From `compare`. Facts may hold the "gflop" of the work and the "peak" of the
            machine in the contender's precision, see `peak_gflops`.
        ours: Name of the contender that the others are held against.
    """
    lines = [
        f"{'':32}{'median s':>10}{'min':>8}{'max':>8}{'ours/it':>9}{'by round':>10}{'of peak':>9}"
        f"{'MB':>8}"
    ]
    own = results[ours]
    for name, result in results.items():
        if isinstance(result, str):
            lines.append(f"{name:32}failed: {result}")
            continue
        median = float(np.median(result.seconds))
        ratio = by_round = ""
        if name != ours and not isinstance(own, str):
            ratio = f"{np.median(own.seconds) / median:.2f}"
            by_round = f"{np.median(np.divide(own.seconds, result.seconds)):.2f}"
        gflop, peak = (result.facts.get(name) for name in ("gflop", "peak"))
        share = f"{gflop / median / peak:.0%}" if gflop and peak else ""
        lines.append(
            f"{name:32}{median:>10.3f}{min(result.seconds):>8.3f}{max(result.seconds):>8.3f}"
            f"{ratio:>9}{by_round:>10}{share:>9}{result.megabytes:>8.0f}"
        )
    return "\n".join(lines)


def compared(
    results: dict[str, Result | str], ours: str, tolerance: float | np.ndarray
) -> tuple[list[str], list[str]]:
    """Compares all answers with ours: where they differ, the work was not the same.

    Args:
        results: From `compare`.
        ours: The contender that is held for right.
        tolerance: The largest difference of an element; an array has one for each.

    Returns:
        Names of the contenders that agree with ours, and a line for each that does not or that
        has failed.
    """
    agree, lines = [], []
    for name, result in results.items():
        if isinstance(result, str) or isinstance(results[ours], str):
            lines.append(f"{name}: not compared")
        elif name != ours:
            answer, own = result.answer, results[ours].answer
            if np.shape(answer) != np.shape(own):
                lines.append(f"{name}: its answer is {np.shape(answer)}, ours {np.shape(own)}")
                continue
            # Not in uint8, where 1 - 2 is 255.
            difference = np.abs(np.subtract(answer, own, dtype=np.float64))
            if (difference <= tolerance).all():  # NaN is not
                agree.append(name)
            else:
                lines.append(f"{name}: its answer differs by {difference.max():.3g}")
    return agree, lines
