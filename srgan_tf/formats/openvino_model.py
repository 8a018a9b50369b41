"""A generator for OpenVINO, as `upscale.py` runs it on a CPU: float32, bfloat16 and int8."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import openvino
from openvino import opset13 as ops

from srgan_tf import files, folding, upscaling
from srgan_tf.formats import quantization

# This layer stays in float: it does 1 % of the work and reads the picture itself.
_IN_FLOAT = "conv_in"
# The network is cut in two after this sum. The rest needs 4 kB a pixel, but only a margin of 3: 1
# pixel for its first convolution, 1 and 2 pixels of half the size for the others.
_END_OF_TRUNK = "trunk_sum"
_FEATURES = "features"
_TAIL_MARGIN = 3
_LAST_BIAS = "last_bias"
# Together these tiles need 0.9 GB.
_TILE, _TAIL_TILE = 768, 192

# Where the .xml file keeps the margin.
_MARGIN_INFO = ["srgan_tf", "margin"]

_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = np.array([0, 3, 1, 2]), np.array([0, 2, 3, 1])


class _Tensor(NamedTuple):
    """Values [1, channels, h, w] in the network, and the name that `calibrate` uses for them.

    If there is a `picture`, the channels that carry the picture in float, the values are in int8.
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
        layers: From `folding.fold`.
        statistics: From `calibrate`, of these layers. With them, kernels and the activations that
            convolutions read are in int8. Sums, the first convolution, and the picture's path
            through the last three stay in float. That path consists of the center taps of the
            channels that carry the picture.
    """

    def in_int8(values, name):
        return ops.fake_quantize(values, *_range(statistics[name]), levels=256)

    def convolution(values, kernel, bias, read=None):
        weights = None
        if read is not None:
            weights, bias = _rounded(kernel, bias, read)
        return _convolution(values, kernel, bias, weights)

    def conv(x, name):
        kernel, bias, slope = layers[name]
        result = name if slope is None else f"{name}_prelu"
        if statistics is None or name == _IN_FLOAT:
            return _Tensor(_prelu(convolution(x.values, kernel, bias), slope), result)
        values = in_int8(x.values, x.name) if x.picture is None else x.values
        read = statistics[x.name]
        if name not in folding.CARRIERS:
            return _Tensor(_prelu(convolution(values, kernel, bias, read), slope), result)
        picture = carry(x.picture, values, read, layers[name])
        if slope is None:
            return _Tensor(picture, result)
        y = _prelu(convolution(values, kernel, bias, read), slope)
        return _Tensor(in_int8(y, result), result, picture)

    def carry(picture, values, read, layer):
        rest, taps, made = folding.split_carried(layer, filters)
        y = convolution(values, rest, np.zeros(len(made)), read)
        name = _LAST_BIAS if layer.slope is None else None
        carried = _convolution(picture, taps, layer.bias[made], name=name)
        return _prelu(ops.add(y, carried), None if layer.slope is None else layer.slope[made])

    def add(x, y, name):
        y = ops.add(x.values, y.values)
        if name != _END_OF_TRUNK:
            return _Tensor(y, name)
        features = ops.transpose(y, _TO_CHANNELS_LAST, name=_FEATURES)
        if statistics is None:
            return _Tensor(ops.transpose(features, _TO_CHANNELS_FIRST), name)
        # Channels last, as features arrive, so that neither operation moves anything in memory.
        values = in_int8(features, name)
        picture = ops.slice(features, [0], [folding.CARRYING], [1], [3])
        values, picture = (ops.transpose(y, _TO_CHANNELS_FIRST) for y in (values, picture))
        return _Tensor(values, name, picture)

    def shuffle(x, name):
        values, picture = (
            None if y is None else ops.depth_to_space(y, "blocks_first", 2)
            for y in (x.values, x.picture)
        )
        return _Tensor(values, name, picture)

    filters = layers[_IN_FLOAT].kernel.shape[-1]
    lr = ops.parameter([1, -1, -1, 3], np.float32, name="lr")
    pictures = _Tensor(ops.transpose(lr, _TO_CHANNELS_FIRST), "lr")
    sr = folding.build(pictures, layers, folding.Operations(conv, add, shuffle)).values
    model = openvino.Model([ops.transpose(sr, _TO_CHANNELS_LAST)], [lr], "generator")
    model.set_rt_info(str(folding.receptive_field(layers)), _MARGIN_INFO)
    return model


def calibrate(
    layers: Mapping[str, folding.Layer], pictures: Sequence[np.ndarray]
) -> dict[str, quantization.Statistics]:
    """Runs the float network on pictures and measures all of its tensors.

    Args:
        layers: From `folding.fold`.
        pictures: lr, uint8 [h, w, 3].

    Returns:
        The statistics by the names that `folding.build` passes: NAME for a convolution,
        "NAME_prelu" for its PReLU, and "NAME_rest" for the rest of `folding.split_carried`. The
        input is "lr".
    """
    tensors, filters = {}, layers["conv_in"].kernel.shape[-1]

    def observe(name, values):
        tensors[name] = values
        return values

    def conv(x, name):
        kernel, bias, slope = layers[name]
        if name in folding.CARRIERS:
            # As `litert.in_int8` splits them: the first reads all channels in float.
            given = filters if name == folding.CARRIERS[0] else None
            rest, _, made = folding.split_carried(layers[name], filters, given)
            observe(f"{name}_rest", _convolution(x, rest, np.zeros(len(made))))
        y = observe(name, _convolution(x, kernel, bias))
        return y if slope is None else observe(f"{name}_prelu", _prelu(y, slope))

    def add(x, y, name):
        return observe(name, ops.add(x, y))

    def shuffle(x, name):
        return observe(name, ops.depth_to_space(x, "blocks_first", 2))

    lr = ops.parameter([1, -1, -1, 3], np.float32, name="lr")
    pixels = observe("lr", ops.transpose(lr, _TO_CHANNELS_FIRST))
    folding.build(pixels, layers, folding.Operations(conv, add, shuffle))
    measures = [
        measure(values, np.array([0, 2, 3]))
        for values in tensors.values()
        for measure in (ops.reduce_min, ops.reduce_max, ops.reduce_mean)
    ]
    grams = {name: _gram(tensors[name]) for name in _read_by_3x3(layers)}
    network = _compiled(openvino.Model([*measures, *grams.values()], [lr]))
    found, sums = [], dict.fromkeys(grams, 0.0)
    for picture in pictures:
        results = network(upscaling.as_float(picture)[None])
        found.append([np.float64(results[i]) for i in range(len(measures))])
        for i, name in enumerate(grams, start=len(measures)):
            sums[name] = sums[name] + np.float64(results[i])
    low, high, mean = (
        [reduce(values, axis=0) for values in list(zip(*found, strict=True))[i::3]]
        for i, reduce in enumerate((np.min, np.max, np.mean))
    )
    return {
        name: quantization.Statistics(*values, sums.get(name))
        for name, *values in zip(tensors, low, high, mean, strict=True)
    }


def _read_by_3x3(layers: Mapping[str, folding.Layer]) -> list[str]:
    """Returns the tensors that the 3x3 convolutions read, by the names that `calibrate` uses."""
    read = []

    def conv(x, name):
        if layers[name].kernel.shape[:2] == (3, 3):
            read.append(x)
        return name if layers[name].slope is None else f"{name}_prelu"

    operations = folding.Operations(conv, lambda x, y, name: name, lambda x, name: name)
    folding.build("lr", layers, operations)
    return read


def _gram(values: openvino.Node) -> openvino.Node:
    """Sums x x^T over 3x3 windows x, with stride 3: [9 channels, 9 channels].

    Rows are in the order of a kernel's first three axes.
    """
    windows = ops.extract_image_patches(values, [3, 3], [3, 3], [1, 1], "valid")
    channels = values.get_output_partial_shape(0)[1].get_length()
    windows = ops.reshape(windows, [9 * channels, -1], False)
    return ops.matmul(windows, windows, False, True)


def quantized(
    layers: Mapping[str, folding.Layer], pictures: Sequence[np.ndarray]
) -> openvino.Model:
    """Builds the network in int8, calibrated on pictures lr, uint8 [h, w, 3].

    The mean error that remains in R, G and B on these pictures is subtracted from the last bias.
    """
    model, errors = build(layers, calibrate(layers, pictures)), []
    networks = [_compiled(each) for each in (model, build(layers))]
    for picture in pictures:
        lr = upscaling.as_float(picture)[None]
        quantized, exact = (network(lr)[0].mean(axis=(0, 1, 2)) for network in networks)
        errors.append(quantized - exact)
    last = next(node for node in model.get_ops() if node.get_friendly_name() == _LAST_BIAS)
    shift = np.tile(np.mean(errors, axis=0), 4)[None, :, None, None]
    last.output(0).replace(ops.constant(np.float32(last.data - shift)).output(0))
    return model


def _compiled(model: openvino.Model) -> openvino.CompiledModel:
    """Compiles a model to compute in float32, except for its quantized parts, which use int8."""
    core = openvino.Core()
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return core.compile_model(model, "CPU")


def _convolution(
    values: openvino.Node, kernel: np.ndarray, bias: np.ndarray, weights=None, name=None
) -> openvino.Node:
    """Adds a "same" convolution; `weights` replace the float kernel, `name` names the bias."""
    if weights is None:
        weights = ops.constant(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
    pads = [kernel.shape[0] // 2, kernel.shape[1] // 2]
    y = ops.convolution(values, weights, [1, 1], pads, pads, [1, 1])
    return ops.add(y, ops.constant(np.float32(bias)[None, :, None, None], name=name))


def _prelu(y: openvino.Node, slope: np.ndarray | None) -> openvino.Node:
    return y if slope is None else ops.prelu(y, ops.constant(slope))


def _rounded(kernel: np.ndarray, bias: np.ndarray, read: quantization.Statistics) -> tuple:
    """Rounds a kernel [height, width, channels in, channels out] to int8.

    Processors without VNNI multiply two input channels at once and keep the sum in 16 bits. So 255
    times the two weights must stay below 2**15, or bright textures are wrong by up to 35 levels.
    Scales are as large as that requires. This costs little, since both weights are large in few
    pairs.

    Returns:
        OpenVINO's kernel, and the bias, corrected for the mean error that rounding causes.
    """
    largest = np.maximum(
        np.abs(kernel).max(axis=(0, 1, 2)) / 127, _pair_sums(kernel).max(axis=(0, 1, 2)) / 127.5
    )
    scales = np.float32(np.maximum(largest, 1e-9))
    values = quantization.rounded(kernel, scales, read)
    # Rounding to the least error may push a pair over the limit again.
    excess = np.maximum(_pair_sums(values.astype(int)) - 128, 0).repeat(2, axis=2)
    excess = excess[:, :, : kernel.shape[2]]
    values = (values - np.sign(values) * -(-excess // 2)).astype(np.int8)
    bias = quantization.corrected(bias, kernel, values, scales, read)
    stored = ops.constant(np.ascontiguousarray(values.transpose(3, 2, 0, 1)))
    scales = ops.constant(scales[:, None, None, None])
    return ops.multiply(ops.convert(stored, np.float32), scales), bias


def _pair_sums(kernel: np.ndarray) -> np.ndarray:
    """Returns the larger of the positive and the negative sum of each two channels' weights."""
    pairs = np.pad(kernel, [(0, 0), (0, 0), (0, kernel.shape[2] % 2), (0, 0)])
    pairs = pairs.reshape(*kernel.shape[:2], -1, 2, kernel.shape[3])
    return np.maximum(np.maximum(pairs, 0).sum(axis=3), np.maximum(-pairs, 0).sum(axis=3))


def _range(statistics: quantization.Statistics) -> list:
    """Returns both ends of 256 levels, twice, as `fake_quantize` takes them; 0 is a level."""
    scale, zero_level = quantization.levels(statistics)
    ends = [
        ops.constant(np.full([1, 1, 1, 1], level * scale, np.float32))
        for level in (-zero_level, 255 - zero_level)
    ]
    return [*ends, *ends]


def write(model: openvino.Model, path: str | os.PathLike) -> None:
    """Writes a model from `build` as an .xml file with a .bin file beside it.

    Raises:
        ValueError: The files cannot be written.
    """
    with files.naming(path, "cannot be written"):
        openvino.save_model(model, path, compress_to_fp16=False)


def load(
    path: str | os.PathLike, *, bfloat16: bool = False, threads: int | None = None
) -> upscaling.Upscaler:
    """Loads a model that `write` wrote.

    Args:
        path: The .xml file.
        bfloat16: Compute in bfloat16 instead of float32, where the processor supports it.
        threads: Number of threads; None for one on each core. The result does not depend on it.

    Returns:
        The network; a tile too large for memory raises MemoryError.

    Raises:
        ValueError: The file is missing, damaged or from another program.
    """
    core = openvino.Core()
    # Without this, processors that have bfloat16 compute in it.
    core.set_property("CPU", {"INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f32"})
    if threads is not None:
        core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads})
    core.set_property({"ENABLE_MMAP": False})  # files may be replaced while they are in use
    with files.naming(path, "not a model that srgan_tf wrote"):
        model = core.read_model(path)
        margin = int(model.get_rt_info(_MARGIN_INFO).astype(str))
        trunk, tail = [_runner(core, part) for part in _parts(model)]
    return upscaling.Upscaler(
        lambda lr: trunk(upscaling.as_float(lr)),
        margin,
        tile=_TILE,
        tail=upscaling.Upscaler(tail, _TAIL_MARGIN, tile=_TAIL_TILE),
    )


def _parts(model: openvino.Model) -> tuple[openvino.Model, openvino.Model]:
    """Cuts the network in two: the residual blocks, and the layers after their sum."""
    end = next(node for node in model.get_ops() if node.get_friendly_name() == _FEATURES)
    features = ops.parameter(end.output(0).get_partial_shape(), np.float32)
    end.output(0).replace(features.output(0))
    return openvino.Model([end], model.get_parameters()), openvino.Model(
        model.get_results(), [features]
    )


def _runner(core: openvino.Core, model: openvino.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that runs the model; its result is valid until the next call."""
    shape, request = None, None

    def run(x):
        nonlocal shape, request
        try:
            if x.shape != shape:
                # Compiled for one shape it is 10 % faster, after 0.2 s of compilation.
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
