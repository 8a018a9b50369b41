"""Int8 in any format: statistics, rounding, and scales of channels that lose few levels."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from srgan_tf.folding import Layer

# The number of weights to round before all that follow are updated.
_BLOCK = 32


class Statistics(NamedTuple):
    """The statistics that calibration found in a tensor.

    Attributes:
        low: The least value of each channel, float64 [channels].
        high: The largest value of each channel, likewise.
        mean: The mean of each channel, likewise.
        gram: The sum of x x^T over 3x3 windows x of the tensor, flattened as (row, column,
            channel): float64 [9 channels, 9 channels]; None where no 3x3 convolution reads it.
    """

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray
    gram: np.ndarray | None = None


def rounded(kernel: np.ndarray, scales: np.ndarray, read: Statistics | None) -> np.ndarray:
    """Rounds a kernel to int8.

    With a Gram matrix of the right size it minimizes the change of the convolution's output on the
    calibration data. Otherwise it rounds each weight to the nearest integer.

    Args:
        kernel: [height, width, channels in, channels out].
        scales: [channels out].
        read: The statistics of the tensor that the convolution reads, if known.

    Returns:
        The kernel in multiples of its scales, int8.
    """
    weights = kernel.reshape(-1, kernel.shape[-1])
    if read is None or read.gram is None or len(read.gram) != len(weights):
        return np.round(kernel / scales).astype(np.int8)
    return _least_error(weights, scales, read.gram).reshape(kernel.shape).astype(np.int8)


def corrected(
    bias: np.ndarray, kernel: np.ndarray, values: np.ndarray, scales: np.ndarray, read: Statistics
) -> np.ndarray:
    """Corrects a bias for the mean error that rounding a kernel to `values` adds to the output."""
    return bias + read.mean @ (kernel - values * scales).sum(axis=(0, 1))


def _least_error(weights: np.ndarray, scales: np.ndarray, gram: np.ndarray) -> np.ndarray:
    """Rounds weights [n, channels out] one by one; the remaining ones compensate for the error.

    This is GPTQ (Frantar et al., arXiv 2210.17323), with the inputs of most energy first.
    """
    order = np.argsort(-np.diag(gram))
    left = np.float64(weights[order])
    # Damping by 1 % of the mean keeps the inverse stable where inputs depend on each other.
    damping = np.eye(len(gram)) * max(np.diag(gram).mean() / 100, 1e-12)
    inverse = np.linalg.cholesky(np.linalg.inv((gram + damping)[order][:, order])).T
    values, shares = np.empty_like(left), np.empty_like(left)
    for start in range(0, len(left), _BLOCK):
        block = slice(start, start + _BLOCK)
        for i in range(len(left))[block]:
            values[i] = np.clip(np.round(left[i] / scales), -127, 127)
            shares[i] = (left[i] - values[i] * scales) / inverse[i, i]
            rest = slice(i + 1, start + _BLOCK)
            left[rest] -= np.outer(inverse[i, rest], shares[i])
        # The weights after the block are updated together, in a tenth of the time.
        left[start + _BLOCK :] -= inverse[block, start + _BLOCK :].T @ shares[block]
    result = np.empty_like(values)
    result[order] = values
    return result


def equalized(
    layers: Mapping[str, Layer], statistics: Mapping[str, Statistics]
) -> dict[str, Layer]:
    """Rescales each channel by its own unit, so that int8 loses few levels.

    A tensor has one scale for all of its channels, and a kernel has one for all input channels. So
    a channel is divided by its size (by less if the next layer has a large weight for it), and the
    next layer's kernel is multiplied by the same (Xiao et al., SmoothQuant, arXiv 2211.10438).
    That is exact, because a PReLU is homogeneous. `litert.in_int8` needs slopes of at most 1, so a
    channel whose slope is above 1 is negated: prelu(x) = -slope * prelu'(-x), where prelu' has the
    slope 1 / slope.

    Args:
        layers: From `folding.fold`.
        statistics: From `openvino_model.calibrate`, of these layers.

    Returns:
        The layers of a network that computes the same function.
    """

    def size(*names):
        largest = [np.maximum(-statistics[n].low, statistics[n].high) for n in names]
        return np.maximum(np.max(largest, axis=0), 1e-6)

    def unit(size, reader, power=0.5):
        # The reader's weights, in proportion to its others for the same channel out.
        weights = np.abs(layers[reader].kernel * size[:, None])
        weights /= np.sqrt(np.square(weights).mean(axis=(0, 1, 2))) + 1e-12
        largest = np.maximum(weights.max(axis=(0, 1, 3)), 1e-6)
        return size * np.clip((np.median(largest) / largest) ** power, 1 / 16, 16)

    def turned(unit, slope):
        return np.where(slope > 1, -unit, unit)

    # All blocks add to one stream, which must have the same units throughout.
    sums = [name for name in statistics if name.endswith("_sum")]
    stream = unit(size("conv_in_prelu", *sums), "upscale1_conv")
    stream = turned(stream, layers["conv_in"].slope)
    result, given = {}, np.ones(3)
    for name, layer in layers.items():
        slope = np.zeros(1) if layer.slope is None else layer.slope
        growth = np.where(slope > 1, slope, 1)
        if name == "conv_in":
            units = stream / growth
        elif name.endswith("_conv1"):
            units = turned(unit(size(name), name.replace("conv1", "conv2")), slope)
        elif name == "upscale1_conv":  # the four positions of a channel share its unit
            shared = size(name).reshape(4, -1).max(axis=0)
            units = turned(np.tile(unit(shared, "upscale2_conv"), 4), slope)
        elif name == "upscale2_conv":
            # The fourth root loses less than the square root here, as measured.
            units = turned(unit(size(name), "conv_out", 0.25), slope)
        elif name == "conv_out":
            units = np.ones(1)
        else:
            units = stream
        result[name] = Layer(
            np.float32(layer.kernel * given[:, None] / units),
            np.float32(layer.bias / units),
            None if layer.slope is None else np.float32(np.where(slope > 1, 1 / slope, slope)),
        )
        given = units * growth
        if name == "upscale1_conv":
            given = given[: len(given) // 4]
    return result
