"""The methods to score: interpolation, trained networks and exported files."""

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterable

import numpy as np

from srgan_tf import resize, upscaling, weights
from srgan_tf.formats import exported

_INTERPOLATIONS = ("nearest", "bicubic")


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to upscale by 4.

    Attributes:
        name: As shown in the tables.
        upscale: From lr uint8 [h, w] or [h, w, 3] to sr uint8 [4h, 4w] or [4h, 4w, 3].
        sha256: The hash of the weights; for interpolation, its name.
        card: The weights' metadata: path, variant, steps, vgg...; empty for interpolation.
        detail: For a blend, the weight of the second of its `parts`, between 0 and 1.
        parts: For a blend, the two methods whose pictures it averages.
    """

    name: str
    upscale: Callable[[np.ndarray], np.ndarray]
    sha256: str
    card: dict = dataclasses.field(default_factory=dict)
    detail: float = 0.0
    parts: tuple["Method", ...] = ()

    @property
    def variant(self) -> str | None:
        """The paper's name for this method; None for blends and unknown training."""
        return self.card.get("variant") if self.card else self.name


def nearest(lr: np.ndarray) -> np.ndarray:
    """Repeats each pixel of lr, uint8 [h, w] or [h, w, 3], four by four."""
    return lr.repeat(4, axis=0).repeat(4, axis=1)


def bicubic(lr: np.ndarray) -> np.ndarray:
    """Upscales lr, uint8 [h, w] or [h, w, 3], by 4 as Matlab's `imresize` does."""
    return resize.imresize(lr, (4 * lr.shape[0], 4 * lr.shape[1]))


def blend_pictures(first: np.ndarray, second: np.ndarray, detail: float) -> np.ndarray:
    """Averages two uint8 pictures of one shape; `detail`, 0 to 1, is the weight of the second.

    This way each network runs once for all positions of the dial. The average of rounded pictures
    differs from the result of `upscaling.blended` by at most one level.
    """
    return np.rint((1 - detail) * first + detail * second).astype(np.uint8)


def load_methods(specs: Iterable[str], *, tile: int | None = None) -> list[Method]:
    """Loads nearest, bicubic and the weights to score.

    Args:
        specs: Each a run folder, a weights file, a bundled name, an exported SavedModel folder, a
            .tflite or an .onnx file, or a blend of two of these, see `weights.parse_blend`.
        tile: As in `upscaling.upscale`.

    Returns:
        The methods, with distinct names.

    Raises:
        FileNotFoundError, ValueError: One cannot be loaded, or `tile` is too small for it; one line
            that names it.
    """
    loaded: dict[str, Method] = {}  # by path or blend, so that each network is loaded once

    def load(spec: str) -> Method:
        blend = weights.parse_blend(spec)
        key = spec if blend else os.path.realpath(spec)
        if key not in loaded and blend:
            loaded[key] = _blend(spec, blend.detail, load(blend.first), load(blend.second))
        elif key not in loaded:
            loaded[key] = _load_network(spec, tile)
        return loaded[key]

    methods = [Method("nearest", nearest, "nearest"), Method("bicubic", bicubic, "bicubic")]
    names = {}  # by identity: names for methods whose own name is not distinct
    for spec in specs:
        method = load(spec)
        if id(method) not in names:
            methods.append(method)
            # The specs are distinct, but one may read like the name of an interpolation.
            names[id(method)] = os.path.join(".", spec) if spec in _INTERPOLATIONS else spec
    if len({method.name for method in methods}) == len(methods):
        return methods
    return [
        dataclasses.replace(method, name=names.get(id(method), method.name)) for method in methods
    ]


def _load_network(spec: str, tile: int | None) -> Method:
    if exported.is_exported(spec):
        network, card = exported.load(spec), exported.read_card(spec)
    else:
        from srgan_tf.formats import keras_model  # imports Keras, which the others do not need

        generator, card = weights.load_generator(spec)
        network = keras_model.compiled(generator)
    tile = upscaling.checked_tile(network, tile, spec)

    def upscale(lr):
        rgb = lr if lr.ndim == 3 else np.stack([lr] * 3, axis=-1)
        return upscaling.upscale(network, rgb, tile=tile)

    return Method(card["name"], upscale, card["sha256"], card)


def _blend(name: str, detail: float, first: Method, second: Method) -> Method:
    if detail in (0, 1):
        return second if detail else first
    digest = hashlib.sha256(f"blend {detail} {first.sha256} {second.sha256}".encode())
    card = {"name": name, "detail": detail, "parts": [first.card, second.card]}

    def upscale(lr):
        return blend_pictures(first.upscale(lr), second.upscale(lr), detail)

    return Method(name, upscale, digest.hexdigest(), card, detail, (first, second))


def match_channels(sr: np.ndarray, hr: np.ndarray) -> np.ndarray:
    """Converts sr to gray or RGB like hr, so that it is scored on the original's own values.

    Gray is BT.601 luma, as any program would save it.

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
