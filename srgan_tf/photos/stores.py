"""Reads and writes files by name: local, or with PyArrow in S3 and Google Cloud Storage.

Remote names are URLs without escapes, such as "s3://bucket/any key"; local names are as `Path`
writes them.
"""

import contextlib
import fnmatch
import functools
import glob
import io
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pyarrow.fs
from pyarrow.fs import FileType

from srgan_tf import files, pictures

_HERE = pyarrow.fs.LocalFileSystem()


def is_remote(name: str) -> bool:
    """Tells whether a name is a URL."""
    return "://" in name


def plain(name: str) -> str:
    """Turns file:// and ~ into a local name; other names stay as they are."""
    if name.startswith("file://"):
        return pyarrow.fs.FileSystem.from_uri(name)[1]
    return name if is_remote(name) else os.path.expanduser(name)


def split(name: str) -> tuple[str, str]:
    """Splits the last part off a name."""
    if is_remote(name):
        folder, _, last = name.rpartition("/")
        return folder, last
    path = Path(name)
    return str(path.parent), path.name


def join(folder: str, *names: str) -> str:
    """Joins names as `Path` does."""
    if is_remote(folder):
        return "/".join([folder.rstrip("/"), *filter(None, names)])
    return str(Path(folder, *names))


def absolute(name: str) -> str:
    """Returns the canonical name of a file or folder."""
    return name.rstrip("/") if is_remote(name) else os.path.realpath(name)


def exists(name: str) -> bool:
    """Tells whether there is a file or folder of this name."""
    return _kind(name) != FileType.NotFound if is_remote(name) else os.path.exists(name)


def is_folder(name: str) -> bool:
    """Tells whether there is a folder of this name."""
    return _kind(name) == FileType.Directory if is_remote(name) else os.path.isdir(name)


def list_folder(folder: str) -> list[str]:
    """Returns the names in a folder; an empty list if there is no such folder."""
    if is_remote(folder):
        return [info.base_name for info in _infos(folder)]
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []


def walk(folder: str, say: Callable[[str], None]) -> Iterator[tuple[str, list[str]]]:
    """Yields folders and names as `pictures.walk` does."""
    if not is_remote(folder):
        yield from pictures.walk(folder, say)
        return
    infos = [info for info in _infos(folder) if not info.base_name.startswith(".")]
    names = [info.base_name for info in infos if info.type == FileType.File]
    if found := list(filter(pictures.is_picture_name, names)):
        yield folder, found
    for info in infos:
        if info.type == FileType.Directory:
            yield from walk(join(folder, info.base_name), say)


def matches(pattern: str) -> list[str]:
    """Returns the sorted names that match a pattern with *, ? and []; ** works locally only."""
    if not is_remote(pattern):
        return sorted(glob.iglob(pattern, recursive=True))
    scheme, _, path = pattern.partition("://")
    bucket, _, rest = path.partition("/")
    return sorted(_matches(f"{scheme}://{bucket}", rest.split("/")))


def _matches(folder: str, parts: list[str]) -> Iterator[str]:
    part, *rest = parts
    for info in _infos(folder):
        hidden = info.base_name.startswith(".") and not part.startswith(".")
        if hidden or not fnmatch.fnmatchcase(info.base_name, part):
            continue
        if not rest:
            yield join(folder, info.base_name)
        elif info.type == FileType.Directory:
            yield from _matches(join(folder, info.base_name), rest)


def opened(name: str) -> BinaryIO:
    """Opens a file for reading."""
    if not is_remote(name):
        return open(name, "rb")
    system, path = _system(name)
    return io.BufferedReader(system.open_input_file(path))


def write(name: str, data: bytes) -> None:
    """Writes a file atomically."""
    if not is_remote(name):
        with files.replacing(Path(name)) as temporary:
            temporary.write_bytes(data)
        return
    system, path = _system(name)
    with system.open_output_stream(path) as file:
        file.write(data)


def remove(name: str) -> None:
    """Removes a file."""
    if not is_remote(name):
        os.remove(name)
        return
    system, path = _system(name)
    system.delete_file(path)


@contextlib.contextmanager
def token(folder: str) -> Iterator[str]:
    """Writes a temporary hidden file to a folder, to test who can see it and write there.

    Raises:
        ValueError: The folder cannot be written to.
    """
    with contextlib.ExitStack() as stack:
        if is_remote(folder):
            name = join(folder, f".making-{platform.node()}-{os.getpid()}")
        else:
            files.make_folder(Path(folder))
            name = join(stack.enter_context(files.staging(Path(folder))), "driver")
        with files.naming(folder, "cannot be written to"):
            write(name, b"")
        stack.callback(remove, name)
        yield name


def fetch(name: str, path: Path) -> str | None:
    """Copies a remote file to a local path; returns the reason if it fails."""
    try:
        path.parent.mkdir()
        system, remote = _system(name)
        pyarrow.fs.copy_files(
            remote, str(path), source_filesystem=system, destination_filesystem=_HERE
        )
    except FileNotFoundError:
        return "cannot be read (no such file)"
    except Exception as error:  # stores raise errors of all kinds
        return f"cannot be read ({files.one_line(error)})"


def put(path: Path, name: str) -> str | None:
    """Copies a local file to a remote name, atomically; returns the reason if it fails."""
    try:
        system, remote = _system(name)
        pyarrow.fs.copy_files(
            str(path), remote, source_filesystem=_HERE, destination_filesystem=system
        )
    except Exception as error:  # stores raise errors of all kinds
        return f"{name} cannot be written ({files.one_line(error)})"


def _system(name: str) -> tuple[pyarrow.fs.FileSystem, str]:
    """Returns the file system of a remote name and the path in it.

    Raises:
        ValueError: The store is unavailable, or not one that writes files atomically.
    """
    scheme, _, path = name.partition("://")
    if scheme not in ("s3", "gs"):
        raise ValueError(f"{name}: give a local name, s3:// or gs://")
    with files.naming(name, "is unavailable"):
        return _bucket(f"{scheme}://{path.partition('/')[0]}"), path.rstrip("/")


# Only the bucket is parsed as a URL: keys may have any characters.
_bucket = functools.cache(lambda url: pyarrow.fs.FileSystem.from_uri(url)[0])


def _kind(name: str) -> FileType:
    system, path = _system(name)
    with files.naming(name, "cannot be read"):
        return system.get_file_info(path).type


def _infos(folder: str) -> list[pyarrow.fs.FileInfo]:
    system, path = _system(folder)
    selector = pyarrow.fs.FileSelector(path, allow_not_found=True)
    with files.naming(folder, "cannot be read"):
        return sorted(system.get_file_info(selector), key=lambda info: info.path)
