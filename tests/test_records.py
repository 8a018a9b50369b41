import pytest

from srgan_tf import records


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    path.write_text("old")
    with pytest.raises(ValueError), records.replacing(path) as beside:
        beside.write_text("half")
        raise ValueError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with records.replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old" and beside.suffix == ".png"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
