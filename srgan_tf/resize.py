"""Matlab's bicubic `imresize`, which produced the LR pictures of every benchmark."""

import numpy as np


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, zero outside [-2, 2]."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def bicubic_matrix(size_in: int, size_out: int) -> np.ndarray:
    """Returns the linear map of Matlab's `imresize(x, [size_out ...], 'bicubic')` along one axis.

    When shrinking, the kernel is stretched by the factor (antialiasing). Beyond the border, the
    border pixel is repeated; newer Matlabs mirror it, which does not reproduce the benchmarks' LR
    files. When shrinking by 4, all weights are multiples of 1/4096, so sums of products with 8-bit
    values are exact even in float32.

    Args:
        size_in: Number of input samples.
        size_out: Number of output samples, smaller or larger.

    Returns:
        float64 [size_out, size_in]; every row sums to 1.

    Raises:
        ValueError: A size is less than 1.
    """
    if size_in < 1 or size_out < 1:
        raise ValueError(f"cannot resize {size_in} samples to {size_out}: both must be at least 1")
    scale = size_out / size_in
    stretch = min(scale, 1.0)
    centers = (np.arange(size_out) + 0.5) / scale - 0.5
    taps = int(np.ceil(4 / stretch)) + 2
    positions = np.floor(centers - 2 / stretch)[:, None].astype(int) + np.arange(taps)
    weights = _cubic((centers[:, None] - positions) * stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    sources = np.clip(positions, 0, size_in - 1)
    matrix = np.zeros((size_out, size_in))
    np.add.at(matrix, (np.arange(size_out)[:, None], sources), weights)
    return matrix


def imresize(picture: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a picture exactly as Matlab's `imresize(picture, size, 'bicubic')` does.

    Matlab starts with the axis that shrinks more, or with rows if both shrink equally, and rounds
    and clips to 8 bits after each axis.

    Args:
        picture: uint8 [H, W] or [H, W, C].
        size: Height and width of the result, in pixels.

    Returns:
        uint8 [*size] or [*size, C].

    Raises:
        ValueError: The picture is not uint8 or does not have two or three axes.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3):
        raise ValueError(
            f"imresize takes uint8 [H, W] or [H, W, C], not {picture.dtype} {picture.shape}"
        )
    values = picture.astype(np.float64)
    for axis in sorted((0, 1), key=lambda axis: size[axis] / picture.shape[axis]):
        matrix = bicubic_matrix(picture.shape[axis], size[axis])
        resized = np.moveaxis(np.tensordot(matrix, values, axes=(1, axis)), 0, axis)
        # Matlab rounds half away from zero (negative values are clipped anyway), np.round to even.
        values = np.clip(np.floor(resized + 0.5), 0, 255)
    return values.astype(np.uint8)
