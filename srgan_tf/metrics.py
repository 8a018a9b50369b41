"""PSNR and SSIM as the paper measured them (section 3.1), and Wang's SSIM.

All three crop 4 pixels from every side and compare luma, in float64. The paper's SSIM is not the
common one with an 11x11 window. It is the SSIM of the video codec daala (tools/dump_ssim.c), whose
window grows with the picture. Its values are 0.01 to 0.05 above Wang's, so never
compare one with the other.
"""

import numpy as np

BORDER = 4
_KERNEL_SUM = 256
_WANG_RADIUS = 5
# Small enough that OpenBLAS stays on one thread: on a busy machine its threads wait for each other.
_BLOCK = 32


def luma(picture: np.ndarray) -> np.ndarray:
    """Computes the luma of BT.601 in studio swing (16..235), not rounded.

    Args:
        picture: uint8 [H, W, 3] RGB, or [H, W] gray. A gray picture is its own luma, unscaled.

    Returns:
        float64 [H, W].

    Raises:
        ValueError: The picture is not uint8 or has another shape.
    """
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture to measure must be uint8 in 0..255, not {picture.dtype}")
    if picture.ndim == 2:
        return picture.astype(np.float64)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"a picture to measure must be [H, W] or [H, W, 3], not {picture.shape}")
    return picture @ (np.array([65.481, 128.553, 24.966]) / 255) + 16


def psnr(sr: np.ndarray, hr: np.ndarray) -> float:
    """Computes the PSNR of luma with 4 pixels cropped from each side, peak 255.

    Args:
        sr: uint8 [H, W, 3] RGB or [H, W] gray.
        hr: The original, of the same shape.

    Returns:
        Decibels; infinite for equal pictures.

    Raises:
        ValueError: Shapes differ, a picture is not uint8, or nothing is left after the crop.
    """
    x, y = _cut_lumas(sr, hr, smallest=1)
    error = np.mean(np.square(x - y))
    return float(10 * np.log10(255**2 / error)) if error > 0 else float("inf")


def ssim(sr: np.ndarray, hr: np.ndarray) -> float:
    """Computes SSIM as the paper did: daala's `dump_ssim` on luma, 4 pixels cropped from each side.

    The Gaussian window has sigma = 1.5 * height / 256. It is truncated at the picture's border, and
    each position is weighted by the remaining mass of its window.

    Args:
        sr: uint8 [H, W, 3] RGB or [H, W] gray.
        hr: The original, of the same shape.

    Returns:
        The weighted mean SSIM, at most 1.

    Raises:
        ValueError: Shapes differ, a picture is not uint8, or nothing is left after the crop.
    """
    x, y = _cut_lumas(sr, hr, smallest=1)
    height, width = x.shape
    sigma = 1.5 * height / 256
    total = weights = 0.0
    for _, mass, similarity in _ssim_tiles(
        x, y, _daala_kernel(sigma, height), _daala_kernel(sigma, width)
    ):
        total += np.sum(mass * similarity)
        weights += np.sum(mass)
    return float(total / weights)


def ssim_wang(sr: np.ndarray, hr: np.ndarray) -> float:
    """Computes Wang's SSIM (2004): an 11x11 Gaussian window, sigma 1.5, on luma, 4 pixels cropped.

    The mean is over positions whose window lies within the picture (5 more pixels from each side).
    It equals scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False, data_range=255)` of the same two planes.

    Args:
        sr: uint8 [H, W, 3] RGB or [H, W] gray, at least 19 pixels high and wide.
        hr: The original, of the same shape.

    Returns:
        The mean SSIM, at most 1.

    Raises:
        ValueError: Shapes differ, or a picture is not uint8 or is smaller than 19 pixels.
    """
    x, y = _cut_lumas(sr, hr, smallest=2 * _WANG_RADIUS + 1)
    offsets = np.arange(-_WANG_RADIUS, _WANG_RADIUS + 1)
    kernel = np.exp(-0.5 * np.square(offsets / 1.5))
    kernel /= kernel.sum()
    total = positions = 0.0
    for _, mass, similarity in _ssim_tiles(x, y, kernel, kernel):
        whole = mass > 1 - 1e-6  # a truncated window lacks at least 1e-3 of its mass
        total += np.sum(similarity[whole])
        positions += np.sum(whole)
    return float(total / positions)


def _cut_lumas(sr: np.ndarray, hr: np.ndarray, *, smallest: int) -> tuple[np.ndarray, np.ndarray]:
    if sr.shape != hr.shape:
        raise ValueError(f"pictures to compare differ in shape: {sr.shape} and {hr.shape}")
    if min(hr.shape[:2]) < smallest + 2 * BORDER:
        raise ValueError(
            f"a picture of {hr.shape[1]}x{hr.shape[0]} is too small to measure: "
            f"it needs at least {smallest + 2 * BORDER} pixels each way"
        )
    cut = slice(BORDER, -BORDER)
    return luma(sr[cut, cut]), luma(hr[cut, cut])


def _daala_kernel(sigma: float, longest: int) -> np.ndarray:
    """Returns daala's kernel of integers that sum to 256, as float64 [2 * half + 1].

    The half-width is the largest n below `longest` with 256 * pdf(n) >= 0.5. The center is 256
    minus the sum of the other, rounded values.
    """
    smallest = np.sqrt(np.pi / 2) * sigma / _KERNEL_SUM
    half = 0 if smallest >= 1 else int(sigma * np.sqrt(-2 * np.log(smallest)))
    half = min(half, longest - 1)
    offsets = np.arange(1, half + 1)
    density = np.exp(-0.5 * np.square(offsets / sigma)) / (np.sqrt(2 * np.pi) * sigma)
    side = np.floor(_KERNEL_SUM * density + 0.5)
    return np.concatenate([side[::-1], [_KERNEL_SUM - 2 * side.sum()], side])


def _window_blocks(kernel: np.ndarray, length: int):
    """Yields (block, reach, matrix): `matrix @ line[reach]` are the window's sums at `block`.

    The window is truncated at both ends of the line.
    """
    half = len(kernel) // 2
    for first in range(0, length, _BLOCK):
        block = slice(first, min(first + _BLOCK, length))
        reach = slice(max(block.start - half, 0), min(block.stop + half, length))
        positions, taken = np.mgrid[block, reach]
        tap = taken - positions + half
        inside = (tap >= 0) & (tap < len(kernel))
        yield block, reach, np.where(inside, kernel[np.where(inside, tap, 0)], 0.0)


def _ssim_tiles(x: np.ndarray, y: np.ndarray, down: np.ndarray, across: np.ndarray):
    """Yields (slices, mass of the window, SSIM) for each tile of positions.

    Matrix products over tiles are fast for wide windows, too, and bound the memory.
    """
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    for rows, near_rows, sum_down in _window_blocks(down, x.shape[0]):
        for columns, near_columns, sum_across in _window_blocks(across, x.shape[1]):
            a, b = x[near_rows, near_columns], y[near_rows, near_columns]
            mass = np.outer(sum_down.sum(axis=1), sum_across.sum(axis=1))
            moments = sum_down @ np.stack([a, b, a * a, b * b, a * b]) @ sum_across.T / mass
            mean_a, mean_b, aa, bb, ab = moments
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            structure = (2 * (ab - mean_a * mean_b) + c2) / (aa + bb - mean_a**2 - mean_b**2 + c2)
            yield (rows, columns), mass, luminance * structure
