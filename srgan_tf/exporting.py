"""Generators as files for other programs: batch norms folded, float32 again, then LiteRT.

Folding is exact: at inference a batch norm is a factor and an offset for each channel, which go
into the convolution before it.
"""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from srgan_tf import networks

QUANTIZE = ("float32", "float16", "dynamic", "int8")
# Convolutions through which the picture itself runs. Their centre taps are so much larger than
# their other weights that one step size cannot hold both.
_CARRIERS = ("upscale1_conv", "upscale2_conv", "conv_out")


def fold_batch_norm(generator: keras.Model) -> keras.Model:
    """Rebuilds a generator in float32, its batch norms folded into the convolutions before them.

    Args:
        generator: As `networks.build_generator` makes it, of any size and dtype policy.

    Returns:
        The same function, from float32 lr [N, h, w, 3] in [0, 1] to float32 sr [N, 4h, 4w, 3] in
        [-1, 1], not clipped. Each convolution has the name that it had, and a bias.

    Raises:
        ValueError: It is another network than `networks.build_generator` makes.
    """

    def conv(x, name, kernel, bias):
        return _convolution(x, name, kernel, bias)

    def prelu(x, name, alpha):
        layer = networks.PReLU(dtype="float32", name=name)
        x = layer(x)
        layer.set_weights([alpha])
        return x

    return _rebuild(generator, conv, prelu)


def _convolution(x, name: str, kernel: np.ndarray, bias: np.ndarray):
    layer = keras.layers.Conv2D(
        kernel.shape[-1], kernel.shape[:2], padding="same", dtype="float32", name=name
    )
    x = layer(x)
    layer.set_weights([kernel, bias])
    return x


def _rebuild(generator: keras.Model, conv: Callable, prelu: Callable) -> keras.Model:
    """Builds a generator again, with its convolutions and PReLUs made by the two functions."""
    norms = {
        id(layer.input): layer
        for layer in generator.layers
        if isinstance(layer, keras.layers.BatchNormalization)
    }
    lr = keras.Input((None, None, 3), dtype="float32", name="lr")
    tensors = {id(generator.inputs[0]): lr}
    for operation in generator.operations:
        if isinstance(operation, keras.layers.InputLayer):
            continue
        given = [tensors[id(tensor)] for tensor in keras.tree.flatten(operation.input)]
        if isinstance(operation, keras.layers.Conv2D):
            norm = norms.get(id(operation.output))
            result = conv(given[0], operation.name, *_folded_weights(operation, norm))
        elif isinstance(operation, keras.layers.BatchNormalization):
            [result] = given
        elif isinstance(operation, keras.layers.PReLU):
            result = prelu(given[0], operation.name, operation.get_weights()[0])
        elif isinstance(operation, keras.layers.Add):
            result = keras.layers.Add(dtype="float32", name=operation.name)(given)
        elif type(operation).__name__ == "DepthToSpace":  # the operation's class is not public
            result = keras.ops.depth_to_space(given[0], operation.block_size)
        else:
            raise ValueError(
                f"cannot export {generator.name}: its layer {operation.name} is a "
                f"{type(operation).__name__}, which the paper's generator has not"
            )
        tensors[id(operation.output)] = result
    return keras.Model(lr, tensors[id(generator.outputs[0])], name="generator")


def _folded_weights(conv, norm) -> tuple[np.ndarray, np.ndarray]:
    """Gives a convolution's kernel and bias, those of the batch norm behind it included."""
    kernel = np.float64(conv.kernel.numpy())
    bias = np.float64(conv.bias.numpy()) if conv.use_bias else np.zeros(kernel.shape[-1])
    if norm is not None:
        gamma, beta, mean, variance = (np.float64(weight) for weight in norm.get_weights())
        factor = gamma / np.sqrt(variance + norm.epsilon)
        kernel, bias = kernel * factor, (bias - mean) * factor + beta
    return kernel.astype(np.float32), bias.astype(np.float32)


def write_tflite(
    generator: keras.Model,
    path: str | os.PathLike,
    *,
    quantize: str = "float32",
    input_size: tuple[int, int] | None = None,
    calibration: Sequence[np.ndarray] = (),
) -> Path:
    """Writes a generator for LiteRT.

    The file takes lr float32 [1, h, w, 3] in [0, 1] and gives sr float32 [1, 4h, 4w, 3] in
    [-1, 1], not clipped.

    Args:
        generator: As `networks.build_generator` makes it.
        path: The file to write; one that is there is replaced.
        quantize: One of `QUANTIZE`. "float32"; "float16": weights of half the size, computed in
            float32; "dynamic": weights in 8 bits, and activations as each convolution begins.
        input_size: Height and width of lr, for delegates that need them fixed; None leaves both
            open (`resize_tensor_input`).
        calibration: Pictures lr, uint8 [h, w, 3].

    Returns:
        The path.

    Raises:
        ValueError: The generator is another network, or a quantisation is not known.
    """
    if quantize not in QUANTIZE:
        raise ValueError(f"quantize is {quantize!r}: give one of {', '.join(QUANTIZE)}")

    def conv(x, name, kernel, bias):
        if quantize in ("float32", "float16") or name not in _CARRIERS:
            return _convolution(x, name, kernel, bias)
        # The same sum in two parts: the centre tap stays in float.
        height, width = kernel.shape[0] // 2, kernel.shape[1] // 2
        centre = kernel[height : height + 1, width : width + 1]
        rest = kernel.copy()
        rest[height, width] = 0
        return keras.layers.Add(name=f"{name}_sum")(
            [
                _convolution(x, f"{name}_rest", rest, bias),
                _convolution(x, f"{name}_centre", centre, np.zeros_like(bias)),
            ]
        )

    def prelu(x, name, alpha):
        # The converter knows Keras' own pattern as its PRELU.
        layer = keras.layers.PReLU(shared_axes=[1, 2], name=name)
        x = layer(x)
        layer.set_weights([alpha])
        return x

    model = _convert(_rebuild(generator, conv, prelu), input_size, half=quantize == "float16")
    if quantize == "dynamic":
        model = _quantize_weights(model)
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    beside.write_bytes(model)
    return beside.replace(path)


def _convert(network: keras.Model, input_size, *, half: bool) -> bytes:
    """Converts a network for LiteRT, weights in float16 if `half`."""
    signature = tf.TensorSpec([1, *(input_size or (None, None)), 3], tf.float32, name="lr")
    # Not from a concrete function, which would lose the variables.
    archive = keras.export.ExportArchive()
    archive.track(network)
    archive.add_endpoint("serve", lambda lr: network(lr, training=False), [signature])
    with tempfile.TemporaryDirectory() as folder:
        archive.write_out(folder, verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if half:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        # Only built-in operations by default: what would need Flex is an error here.
        return converter.convert()


def _quantize_weights(model: bytes) -> bytes:
    """Puts the kernels of all convolutions in 8 bits, but the first one's and the centre taps."""
    from ai_edge_quantizer import qtyping, quantizer

    quantizer_ = quantizer.Quantizer(bytearray(model))
    quantizer_.add_dynamic_config(".*", qtyping.TFLOperationName.CONV_2D, num_bits=8)
    for kept in ("conv_in", "_centre"):
        quantizer_.update_quantization_recipe(
            f".*{kept}.*",
            qtyping.TFLOperationName.CONV_2D,
            algorithm_key=quantizer.AlgorithmName.NO_QUANTIZE,
        )
    return bytes(quantizer_.quantize().quantized_model)
