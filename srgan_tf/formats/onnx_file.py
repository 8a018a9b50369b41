"""A generator as an .onnx file: written with onnx, run with ONNX Runtime."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from absl import logging

from srgan_tf import files, folding, upscaling

if TYPE_CHECKING:
    import keras


def write_onnx(generator: keras.Model, path: str | os.PathLike) -> Path:
    """Writes a generator as ONNX, opset 17.

    It is written operation by operation with `folding.build`, like a .tflite file. A file from
    tf2onnx computes the same values, but needs one more package.

    The file takes lr float32 [N, h, w, 3] in [0, 1] of any N, h and w, and returns sr float32
    [N, 4h, 4w, 3] in [-1, 1], not clipped. Its metadata holds the `margin`.

    Args:
        generator: From `networks.build_generator`.
        path: The file to write or replace.

    Returns:
        The path.

    Raises:
        ValueError: The generator is not the paper's.
    """
    import onnx

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
    sr = folding.build(lr, layers, folding.Operations(conv, add, shuffle))
    node("Transpose", [sr], "sr", perm=[0, 2, 3, 1])
    pictures = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes)
        for name, axes in (("lr", ["N", "h", "w", 3]), ("sr", ["N", "4h", "4w", 3]))
    )
    graph = onnx.helper.make_graph(nodes, "generator", [next(pictures)], [next(pictures)], weights)
    opset = onnx.helper.make_opsetid("", 17)
    model = onnx.helper.make_model(graph, opset_imports=[opset], ir_version=8)
    onnx.helper.set_model_props(model, {"margin": str(folding.receptive_field(layers))})
    onnx.checker.check_model(model)
    with files.replacing(Path(path)) as temporary:
        temporary.write_bytes(model.SerializeToString())
    return Path(path)


def load(path: Path) -> upscaling.Upscaler:
    """Loads an .onnx file from `write_onnx`, or one with the same kind of input and output.

    Returns:
        The network. If the file records no margin, pictures run in one piece. A tile too large for
        memory raises MemoryError.

    Raises:
        ValueError: The file holds no such network, or onnxruntime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ValueError(f"{path}: to run it, pip install onnxruntime") from error
    with files.naming(path, "no .onnx file of a generator"):
        # ONNX Runtime itself takes paths in UTF-8 only.
        model = path.read_bytes()
        session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
        [lr], [sr] = session.get_inputs(), session.get_outputs()
        for tensor in (lr, sr):
            if tensor.type != "tensor(float)" or len(tensor.shape) != 4 or tensor.shape[-1] != 3:
                raise ValueError(f"{tensor.name} is {tensor.type} {tensor.shape}")
        metadata = session.get_modelmeta().custom_metadata_map
        margin = metadata.get("margin", metadata.get("reach"))  # "reach" in older files
        margin = None if margin is None else int(margin)
    if margin is None:
        logging.warning(upscaling.WHOLE, path)

    def call(pixels):
        try:
            return session.run(None, {lr.name: upscaling.as_float(pixels)})[0]
        except Exception as error:
            if "alloc" in str(error).lower():
                raise upscaling.no_memory(pixels, path) from error
            raise

    return upscaling.Upscaler(call, margin)
