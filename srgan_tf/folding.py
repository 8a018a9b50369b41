"""The generator as a list of convolutions with folded batch norms, and one pass that builds it.

Exports and `upscale.py` on a CPU build their networks from this list.

Folding is exact: at inference a batch norm is a factor and an offset for each channel, which the
convolution before it absorbs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # arrays can be folded without Keras
    import keras

# Layers that carry the picture from one end to the other. Some of their center taps are so much
# larger than the other weights that int8 with one scale cannot hold both.
CARRIERS = ("upscale1_conv", "upscale2_conv", "conv_out")
# The number of channels, out of `filters`, that carry R, G and B. A network with a random start has
# none and loses more in int8.
CARRYING = 3


class Layer(NamedTuple):
    """A convolution and the PReLU that follows it.

    Attributes:
        kernel: float32 [height, width, channels in, channels out].
        bias: float32 [channels out].
        slope: float32 [channels out], or None where no PReLU follows.
    """

    kernel: np.ndarray
    bias: np.ndarray
    slope: np.ndarray | None


def fold(generator: keras.Model) -> dict[str, Layer]:
    """Extracts a generator's weights and folds batch norms into the convolutions before them.

    Args:
        generator: From `networks.build_generator`, of any size and dtype policy.

    Returns:
        Its convolutions by name, in order. The last two come before the last shuffle. A PReLU does
        the same there, and a convolution after the shuffle equals one before it at half the
        resolution, with four times the channels in and out. That is exact. It is also faster: it
        has 12 output channels instead of 3, in kernels written for 8 or 16.

    Raises:
        ValueError: It is not the paper's generator.
    """
    found = {layer.name: layer for layer in generator.layers}
    blocks = _block_count(found)
    names = [name for part in parts(blocks) for name in part if name]
    missing = [name for name in names if name not in found]
    if missing or not blocks:
        lacks = f"no layer {missing[0]}" if missing else "no residual blocks"
        raise ValueError(f"{generator.name} is not the paper's generator, it has {lacks}")
    epsilons = {found[norm].epsilon for _, norm, _ in parts(blocks) if norm}
    if len(epsilons) > 1:
        raise ValueError(f"{generator.name}: its batch norms have epsilons {sorted(epsilons)}")
    return fold_arrays({name: found[name].get_weights() for name in names}, epsilons.pop())


def parts(blocks: int) -> list[tuple[str, str | None, str | None]]:
    """Names the convolutions, each with the batch norm and the PReLU that follow it.

    Args:
        blocks: The number of residual blocks.

    Returns:
        Names of layers of `networks.build_generator`, in order; None where a layer is absent.
    """
    names = [("conv_in", None, "prelu_in")]
    for block in (f"block{i}" for i in range(1, blocks + 1)):
        names.append((f"{block}_conv1", f"{block}_bn1", f"{block}_prelu"))
        names.append((f"{block}_conv2", f"{block}_bn2", None))
    names.append(("conv_trunk", "bn_trunk", None))
    names += [(f"upscale{i}_conv", None, f"upscale{i}_prelu") for i in (1, 2)]
    return [*names, ("conv_out", None, None)]


def fold_arrays(
    arrays: Mapping[str, Sequence[np.ndarray]], epsilon: float = 1e-3
) -> dict[str, Layer]:
    """Folds as `fold` does, without a Keras model.

    Args:
        arrays: Each layer of `parts` with its weights in Keras' order and shapes, of any float.
        epsilon: The batch norms' epsilon; the default is Keras', which `networks` uses.

    Returns:
        The same as `fold`.

    Raises:
        ValueError: An array is missing, or has another shape.
    """
    blocks = _block_count(arrays)
    layers = {}
    for conv, norm, prelu in parts(blocks):
        _check_shapes(arrays, conv, norm, prelu)
        kernel, *biases = map(np.float64, arrays[conv])
        bias = biases[0] if biases else np.zeros(kernel.shape[-1])
        if norm:
            gamma, beta, mean, variance = map(np.float64, arrays[norm])
            factor = gamma / np.sqrt(variance + epsilon)
            kernel, bias = kernel * factor, (bias - mean) * factor + beta
        slope = np.float32(arrays[prelu][0]).reshape(-1) if prelu else None
        if conv.startswith("upscale"):
            slope = np.tile(slope, 4)
        layers[conv] = Layer(np.float32(kernel), np.float32(bias), slope)
    last = layers["conv_out"]
    layers["conv_out"] = Layer(_before_shuffle(last.kernel), np.tile(last.bias, 4), None)
    return layers


def _check_shapes(arrays: Mapping, conv: str, norm: str | None, prelu: str | None) -> None:
    """Raises ValueError if the arrays of a convolution, norm or PReLU do not fit figure 4."""
    filters = arrays["conv_in"][0].shape[-1]
    given = 3 if conv == "conv_in" else filters
    made = 3 if conv == "conv_out" else 4 * filters if conv.startswith("upscale") else filters
    side = 9 if conv in ("conv_in", "conv_out") else 3
    expected = {conv: [(side, side, given, made)] + ([] if norm else [(made,)])}
    if norm:
        expected[norm] = 4 * [(made,)]
    if prelu:
        expected[prelu] = [(1, 1, filters)]
    for name, shapes in expected.items():
        found = [array.shape for array in arrays[name]]
        if found != shapes:
            raise ValueError(f"{name} has arrays of {found}, not {shapes}")


def _before_shuffle(kernel: np.ndarray) -> np.ndarray:
    """Returns the kernel that, before depth to space, does what the given one does after it."""
    height, width, given, made = kernel.shape
    before = np.zeros([height // 4 * 2 + 1, width // 4 * 2 + 1, 4 * given, 4 * made], np.float32)
    middle = len(before) // 2, before.shape[1] // 2
    for row, column in np.ndindex(2, 2):
        for y, x in np.ndindex(height, width):
            (down, from_row), (right, from_column) = (
                divmod(row + y - height // 2, 2),
                divmod(column + x - width // 2, 2),
            )
            source, target = (2 * from_row + from_column) * given, (2 * row + column) * made
            before[
                middle[0] + down,
                middle[1] + right,
                source : source + given,
                target : target + made,
            ] = kernel[y, x]
    return before


class Operations(NamedTuple):
    """The three functions that `build` makes a network from, for any kind of value.

    A value is whatever the caller's framework uses: a Keras tensor, a node of a graph, a number.

    Attributes:
        conv: (x, name) -> y: the "same" convolution `layers[name]` of x with stride 1, and its
            PReLU where it has a slope.
        add: (x, y, name) -> z: the sum of two values of one shape.
        shuffle: (x, name) -> y: depth to space by 2, [h, w, 4c] to [2h, 2w, c]. The channels of x
            are ordered by row, column and channel of y, as in TensorFlow.
    """

    conv: Callable[[Any, str], Any]
    add: Callable[[Any, Any, str], Any]
    shuffle: Callable[[Any, str], Any]


def build(lr: Any, layers: Mapping[str, Layer], operations: Operations) -> Any:
    """Builds the generator from the caller's conv, add and shuffle functions.

    Each is called once for each layer, in the order of computation. Convolutions get their names
    from `layers`; sums are "block1_sum" to "blockN_sum" and "trunk_sum"; shuffles are
    "upscale1_shuffle" and "sr".

    Args:
        lr: The input, a value that `operations` takes.
        layers: From `fold`.
        operations: The functions to build with.

    Returns:
        sr, as the last shuffle returns it: in [-1, 1], not clipped.
    """
    conv, add, shuffle = operations
    x = skip = conv(lr, "conv_in")
    for i in range(1, _block_count(layers) + 1):
        x = add(x, conv(conv(x, f"block{i}_conv1"), f"block{i}_conv2"), f"block{i}_sum")
    x = add(skip, conv(x, "conv_trunk"), "trunk_sum")
    x = shuffle(conv(x, "upscale1_conv"), "upscale1_shuffle")
    return shuffle(conv(conv(x, "upscale2_conv"), "conv_out"), "sr")


def receptive_field(layers: Mapping[str, Layer]) -> int:
    """Computes the margin of a generator; the paper's has 40.

    Args:
        layers: From `fold`.

    Returns:
        The number of lr pixels, on each side of the one that an output pixel comes from, that can
        change it.
    """
    sides = {name: max(layer.kernel.shape[:2]) // 2 for name, layer in layers.items()}
    # These two read pixels of half the size.
    halves = sides.pop("upscale2_conv") + sides.pop("conv_out")
    return sum(sides.values()) + math.ceil(halves / 2)


def split_carried(
    layer: Layer, filters: int, given: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Splits the part of a carrier that computes the picture's channels: center taps and the rest.

    Channels 0 to 2 of `filters` carry R, G and B, since a network starts as a nearest-neighbor
    upscaler; before a shuffle there are four times as many.

    Args:
        layer: One of `CARRIERS`.
        filters: The filters of the first convolution.
        given: The number of channels in, to split off the center taps of all of them; otherwise
            only the channels that carry the picture are split off.

    Returns:
        The kernel [height, width, channels in, n] without those center taps; the taps
        [1, 1, given, n]; and the indices of the n channels out. The sum of both results is the
        layer's result in these channels, before its bias and PReLU.
    """
    channels_in, channels_out = layer.kernel.shape[2:]

    def carrying(channels):
        return np.arange(channels).reshape(-1, filters)[:, :CARRYING].ravel()

    read = np.arange(given) if given == channels_in else carrying(channels_in)
    made = np.arange(channels_out) if layer.slope is None else carrying(channels_out)
    center = layer.kernel.shape[0] // 2, layer.kernel.shape[1] // 2
    rest = layer.kernel[..., made].copy()
    taps = rest[center][read]
    rest[(*center, read)] = 0
    return rest, taps[None, None], made


def _block_count(names: Iterable[str]) -> int:
    """Counts the residual blocks among the names of layers."""
    return sum(name.startswith("block") and name.endswith("_conv1") for name in names)
