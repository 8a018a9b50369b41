"""Int8 in any format: statistics, rounding, and units of channels that lose few levels."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from srgan_tf.folding import Layer


class Statistics(NamedTuple):
    """The range and mean that calibration found in a tensor: float64 [channels] each."""

    low: np.ndarray
    high: np.ndarray
    mean: np.ndarray


def rounded(
    kernel: np.ndarray, bias: np.ndarray, scales: np.ndarray, mean: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Rounds a kernel to int8.

    Args:
        kernel: [height, width, channels in, channels out].
        bias: [channels out].
        scales: [channels out].
        mean: The mean of each input channel, if known. The bias is then corrected by the error that
            rounding adds to the mean of the result.

    Returns:
        The int8 kernel in multiples of its scales, and the bias.
    """
    values = np.round(kernel / scales)
    if mean is not None:
        bias = bias + mean @ (kernel - values * scales).sum(axis=(0, 1))
    return values.astype(np.int8), bias


def equalised(
    layers: Mapping[str, Layer], statistics: Mapping[str, Statistics]
) -> dict[str, Layer]:
    """Rescales each channel by its own unit, so that int8 loses few levels.

    A tensor has one scale for all of its channels, and a kernel one for all input channels. So a
    channel is divided by its size, less where the next layer has a large weight for it, and the
    next layer's kernel is multiplied by the same (Xiao et al., SmoothQuant, arXiv 2211.10438).
    That is exact: a PReLU is homogeneous. A channel whose slope is above 1 is negated,
    prelu(x) = -slope * prelu'(-x) with a slope of 1 / slope, as `litert.in_int8` needs slopes of at
    most 1.

    Args:
        layers: From `folding.fold`.
        statistics: From `openvino_model.calibrate`, of these layers.

    Returns:
        Layers of a network that computes the same function.
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
            # By the fourth root, as the reader's centre taps are not in its way; measured.
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
