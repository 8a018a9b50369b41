"""Files and folders: written atomically, named in errors, locked, and with paths for TensorFlow.

Files are written to a temporary name and then renamed. Temporary names contain the machine and the
process: no two processes share one, and the leftovers of killed processes can be removed. No
TensorFlow.
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

# No process can tell whether one on another machine that shares the folder is alive.
_THIS_MACHINE = f".making-{platform.node()}-"
_numbers = itertools.count()

# TensorFlow reads paths of checkpoints and SavedModels with these characters as patterns.
_PATTERN = re.compile(r"[\[*?\\]" if os.sep == "/" else r"[\[*?]")


def one_line(error: Exception) -> str:
    """Returns an error's reason without the file's name, or the first line of its text.

    An error without text, such as a MemoryError, gets the name of its class. The names of nodes and
    operations are removed from TensorFlow's errors.
    """
    text = re.sub(r"^\{\{.*?\}\} | \[Op:\w+\]", "", str(error))
    if isinstance(error, OSError) and error.strerror:
        text = error.strerror
    return next(filter(None, map(str.strip, text.splitlines())), type(error).__name__)


@contextlib.contextmanager
def naming(path: str | os.PathLike, what: str) -> Iterator[None]:
    """Turns any error that a library raises about a file into one line with the file's name.

    Libraries raise all kinds of errors on damaged files and full disks, and few name the file.

    Args:
        path: The file or folder.
        what: What is wrong with it, such as "cannot be written".

    Raises:
        ValueError: "PATH: WHAT (REASON)". Missing packages, and errors that name the file already,
            stay as they are.
    """
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        if isinstance(error, OSError | ValueError) and str(error).startswith(f"{path}: "):
            raise
        raise ValueError(f"{path}: {what} ({one_line(error)})") from error


@contextlib.contextmanager
def plain_path(path: Path) -> Iterator[Path]:
    r"""Yields a path to an existing folder that TensorFlow can use.

    TensorFlow reads the paths of checkpoints and SavedModels as patterns and has no escapes, so it
    does not find one with any of `[*?\` in its path. It also takes only names in UTF-8. Such a
    folder is reached through a symbolic link in a temporary folder. (Changing
    the working directory instead would affect all threads.)

    Raises:
        OSError: The link cannot be made.
    """
    if _is_plain(os.fspath(path)):
        yield path
        return
    usual = tempfile.gettempdir()
    with tempfile.TemporaryDirectory(dir=usual if _is_plain(usual) else "/tmp") as folder:
        link = Path(folder, "link")
        link.symlink_to(path.absolute(), target_is_directory=True)
        yield link


def is_utf8(path: str) -> bool:
    """Tells whether a path's bytes are UTF-8; TensorFlow takes no others."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_plain(path: str) -> bool:
    return is_utf8(path) and not _PATTERN.search(path)


@contextlib.contextmanager
def locked(folder: Path, what: str | None) -> Iterator[None]:
    """Locks a folder, because two processes that write the same files spoil each other's results.

    The lock ends with the process, however that ends. If the system or the file system has no
    locks, nothing is locked.

    Args:
        folder: An existing folder.
        what: The error's text if another process holds the lock; None waits for the lock.

    Raises:
        ValueError: Another process holds the lock; one line.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (fcntl.LOCK_NB if what else 0))
            except BlockingIOError:
                raise ValueError(f"{folder}: {what}") from None
        yield
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Makes a folder and checks that it is writable, before hours of work instead of after.

    Raises:
        ValueError: It is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ValueError(f"{path}: cannot be written to ({one_line(error)})") from error


def staging(folder: Path) -> tempfile.TemporaryDirectory:
    """Makes a temporary folder in `folder`, for results that are renamed once complete.

    Raises:
        OSError: The folder is not writable.
    """
    clear_leftovers(folder)
    return tempfile.TemporaryDirectory(dir=folder, prefix=f"{_THIS_MACHINE}{os.getpid()}-")


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path` to write to, then renames it to `path`.

    An error or a kill leaves the previous file in place. The temporary name is hidden. It has the
    ending of `path`, because libraries choose a format by it, and it is short, so that `path` may
    have the longest name that the file system allows.

    Raises:
        OSError: The file cannot be written; one line that names it.
    """
    _clear_leftovers_once(path.parent)
    ending = re.search(r"(\.\w+){0,2}$", path.name[-16:]).group()
    name = f"{_THIS_MACHINE}{os.getpid()}-{next(_numbers)}{ending}"
    temporary = path.with_name(name)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({one_line(error)})") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 atomically; bytes of file names that are not UTF-8 are written as they are."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def clear_leftovers(folder: Path) -> None:
    """Removes the temporary files and folders that killed processes of this machine left."""
    for left in folder.glob(f"{_THIS_MACHINE}*"):
        # A machine's name may begin with another's: only one "-" follows the process.
        process, *rest = left.name.removeprefix(_THIS_MACHINE).split("-")
        if len(rest) == 1 and _is_gone(process):
            shutil.rmtree(left, ignore_errors=True)
            with contextlib.suppress(OSError):  # removed meanwhile, or another user's
                left.unlink(missing_ok=True)


# A folder may hold many files, each written through `replacing`.
_clear_leftovers_once = functools.cache(clear_leftovers)


def _is_gone(process: str) -> bool:
    """Tells whether the process of this number has ended; False if that is unknown."""
    if os.name != "posix" or not process.isdecimal():
        return False
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        pass  # another user's
    return False
