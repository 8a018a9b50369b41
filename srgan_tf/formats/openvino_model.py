"""A generator for OpenVINO: what `upscale.py` runs on a CPU, in float32, bfloat16 and 8 bits."""

import os
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import openvino
from openvino import opset13 as ops

from srgan_tf import folding, upscaling
from srgan_tf.formats import quantization

# A hundredth of the work, and the picture itself comes in by it.
_IN_FLOAT = "conv_in"
# Channels 0 to 2 carry R, G and B, since a network begins as a nearest-neighbour upscaler. One with
# a random start may lose more than `inference` allows, which then takes float32.
_CARRYING = 3
# Room for pictures that go beyond what calibration saw.
_MARGIN = 1.25
# The network is cut in two behind this sum. The rest needs 4 kB a pixel, but sees no more than 3
# around one: 1 by its first convolution, 1 and 2 of half the size by the others.
_END_OF_TRUNK = "trunk_sum"
_FEATURES = "features"
_TAIL_MARGIN = 3
# Together they take 0.9 GB.
_TILE, _TAIL_TILE = 768, 192

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = np.array([0, 3, 1, 2]), np.array([0, 2, 3, 1])


class _Tensor(NamedTuple):
    """What goes through the network: values [1, channels, h, w], by calibration's name for them.

    With `picture`, which is those that carry the picture in float, the values are in 8 bits.
    """

    values: openvino.Node
    name: str
    picture: openvino.Node | None = None


def build(
    layers: Mapping[str, folding.Layer],
    statistics: Mapping[str, quantization.Statistics] | None = None,
) -> openvino.Model:
    """Builds the network: lr float32 [1, h, w, 3] in [0, 1] to sr [1, 4h, 4w, 3], not clipped.

    Args:
        layers: As `folding.fold` gives them.
        statistics: From `litert.calibrate`, of these layers. With them convolutions are in 8 bits:
            kernels, and activations as each convolution begins. Left in float are sums, the first
            convolution, and the way of the picture through the last three, by the centre taps of
            the channels that carry it.
    """

    def in_8_bits(values, name):
        return ops.fake_quantize(values, *_range(statistics[name]), levels=256)

    def convolution(values, kernel, bias, mean=None):
        if mean is None:
            weights = ops.constant(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        else:
            weights, bias = _rounded(kernel, bias, mean)
        pads = [kernel.shape[0] // 2, kernel.shape[1] // 2]
        y = ops.convolution(values, weights, [1, 1], pads, pads, [1, 1])
        return ops.add(y, ops.constant(np.float32(bias)[None, :, None, None]))

    def prelu(y, slope):
        return y if slope is None else ops.prelu(y, ops.constant(slope))

    def conv(x, name):
        kernel, bias, slope = layers[name]
        result = name if slope is None else f"{name}_prelu"
        if statistics is None or name == _IN_FLOAT:
            return _Tensor(prelu(convolution(x.values, kernel, bias), slope), result)
        values = in_8_bits(x.values, x.name) if x.picture is None else x.values
        mean = statistics[x.name].mean
        if name not in folding.CARRIERS:
            return _Tensor(prelu(convolution(values, kernel, bias, mean), slope), result)
        picture = carry(x.picture, values, mean, layers[name])
        if slope is None:
            return _Tensor(picture, result)
        y = prelu(convolution(values, kernel, bias, mean), slope)
        return _Tensor(in_8_bits(y, result), result, picture)

    def carry(picture, values, mean, layer):
        kernel, bias, slope = layer
        # Channels before a shuffle are its four positions', one after the other.
        given = np.arange(kernel.shape[2]).reshape(-1, filters)[:, :carrying].ravel()
        if slope is not None:
            made = np.arange(kernel.shape[3]).reshape(-1, filters)[:, :carrying].ravel()
            kernel, bias, slope = kernel[..., made], bias[made], slope[made]
        centre = kernel.shape[0] // 2, kernel.shape[1] // 2
        carried = kernel[centre][given]
        rest = kernel.copy()
        rest[(*centre, given)] = 0
        y = convolution(values, rest, np.zeros_like(bias), mean)
        return prelu(ops.add(y, convolution(picture, carried[None, None], bias)), slope)

    def add(x, y, name):
        y = ops.add(x.values, y.values)
        if name != _END_OF_TRUNK:
            return _Tensor(y, name)
        features = ops.transpose(y, _TO_CHANNELS_LAST, name=_FEATURES)
        if statistics is None:
            return _Tensor(ops.transpose(features, _TO_CHANNELS_FIRST), name)
        # Channels last, as features come in: neither moves anything in memory.
        values, picture = in_8_bits(features, name), ops.slice(features, [0], [carrying], [1], [3])
        values, picture = (ops.transpose(y, _TO_CHANNELS_FIRST) for y in (values, picture))
        return _Tensor(values, name, picture)

    def shuffle(x, name):
        values, picture = (
            None if y is None else ops.depth_to_space(y, "blocks_first", 2)
            for y in (x.values, x.picture)
        )
        return _Tensor(values, name, picture)

    filters = layers[_IN_FLOAT].kernel.shape[-1]
    carrying = min(_CARRYING, filters)
    lr = ops.parameter([1, -1, -1, 3], np.float32, name="lr")
    pictures = _Tensor(ops.transpose(lr, _TO_CHANNELS_FIRST), "lr")
    sr = folding.network(pictures, layers, conv, add, shuffle).values
    return openvino.Model([ops.transpose(sr, _TO_CHANNELS_LAST)], [lr], "generator")


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
    values, bias = quantization.rounded(kernel, bias, steps, mean)
    stored = ops.constant(np.ascontiguousarray(values.transpose(3, 2, 0, 1)))
    steps = ops.constant(steps[:, None, None, None])
    return ops.multiply(ops.convert(stored, np.float32), steps), bias


def _range(statistics: quantization.Statistics) -> list:
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


def load(path: str | os.PathLike, margin: int, *, bfloat16: bool = False) -> upscaling.Upscaler:
    """Loads what `write` wrote.

    Args:
        path: The .xml file.
        margin: As `runtimes.receptive_field` gives it.
        bfloat16: Compute in it what is not in 8 bits, where the processor has it.

    Returns:
        The network; a tile that there is no memory for is a MemoryError.

    Raises:
        ValueError: It is no such file.
    """
    core = openvino.Core()
    # Without this, processors that have bfloat16 compute in it.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"})
    core.set_property({"ENABLE_MMAP": False})  # files may be replaced while they are in use
    try:
        model = core.read_model(path)
        trunk, tail = (_runner(core, part) for part in _parts(model))
    except (RuntimeError, StopIteration) as error:
        raise ValueError(f"{path}: not what srgan_tf wrote ({error})") from error
    return upscaling.Upscaler(
        lambda lr: trunk(upscaling.as_float(lr)),
        margin,
        tile=_TILE,
        tail=upscaling.Upscaler(tail, _TAIL_MARGIN, tile=_TAIL_TILE),
    )


def _parts(model: openvino.Model) -> tuple[openvino.Model, openvino.Model]:
    """Cuts the network in two: the residual blocks, and what comes behind their sum."""
    end = next(node for node in model.get_ops() if node.get_friendly_name() == _FEATURES)
    features = ops.parameter(end.output(0).get_partial_shape(), np.float32)
    end.output(0).replace(features.output(0))
    return openvino.Model([end], model.get_parameters()), openvino.Model(
        model.get_results(), [features]
    )


def _runner(core: openvino.Core, model: openvino.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Gives a function of what the model takes; its result holds until the next call."""
    shape, request = None, None

    def run(x):
        nonlocal shape, request
        try:
            if x.shape != shape:
                # For one shape at a time: a tenth faster, once 0.2 s have gone into it.
                shape, request = None, None
                model.reshape(list(x.shape))
                request = core.compile_model(model, "CPU").create_infer_request()
                shape = x.shape
            return request.infer([x], share_inputs=True, share_outputs=True)[0]
        except RuntimeError as error:
            if "alloc" in str(error) or "memory" in str(error):
                raise upscaling.no_memory(x) from error
            raise

    return run
