"""Files and folders that come whole or not at all. No TensorFlow."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def make_folder(path: Path) -> None:
    """Makes a folder and sees that files can be written there: before hours of work, not after.

    Raises:
        ValueError: They cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written to ({error.strerror})") from error


def staging(folder: Path) -> tempfile.TemporaryDirectory:
    """Makes a hidden folder in `folder` for what is not whole yet, and removes killed processes'.

    Raises:
        OSError: It cannot be made.
    """
    # Of other machines that share the folder nobody here knows which processes are gone.
    own = f".making-{platform.node()}-"
    for left in folder.iterdir():
        # A machine's name may begin with another's: a process has a number, and one "-" behind it.
        process, *rest = left.name.removeprefix(own).split("-")
        if left.name.startswith(own) and len(rest) == 1 and is_gone(process):
            shutil.rmtree(left, ignore_errors=True)
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{own}{os.getpid()}-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a file beside `path` to write, which then becomes `path`.

    A kill leaves the old file or the new one, and maybe `.part.NAME`; an error leaves the old one.
    """
    # Formats are told by the end of a name.
    beside = path.with_name(f".part.{path.name}")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, whole or not at all."""
    with replacing(path) as beside:
        beside.write_text(text, encoding="utf-8")


def is_gone(process: str) -> bool:
    """Tells whether a process, by its number in a name, is no more; no where it cannot be asked."""
    if os.name != "posix" or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's
    return False
