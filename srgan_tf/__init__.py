"""SRGAN (Ledig et al., CVPR 2017, arXiv 1609.04802) in TensorFlow and Keras."""

import os

# TensorFlow leaves oneDNN off on x86 CPUs without AVX-512, where it halves the time of a training
# step all the same. It reads this once, when it is imported.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
