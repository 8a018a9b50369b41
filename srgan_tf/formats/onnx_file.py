"""A generator as an .onnx file."""

import os
from pathlib import Path

import keras
import numpy as np

from srgan_tf import files, folding
from srgan_tf.formats import runtimes


def write_onnx(generator: keras.Model, path: str | os.PathLike) -> Path:
    """Writes a generator as ONNX, opset 17.

    It is written operation by operation as `folding.network` goes through them, like a .tflite
    file: tf2onnx, whose file gives the same values, would be one more package to install.

    The file takes lr float32 [N, h, w, 3] in [0, 1], N, h and w of any size, and gives sr float32
    [N, 4h, 4w, 3] in [-1, 1], not clipped.

    Args:
        generator: As `networks.build_generator` makes it.
        path: The file to write; one that is there is replaced.

    Returns:
        The path.

    Raises:
        ValueError: The generator is another network, or the onnx package is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise ValueError("to write an .onnx file, pip install onnx") from error

    layers = folding.fold(generator)
    nodes, weights = [], []

    def weight(name, values):
        weights.append(onnx.numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def node(kind, given, name, **attributes):
        nodes.append(onnx.helper.make_node(kind, given, [name], name, **attributes))
        return name

    def conv(x, name):
        kernel, bias, slope = layers[name]
        height, width = kernel.shape[:2]
        given = [
            x,
            weight(f"{name}/kernel", kernel.transpose(3, 2, 0, 1)),
            weight(f"{name}/bias", bias),
        ]
        y = node("Conv", given, name, pads=[height // 2, width // 2] * 2)
        if slope is None:
            return y
        return node("PRelu", [y, weight(f"{name}/slope", slope[:, None, None])], f"{name}_prelu")

    def add(x, y, name):
        return node("Add", [x, y], name)

    def shuffle(x, name):
        return node("DepthToSpace", [x], f"{name}_chw", blocksize=2, mode="DCR")

    lr = node("Transpose", ["lr"], "lr_chw", perm=[0, 3, 1, 2])
    sr = folding.network(lr, layers, conv, add, shuffle)
    node("Transpose", [sr], "sr", perm=[0, 2, 3, 1])
    pictures = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)
        for name, axes in (("lr", ["N", "h", "w", 3]), ("sr", ["N", "4h", "4w", 3]))
    )
    graph = onnx.helper.make_graph(nodes, "generator", [next(pictures)], [next(pictures)], weights)
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    # For tiles, which must overlap by it.
    margin = str(runtimes.receptive_field(generator))
    onnx.helper.set_model_props(model, {"margin": margin})
    onnx.checker.check_model(model)
    with files.replacing(Path(path)) as beside:
        beside.write_bytes(model.SerializeToString())
    return Path(path)
