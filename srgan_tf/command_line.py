"""Shared by the scripts: quiet libraries, progress, errors in one line."""

import contextlib
import datetime
import errno
import io
import os
import runpy
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from absl import flags

# Hides TensorFlow's log, except errors, wherever it is loaded. On several machines it hides errors,
# too: TensorFlow reports a lost machine in ten lines, and training/cluster.py in one.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3" if os.environ.get("TF_CONFIG") else "2")


def expand_homes(script: str) -> None:
    """Expands a leading ~ in a script's flags, because shells do not expand --flag=~/folder.

    Args:
        script: The name of the script's module, whose flags have been parsed.
    """
    for flag in flags.FLAGS.get_key_flags_for_module(sys.modules[script]):
        if isinstance(flag.value, str):
            flag.value = os.path.expanduser(flag.value)
        elif isinstance(flag.value, list):
            flag.value = [os.path.expanduser(value) for value in flag.value]


def load_tensorflow() -> None:
    """Imports TensorFlow and lets it look for GPUs, without its messages on stderr."""
    with native_logs_hidden():
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextlib.contextmanager
def native_logs_hidden() -> Iterator[None]:
    """Hides the messages that native code writes to stderr, which no log level silences.

    What Python writes to stderr stays visible.
    """
    with contextlib.ExitStack() as stack:
        kept = os.dup(2)
        stack.callback(os.close, kept)
        stack.callback(os.dup2, kept, 2)
        if sys.stderr is sys.__stderr__:
            own = stack.enter_context(_BestEffort(kept, sys.stderr))
            stack.enter_context(contextlib.redirect_stderr(own))
        with open(os.devnull, "w") as nothing:
            os.dup2(nothing.fileno(), 2)
        yield


def progress_bar(stream=None) -> Callable[[float, str], None]:
    """Makes a progress bar that shows the remaining time.

    Args:
        stream: By default stderr. A terminal's line is repainted; elsewhere a new line is written
            at every tenth.

    Returns:
        A function of the fraction done, in 0..1, and the name of the next piece of work. A fraction
        of 1 ends the bar.
    """
    stream = stream or sys.stderr
    start = time.monotonic()
    tenth = 0

    def progress(fraction: float, what: str) -> None:
        nonlocal tenth
        if stream.isatty():
            if fraction >= 1:
                stream.write("\r\x1b[K")
            else:
                bar = ("#" * round(20 * fraction)).ljust(20, ".")
                columns = os.get_terminal_size(stream.fileno()).columns
                line = f"[{bar}] {100 * fraction:3.0f} %{_left(start, fraction)}  {what}"
                stream.write(f"\r\x1b[K{line[: columns - 1]}")
        elif tenth < int(10 * fraction) < 10:
            tenth = int(10 * fraction)
            stream.write(f"{100 * fraction:.0f} %{_left(start, fraction)}  {what}\n")
        stream.flush()

    return progress


def _left(start: float, fraction: float) -> str:
    if fraction <= 0:
        return ""
    seconds = round((time.monotonic() - start) * (1 - fraction) / fraction)
    return f"  {datetime.timedelta(seconds=seconds)} left"


class _BestEffort(io.TextIOWrapper):
    """A standard stream that drops what it cannot write, so that the work continues.

    Its reader may have gone, as with `| head -1`, or its disk may be full. Characters that its
    encoding lacks are written with backslashes.

    Attributes:
        lost: The first error other than a missing reader, or None.
    """

    def __init__(self, descriptor: int, like: io.TextIOWrapper | None):
        """Opens a descriptor with the settings of `like`, if given; closing this keeps it open."""
        super().__init__(
            io.BufferedWriter(io.FileIO(descriptor, "w", closefd=False)),
            encoding=like and like.encoding,
            errors="backslashreplace",
            # Also for an unbuffered stream, since this one has a buffer.
            line_buffering=like is None or like.line_buffering or like.write_through,
            write_through=like is not None and like.write_through,
        )
        self.lost = None

    def write(self, text: str) -> int:
        """Writes or drops text."""
        try:
            return super().write(text)
        except OSError as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Writes or drops what is buffered."""
        try:
            super().flush()
        except OSError as error:
            self._drop(error)

    def close(self) -> None:
        """Writes or drops what is buffered, and closes the stream."""
        try:
            super().close()
        except OSError as error:
            self._drop(error)

    def _drop(self, error: OSError) -> None:
        if error.errno not in (errno.EPIPE, errno.EBADF):
            self.lost = self.lost or error


def _make_output_best_effort() -> None:
    """Replaces stdout and stderr, so that failed output does not fail the work."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__"):
            continue  # Python code reads it
        if stream is None:  # closed by the shell: the next file opened would take its place
            nothing = os.open(os.devnull, os.O_WRONLY)
            if nothing != descriptor:
                os.dup2(nothing, descriptor)
                os.close(nothing)
        elif os.name != "posix":  # a Windows console is not a file
            stream.reconfigure(errors="backslashreplace")
            continue
        replaced = _BestEffort(descriptor, stream)
        setattr(sys, name, replaced)
        setattr(sys, f"__{name}__", replaced)


def exit_code(main: Callable[[list[str]], int], argv: list[str], interrupted: str) -> int:
    """Runs a script's main function and reports errors that a user can cause in one line on stderr.

    Args:
        main: Function from `argv` to the exit code.
        argv: The command without its flags.
        interrupted: The message after Ctrl-C.

    Returns:
        The exit code: that of `main`; 1 after a ValueError or OSError, if a package is missing, or
        if stdout could not be written; 130 after Ctrl-C.
    """
    _make_output_best_effort()
    expand_homes(main.__module__)
    try:
        code = main(argv)
        sys.stdout.flush()
        if lost := getattr(sys.stdout, "lost", None):
            raise OSError(f"stdout: cannot be written ({lost.strerror}); the work is done")
        return code
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ModuleNotFoundError as error:
        print(f"error: {error}: pip install -r requirements.txt", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


@contextlib.contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM instead of ending; a second one ends the process at once."""
    received = []

    def handler(signum, _):
        received.append(signum)
        signal.signal(signum, signal.SIG_DFL)
        # Not through sys.stderr, which may be in the middle of a write.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step; a second signal stops at once\n")

    before = {s: signal.signal(s, handler) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def run_installed() -> None:
    """Runs srgan-train, srgan-evaluate, srgan-upscale or srgan-export: the script of that name.

    The script runs as `__main__`, as it does by its path, so that its help and its flags are the
    same. A flagfile that is not found in the current folder is taken from the installed ones.
    """
    package = Path(__file__).parent
    scripts = package / "scripts"
    if not scripts.exists():  # pip install -e
        scripts = package.parent
    for position, argument in enumerate(sys.argv[1:], 1):
        flag, equals, name = argument.rpartition("=")
        if name.endswith(".flags") and not Path(name).exists() and (scripts / name).exists():
            sys.argv[position] = f"{flag}{equals}{scripts / name}"
    script = Path(sys.argv[0]).stem.removeprefix("srgan-") + ".py"
    runpy.run_path(str(scripts / script), run_name="__main__")
