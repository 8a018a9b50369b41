"""Pictures of any size through a generator, tile by tile, with the result of one piece.

A tile reaches as far beyond the part it fills as the network sees, which is computed from the
network's own layers. Tiles at the picture's border begin at the border, so that zero padding is
where it would be without tiles.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

# For such a tile the paper's generator takes 2.5 GB by TensorFlow or LiteRT. Smaller tiles take
# less, but cost more time, since each sees 40 pixels around what it fills.
DEFAULT_TILE = 512


class Network(NamedTuple):
    """What upscaling needs to know of a network.

    Attributes:
        call: from lr uint8 or uint16 [1, h, w, 3] to sr [1, 4h, 4w, 3], of the same type or floats
            in [-1, 1]; with a `tail`, to features float32 [1, h, w, channels]. What it gives may
            hold until the next call only.
        reach: lr pixels that it looks at beyond an output pixel's own, to each side, the tail's
            among them.
        bits: 16, or 8 where `call` takes uint8 only.
        tile: The most pixels of what `call` takes, height or width, that it gets at once unless
            another number is asked for.
        tail: What takes features to sr, for networks that are cut in two. It sees far less around a
            pixel than the whole, so that its own tiles may be small, as its memory asks for.
    """

    call: Callable[[np.ndarray], np.ndarray]
    reach: int
    bits: int = 16
    tile: int = DEFAULT_TILE
    tail: "Network | None" = None


def upscale(
    generator: keras.Model | Network, lr: np.ndarray, *, tile: int | None = None
) -> np.ndarray:
    """Upscales a picture by 4, in tiles where it is larger than one.

    Tiles of a picture all have one size, the smallest that covers it with as few tiles. The result
    does not depend on `tile`, but for sums that float32 adds in another order when a convolution
    has another shape: a value at a rounding edge may then differ by one level, by two in OpenVINO's
    8 bits, which round inside, too. LiteRT's "dynamic" 8 bits do depend on it, since their steps
    come from the range of activations in each tile: of a picture half dark and half bright 1.4 % of
    the values differed by more than a level, by 4 at most.

    Args:
        generator: A generator as `networks.build_generator` makes it, or `load_exported`'s result.
        lr: uint8 or uint16 [h, w, 3], of the type's full range.
        tile: The most pixels of lr, height or width, that the network is given at once; by default
            what suits it.

    Returns:
        [4h, 4w, 3] of lr's type.

    Raises:
        ValueError: lr is no such picture, or a tile is smaller than what the network sees.
    """
    return _joined(upscaled_pieces(generator, lr, tile=tile), lr.shape, lr.dtype)


def checked_tile(network: Network, tile: int | None, name: str = "this network") -> int:
    """Gives the tile that was asked for, or the network's own.

    Raises:
        ValueError: It is too small for the network, by this name.
    """
    tile = network.tile if tile is None else tile
    if tile <= 2 * network.reach:
        raise ValueError(
            f"tiles of {tile} pixels are too small: {name} looks at {network.reach} pixels around "
            f"each, so give --tile={2 * network.reach + 1} or more"
        )
    return tile


def upscaled_pieces(
    generator: keras.Model | Network, lr: np.ndarray, *, tile: int | None = None
) -> Iterator[tuple[int, int, np.ndarray]]:
    """Upscales as `upscale` does and gives the result piece by piece, as it comes.

    Returns:
        An iterator of (top, left, piece): where in sr the piece [h, w, 3] belongs. Pieces come row
        by row, those of a row from left to right; they fill sr without overlap.

    Raises:
        ValueError: As `upscale`.
    """
    if lr.dtype not in (np.uint8, np.uint16) or lr.ndim != 3 or lr.shape[-1] != 3 or not lr.size:
        raise ValueError(
            f"upscale takes uint8 or uint16 [h, w, 3], not {lr.dtype} {list(lr.shape)}"
        )
    network = generator if isinstance(generator, Network) else compiled(generator)
    if lr.dtype == np.uint16 and network.bits == 8:
        raise ValueError("this network takes 8-bit pictures only, not uint16")
    tile = network.tile if tile is None else tile
    spans = [_spans(length, tile, network.reach) for length in lr.shape[:2]]
    return _pieces(network, lr, *spans, lr.dtype)


def _pieces(network, x, rows, columns, dtype):
    """Gives sr of lr or features x, tile by tile; a tail gets a window of the tile's features."""
    tail = network.tail
    windows = [_windows(spans, tail.reach) if tail else spans for spans in (rows, columns)]
    for (top, bottom, first_row, end_row), (above, below, *_) in zip(rows, windows[0], strict=True):
        for (left, right, first_column, end_column), (before, behind, *_) in zip(
            columns, windows[1], strict=True
        ):
            y = network.call(x[None, top:bottom, left:right])[0]
            if tail:
                y = y[above - top : below - top, before - left : behind - left]
                spans = (_spans(length, tail.tile, tail.reach) for length in y.shape[:2])
                y = _joined(_pieces(tail, y, *spans, dtype), y.shape, dtype)
            piece = y[
                4 * (first_row - above) : 4 * (end_row - above),
                4 * (first_column - before) : 4 * (end_column - before),
            ]
            yield 4 * first_row, 4 * first_column, _as_picture(piece, dtype)


def _joined(pieces: Iterable, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Puts together the pieces of what is 4 times as high and wide as `shape`."""
    sr = np.empty([4 * shape[0], 4 * shape[1], 3], dtype)
    for top, left, piece in pieces:
        sr[top : top + piece.shape[0], left : left + piece.shape[1]] = piece
    return sr


def _windows(spans: list[tuple[int, int, int, int]], reach: int) -> list[tuple[int, int]]:
    """Gives (start, end) of what a tail needs of each tile to fill its part, all of one size."""
    length = spans[-1][3]
    needed = [(max(first - reach, 0), min(end + reach, length)) for _, _, first, end in spans]
    size = max(end - start for start, end in needed)
    starts = [min(start, length - size) for start, _ in needed]
    return [(start, start + size) for start in starts]


def _spans(length: int, tile: int, reach: int) -> list[tuple[int, int, int, int]]:
    """Cuts one axis: (start, end) of each tile and (first, end) of the part that it fills."""
    if length <= tile:
        return [(0, length, 0, length)]
    if tile <= 2 * reach:
        raise ValueError(
            f"a tile of {tile} pixels is too small: this network looks at {reach} pixels around "
            f"each, so a tile must have more than {2 * reach}"
        )
    count = math.ceil((length - 2 * reach) / (tile - 2 * reach))
    size = math.ceil((length - 2 * reach) / count) + 2 * reach
    starts = [min(i * (size - 2 * reach), length - size) for i in range(count)]
    fills = [0, *(start + reach for start in starts[1:]), length]
    return [
        (start, start + size, first, end)
        for start, first, end in zip(starts, fills, fills[1:], strict=False)
    ]


@functools.lru_cache(maxsize=4)  # one trace for a generator, however many pictures follow
def compiled(generator: keras.Model) -> Network:
    """Makes a generator, `networks.build_generator`'s or one of its kind, ready for `upscale`."""

    # Sizes are left open in the signature: another size of picture or tile costs no new trace.
    @tf.function(
        input_signature=[tf.TensorSpec([None, None, None, 3]), tf.TensorSpec([], tf.float32)]
    )
    def call(lr, white):
        sr = generator(lr / white, training=False)
        return tf.clip_by_value(tf.round((sr + 1) * (white / 2)), 0, white)

    def upscale(lr):
        return call(lr.astype(np.float32), np.float32(_white(lr.dtype))).numpy().astype(lr.dtype)

    return Network(upscale, receptive_field(generator))


def _white(dtype: np.dtype) -> int:
    """The value of white in a picture, 255 or 65535 by its type."""
    return np.iinfo(dtype).max


def as_float(lr: np.ndarray) -> np.ndarray:
    """Converts a picture, uint8 or uint16, to float32 in [0, 1]."""
    return lr.astype(np.float32) / _white(lr.dtype)


def _as_picture(sr: np.ndarray | tf.Tensor, dtype: np.dtype) -> np.ndarray:
    """Converts sr in [-1, 1] to a picture of a type; one that is a picture already stays."""
    sr = np.asarray(sr)
    if sr.dtype not in (np.uint8, np.uint16):
        # In one piece of memory: this takes a hundredth of all time, in new pieces three.
        sr = np.add(sr, 1, dtype=np.float32)
        sr *= _white(dtype) / 2
        np.rint(sr, out=sr)
        np.clip(sr, 0, _white(dtype), out=sr)
    return sr.astype(dtype, copy=False)


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


def load_exported(path: str | os.PathLike) -> Network:
    """Loads an exported generator: a SavedModel folder, a .tflite or an .onnx file.

    The SavedModel's `serving_default` takes and gives uint8 [N, h, w, 3] pictures (a float result
    is taken to be in [-1, 1]). A .tflite file takes [1, h, w, 3] of any h and w, as float32 in
    [0, 1] or uint8, and gives float32 in [-1, 1] or uint8; a size that there is no memory for is a
    MemoryError. An .onnx file is one of `exporting.write_onnx`.

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


def _load_saved_model(path: Path) -> Network:
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
        given = tf.constant(as_float(lr) if spec.dtype == tf.float32 else lr)
        return serve(**{argument: given})[result]

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
    reach = _reach(steps, frozen.inputs[0].name, frozen.outputs[0].name)
    bits = 16 if spec.dtype == serve.structured_outputs[result].dtype == tf.float32 else 8
    return Network(call, reach, bits)


def _load_tflite(path: Path) -> Network:
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
                raise MemoryError(f"{path}: no memory for {lr.shape[2]}x{lr.shape[1]}") from error
            ready = lr.shape
        if given["dtype"] == np.float32:
            interpreter.set_tensor(given["index"], as_float(lr))
        else:
            interpreter.set_tensor(given["index"], lr)
        interpreter.invoke()
        return interpreter.get_tensor(result["index"])

    steps = _tflite_steps(path)
    _refuse_skipped(steps, path)
    bits = 16 if given["dtype"] == result["dtype"] == np.float32 else 8
    return Network(call, _reach(steps, given["index"], result["index"]), bits)


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


def _load_onnx(path: Path) -> Network:
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{path}: to run it, pip install onnxruntime") from error
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        # The runtime does not show a network's operations.
        reach = int(session.get_modelmeta().custom_metadata_map["reach"])
    except Exception as error:  # the runtime's errors have no class in common
        raise ValueError(f"{path}: no .onnx file that export.py wrote ({error})") from error
    [given] = session.get_inputs()

    def call(lr):
        return session.run(None, {given.name: as_float(lr)})[0]

    return Network(call, reach, 16)


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
