"""A generator for OpenVINO: what `upscale.py` runs on a CPU, in float32 and in 8 bits."""

import os
from collections.abc import Mapping

import numpy as np
import openvino
from openvino import opset13 as ops

from srgan_tf import folding, upscaling

# A hundredth of the work, and the picture itself comes in by it.
_IN_FLOAT = "conv_in"
# Room for pictures that go beyond what calibration saw.
_MARGIN = 1.25


def build(
    layers: Mapping[str, folding.Layer], statistics: Mapping[str, folding.Statistics] | None = None
) -> openvino.Model:
    """Builds the network: lr float32 [1, h, w, 3] in [0, 1] to sr [1, 4h, 4w, 3], not clipped.

    Args:
        layers: As `folding.fold` gives them.
        statistics: From `litert.calibrate`, of these layers. With them convolutions are in 8 bits:
            kernels, and activations as each convolution begins. Left in float are sums, the first
            convolution, and the centre taps of those that carry the picture.
    """

    # A tensor goes through with the name that calibration gave it.
    def convolution(x, kernel, bias, in_8_bits):
        values, name = x
        if in_8_bits:
            weights, bias = _rounded(kernel, bias, statistics[name].mean)
            values = ops.fake_quantize(values, *_range(statistics[name]), levels=256)
        else:
            weights = ops.constant(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        pads = [kernel.shape[0] // 2, kernel.shape[1] // 2]
        y = ops.convolution(values, weights, [1, 1], pads, pads, [1, 1])
        return ops.add(y, ops.constant(np.float32(bias)[None, :, None, None]))

    def conv(x, name):
        layer = layers[name]
        if statistics and name in folding.CARRIERS:
            rest, centre = folding.split_centre(layer)
            y = ops.add(convolution(x, *rest, True), convolution(x, *centre, False))
        else:
            in_8_bits = statistics is not None and name != _IN_FLOAT
            y = convolution(x, layer.kernel, layer.bias, in_8_bits)
        if layer.slope is None:
            return y, name
        return ops.prelu(y, ops.constant(layer.slope)), f"{name}_prelu"

    def add(x, y, name):
        return ops.add(x[0], y[0]), name

    def shuffle(x, name):
        return ops.depth_to_space(x[0], "blocks_first", 2), name

    lr = ops.parameter([1, -1, -1, 3], np.float32, name="lr")
    pictures = ops.transpose(lr, np.array([0, 3, 1, 2]))
    sr, _ = folding.network((pictures, "lr"), layers, conv, add, shuffle)
    return openvino.Model([ops.transpose(sr, np.array([0, 2, 3, 1]))], [lr], "generator")


def _rounded(kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray) -> tuple:
    """Rounds a kernel [height, width, channels in, channels out] to int8.

    Processors without VNNI multiply two channels in at once and keep the sum in 16 bits: 255 times
    the two weights must stay below 2**15, or bright textures come out wrong, by up to 35 levels. So
    steps are as large as that asks for, which costs little: few pairs are both large.

    Returns:
        OpenVINO's kernel, and the bias without what rounding adds to the mean of the result.
    """
    pairs = np.pad(kernel, [(0, 0), (0, 0), (0, kernel.shape[2] % 2), (0, 0)])
    pairs = pairs.reshape(*kernel.shape[:2], -1, 2, kernel.shape[3])
    same_sign = np.maximum(np.maximum(pairs, 0).sum(axis=3), np.maximum(-pairs, 0).sum(axis=3))
    largest = np.maximum(np.abs(kernel).max(axis=(0, 1, 2)) / 127, same_sign.max((0, 1, 2)) / 127.5)
    steps = np.float32(np.maximum(largest, 1e-9))
    values, bias = folding.rounded(kernel, bias, steps, mean)
    stored = ops.constant(np.ascontiguousarray(values.transpose(3, 2, 0, 1)))
    steps = ops.constant(steps[:, None, None, None])
    return ops.multiply(ops.convert(stored, np.float32), steps), bias


def _range(statistics: folding.Statistics) -> list:
    """The ends of what 256 levels cover, twice as `fake_quantize` takes them; 0 is a level."""
    low = _MARGIN * min(statistics.low.min(), 0)
    high = _MARGIN * max(statistics.high.max(), 0)
    step = max(high - low, 1e-6) / 255
    zero = np.round(-low / step)
    ends = [ops.constant(np.full([1, 1, 1, 1], x * step, np.float32)) for x in (-zero, 255 - zero)]
    return [*ends, *ends]


def write(model: openvino.Model, path: str | os.PathLike) -> None:
    """Writes what `build` gives as an .xml file, and a .bin file beside it.

    Raises:
        ValueError: That cannot be done.
    """
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:
        raise ValueError(f"{path}: cannot be written ({error})") from error


def load(path: str | os.PathLike, reach: int) -> upscaling.Network:
    """Loads what `write` wrote.

    Args:
        path: The .xml file.
        reach: As `upscaling.receptive_field` gives it.

    Returns:
        The network; a tile that there is no memory for is a MemoryError.

    Raises:
        ValueError: It is no such file.
    """
    core = openvino.Core()
    # Without this, processors that have bfloat16 compute in it.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    core.set_property({"ENABLE_MMAP": False})  # files may be replaced while they are in use
    try:
        model = core.read_model(path)
    except RuntimeError as error:
        raise ValueError(f"{path}: not what srgan_tf wrote ({error})") from error
    shape, compiled = None, None

    def call(lr):
        nonlocal shape, compiled
        try:
            if lr.shape != shape:
                # For one shape at a time: a tenth faster, once 0.2 s have gone into it.
                shape, compiled = None, None
                model.reshape(list(lr.shape))
                compiled = core.compile_model(model, "CPU")
                shape = lr.shape
            sr = compiled(upscaling.as_float(lr))[0]
        except RuntimeError as error:
            if "alloc" in str(error) or "memory" in str(error):
                raise MemoryError(f"no memory for {lr.shape[2]}x{lr.shape[1]}") from error
            raise
        return upscaling.as_picture(sr, lr)

    return upscaling.Network(call, reach)
