"""A generator as a .tflite file for LiteRT, in float or int8.

The file is written operation by operation. TensorFlow's converter, its quantizer and
ai-edge-quantizer lack kernels in two parts, which this network needs in int8. Six kinds of
LiteRT's built-in operations suffice; nothing needs Flex.
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
from srgan_tf.formats.quantization import Statistics, corrected, levels, rounded

if TYPE_CHECKING:
    import keras

QUANTIZE = ("float32", "float16", "dynamic", "int8")

# Calibration takes the middle of larger pictures, which is enough for ranges and means.
_CALIBRATION_SIZE = 96

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
            float32; "dynamic" and "int8": convolutions in int8, see `in_int8`.
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
    if quantize in ("dynamic", "int8"):
        calibrated = quantize == "int8"
        if calibrated:  # the last layer returns values in [0, 1], a uint8 with a scale of 1/255
            last = layers["conv_out"]
            layers["conv_out"] = Layer(last.kernel / 2, (last.bias + 1) / 2, None)
        statistics = calibrate(layers, calibration) if calibration else None
        model = in_int8(layers, statistics, calibrated=calibrated, input_size=input_size)
    else:
        model = in_float(layers, weights=quantize, input_size=input_size)
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
) -> bytes:
    """Makes a file that takes lr float32 in [0, 1] and returns sr float32 in [-1, 1], not clipped.

    Args:
        layers: From `folding.fold`.
        weights: "float32"; "float16": stored in half the size, computed in float32.
        input_size: Height and width of lr; None leaves both variable.
    """
    graph = _Graph(input_size, in_half=weights == "float16")

    def conv(x, name):
        kernel, bias, slope = layers[name]
        return graph.prelu(graph.convolution(x, name, kernel, bias), slope)

    lr = graph.tensor("lr", 3)
    sr = folding.build(lr, layers, folding.Operations(conv, graph.add, graph.shuffle))
    return graph.finish(lr, sr, folding.receptive_field(layers))


def in_int8(
    layers: Mapping[str, Layer],
    statistics: Mapping[str, Statistics] | None,
    *,
    calibrated: bool,
    input_size: tuple[int, int] | None = None,
) -> bytes:
    """Makes a file whose convolutions multiply in int8.

    Each convolution finds the range of its input in every picture and returns float. The first
    one, the sums of the residual blocks and the picture's path through the last three layers stay
    in float: they do less than 1 % of the work. In int8 they would round the picture itself a dozen
    times, which costs more than everything else.

    Args:
        layers: From `folding.fold`. If `calibrated`, the last layer must return sr in [0, 1].
        statistics: From `openvino_model.calibrate`, of these layers. Without them, kernels are
            rounded to the nearest, which is a little less accurate.
        calibrated: Convolutions before sums take and return int8 with the ranges of `statistics`,
            which is faster, and lr and sr are uint8. Convolutions before a PReLU still return
            float: negative values would take up most of the levels, and the PReLU then shrinks
            them to almost nothing.
        input_size: Height and width of lr; None leaves both variable.
    """
    graph = _Graph(input_size)
    filters = layers["conv_in"].kernel.shape[-1]

    def ranged(x, name, kernel, bias):
        values, scales, bias = _rounded(kernel, bias, statistics and statistics[x.name])
        values = graph.constant(f"{name}/kernel", values, scales)
        bias = graph.constant(f"{name}/bias", bias)
        return graph.operation("CONV_2D", 5, [x, values, bias], name, bias.channels)

    def fixed(x, name, kernel, bias):
        read = _range(statistics[x.name])
        values, scales, bias = _rounded(kernel, bias, statistics[x.name])
        bias = np.round(bias / (read[0] * scales)).astype(np.int32)
        x = graph.operation("QUANTIZE", 1, [x], f"{x.name}_int8", x.channels, read)
        values = graph.constant(f"{name}/kernel", values, scales)
        bias = graph.constant(f"{name}/bias", bias, read[0] * scales)
        made = _range(statistics[name])
        y = graph.operation("CONV_2D", 3, [x, values, bias], f"{name}_int8", bias.channels, made)
        return graph.operation("DEQUANTIZE", 2, [y], name, y.channels)

    before_sum = fixed if calibrated else ranged

    def conv(x, name):
        kernel, bias, slope = layers[name]
        if name == "conv_in":
            y = graph.convolution(x.values, name, kernel, bias)
            return _Value(graph.prelu(y, slope))
        picture = carry(x, name) if name in CARRIERS else None
        if name == CARRIERS[-1]:
            return _Value(picture)
        convolution = before_sum if slope is None else ranged
        return _Value(graph.prelu(convolution(x.values, name, kernel, bias), slope), picture)

    def carry(x, name):
        layer, given = layers[name], x.picture or x.values
        rest, taps, made = folding.split_carried(layer, filters, given.channels)
        y = before_sum(x.values, f"{name}_rest", rest, np.zeros(len(made)))
        exact = graph.convolution(given, f"{name}_carried", taps, layer.bias[made])
        y = graph.add(y, exact, f"{name}_picture")
        return graph.prelu(y, None if layer.slope is None else layer.slope[made])

    def add(x, y, name):
        return _Value(graph.add(x.values, y.values, name))

    def shuffle(x, name):
        picture = x.picture and graph.shuffle(x.picture, f"{name}_picture")
        return _Value(graph.shuffle(x.values, name), picture)

    given = lr = graph.tensor("lr", 3)
    if calibrated:
        given = graph.tensor("lr_uint8", 3, np.uint8, (1 / 255, 0))
        graph.operation("DEQUANTIZE", 2, [given], into=lr)
    sr = folding.build(_Value(lr), layers, folding.Operations(conv, add, shuffle)).values
    if calibrated:
        result = graph.tensor("sr_uint8", 3, np.uint8, (1 / 255, 0), factor=4)
        sr = graph.operation("QUANTIZE", 1, [sr], into=result)
    return graph.finish(given, sr, folding.receptive_field(layers))


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
    """Returns the scale and zero point of int8 values, which start at -128."""
    scale, zero_level = levels(statistics)
    return scale, zero_level - 128


class _Value(NamedTuple):
    """A value in an int8 form.

    Attributes:
        values: All channels; or, as the result, those of the picture.
        picture: The channels that carry the picture, not rounded, from the first of `CARRIERS` on.
    """

    values: _Tensor
    picture: _Tensor | None = None


class _Tensor(NamedTuple):
    """A tensor of a `_Graph`; its size is `factor` times lr's."""

    index: int
    name: str
    channels: int
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

    def __init__(self, input_size: tuple[int, int] | None, *, in_half: bool = False):
        self.input_size, self.in_half = input_size, in_half
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
        return _Tensor(len(self.main.tensors) - 1, name, channels, factor)

    def constant(self, name, values, scales=None) -> _Tensor:
        """Adds weights, which are integers if there are scales."""
        quantization = None if scales is None else (scales, 0)
        self._add(name, values.shape, values.dtype, quantization, values)
        return _Tensor(len(self.main.tensors) - 1, name, len(values), 1)

    def weights(self, name, values) -> _Tensor:
        """Adds weights used in float32; they are stored in float16 if the graph is `in_half`."""
        if not self.in_half:
            return self.constant(name, values)
        stored = self.constant(f"{name}_half", values.astype(np.float16))
        self._add(name, values.shape, np.float32)
        result = _Tensor(len(self.main.tensors) - 1, name, len(values), 1)
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

    def convolution(self, x: _Tensor, name: str, kernel: np.ndarray, bias: np.ndarray) -> _Tensor:
        """Adds a convolution in float32."""
        kernel = self.weights(f"{name}/kernel", kernel.transpose(3, 0, 1, 2))
        bias = self.weights(f"{name}/bias", np.float32(bias))
        return self.operation("CONV_2D", 1, [x, kernel, bias], name, bias.channels)

    def prelu(self, y: _Tensor, slope: np.ndarray | None) -> _Tensor:
        """Adds a PReLU in float32, if there is one."""
        if slope is None:
            return y
        slope = self.weights(f"{y.name}/slope", slope[None, None])
        return self.operation("PRELU", 1, [y, slope], f"{y.name}_prelu", y.channels)

    def add(self, x: _Tensor, y: _Tensor, name: str) -> _Tensor:
        """Adds two tensors in float32."""
        return self.operation("ADD", 1, [x, y], name, x.channels)

    def shuffle(self, x: _Tensor, name: str) -> _Tensor:
        """Rearranges depth to space by 2."""
        return self.operation("DEPTH_TO_SPACE", 1, [x], name, x.channels // 4, factor=2)

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
