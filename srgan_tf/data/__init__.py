"""Pictures to train on: what there is (`sources`), and what a step gets (`batches`)."""

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
