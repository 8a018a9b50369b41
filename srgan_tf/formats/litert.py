"""A generator as a .tflite file for LiteRT, in float or int8.

The file is written operation by operation. TensorFlow's converter, its quantizer and
ai-edge-quantizer lack what this network needs in int8: kernels in two parts, a PReLU that XNNPACK
runs, DEPTH_TO_SPACE without a detour through float. Seven kinds of LiteRT's built-in operations
suffice; nothing needs Flex.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import flatbuffers
import numpy as np
from absl import logging
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from srgan_tf import files, folding, pictures, upscaling
from srgan_tf.folding import CARRIERS, Layer
from srgan_tf.formats.quantization import Statistics, corrected, equalized, rounded

if TYPE_CHECKING:
    import keras

QUANTIZE = ("float32", "float16", "dynamic", "int8")

# Calibration takes the middle of larger pictures, which is enough for ranges and means.
_CALIBRATION_SIZE = 96

# Headroom for pictures whose values exceed the calibrated ranges. Without it, a bright picture
# outside the calibration set clips in every sum.
_HEADROOM = 1.1

# The metadata entry with the margin, a decimal number.
_MARGIN_ENTRY = "srgan_tf.margin"


def write_tflite(
    generator: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "float32",
    input_size: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> Path:
    """Writes a generator for LiteRT, with built-in operations only.

    The file takes lr float32 [1, h, w, 3] in [0, 1] and returns sr float32 [1, 4h, 4w, 3] in
    [-1, 1], not clipped; with "int8" both are uint8 pictures. Its metadata holds the margin.

    Args:
        generator: From `networks.build_generator`.
        path: The file to write or replace.
        quantize: One of `QUANTIZE`. "float32"; "float16": weights of half the size, computed in
            float32; "dynamic": int8 kernels, and activations in int8 on the way into each
            convolution; "int8": calibrated ranges, see `in_int8`.
        input_size: Height and width of lr, for delegates that need them fixed; None leaves both
            variable (`resize_tensor_input`).
        calibration: Pictures lr, uint8 [h, w, 3]. "int8" needs some to find the ranges of its
            tensors; "dynamic" is a little more accurate with them.

    Returns:
        The path.

    Raises:
        ValueError: The generator is not the paper's, `quantize` is unknown, or there are no
            pictures for "int8".
    """
    # Imported here so that files load without OpenVINO.
    from srgan_tf.formats.openvino_model import calibrate

    check_form(quantize, calibration)
    layers = folding.fold(generator)
    calibration = [pictures.middle(picture, _CALIBRATION_SIZE) for picture in calibration]
    if quantize == "int8":
        # Makes the last layer return values in [0, 1], which fit a uint8 with a scale of 1/255.
        last = layers["conv_out"]
        layers["conv_out"] = folding.Layer(last.kernel / 2, (last.bias + 1) / 2, None)
        layers = equalized(layers, calibrate(layers, calibration))
        statistics = calibrate(layers, calibration)
        model = in_int8(layers, statistics, input_size=input_size)
    else:
        means = None
        if quantize == "dynamic" and calibration:
            means = calibrate(layers, calibration)
        weights = "int8" if quantize == "dynamic" else quantize
        model = in_float(layers, weights=weights, input_size=input_size, means=means)
    with files.replacing(Path(path)) as temporary:
        temporary.write_bytes(model)
    return Path(path)


def check_form(quantize: str, calibration: Sequence[np.ndarray]) -> None:
    """Raises ValueError if `write_tflite` would refuse these arguments."""
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
) -> bytes:
    """Makes a file that takes lr float32 in [0, 1] and returns sr float32 in [-1, 1], not clipped.

    Args:
        layers: From `folding.fold`.
        weights: "float32"; "float16": stored in half the size, computed in float32; "int8": int8
            kernels and activations in each convolution, except the first one and the center taps of
            those that carry the picture.
        input_size: Height and width of lr; None leaves both variable.
        means: From `openvino_model.calibrate`, to correct the biases for the rounding of kernels.
    """
    graph = _Graph(input_size)

    def weight(name, values):
        return (graph.half if weights == "float16" else graph.constant)(name, values)

    def convolution(x, name, kernel, bias, small=True):
        if weights == "int8" and small:
            kernel, scales, bias = _rounded(kernel, bias, means and means[x.name])
            kernel = graph.constant(f"{name}/kernel", kernel, scales)
            version = 5
        else:
            kernel, version = weight(f"{name}/kernel", kernel.transpose(3, 0, 1, 2)), 1
        bias = weight(f"{name}/bias", bias)
        return graph.operation("CONV_2D", version, [x, kernel, bias], name, bias.channels)

    def conv(x, name):
        layer = layers[name]
        if weights == "int8" and name in CARRIERS:
            rest, center = folding.split_center(layer)
            rest = convolution(x, f"{name}_rest", *rest)
            y = graph.add(rest, convolution(x, f"{name}_center", *center, small=False), name)
        else:
            y = convolution(x, name, layer.kernel, layer.bias, small=name != "conv_in")
        if layer.slope is None:
            return y
        slope = weight(f"{name}/slope", layer.slope[None, None])
        return graph.operation("PRELU", 1, [y, slope], f"{name}_prelu", y.channels)

    lr = graph.tensor("lr", 3)
    sr = folding.build(lr, layers, folding.Operations(conv, graph.add, graph.shuffle))
    return graph.finish(lr, sr, folding.receptive_field(layers))


def in_int8(
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistics],
    *,
    input_size: tuple[int, int] | None = None,
) -> bytes:
    """Makes a file that takes lr uint8 and returns sr uint8, with its convolutions in int8.

    The first convolution, the sums of the residual blocks and the picture's path through the last
    three layers stay in float: they do less than 1 % of the work. In int8 they would round the
    picture itself a dozen times, which costs more than everything else.

    Args:
        layers: From `quantization.equalized`, with a last layer that returns sr in [0, 1].
        statistics: From `openvino_model.calibrate`, of these layers.
        input_size: Height and width of lr; None leaves both variable.
    """
    graph = _Graph(input_size)
    filters = layers["conv_in"].kernel.shape[-1]

    def dequantized(x):
        return graph.operation("DEQUANTIZE", 2, [x], f"{x.name}_float", x.channels)

    def float_convolution(x, name, kernel, bias):
        kernel = graph.constant(f"{name}/kernel", kernel.transpose(3, 0, 1, 2))
        bias = graph.constant(f"{name}/bias", np.float32(bias))
        return graph.operation("CONV_2D", 1, [x, kernel, bias], name, bias.channels)

    def float_prelu(y, name, slope):
        slope = graph.constant(f"{name}/slope", slope[None, None])
        return graph.operation("PRELU", 1, [y, slope], f"{name}_prelu", y.channels)

    def convolution(x, name, kernel, bias):
        kernel, scales, bias = _rounded(kernel, bias, statistics[x.name])
        bias_scales = x.scale * scales
        kernel = graph.constant(f"{name}/kernel", kernel, scales)
        bias = np.round(bias / bias_scales).astype(np.int32)
        bias = graph.constant(f"{name}/bias", bias, bias_scales)
        output = _range(statistics[name])
        return graph.operation("CONV_2D", 3, [x, kernel, bias], name, bias.channels, output)

    def conv(x, name):
        kernel, bias, slope = layers[name]
        if name == "conv_in":
            y = float_convolution(x.picture, name, kernel, bias)
            return _Value(None, float_prelu(y, name, slope))
        values, picture = x
        if values is None:
            output = _range(statistics[picture.name])
            values = graph.operation("QUANTIZE", 1, [picture], picture.name, filters, output)
        if name in CARRIERS:
            picture = carry(values, picture, name)
            if slope is None:
                return _Value(None, picture)
        y = convolution(values, name, kernel, bias)
        if slope is None:
            return _Value(None, dequantized(y))
        return _Value(prelu(y, name, slope), picture if name in CARRIERS else None)

    def carry(values, picture, name):
        layer = layers[name]
        rest, taps, made = folding.split_carried(layer, filters, picture.channels)
        y = convolution(values, f"{name}_rest", rest, np.zeros(len(made)))
        exact = float_convolution(picture, f"{name}_carried", taps, layer.bias[made])
        y = graph.add(dequantized(y), exact, f"{name}_picture")
        if layer.slope is None:
            return y
        return float_prelu(y, f"{name}_picture", layer.slope[made])

    def prelu(y, name, slope):
        # x + max((slope - 1) * x, 0), for slopes of at most 1. A zero point of -128, where int8
        # ends, takes the maximum with 0. XNNPACK runs these two operations in int8, but not PRELU,
        # MAXIMUM or RELU; LiteRT's own PRELU takes as long as a convolution.
        steepest = np.abs(slope - 1).max() or 1.0
        factor = np.round((slope - 1) / steepest * 127).astype(np.int8)
        factor = graph.constant(f"{name}/slope", factor[None, None], steepest / 127)
        largest = ((slope - 1) * np.minimum(statistics[name].low, 0)).max()
        positive = (max(largest / 255, y.scale / 100), -128)
        more = graph.operation("MUL", 2, [y, factor], f"{name}_more", y.channels, positive)
        # With the scale of y, positive values pass unchanged.
        same = (y.scale, y.zero_point)
        return graph.operation("ADD", 2, [y, more], f"{name}_prelu", y.channels, same)

    def add(x, y, name):
        return _Value(None, graph.add(x.picture, y.picture, name))

    def shuffle(x, name):
        values = None if x.values is None else graph.shuffle(x.values, name)
        return _Value(values, graph.shuffle(x.picture, f"{name}_picture"))

    picture = graph.tensor("lr_uint8", 3, np.uint8, (1 / 255, 0))
    lr = graph.operation("DEQUANTIZE", 2, [picture], "lr", 3)
    sr = folding.build(_Value(None, lr), layers, folding.Operations(conv, add, shuffle)).picture
    result = graph.tensor("sr_uint8", 3, np.uint8, (1 / 255, 0), factor=4)
    sr = graph.operation("QUANTIZE", 1, [sr], into=result)
    return graph.finish(picture, sr, folding.receptive_field(layers))


def load(path: Path) -> upscaling.Upscaler:
    """Loads a .tflite file from `write_tflite`, or one with the same kind of input and output.

    It takes lr [1, h, w, 3], float32 in [0, 1] or uint8, and returns sr, float32 in [-1, 1] or
    uint8.

    Returns:
        The network. If the file records no margin, pictures run in one piece. A tile too large for
        memory raises MemoryError.

    Raises:
        ValueError: The file holds no such network.
    """
    with files.naming(path, "no .tflite file of a generator"):
        model = path.read_bytes()  # LiteRT itself takes paths in UTF-8 only
        interpreter = Interpreter(model_content=model, num_threads=os.cpu_count())
        interpreter.allocate_tensors()
        [given], [result] = interpreter.get_input_details(), interpreter.get_output_details()
        margin = _read_margin(model)
    if len(given["shape"]) != 4 or given["dtype"] not in (np.float32, np.uint8):
        raise ValueError(
            f"{path}: it takes {given['dtype'].__name__} of shape {given['shape'].tolist()}, "
            "not float32 or uint8 pictures"
        )
    if margin is None:
        logging.warning(upscaling.WHOLE, path)

    ready = None  # the shape that memory is allocated for

    def call(lr):
        nonlocal ready
        if lr.shape != ready:
            ready = None
            if lr.shape != tuple(interpreter.get_input_details()[0]["shape"]):
                interpreter.resize_tensor_input(given["index"], lr.shape)
            try:
                interpreter.allocate_tensors()
            except RuntimeError as error:  # it worked with another size, so this one is too large
                raise upscaling.no_memory(lr, path) from error
            ready = lr.shape
        if given["dtype"] == np.float32:
            interpreter.set_tensor(given["index"], upscaling.as_float(lr))
        else:
            interpreter.set_tensor(given["index"], lr)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    bits = 16 if given["dtype"] == result["dtype"] == np.float32 else 8
    return upscaling.Upscaler(call, margin, bits)


def _read_margin(contents: bytes) -> int | None:
    """Reads the margin from the contents of a .tflite file; None if it records none."""
    model = schema.Model.GetRootAs(contents, 0)
    for entry in map(model.Metadata, range(model.MetadataLength())):
        if entry.Name() == _MARGIN_ENTRY.encode():
            return int(bytes(model.Buffers(entry.Buffer()).DataAsNumpy()))
    return None


def _rounded(kernel: np.ndarray, bias: np.ndarray, read: Statistics | None):
    """Rounds a kernel to int8 in LiteRT's order of axes, with a scale for each output channel."""
    scales = np.maximum(np.abs(kernel).max(axis=(0, 1, 2)), 1e-9) / 127
    values = rounded(kernel, scales, read)
    if read is not None:
        bias = corrected(bias, kernel, values, scales, read)
    return values.transpose(3, 0, 1, 2), np.float32(scales), np.float32(bias)


def _range(statistics: Statistics) -> tuple[float, int]:
    """Returns the scale and zero point for the calibrated range with headroom."""
    low, high = (_HEADROOM * end for end in (statistics.low.min(), statistics.high.max()))
    low, high = min(low, 0), max(high, 0)
    # XNNPACK refuses sums of very different scales; equalized channels have a size of about 1.
    scale = max(high - low, 0.02) / 255
    return float(scale), int(np.clip(np.round(-128 - low / scale), -128, 127))


class _Value(NamedTuple):
    """A value in the int8 form: rounded, and in float in all channels or only the picture's.

    Attributes:
        values: All channels in int8, or None where they have not been rounded yet.
        picture: Channels in float; None within residual blocks.
    """

    values: _Tensor | None
    picture: _Tensor | None


class _Tensor(NamedTuple):
    """A tensor of a `_Graph`: scale and zero point if quantized, size in multiples of lr's."""

    index: int
    name: str
    channels: int
    scale: float | None
    zero_point: int
    factor: int


_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "uint8": schema.TensorType.UINT8,
    "int32": schema.TensorType.INT32,
}


class _Graph:
    """A .tflite file under construction: one subgraph of tensors and operations."""

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
            scales, zero_point = quantization
            tensor.quantization = schema.QuantizationParametersT()
            tensor.quantization.scale = np.atleast_1d(np.float32(scales))
            tensor.quantization.zeroPoint = np.full(np.size(scales), zero_point, np.int64)
        self.main.tensors.append(tensor)
        return tensor

    def tensor(self, name, channels, dtype=np.float32, quantization=None, factor=1) -> _Tensor:
        """Adds a tensor of pictures."""
        height, width = self.input_size or (1, 1)
        shape = [1, factor * height, factor * width, channels]
        tensor = self._add(name, shape, dtype, quantization)
        if self.input_size is None:
            tensor.shapeSignature = [1, -1, -1, channels]
        scale, zero_point = quantization or (None, 0)
        return _Tensor(len(self.main.tensors) - 1, name, channels, scale, zero_point, factor)

    def constant(self, name, values, scales=None) -> _Tensor:
        """Adds weights, which are integers if there are scales."""
        quantization = None if scales is None else (scales, 0)
        self._add(name, values.shape, values.dtype, quantization, values)
        return _Tensor(len(self.main.tensors) - 1, name, len(values), None, 0, 1)

    def half(self, name, values) -> _Tensor:
        """Adds weights stored in float16 and used in float32."""
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
        """Adds an operation, and a tensor for its result unless that goes `into` an existing one.

        The result is float32, or int8 with a scale and zero point. It is `factor` times as large as
        the first input. The version comes from LiteRT's op_version.cc for these types; it tells an
        older runtime that it cannot run the file.
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

    def add(self, x: _Tensor, y: _Tensor, name: str) -> _Tensor:
        """Adds two tensors in float32."""
        return self.operation("ADD", 1, [x, y], name, x.channels)

    def shuffle(self, x: _Tensor, name: str) -> _Tensor:
        """Rearranges depth to space by 2; integers keep their scale."""
        same = None if x.scale is None else (x.scale, x.zero_point)
        return self.operation("DEPTH_TO_SPACE", 1, [x], name, x.channels // 4, same, factor=2)

    def finish(self, lr: _Tensor, sr: _Tensor, margin: int) -> bytes:
        """Returns the contents of the file."""
        self.main.inputs, self.main.outputs = [lr.index], [sr.index]
        entry, buffer = schema.MetadataT(), schema.BufferT()
        entry.name, entry.buffer = _MARGIN_ENTRY, len(self.buffers)
        buffer.data = np.frombuffer(str(margin).encode(), np.uint8)
        self.buffers.append(buffer)
        model = schema.ModelT()
        model.version, model.description, model.metadata = 3, "srgan_tf", [entry]
        model.subgraphs, model.buffers, model.operatorCodes = [self.main], self.buffers, []
        for kind, version in self.codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version = getattr(schema.BuiltinOperator, kind), version
            code.deprecatedBuiltinCode = min(code.builtinCode, 127)
            model.operatorCodes.append(code)
        builder = flatbuffers.Builder()
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
