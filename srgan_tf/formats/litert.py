"""Writes a generator's .tflite file operation by operation, in float or in 8 bits.

TensorFlow's converter, its quantiser and ai-edge-quantizer lack what this network needs in 8 bits:
kernels in two parts, a PReLU that XNNPACK runs, DEPTH_TO_SPACE without a detour through float. It
takes eight kinds of operations to write it down, all of them LiteRT's own; nothing needs Flex.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import flatbuffers
import numpy as np
from ai_edge_litert import interpreter
from ai_edge_litert import schema_py_generated as schema

from srgan_tf import files, folding, pictures
from srgan_tf.folding import CARRIERS, Layer, network
from srgan_tf.formats.quantization import Statistics, _split_centre, equalised, rounded

if TYPE_CHECKING:
    import keras

# In "int8" `equalised` does for the sub-pixel convolutions what splitting does.
_SPLIT_INT8 = ("conv_in", "conv_out")

QUANTIZE = ("float32", "float16", "dynamic", "int8")

# Calibration takes the middle of larger pictures: all tensors of a picture are kept at once.
_CALIBRATION_SIZE = 96


def write_tflite(
    generator: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "float32",
    input_size: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> Path:
    """Writes a generator for LiteRT, of built-in operations alone.

    The file takes lr float32 [1, h, w, 3] in [0, 1] and gives sr float32 [1, 4h, 4w, 3] in [-1, 1],
    not clipped; with "int8" both are uint8 pictures.

    Args:
        generator: As `networks.build_generator` makes it.
        path: The file to write; one that is there is replaced.
        quantize: One of `QUANTIZE`. "float32"; "float16": weights of half the size, computed in
            float32; "dynamic": kernels in 8 bits, activations too as each convolution begins;
            "int8": integers from end to end.
        input_size: Height and width of lr, for delegates that need them fixed; None leaves both
            open (`resize_tensor_input`).
        calibration: Pictures lr, uint8 [h, w, 3]. "int8" needs some, to know the ranges of its
            tensors; "dynamic" comes a little closer with them.

    Returns:
        The path.

    Raises:
        ValueError: The generator is another network, a quantisation is not known, or there are no
            pictures for "int8".
    """
    _refuse_form(quantize, calibration)
    # Here, so that the rest of the package runs without LiteRT.

    layers = folding.fold(generator)
    calibration = [pictures.middle(picture, _CALIBRATION_SIZE) for picture in calibration]
    if quantize == "int8":
        # The last layer's result in [0, 1], of which uint8 is a multiple.
        last = layers["conv_out"]
        layers["conv_out"] = folding.Layer(last.kernel / 2, (last.bias + 1) / 2, None)
        layers = equalised(layers, calibrate(layers, calibration))
        statistics = calibrate(layers, calibration)
        model = in_int8(layers, statistics, input_size=input_size)
    else:
        means = None
        if quantize == "dynamic" and calibration:
            means = calibrate(layers, calibration)
        weights = "int8" if quantize == "dynamic" else quantize
        model = in_float(layers, weights=weights, input_size=input_size, means=means)
    with files.replacing(Path(path)) as beside:
        beside.write_bytes(model)
    return Path(path)


def _refuse_form(quantize: str, calibration: Sequence[np.ndarray]) -> None:
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize is {quantize!r}: give one of {', '.join(QUANTIZE)}")
    if quantize == "int8" and not len(calibration):
        raise ValueError("int8 needs calibration pictures, and there are none")


def in_float(
    layers: Mapping[str, Layer],
    *,
    weights: str = "float32",
    input_size: tuple[int, int] | None = None,
    means: Mapping[str, Statistics] | None = None,
    observed: bool = False,
) -> bytes:
    """Makes a file that takes lr float32 in [0, 1] and gives sr float32 in [-1, 1], not clipped.

    Args:
        layers: As `folding.fold` gives them.
        weights: "float32"; "float16": stored in half the size, computed in float32; "int8":
            kernels in 8 bits, and activations as each convolution begins, but for the first
            convolution and the centre taps of those that carry the picture.
        input_size: Height and width of lr; None leaves both open.
        means: From `calibrate`, to correct in the biases what rounding does to the kernels' sums.
        observed: Give all tensors, for `calibrate`.
    """
    graph = _Graph(input_size)
    seen = []

    def see(tensor):
        seen.append(tensor)
        return tensor

    def weight(name, values):
        return (graph.half if weights == "float16" else graph.constant)(name, values)

    def convolution(x, name, kernel, bias, small=True):
        if weights == "int8" and small:
            kernel, steps, bias = _rounded(kernel, bias, means and means[x.name].mean)
            kernel = graph.constant(f"{name}/kernel", kernel, steps)
            version = 5
        else:
            kernel, version = weight(f"{name}/kernel", kernel.transpose(3, 0, 1, 2)), 1
        bias = weight(f"{name}/bias", bias)
        return see(graph.operation("CONV_2D", version, [x, kernel, bias], name, bias.channels))

    def conv(x, name):
        layer = layers[name]
        if (weights == "int8" and name in CARRIERS) or (observed and name in _SPLIT_INT8):
            rest, centre = _split_centre(layer)
            rest = convolution(x, f"{name}_rest", *rest)
            y = add(rest, convolution(x, f"{name}_centre", *centre, small=False), name)
        else:
            y = convolution(x, name, layer.kernel, layer.bias, small=name != "conv_in")
        if layer.slope is None:
            return y
        slope = weight(f"{name}/slope", layer.slope[None, None])
        return see(graph.operation("PRELU", 1, [y, slope], f"{name}_prelu", y.channels))

    def add(x, y, name):
        return see(graph.operation("ADD", 1, [x, y], name, x.channels))

    def shuffle(x, name):
        return see(graph.operation("DEPTH_TO_SPACE", 1, [x], name, x.channels // 4, factor=2))

    lr = see(graph.tensor("lr", 3))
    sr = network(lr, layers, conv, add, shuffle)
    return graph.finish(lr, seen if observed else [sr])


def in_int8(
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistics],
    *,
    input_size: tuple[int, int] | None = None,
) -> bytes:
    """Makes a file that takes lr uint8 and gives sr uint8, in integers from end to end.

    Args:
        layers: From `equalised`, with a last layer that gives sr in [0, 1].
        statistics: From `calibrate`, of these layers.
        input_size: Height and width of lr; None leaves both open.
    """
    graph = _Graph(input_size)

    def convolution(x, name, kernel, bias, output):
        kernel, steps, bias = _rounded(kernel, bias, statistics[x.name].mean)
        steps_of_sums = x.step * steps
        kernel = graph.constant(f"{name}/kernel", kernel, steps)
        bias = np.round(bias / steps_of_sums).astype(np.int32)
        bias = graph.constant(f"{name}/bias", bias, steps_of_sums)
        return graph.operation("CONV_2D", 3, [x, kernel, bias], name, bias.channels, output)

    def conv(x, name):
        layer = layers[name]
        # Levels of 8 bits at the end, where rounding and clipping are then those of a picture.
        output = (1 / 255, -128) if name == "conv_out" else _range(statistics[name])
        if name in _SPLIT_INT8:
            parts = zip(("rest", "centre"), _split_centre(layer), strict=True)
            given = [
                convolution(x, f"{name}_{part}", *taps, _range(statistics[f"{name}_{part}"]))
                for part, taps in parts
            ]
            y = graph.operation("ADD", 2, given, name, len(layer.bias), output)
        else:
            y = convolution(x, name, layer.kernel, layer.bias, output)
        return y if layer.slope is None else prelu(y, name, layer.slope)

    def prelu(y, name, slope):
        # x + max((slope - 1) * x, 0), for slopes of at most 1. The maximum is the end of 8 bits:
        # where -128 stands for 0 there is nothing below. XNNPACK runs these two operations, but
        # not PRELU, MAXIMUM or RELU in 8 bits; LiteRT's own PRELU takes as long as a convolution.
        steepest = np.abs(slope - 1).max() or 1.0
        factor = np.round((slope - 1) / steepest * 127).astype(np.int8)
        factor = graph.constant(f"{name}/slope", factor[None, None], steepest / 127)
        largest = ((slope - 1) * np.minimum(statistics[name].low, 0)).max()
        positive = (max(largest / 255, y.step / 100), -128)
        more = graph.operation("MUL", 2, [y, factor], f"{name}_more", y.channels, positive)
        # With the steps of y, positive values go through untouched.
        same = (y.step, y.zero)
        return graph.operation("ADD", 2, [y, more], f"{name}_prelu", y.channels, same)

    def add(x, y, name):
        return graph.operation("ADD", 2, [x, y], name, x.channels, _range(statistics[name]))

    def shuffle(x, name):
        same = (x.step, x.zero)
        return graph.operation("DEPTH_TO_SPACE", 1, [x], name, x.channels // 4, same, factor=2)

    picture = graph.tensor("lr_uint8", 3, np.uint8, (1 / 255, 0))
    lr = graph.operation("QUANTIZE", 1, [picture], "lr", 3, (1 / 255, -128))
    sr = network(lr, layers, conv, add, shuffle)
    result = graph.tensor("sr_uint8", 3, np.uint8, (1 / 255, 0), factor=4)
    return graph.finish(picture, [graph.operation("QUANTIZE", 1, [sr], into=result)])


def calibrate(layers: Mapping[str, Layer], pictures: Sequence[np.ndarray]) -> dict[str, Statistics]:
    """Runs the float network on pictures lr, uint8 [h, w, 3], and measures all of its tensors."""
    runner = interpreter.Interpreter(
        model_content=in_float(layers, observed=True), num_threads=os.cpu_count()
    )
    [given], results = runner.get_input_details(), runner.get_output_details()
    seen: dict[str, list] = {result["name"]: [] for result in results}
    for picture in pictures:
        runner.resize_tensor_input(given["index"], [1, *picture.shape])
        runner.allocate_tensors()
        runner.set_tensor(given["index"], picture[None] / np.float32(255))
        runner.invoke()
        for result in results:
            values = runner.get_tensor(result["index"])
            values = values.reshape(-1, values.shape[-1])
            found = values.min(axis=0), values.max(axis=0), values.mean(axis=0, dtype=np.float64)
            seen[result["name"]].append(found)
    statistics = {}
    for name, found in seen.items():
        low, high, mean = map(np.float64, zip(*found, strict=True))
        statistics[name] = Statistics(low.min(axis=0), high.max(axis=0), mean.mean(axis=0))
    return statistics


def _rounded(kernel: np.ndarray, bias: np.ndarray, mean: np.ndarray | None):
    """Rounds a kernel to int8 in LiteRT's order of axes, with a step for each channel out."""
    steps = np.maximum(np.abs(kernel).max(axis=(0, 1, 2)), 1e-9) / 127
    values, bias = rounded(kernel, bias, steps, mean)
    return values.transpose(3, 0, 1, 2), np.float32(steps), np.float32(bias)


def _range(statistics: Statistics) -> tuple[float, int]:
    """The step, and the value that stands for 0, with which int8 covers what was seen."""
    low, high = min(statistics.low.min(), 0), max(statistics.high.max(), 0)
    # Not too small beside what it is added to, which XNNPACK refuses: equalised sizes are about 1.
    step = max(high - low, 0.02) / 255
    return float(step), int(np.clip(np.round(-128 - low / step), -128, 127))


class _Tensor(NamedTuple):
    """A tensor of a `_Graph`: its step and zero if in 8 bits, its size in multiples of lr's."""

    index: int
    name: str
    channels: int
    step: float | None
    zero: int
    factor: int


_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
}


class _Graph:
    """A .tflite file in the making: one subgraph of tensors and operations."""

    def __init__(self, input_size: tuple[int, int] | None):
        self.input_size = input_size
        self.buffers = [schema.BufferT()]  # by convention the first one is empty
        self.codes: dict[tuple[str, int], int] = {}
        self.main = schema.SubGraphT()
        self.main.name, self.main.tensors, self.main.operators = "main", [], []

    def _add(self, name, shape, dtype, quantization=None, data=None) -> schema.TensorT:
        tensor = schema.TensorT()
        tensor.name, tensor.type = name, _TYPES[np.dtype(dtype).name]
        tensor.shape, tensor.hasRank, tensor.buffer = list(shape), True, 0
        if data is not None:
            tensor.buffer = len(self.buffers)
            self.buffers.append(schema.BufferT())
            self.buffers[-1].data = np.frombuffer(np.ascontiguousarray(data).tobytes(), np.uint8)
        if quantization is not None:
            steps, zero = quantization
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.float32(steps))
            tensor.quantization.zeroPoint = np.full(np.size(steps), zero, np.int64)
        self.main.tensors.append(tensor)
        return tensor

    def tensor(self, name, channels, dtype=np.float32, quantization=None, factor=1) -> _Tensor:
        """Adds a tensor of pictures."""
        height, width = self.input_size or (1, 1)
        shape = [1, factor * height, factor * width, channels]
        tensor = self._add(name, shape, dtype, quantization)
        if self.input_size is None:
            tensor.shapeSignature = [1, -1, -1, channels]
        step, zero = quantization or (None, 0)
        return _Tensor(len(self.main.tensors) - 1, name, channels, step, zero, factor)

    def constant(self, name, values, steps=None) -> _Tensor:
        """Adds weights, in 8 or 32 bits where they come with steps."""
        quantization = None if steps is None else (steps, 0)
        self._add(name, values.shape, values.dtype, quantization, values)
        return _Tensor(len(self.main.tensors) - 1, name, len(values), None, 0, 1)

    def half(self, name, values) -> _Tensor:
        """Adds weights that are stored in float16 and used in float32."""
        stored = self.constant(f"{name}_half", values.astype(np.float16))
        self._add(name, values.shape, np.float32)
        result = _Tensor(len(self.main.tensors) - 1, name, len(values), None, 0, 1)
        return self.operation("DEQUANTIZE", 3, [stored], into=result)

    def operation(
        self,
        kind: str,
        version: int,
        given: Sequence[_Tensor],
        name: str | None = None,
        channels: int | None = None,
        quantization: tuple[float, int] | None = None,
        *,
        factor: int = 1,
        into: _Tensor | None = None,
    ) -> _Tensor:
        """Adds an operation, and its result unless it goes `into` a tensor that is there.

        The result is float32, or int8 where step and zero are given, and `factor` times as large as
        what the operation is given first. The version is the one in LiteRT's op_version.cc for
        these types, which tells an older runtime that it cannot run the file.
        """
        dtype = np.float32 if quantization is None else np.int8
        result = into or self.tensor(name, channels, dtype, quantization, factor * given[0].factor)
        operator = schema.OperatorT()
        operator.opcodeIndex = self.codes.setdefault((kind, version), len(self.codes))
        operator.inputs, operator.outputs = [tensor.index for tensor in given], [result.index]
        options = {
            "CONV_2D": schema.Conv2DOptionsT,
            "DEPTH_TO_SPACE": schema.DepthToSpaceOptionsT,
            "ADD": schema.AddOptionsT,
            "MUL": schema.MulOptionsT,
        }.get(kind)
        if options is not None:
            operator.builtinOptions = options()
            union = options.__name__.removesuffix("T")
            operator.builtinOptionsType = getattr(schema.BuiltinOptions, union)
        if kind == "CONV_2D":
            operator.builtinOptions.padding = schema.Padding.SAME
            operator.builtinOptions.strideH = operator.builtinOptions.strideW = 1
            operator.builtinOptions.dilationHFactor = operator.builtinOptions.dilationWFactor = 1
        elif kind == "DEPTH_TO_SPACE":
            operator.builtinOptions.blockSize = 2
        self.main.operators.append(operator)
        return result

    def finish(self, lr: _Tensor, results: Sequence[_Tensor]) -> bytes:
        """Gives the file."""
        self.main.inputs, self.main.outputs = [lr.index], [tensor.index for tensor in results]
        model = schema.ModelT()
        model.version, model.description = 3, "srgan_tf"
        model.subgraphs, model.buffers, model.operatorCodes = [self.main], self.buffers, []
        for kind, version in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = getattr(schema.BuiltinOperator, kind), version
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
