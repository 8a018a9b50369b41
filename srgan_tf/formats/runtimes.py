"""Networks for `upscaling`: Keras generators, and exported ones by the package that runs each.

How far a network sees is computed from its own layers. Packages are loaded by what needs them:
TensorFlow alone takes seconds.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from srgan_tf import folding, upscaling

if TYPE_CHECKING:
    import keras


@functools.lru_cache(maxsize=4)  # one trace for a generator, however many pictures follow
def compiled(generator: keras.Model) -> upscaling.Upscaler:
    """Makes a generator, `networks.build_generator`'s or one of its kind, ready for `upscaling`.

    TensorFlow runs it; a tile that there is no memory for is a MemoryError.
    """
    import tensorflow as tf

    # Sizes are left open in the signature: another size of picture or tile costs no new trace.
    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([], tf.float32)]
    )
    def call(lr, white):
        sr = generator(lr / white, training=False)
        return tf.clip_by_value(tf.round((sr + 1) * (white / 2)), 0, white)

    def run(lr):
        white = np.float32(np.iinfo(lr.dtype).max)
        try:
            return call(lr.astype(np.float32), white).numpy().astype(lr.dtype)
        except tf.errors.ResourceExhaustedError as error:
            raise upscaling.no_memory(lr) from error

    return upscaling.Upscaler(run, receptive_field(generator))


def receptive_field(generator: keras.Model) -> int:
    """Computes how far a generator sees, from its layers.

    Args:
        generator: A functional model of convolutions of stride 1 ("same"), sub-pixel shuffles and
          layers that treat every position by itself.

    Returns:
        The number of lr pixels to each side of an output pixel's own that can change it: 40 for the
        paper's generator.

    Raises:
        ValueError: It has a layer of another kind.
    """
    import keras

    pointwise = (
        keras.layers.InputLayer,
        keras.layers.BatchNormalization,
        keras.layers.PReLU,
        keras.layers.ReLU,
        keras.layers.LeakyReLU,
        keras.layers.Activation,
        keras.layers.Rescaling,
        keras.layers.Add,
    )
    steps = []
    for operation in generator.operations:
        inputs, outputs = (
            [id(tensor) for tensor in keras.tree.flatten(tensors)]
            for tensors in (operation.input, operation.output)
        )
        if isinstance(operation, keras.layers.Conv2D) and operation.strides == (1, 1):
            reaches = zip(operation.kernel_size, operation.dilation_rate, strict=True)
            size = max(_beyond(kernel, dilation) for kernel, dilation in reaches)
            steps.append((inputs, outputs, 1, size))
        elif type(operation).__name__ == "DepthToSpace":  # the operation's class is not public
            steps.append((inputs, outputs, operation.block_size, 0))
        elif isinstance(operation, pointwise):
            steps.append((inputs, outputs, 1, 0))
        else:
            raise ValueError(
                f"cannot tell how far {generator.name} sees: layer {operation.name} is a "
                f"{type(operation).__name__}"
            )
    return _reach(steps, id(generator.inputs[0]), id(generator.outputs[0]))


def receptive_field_of(layers: Mapping[str, folding.Layer]) -> int:
    """Computes what `receptive_field` does, of a generator as `folding.fold` gives it."""
    steps = []

    def step(inputs, name, factor=1, size=0):
        steps.append((inputs, [name], factor, size))
        return name

    def conv(x, name):
        return step([x], name, size=_beyond(max(layers[name].kernel.shape[:2]), 1))

    sr = folding.network(
        "lr",
        layers,
        conv=conv,
        add=lambda x, y, name: step([x, y], name),
        shuffle=lambda x, name: step([x], name, factor=2),
    )
    return _reach(steps, "lr", sr)


def _reach(
    steps: list[tuple[list, list, int | Fraction, int]],
    network_input: int | str,
    network_output: int | str,
) -> int:
    """Walks a network backwards and gives the margin that its input must have.

    Each step, in the order of computation, is (inputs, outputs, factor by which it enlarges, pixels
    of its input beyond a position that it looks at). The output's margin is 0 around a whole block
    of pixels, since tiles end where lr pixels end.
    """
    margins = {network_output: 0}
    for inputs, outputs, factor, size in reversed(steps):
        reached = [margins[tensor] for tensor in outputs if tensor in margins]
        if reached:
            margin = math.ceil(max(reached) / factor) + size
            margins.update({tensor: max(margin, margins.get(tensor, 0)) for tensor in inputs})
    return margins[network_input]


def load_exported(path: str | os.PathLike) -> upscaling.Upscaler:
    """Loads an exported generator: a SavedModel folder, a .tflite or an .onnx file.

    The SavedModel's `serving_default` takes and gives uint8 [N, h, w, 3] pictures (a float result
    is taken to be in [-1, 1]). A .tflite file takes [1, h, w, 3] of any h and w, as float32 in
    [0, 1] or uint8, and gives float32 in [-1, 1] or uint8. An .onnx file is one of
    `exporting.write_onnx`. A tile that there is no memory for is a MemoryError.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: It is no such network, or the package that runs it is missing.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return _load_saved_model(path)
    return _load_onnx(path) if path.suffix.lower() == ".onnx" else _load_tflite(path)


def is_exported(path: str | os.PathLike) -> bool:
    """Tells whether a path is something for `load_exported`, by its ending or by what is in it."""
    path = Path(path)
    return path.suffix.lower() in (".tflite", ".onnx") or (path / "saved_model.pb").is_file()


def _load_saved_model(path: Path) -> upscaling.Upscaler:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    try:
        model = tf.saved_model.load(str(path))
        serve = model.signatures["serving_default"]
        [(argument, spec)] = serve.structured_input_signature[1].items()
        [result] = serve.structured_outputs
    except (OSError, KeyError, ValueError, tf.errors.OpError) as error:
        raise ValueError(
            f"{path}: no SavedModel with a serving_default signature of one picture in and one out"
        ) from error
    if not (spec.shape.rank == 4 and spec.dtype in (tf.uint8, tf.float32)):
        raise ValueError(
            f"{path}: serving_default takes {spec.dtype.name} {spec.shape}, not pictures"
        )

    def call(lr):
        given = tf.constant(upscaling.as_float(lr) if spec.dtype == tf.float32 else lr)
        try:
            return serve(**{argument: given})[result].numpy()
        except tf.errors.ResourceExhaustedError as error:
            raise upscaling.no_memory(lr, path) from error

    call.model = model  # the signature alone does not keep the variables alive
    frozen = convert_variables_to_constants_v2(serve)  # also unfolds calls of inner functions
    steps = []
    for operation in frozen.graph.get_operations():
        inputs, outputs = ([x.name for x in xs] for xs in (operation.inputs, operation.outputs))
        factor, size = 1, 0
        if operation.type in ("Conv2D", "DepthwiseConv2dNative"):
            dilation, stride = (max(operation.get_attr(a)) for a in ("dilations", "strides"))
            factor = Fraction(1, stride)
            size = _beyond(max(operation.inputs[1].shape[:2]), dilation, stride)
        elif operation.type == "DepthToSpace":
            factor = operation.get_attr("block_size")
        else:
            _refuse_spatial(operation.type, path)
        steps.append((inputs, outputs, factor, size))
    _refuse_skipped(steps, path)
    margin = _reach(steps, frozen.inputs[0].name, frozen.outputs[0].name)
    bits = 16 if spec.dtype == serve.structured_outputs[result].dtype == tf.float32 else 8
    return upscaling.Upscaler(call, margin, bits)


def _load_tflite(path: Path) -> upscaling.Upscaler:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ValueError(f"{path}: to run it, pip install ai-edge-litert") from error
    try:
        interpreter = Interpreter(str(path), num_threads=os.cpu_count())
        interpreter.allocate_tensors()
        [given], [result] = interpreter.get_input_details(), interpreter.get_output_details()
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: no .tflite file of a generator ({error})") from error
    if len(given["shape"]) != 4 or given["dtype"] not in (np.float32, np.uint8):
        raise ValueError(
            f"{path}: it takes {given['dtype'].__name__} of shape {given['shape'].tolist()}, "
            "not float32 or uint8 pictures"
        )

    ready = None  # the shape that there is memory for

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

    steps = _tflite_steps(path)
    _refuse_skipped(steps, path)
    bits = 16 if given["dtype"] == result["dtype"] == np.float32 else 8
    return upscaling.Upscaler(call, _reach(steps, given["index"], result["index"]), bits)


def _tflite_steps(path: Path) -> list[tuple[list, list, int | Fraction, int]]:
    """What `_reach` needs of a .tflite file."""
    from ai_edge_litert import schema_py_generated as schema

    kinds = {number: kind for kind, number in vars(schema.BuiltinOperator).items()}
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes())
    graph = model.subgraphs[0]
    steps = []
    for operator in graph.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = kinds[max(code.builtinCode, code.deprecatedBuiltinCode)]
        options = operator.builtinOptions
        factor, size = 1, 0
        if kind in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            stride = max(options.strideH, options.strideW)
            dilation = max(options.dilationHFactor, options.dilationWFactor)
            kernel = max(graph.tensors[operator.inputs[1]].shape[1:3])
            factor, size = Fraction(1, stride), _beyond(kernel, dilation, stride)
        elif kind == "DEPTH_TO_SPACE":
            factor = options.blockSize
        else:
            _refuse_spatial(kind, path)
        steps.append((list(operator.inputs), list(operator.outputs), factor, size))
    return steps


def _load_onnx(path: Path) -> upscaling.Upscaler:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{path}: to run it, pip install onnxruntime") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        # The runtime does not show a network's operations.
        margin = int(session.get_modelmeta().custom_metadata_map["margin"])
    except Exception as error:  # the runtime's errors have no class in common
        raise ValueError(f"{path}: no .onnx file that export.py wrote ({error})") from error
    [given] = session.get_inputs()

    def call(lr):
        try:
            return session.run(None, {given.name: upscaling.as_float(lr)})[0]
        except Exception as error:
            if "alloc" in str(error).lower():
                raise upscaling.no_memory(lr, path) from error
            raise

    return upscaling.Upscaler(call, margin, 16)


def _beyond(kernel: int, dilation: int, stride: int = 1) -> int:
    """How far a "same" convolution looks beyond the block of pixels that it makes one of."""
    return max(0, (int(kernel) - 1) * dilation + 2 - stride) // 2


def _refuse_skipped(steps: list[tuple[list, list, int | Fraction, int]], path: Path) -> None:
    """Refuses strides over lr pixels, as whose multiples tiles do not begin."""
    enlarged = {}
    for inputs, outputs, factor, _ in steps:
        enlargement = max((enlarged.get(tensor, 1) for tensor in inputs), default=1) * factor
        if enlargement.denominator > 1:
            raise ValueError(f"{path}: has a convolution that skips lr pixels, is no generator")
        enlarged |= dict.fromkeys(outputs, enlargement)


def _refuse_spatial(kind: str, path: Path) -> None:
    """Refuses operations that mix or move positions in ways that `_reach` does not know."""
    spatial = "custom|pool|resize|backprop|transpose_conv|conv_?3d|space_?to|mean|matmul|fully"
    if re.search(spatial, kind, re.IGNORECASE):
        raise ValueError(f"{path}: cannot tell how far this network sees, it has a {kind}")
