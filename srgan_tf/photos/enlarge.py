"""Upscales many photographs: plans their names, runs the threads, writes files atomically."""

import contextlib
import functools
import os
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from srgan_tf import files, pictures, png, upscaling
from srgan_tf.photos import photographs

_SUFFIX = "_x4"


class Job(NamedTuple):
    """A picture to upscale, and the file that it becomes."""

    source: Path
    target: Path


def plan(
    inputs: Iterable[str | os.PathLike],
    *,
    out_dir: str | os.PathLike | None = None,
    format: str = "png",
    say: Callable[[str], None] = lambda line: None,
) -> list[Job]:
    """Decides which picture becomes which file.

    `NAME.jpg` becomes `NAME_x4.png`, beside it or in `out_dir`, where folders keep their structure.
    Pictures whose results would have the same name keep their ending in it, even if the command
    names only one of them: a result's name depends on the picture's folder, not on the command. A
    picture that is named like another one's result is skipped, so that a command can be repeated.

    Args:
        inputs: Files, and folders with pictures at any depth.
        out_dir: The folder for results; None for the folder of each picture.
        format: The results' ending, one of `photographs.FORMATS`.
        say: Receives lines that count the skipped pictures.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A folder has no pictures, or two pictures would become one file.
    """
    folders: dict[Path, Path] = {}  # from each picture to its result's folder
    for given in map(Path, inputs):
        if given.is_dir():
            found = pictures.find_pictures(given, say)
            results = None if out_dir is None else Path(out_dir).resolve()
            if results and given.resolve() in results.parents:
                found = [file for file in found if not file.resolve().is_relative_to(results)]
            if not found:
                raise ValueError(f"{given}: no pictures in this folder")
        elif given.exists():
            found = [given]
        else:
            raise FileNotFoundError(f"{given}: no such file or folder")
        for file in found:
            folder = file.parent
            if out_dir is not None:
                folder = Path(out_dir, folder.relative_to(given if given.is_dir() else folder))
            folders.setdefault(file, folder)
    chosen = defaultdict(lambda: defaultdict(list))
    for file, to in folders.items():
        chosen[to][file.parent].append(file.name)
    targets = {
        Path(folder, name): to / result if result else None
        for to in chosen
        for folder, name, result in name_results(chosen[to], os.listdir, to, format)
    }
    results = [file for file in folders if targets[file] is None]
    if results:
        say(f"skipped {len(results)} named like results, such as {results[0]}")
    return [Job(file, targets[file]) for file in folders if targets[file] is not None]


def name_results(
    chosen: Mapping[str | os.PathLike, Sequence[str]],
    list_folder: Callable[[str | os.PathLike], Iterable[str]],
    to: str | os.PathLike,
    format: str,
) -> Iterator[tuple[str | os.PathLike, str, str | None]]:
    """Names the results of the pictures that go to one folder, as `plan` describes.

    Args:
        chosen: By folder, the names of its pictures to upscale.
        list_folder: Returns the names of all files in a folder.
        to: The folder of the results.
        format: The results' ending.

    Returns:
        An iterator of (folder, name, name of the result). The last is None for a picture that is
        named like another one's result.

    Raises:
        ValueError: Two pictures would become one file.
    """
    results = {folder: _results(names) for folder, names in chosen.items()}
    rivals = Counter(
        _stem(name) for folder in chosen for name in chosen[folder] if name not in results[folder]
    )
    sources: dict[str, str] = {}
    for folder, names in chosen.items():
        listed = filter(pictures.is_picture_name, list_folder(folder))
        beside = Counter(map(_stem, {*listed, *names} - results[folder]))
        for name in names:
            if name in results[folder]:
                yield folder, name, None
                continue
            alone = rivals[_stem(name)] == beside[_stem(name)] == 1
            result = f"{_stem(name) if alone else name}{_SUFFIX}.{format}"
            source = os.path.join(folder, name)
            if result in sources:
                raise ValueError(
                    f"{sources[result]} and {source} would both become "
                    f"{os.path.join(to, result)}: give each its own --out_dir"
                )
            sources[result] = source
            yield folder, name, result


def _results(names: Iterable[str]) -> set[str]:
    """Returns those names that look like the results of other names."""
    suffixed = {name for name in names if _stem(name).endswith(_SUFFIX)}
    originals = {_stem(name).removesuffix(_SUFFIX) for name in suffixed}
    originals &= {part for name in names for part in (name, _stem(name))} if originals else set()
    return {name for name in suffixed if _stem(name).removesuffix(_SUFFIX) in originals}


def _stem(name: str) -> str:
    return os.path.splitext(name)[0]  # not Path's: there may be a hundred million names


def run(
    jobs: Sequence[Job],
    load: Callable[[int], tuple[upscaling.Upscaler, str]],
    *,
    format: str = "png",
    quality: int = photographs.DEFAULT_QUALITY,
    tile: int | None = None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
    say: Callable[[str], None] = lambda line: None,
    note: Callable[[str], None] = lambda line: None,
    threads: int | None = None,
) -> dict[Job, str]:
    """Upscales pictures to files while it reads the next one and compresses the last one.

    Files are written atomically. Apart from the network and its tile, memory holds the pixels of
    two pictures, a copy of the colors of one with alpha, and a few rows of tiles of the result (for
    formats other than PNG the whole result).

    Args:
        jobs: From `plan`.
        load: Returns the result of `fastest.load_network` for the bits of a picture, 8 or 16. It is
            called once for each depth that the pictures have.
        format: One of `photographs.FORMATS`.
        quality: As in `photographs.open_writer`.
        tile: As in `upscaling.upscale`.
        progress: Receives the fraction done, in 0..1, and the speed with the picture's name.
        say: Receives a line for each finished picture.
        note: Receives a line for each picture that failed, and for each loss in others.
        threads: Number of threads that compress a PNG; None for one on each core.

    Returns:
        The pictures that failed, each with its line.

    Raises:
        ValueError, FileNotFoundError: `load` raises it, or the tile is too small for the network.
    """
    load = functools.cache(load)
    pixels = {job: pictures.count_pixels(job.source) for job in jobs}
    total, done, start = sum(pixels.values()), 0, None
    failed: dict[Job, str] = {}
    ending: deque[tuple[Job, str, Future]] = deque()

    def fail(job: Job, line: str) -> None:
        failed[job] = line
        note(line)

    def end(most: int) -> None:
        """Waits until at most `most` results are still being written."""
        while len(ending) > most:
            job, summary, result = ending.popleft()
            try:
                with files.naming(job.target, "cannot be written"):
                    result.result()
            except (OSError, ValueError) as error:
                fail(job, str(error))
            else:
                say(f"{job.target}: {summary}")

    def advance(count: int) -> None:
        nonlocal done
        done += count
        rate = 16 * done / 1e6 / (time.monotonic() - start)
        progress(min(done / max(total, 1), 1.0), f"{rate:.2f} MP/s  {job.source.name}")

    with (
        ThreadPoolExecutor(1) as reading,
        ThreadPoolExecutor(2) as closing,
        ThreadPoolExecutor(threads or os.cpu_count()) as compressing,
    ):

        def read(job: Job) -> Future:
            return reading.submit(photographs.read_photograph, job.source)

        reads = deque(map(read, jobs[:1]))
        for number, job in enumerate(jobs):
            reads += map(read, jobs[number + 1 : number + 2])
            before = done
            try:
                photograph = reads.popleft().result()
            except ValueError as error:
                fail(job, str(error))
                total -= pixels[job]
                continue
            network, precision = load(8 * photograph.colors.dtype.itemsize)
            side = upscaling.checked_tile(network, tile)
            started = time.monotonic()
            if start is None:
                start = started
                progress(0.0, job.source.name)  # starts the clock of a bar
            try:
                photograph = photographs.fitted(photograph, format, network.bits)
                rows = photographs.upscaled_rows(network, photograph, tile=side, progress=advance)
                make_writer = functools.partial(
                    photographs.open_writer,
                    photograph=photograph,
                    format=format,
                    quality=quality,
                    executor=compressing,
                )
                check = functools.partial(
                    photographs.check_result, photograph=photograph, format=format
                )
                result = _write(job.target, rows, make_writer, check, closing)
            except MemoryError:
                remedy = f"set --tile smaller than {side}" if side else "it cannot run in tiles"
                fail(job, f"{job.source}: not enough memory, {remedy}")
            except Exception as error:  # Pillow and runtimes raise errors of all kinds
                fail(job, f"{job.source}: {files.one_line(error)}")
            else:
                for line in photograph.notes:
                    note(f"{job.source}: {line}")
                height, width = photograph.colors.shape[:2]
                seconds = time.monotonic() - started
                rate = f"{16 * height * width / 1e6 / seconds:.2f} megapixels/s"
                summary = f"{4 * width}x{4 * height}, {seconds:.1f} s, {rate}, {precision}"
                ending.append((job, summary, result))
                end(2 if format == "png" else 0)
                continue
            total -= pixels[job] - (done - before)
        end(0)
    progress(1.0, "")
    return failed


def _write(
    target: Path,
    rows: Iterable[np.ndarray],
    make_writer: Callable[[BinaryIO], png.PngWriter],
    check: Callable[[Path], None],
    closing: Executor,
) -> Future:
    """Writes rows as they come; `closing` writes the rest, checks it and renames it to `target`."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        temporary = stack.enter_context(files.replacing(target))
        file = stack.enter_context(_opened(temporary))
        writer = make_writer(file)
        for piece in rows:
            writer.write(piece)
        rest = stack.pop_all()

    def close() -> None:
        with rest:
            writer.close()
            file.flush()
            check(temporary)

    return closing.submit(close)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens a file for writing; an error in closing it does not hide an earlier one."""
    file = path.open("wb")
    try:
        yield file
    except BaseException:
        with contextlib.suppress(OSError):  # on a full disk, closing fails, too
            file.close()
        raise
    file.close()
