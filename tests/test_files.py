import os
import platform
import subprocess

import pytest

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


def test_leftovers_of_killed_processes_are_removed_and_files_of_running_ones_are_not(tmp_path):
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, running, elsewhere = (
        tmp_path / f".making-{machine}-{process}-0.png"
        for machine, process in (
            (platform.node(), ended.pid), (platform.node(), os.getppid()), ("other", ended.pid)
        )
    )  # fmt: skip
    for path in (left, running, elsewhere):
        path.touch()
    files.write_text(tmp_path / "a.txt", "text")
    assert set(tmp_path.iterdir()) == {running, elsewhere, tmp_path / "a.txt"}
