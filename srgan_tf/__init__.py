"""SRGAN (Ledig et al., CVPR 2017, arXiv 1609.04802) in TensorFlow and Keras."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from srgan_tf.photos.photographs import upscale

__all__ = ["upscale"]


def __getattr__(name: str):
    """Returns `srgan_tf.upscale`, importing what it needs on first use."""
    if name == "upscale":
        from srgan_tf.photos.photographs import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
