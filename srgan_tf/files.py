"""Files and folders written atomically: under a temporary name beside their place, then renamed.

Temporary names carry the machine and the process, so that two processes never share one and that
what killed processes left is removed. No TensorFlow.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Processes of other machines that share a folder cannot be asked for.
_THIS_MACHINE = f".making-{platform.node()}-"
_numbers = itertools.count()


def make_folder(path: Path) -> None:
    """Makes a folder and checks that files can be written there: before hours of work, not after.

    Raises:
        ValueError: They cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written to ({error.strerror})") from error


def staging(folder: Path) -> tempfile.TemporaryDirectory:
    """Makes a temporary folder in `folder`, for what is renamed once it is complete.

    Raises:
        OSError: It cannot be made.
    """
    _clear_leftovers(folder)
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{_THIS_MACHINE}{os.getpid()}-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, then renames it to `path`.

    An error or a kill leaves what was there before. The temporary name is hidden, has the ending of
    `path`, by which libraries choose a format, and is short, so that any name that the file system
    allows can be written.
    """
    _clear_leftovers_once(path.parent)
    ending = re.search(r"(\.\w+){0,2}$", path.name[-16:]).group()
    name = f"{_THIS_MACHINE}{os.getpid()}-{next(_numbers)}{ending}"
    temporary = path.with_name(name)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _clear_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes of this machine left."""
    for left in folder.glob(f"{_THIS_MACHINE}*"):
        # A machine's name may begin with another's: behind the process there is one "-".
        process, *rest = left.name.removeprefix(_THIS_MACHINE).split("-")
        if len(rest) == 1 and _is_gone(process):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):  # removed meanwhile, or another user's
                left.unlink(missing_ok=True)


# A folder may hold many files, each written through `replacing`.
_clear_leftovers_once = functools.cache(_clear_leftovers)


def _is_gone(process: str) -> bool:
    """Tells whether the process of this number has ended; False if that cannot be found out."""
    if os.name != "posix" or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's
    return False
