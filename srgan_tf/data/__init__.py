"""Pictures to train on: collections (`sources`), and the batch of each step (`batches`)."""

from srgan_tf.data.batches import training_batches
from srgan_tf.data.sources import (
    Source,
    describe,
    open_source,
    split_validation,
    validation_pairs,
)

__all__ = [
    "Source",
    "describe",
    "open_source",
    "split_validation",
    "training_batches",
    "validation_pairs",
]
