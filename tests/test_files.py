import pytest

from srgan_tf import files, provenance


def test_the_commit_is_not_known_where_git_is_missing_or_refuses(tmp_path, monkeypatch):
    for program in ("#!/bin/sh\nexit 128\n", None):
        (tmp_path / "git").unlink(missing_ok=True)
        if program:
            (tmp_path / "git").write_text(program)
            (tmp_path / "git").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert provenance.commit() is None


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(ValueError), files.replacing(path) as beside:
        beside.write_text("half")
        raise ValueError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with files.replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.suffix == ".png"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
