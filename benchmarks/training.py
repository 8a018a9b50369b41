r"""Measures a training step beside the same step in PyTorch.

    pip install -r requirements-benchmarks.txt
    python benchmarks/training.py [--network=vgg54] [--precision=bfloat16]

Contenders take turns, some steps at a time: ours as train.py makes it; PyTorch, channels last,
fused Adam, as it comes and compiled. All start from the same weights, take the same batch and must
find the same losses. Ours also takes turns with itself, fed by the data pipeline from JPEG files:
the sample pictures, of 0.6 megapixels on average, or those of --data=FOLDER.
"""

import dataclasses
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# From a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import turns
from absl import app, flags

import train

FLAGS = flags.FLAGS
flags.declare_key_flag("batch_size")
flags.DEFINE_enum("network", "srresnet", ["srresnet", "vgg54"], "SRResNet-MSE or SRGAN-VGG54.")
flags.DEFINE_enum("precision", "float32", ["float32", "bfloat16"], "What the networks compute in.")
flags.DEFINE_string("data", None, "Feed from this folder of pictures.")
flags.DEFINE_integer("rounds", 6, "Turns of each contender.", lower_bound=1)
flags.DEFINE_integer("turn_steps", 3, "Steps in a turn.", lower_bound=1)
flags.DEFINE_list("contenders", "ours,PyTorch,PyTorch compiled", "Which take part.")
flags.DEFINE_string("contender", None, "Be this one (the benchmark calls itself).")
flags.DEFINE_string("inputs", None, "Where the contender finds weights, batch and pictures.")

# Of the losses' logarithms, for each step that is checked. After the first Keras adds epsilon
# before Adam's correction of the second moment and PyTorch behind it, which is seen in first steps.
_TOLERANCE = {"float32": [1e-4, 0.01, 0.01], "bfloat16": [0.05, 0.05, 0.05]}


def make_ours():
    """Builds the model that train.py builds."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # as train.py does
    import tensorflow as tf

    from srgan_tf.training import loop

    tf.keras.utils.set_random_seed(1)
    tf.config.experimental.enable_op_determinism()
    adversarial = FLAGS.network == "vgg54"
    config = dataclasses.replace(
        train.read_config(""),
        content_loss="block5_conv4" if adversarial else "mse",
        vgg_weights="vgg16",
        adversarial_weight=1e-3 if adversarial else 0,
        init_generator="srresnet_mse",
        mixed_precision="float32" if FLAGS.precision == "float32" else "mixed_bfloat16",
    )
    return loop.build_model(config)[0]


def make_batches(inputs: Path):
    """Makes the stream of training batches, as train.py does without --cache."""
    from srgan_tf import data

    source = data.open_source(FLAGS.data or str(inputs / "pictures"))
    return iter(data.training_batches(source, seed=1, batch_size=FLAGS.batch_size))


def write_inputs(folder: Path) -> None:
    """Writes weights, pictures and a batch, so that PyTorch's process need not load TensorFlow."""
    import torch_networks
    from PIL import Image

    from srgan_tf import pictures, vgg

    model = make_ours()
    networks = {"generator": model.generator}
    if model.discriminator is not None:
        networks["discriminator"] = model.discriminator
        networks["features"], _ = vgg.build_features("block5_conv4", "vgg16")
    for name, network in networks.items():
        np.savez(folder / f"{name}.npz", **torch_networks.weights_of(network))
    (folder / "pictures").mkdir()
    for path in pictures.sample_pictures():
        picture = Image.fromarray(pictures.read_rgb(path))
        picture.save(folder / "pictures" / f"{path.stem}.jpg", quality=95)
    lr, hr = next(make_batches(folder))
    np.savez(folder / "batch.npz", lr=lr, hr=hr)


def ours() -> None:
    """Takes turns with Keras and TensorFlow, on one batch and fed by the pipeline."""
    import tensorflow as tf

    model = make_ours()
    batches = make_batches(Path(FLAGS.inputs))
    batch = next(batches)
    train_step = tf.function(model.train_step)

    def step(batch):
        logs = train_step(batch)
        # numpy() waits for the result.
        return [logs[name].numpy() for name in ("loss", "discriminator") if name in logs]

    losses = [step(batch) for _ in _TOLERANCE[FLAGS.precision]]
    turns.serve(
        lambda: step(batch),
        np.log(losses),
        times=FLAGS.turn_steps,
        beside=lambda: step(next(batches)),
    )


def pytorch(compiled: bool) -> None:
    """Takes turns with PyTorch."""
    import torch
    import torch_networks
    from torch.utils.flop_counter import FlopCounterMode

    torch.set_num_threads(os.cpu_count())
    kinds = {
        "generator": torch_networks.generator,
        "discriminator": torch_networks.discriminator,
        "features": torch_networks.Features,
    }
    networks = {}
    for name, build in kinds.items():
        path = Path(FLAGS.inputs, f"{name}.npz")
        if path.exists():
            network = build(dict(np.load(path))).train().to(memory_format=torch.channels_last)
            networks[name] = torch.compile(network) if compiled else network
    batch = np.load(Path(FLAGS.inputs, "batch.npz"))
    lr, hr = (torch.from_numpy(batch[name]).permute(0, 3, 1, 2) for name in ("lr", "hr"))
    step = torch_networks.make_step(networks, lr, hr, FLAGS.precision == "bfloat16")
    facts = {}
    losses = [step()]
    if not compiled:
        with FlopCounterMode(display=False) as counter:
            losses.append(step())
        facts["gflop"] = counter.get_total_flops() / 1e9
    losses += [step() for _ in _TOLERANCE[FLAGS.precision][len(losses) :]]
    turns.serve(step, np.log(losses), times=FLAGS.turn_steps, **facts)


CONTENDERS = {
    "ours": ours,
    "PyTorch": lambda: pytorch(compiled=False),
    "PyTorch compiled": lambda: pytorch(compiled=True),
}


def main(_) -> int:
    """Lets the contenders take turns and prints the table."""
    if FLAGS.contender:
        CONTENDERS[FLAGS.contender]()
        return 0
    if "ours" not in FLAGS.contenders:
        raise app.UsageError("--contenders: 'ours' is what the others are held against")
    passed_on = ("network", "precision", "batch_size", "turn_steps")
    options = [f"--{name}={FLAGS[name].value}" for name in passed_on]
    options += [f"--data={FLAGS.data}"] * bool(FLAGS.data)
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        command = [sys.executable, __file__, f"--inputs={folder}", *options]
        results = turns.compare(
            {name: [*command, f"--contender={name}"] for name in FLAGS.contenders}, FLAGS.rounds
        )
    flops = [r.facts["gflop"] for r in results.values() if "gflop" in getattr(r, "facts", {})]
    peak = turns.peak_gflops(FLAGS.precision)
    for result in results.values():
        if flops and not isinstance(result, str):
            result.facts.update(gflop=flops[0], peak=peak)
    print(f"{FLAGS.network}, {FLAGS.batch_size} crops of 96x96, {FLAGS.precision}; seconds a step")
    print(f"{turns.machine()}; at most {peak:.0f} GFLOP/s in one product", end="")
    print(f"; a step has {flops[0]:.0f} GFLOP" if flops else "")
    print(turns.table(results, "ours"))
    if not isinstance(results["ours"], str):
        ratios = np.divide(results["ours"].beside, results["ours"].seconds)
        print(f"Fed by the pipeline, ours takes {np.median(ratios) - 1:+.1%} (median by round).")
    tolerance = np.array(_TOLERANCE[FLAGS.precision])[:, None]
    agree, wrong = turns.compared(results, "ours", tolerance)
    print("\n".join([f"The same losses as ours: {', '.join(agree) or 'none'}.", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    app.run(main)
