"""SRGAN (Ledig et al., CVPR 2017, arXiv 1609.04802) in TensorFlow and Keras."""

import os

# TensorFlow leaves oneDNN off on x86 CPUs without AVX-512, where it halves the time of a training
# step all the same. It reads this once, when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")


def __getattr__(name: str):
    """Gives `srgan_tf.upscale`, without loading TensorFlow for those who do not use it."""
    if name == "upscale":
        from srgan_tf.photographs import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
