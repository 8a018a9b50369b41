import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from conftest import ROOT

from srgan_tf import files, provenance


def test_the_commit_is_none_if_git_is_missing_or_refuses(tmp_path, monkeypatch):
    for program in ("#!/bin/sh\nexit 128\n", None):
        (tmp_path / "git").unlink(missing_ok=True)
        if program:
            (tmp_path / "git").write_text(program)
            (tmp_path / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert provenance.commit() is None


@pytest.mark.parametrize("name", ["a.png", "a.weights.h5", 240 * "a" + ".2024-05-01.png", "a"])
def test_a_file_is_replaced_atomically(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(ValueError), files.replacing(path) as temporary:
        temporary.write_text("half")
        raise ValueError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with files.replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.suffix == path.suffix
        assert temporary.name.endswith(".weights.h5") == name.endswith(".weights.h5")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kind", [Path.touch, Path.mkdir])
@pytest.mark.parametrize(
    "write",
    [
        lambda folder: files.write_text(folder / "a", ""),
        lambda folder: files.staging(folder).cleanup(),
    ],
)
def test_leftovers_of_killed_processes_are_removed_and_those_of_running_ones_are_not(
    tmp_path, kind, write
):
    ended = subprocess.Popen(["true"])
    ended.wait()
    here = platform.node()
    others = (f"{here}-{os.getppid()}", f"other-{ended.pid}", f"{here}-{ended.pid}-{ended.pid}")
    left, *kept = (tmp_path / f".making-{name}-x" for name in (f"{here}-{ended.pid}", *others))
    for path in (left, *kept):
        kind(path)
    write(tmp_path)
    assert not left.exists() and set(kept) <= set(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["run [v2]", "a*b", "why?", "back\\slash", b"caf\xe9"])
def test_a_folder_that_tensorflow_takes_for_a_pattern_has_a_plain_path(tmp_path, name, monkeypatch):
    folder = tmp_path / os.fsdecode(name)
    folder.mkdir()
    (folder / "file").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files.tempfile, "tempdir", str(folder))  # as TMPDIR sets it
    with files.plain_path(Path(folder.name)) as plain:
        assert not set("[*?\\") & set(str(plain)) and str(plain).isascii()
        assert (plain / "file").read_text() == "text"
    assert not plain.parent.exists() and (folder / "file").exists()


def test_a_plain_path_stays_as_it_is(tmp_path):
    with files.plain_path(tmp_path / "50% {a,b} é") as plain:
        assert plain == tmp_path / "50% {a,b} é"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device"), "a: damaged (No space left on device)"),
        (IndexError("\n odd\nmore"), "a: damaged (odd)"),
        (MemoryError(), "a: damaged (MemoryError)"),
        (StopIteration(), "a: damaged (StopIteration)"),
        (ValueError("a: empty"), "a: empty"),
        (tf.errors.OutOfRangeError(None, None, "{{node x}} cut [Op:Y]"), "a: damaged (cut)"),
    ],
)
def test_any_library_error_about_a_file_becomes_one_line_with_its_name(error, line):
    with pytest.raises(ValueError) as raised, files.naming("a", "damaged"):
        raise error
    assert str(raised.value) == line


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(OSError) as raised, files.replacing(tmp_path / "a.png"):
        raise OSError(28, "No space left on device")
    assert str(raised.value) == f"{tmp_path / 'a.png'}: cannot be written (No space left on device)"


_LOCK = """
import sys
from pathlib import Path
from srgan_tf import files
with files.locked(Path(sys.argv[1]), "busy"):
    print("locked", flush=True)
    input()
"""


def test_a_locked_folder_is_refused_until_its_process_ends(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", _LOCK, tmp_path], cwd=ROOT,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert other.stdout.readline() == b"locked\n"
    with pytest.raises(ValueError, match=f"^{tmp_path}: busy$"), files.locked(tmp_path, "busy"):
        pass
    other.kill()
    other.communicate()
    with files.locked(tmp_path, "busy"):
        pass
    assert not list(tmp_path.iterdir())
