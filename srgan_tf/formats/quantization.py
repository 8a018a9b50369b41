"""Int8 in any format: statistics, and rounding that loses little."""

from typing import NamedTuple

import numpy as np

# Headroom for pictures whose values exceed the calibrated ranges.
_HEADROOM = 1.1

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


def levels(statistics: Statistics) -> tuple[float, int]:
    """Spreads 256 levels over a tensor's calibrated range, with headroom; 0 is a level.

    Returns:
        The scale, which is the distance of two levels; and the level, 0 to 255, of the value 0.
    """
    low = _HEADROOM * min(statistics.low.min(), 0)
    high = _HEADROOM * max(statistics.high.max(), 0)
    scale = float(max(high - low, 1e-6) / 255)
    return scale, round(-low / scale)


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
