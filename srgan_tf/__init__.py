"""SRGAN (Ledig et al., CVPR 2017, arXiv 1609.04802) in TensorFlow and Keras."""


def __getattr__(name: str):
    """Gives `srgan_tf.upscale`, and loads what it needs for those alone who use it."""
    if name == "upscale":
        from srgan_tf.photos.photographs import upscale

        return upscale
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
