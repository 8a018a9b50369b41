"""Generators as files for other programs: SavedModel, LiteRT, ONNX; batch norms folded, float32."""

import os
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from srgan_tf import folding, networks

QUANTIZE = ("float32", "float16", "dynamic", "int8")
# Calibration takes the middle of larger pictures: all tensors of a picture are kept at once.
_CALIBRATION_SIZE = 96


def fold_batch_norm(generator: keras.Model) -> keras.Model:
    """Rebuilds a generator in float32, its batch norms folded into the convolutions before them.

    Args:
        generator: As `networks.build_generator` makes it, of any size and dtype policy.

    Returns:
        The same function, from float32 lr [N, h, w, 3] in [0, 1] to float32 sr [N, 4h, 4w, 3] in
        [-1, 1], not clipped.

    Raises:
        ValueError: It is another network.
    """
    layers = folding.fold(generator)

    def conv(x, name):
        kernel, bias, slope = layers[name]
        layer = keras.layers.Conv2D(
            len(bias), kernel.shape[:2], padding="same", dtype="float32", name=name
        )
        x = layer(x)
        layer.set_weights([kernel, bias])
        if slope is None:
            return x
        prelu = networks.PReLU(dtype="float32", name=f"{name}_prelu")
        x = prelu(x)
        prelu.set_weights([slope[None, None]])
        return x

    def add(x, y, name):
        return keras.layers.Add(dtype="float32", name=name)([x, y])

    def shuffle(x, name):
        return keras.ops.depth_to_space(x, 2)

    lr = keras.Input((None, None, 3), dtype="float32", name="lr")
    sr = folding.network(lr, layers, conv, add, shuffle)
    return keras.Model(lr, sr, name="generator")


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
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize is {quantize!r}: give one of {', '.join(QUANTIZE)}")
    if quantize == "int8" and not len(calibration):
        raise ValueError("int8 needs calibration pictures, and there are none")
    # Here, so that the rest of the package runs without LiteRT.
    from srgan_tf import litert

    layers = folding.fold(generator)
    calibration = [_middle(picture) for picture in calibration]
    if quantize == "int8":
        # The last layer's result in [0, 1], of which uint8 is a multiple.
        last = layers["conv_out"]
        layers["conv_out"] = folding.Layer(last.kernel / 2, (last.bias + 1) / 2, None)
        layers = litert.equalised(layers, litert.calibrate(layers, calibration))
        statistics = litert.calibrate(layers, calibration)
        model = litert.in_int8(layers, statistics, input_size=input_size)
    else:
        means = None
        if quantize == "dynamic" and calibration:
            means = litert.calibrate(layers, calibration)
        weights = "int8" if quantize == "dynamic" else quantize
        model = litert.in_float(layers, weights=weights, input_size=input_size, means=means)
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(model)
    return beside.replace(path)


def _middle(picture: np.ndarray) -> np.ndarray:
    top, left = (max(side - _CALIBRATION_SIZE, 0) // 2 for side in picture.shape[:2])
    return picture[top : top + _CALIBRATION_SIZE, left : left + _CALIBRATION_SIZE]
