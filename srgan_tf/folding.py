"""The generator as a list of convolutions, batch norms folded, and one pass to build it of them.

For exports, and for what `upscale.py` runs on a CPU.

Folding is exact: at inference a batch norm is a factor and an offset for each channel, which go
into the convolution before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:  # what is folded needs no Keras
    import keras

# Layers that carry the picture from one end to the other. There some centre taps are so much larger
# than the other weights that 8 bits of one step cannot hold both.
CARRIERS = ("upscale1_conv", "upscale2_conv", "conv_out")


class Layer(NamedTuple):
    """A convolution and the PReLU behind it.

    Attributes:
        kernel: float32 [height, width, channels in, channels out].
        bias: float32 [channels out].
        slope: float32 [channels out], or None where no PReLU follows.
    """

    kernel: np.ndarray
    bias: np.ndarray
    slope: np.ndarray | None


def fold(generator: keras.Model) -> dict[str, Layer]:
    """Takes a generator's weights out, batch norms folded into the convolutions before them.

    Args:
        generator: As `networks.build_generator` makes it, of any size and dtype policy.

    Returns:
        Its convolutions by name, in order. The last two are arranged as `network` goes through
        them: a PReLU keeps what it does when it comes before the shuffle, and a convolution behind
        the shuffle is one of half the resolution before it, with four times the channels in and
        out. That is exact, and faster: it has 12 channels out, not 3, in kernels made for 8 or 16.

    Raises:
        ValueError: It is another network.
    """
    found = {layer.name: layer for layer in generator.layers}
    blocks = sum(name.startswith("block") and name.endswith("_conv1") for name in found)
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
    """Names a generator's convolutions, each with the batch norm and the PReLU that follow it.

    Args:
        blocks: The number of residual blocks.

    Returns:
        Names of layers of `networks.build_generator`, in order; None where there is no such layer.
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
    """Does what `fold` does, without a Keras model.

    Args:
        arrays: Of each layer that `parts` names, as Keras orders and shapes them, of any float.
        epsilon: Of the batch norms, by default Keras', which `networks` leaves.

    Returns:
        As `fold`.

    Raises:
        ValueError: An array is missing, or has another shape.
    """
    blocks = sum(name.endswith("_conv1") for name in arrays)
    layers = {}
    for conv, norm, prelu in parts(blocks):
        _check(arrays, conv, norm, prelu)
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


def _check(arrays: Mapping, conv: str, norm: str | None, prelu: str | None) -> None:
    """Raises ValueError where a convolution or what follows it has other arrays than figure 4."""
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
    """Gives the kernel that does before depth to space, 2, what the given one does behind it."""
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


def network(x: Any, layers: Mapping[str, Layer], conv: Callable, add: Callable, shuffle: Callable):
    """Goes through the generator once, for whoever builds it of which operations.

    Args:
        x: lr.
        layers: From `fold`.
        conv: Of (x, name): a convolution with its PReLU.
        add: Of (x, y, name): a sum.
        shuffle: Of (x, name): depth to space, 2.

    Returns:
        sr, of what these functions give.
    """
    blocks = sum(name.endswith("_conv1") for name in layers)
    x = skip = conv(x, "conv_in")
    for i in range(1, blocks + 1):
        x = add(x, conv(conv(x, f"block{i}_conv1"), f"block{i}_conv2"), f"block{i}_sum")
    x = add(skip, conv(x, "conv_trunk"), "trunk_sum")
    x = shuffle(conv(x, "upscale1_conv"), "upscale1_shuffle")
    return shuffle(conv(conv(x, "upscale2_conv"), "conv_out"), "sr")
