"""Files and folders written atomically: under a temporary name beside their place, then renamed.

Temporary names contain the machine and the process: no two processes share one, and the leftovers
of killed processes can be removed.
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

# Whether a process of another machine that shares the folder is alive cannot be found out.
_THIS_MACHINE = f".making-{platform.node()}-"
_numbers = itertools.count()


def make_folder(path: Path) -> None:
    """Makes a folder and checks that it is writable, before hours of work and not after.

    Raises:
        ValueError: It is not.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written to ({error.strerror})") from error


def staging(folder: Path) -> tempfile.TemporaryDirectory:
    """Makes a temporary folder in `folder`, for results that are renamed once complete.

    Raises:
        OSError: The folder is not writable.
    """
    _clear_leftovers(folder)
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{_THIS_MACHINE}{os.getpid()}-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, then renames it to `path`.

    An error or a kill leaves the previous file in place. The temporary name is hidden, has the
    ending of `path`, by which libraries choose a format, and is short, so that `path` may have the
    longest name that the file system allows.
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
        # A machine's name may begin with another's: only one "-" follows the process.
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
