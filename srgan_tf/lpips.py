"""LPIPS, the learned perceptual distance of Zhang et al. (CVPR 2018): AlexNet, version 0.1."""

from collections.abc import Callable

import numpy as np

from srgan_tf import torchvision_weights

# Pixels per side that AlexNet's pools need; smaller pictures leave its last layers empty.
SMALLEST = 31

# Input normalization of the official code, for RGB in [-1, 1].
_SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
_SCALE = np.array([0.458, 0.448, 0.450], np.float32)


def load() -> Callable[[np.ndarray, np.ndarray], float]:
    """Loads AlexNet and the LPIPS heads; runs on any Keras backend.

    Returns:
        A function that takes two pictures of the same shape, at least `SMALLEST` pixels high and
        wide, uint8 [H, W, 3] RGB or [H, W] gray (repeated to three channels). It returns their
        distance: symmetric, 0 for equal pictures, larger for less similar ones. It cuts no border,
        raises ValueError for other shapes or dtypes, and matches the official code to 1e-5.

    Raises:
        ValueError: The weights are not installed or are damaged; one line with the command that
            fixes it.
    """
    import keras

    convolutions, heads = torchvision_weights.read("AlexNet")
    tensor = keras.ops.convert_to_tensor
    shift, scale = tensor(_SHIFT), tensor(_SCALE)
    convolutions = [(tensor(kernel), tensor(bias)) for kernel, bias in convolutions]
    heads = [tensor(head) for head in heads]

    def distance_of_pair(pair):
        """Returns the distance of two pictures, uint8 [2, H, W, 3], as a scalar."""
        x = (keras.ops.cast(pair, "float32") / 127.5 - 1 - shift) / scale
        distance = 0.0
        for number, ((kernel, bias), head) in enumerate(zip(convolutions, heads, strict=True)):
            if number == 0:
                x = keras.ops.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)))
                x = keras.ops.conv(x, kernel, strides=4, padding="valid")
            else:
                if number <= 2:
                    x = keras.ops.max_pool(x, 3, strides=2, padding="valid")
                x = keras.ops.conv(x, kernel, padding="same")
            x = keras.ops.relu(x + bias)
            norm = keras.ops.sqrt(keras.ops.sum(keras.ops.square(x), axis=-1, keepdims=True))
            unit = x / (norm + 1e-10)
            difference = keras.ops.mean(keras.ops.square(unit[0] - unit[1]), axis=(0, 1))
            distance += keras.ops.sum(difference * head)
        return distance

    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        # One trace for pictures of every size.
        signature = [tf.TensorSpec([2, None, None, 3], tf.uint8)]
        distance_of_pair = tf.function(distance_of_pair, input_signature=signature)

    def lpips(sr: np.ndarray, hr: np.ndarray) -> float:
        return float(distance_of_pair(tensor(np.stack([_rgb(sr, hr), _rgb(hr, sr)]))))

    return lpips


def _rgb(picture: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Checks a picture and returns it as [H, W, 3]."""
    if picture.dtype != np.uint8:
        raise ValueError(f"a picture to measure must be uint8 in 0..255, not {picture.dtype}")
    if picture.shape != other.shape:
        raise ValueError(f"pictures to compare differ in shape: {picture.shape} and {other.shape}")
    if picture.ndim == 2:
        picture = np.stack([picture] * 3, axis=-1)
    if picture.ndim != 3 or picture.shape[-1] != 3:
        raise ValueError(f"a picture to measure must be [H, W] or [H, W, 3], not {picture.shape}")
    if min(picture.shape[:2]) < SMALLEST:
        raise ValueError(
            f"a picture of {picture.shape[1]}x{picture.shape[0]} is too small for LPIPS: at least "
            f"{SMALLEST} pixels are needed each way"
        )
    return picture
