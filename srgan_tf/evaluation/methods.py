"""The methods to score: interpolation, trained networks and exported files."""

import dataclasses
import os
from collections.abc import Callable, Iterable

import numpy as np

from srgan_tf import resize, upscaling, weights
from srgan_tf.formats import exported


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to upscale by 4.

    Attributes:
        name: As shown in the tables.
        upscale: From lr uint8 [h, w] or [h, w, 3] to sr uint8 [4h, 4w] or [4h, 4w, 3].
        sha256: Of the weights; for interpolation its name.
        card: The weights' metadata: path, variant, steps, vgg...; empty for interpolation.
    """

    name: str
    upscale: Callable[[np.ndarray], np.ndarray]
    sha256: str
    card: dict = dataclasses.field(default_factory=dict)


def nearest(lr: np.ndarray) -> np.ndarray:
    """Repeats each pixel of lr, uint8 [h, w] or [h, w, 3], four by four."""
    return lr.repeat(4, axis=0).repeat(4, axis=1)


def bicubic(lr: np.ndarray) -> np.ndarray:
    """Upscales lr, uint8 [h, w] or [h, w, 3], by 4 as Matlab's `imresize` does."""
    return resize.imresize(lr, (4 * lr.shape[0], 4 * lr.shape[1]))


def load_methods(specs: Iterable[str], *, tile: int | None = None) -> list[Method]:
    """Loads nearest, bicubic and the weights to score.

    Args:
        specs: Each a run folder, a weights file, a bundled name, an exported SavedModel folder, a
            .tflite or an .onnx file.
        tile: As in `upscaling.upscale`.

    Returns:
        The methods, with distinct names.

    Raises:
        FileNotFoundError, ValueError: One cannot be loaded, or `tile` is too small for it; one line
            that names it.
    """
    methods = [Method("nearest", nearest, "nearest"), Method("bicubic", bicubic, "bicubic")]
    distinct = {os.path.realpath(spec): spec for spec in specs}
    for spec in distinct.values():
        if exported.is_exported(spec):
            network, card = exported.load(spec), exported.read_card(spec)
        else:
            from srgan_tf.formats import keras_model  # imports Keras, which the others do not need

            generator, card = weights.load_generator(spec)
            network = keras_model.compiled(generator)
        upscale = _network_upscale(network, upscaling.checked_tile(network, tile, spec))
        methods.append(Method(card["name"], upscale, card["sha256"], card))
    if len({method.name for method in methods}) == len(methods):
        return methods
    # The specs are distinct, but one may read like the name of an interpolation.
    names = [
        os.path.join(".", spec) if spec in ("nearest", "bicubic") else spec
        for spec in distinct.values()
    ]
    renamed = zip(methods[2:], names, strict=True)
    return methods[:2] + [dataclasses.replace(method, name=name) for method, name in renamed]


def _network_upscale(network, tile: int | None) -> Callable[[np.ndarray], np.ndarray]:
    def upscale(lr):
        rgb = lr if lr.ndim == 3 else np.stack([lr] * 3, axis=-1)
        return upscaling.upscale(network, rgb, tile=tile)

    return upscale


def match_channels(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Converts sr to gray or RGB as hr is, so that it is scored on the original's own values.

    Gray is BT.601's, as any program would save it.

    Args:
        sr: uint8 [H, W] or [H, W, 3].
        hr: The original, likewise.

    Returns:
        uint8 of hr's rank.
    """
    if sr.ndim == hr.ndim:
        return sr
    if hr.ndim == 3:
        return np.stack([sr] * 3, axis=-1)
    return np.round(sr @ np.array([0.299, 0.587, 0.114])).astype(np.uint8)
