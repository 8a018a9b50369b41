"""Turns a run folder into weights that come with the package.

    python evaluate.py --data=Set5 --data=Set14 --weights=runs/srresnet-mse --out_dir=scores
    python tools/bundle_weights.py --run_dir=runs/srresnet-mse --scores=scores/scores.json \
        --name=srresnet_mse --data="400 photographs of BSDS500"

writes srgan_tf/pretrained/srresnet_mse.weights.h5 (kernels of convolutions in float16, all else as
it is) and its card, srresnet_mse.json.
"""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

from absl import app, flags

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FLAGS = flags.FLAGS
flags.DEFINE_string("run_dir", None, "A finished run.", required=True)
flags.DEFINE_string(
    "name", None, "Name of the weights, as --weights and so on take it.", required=True
)
flags.DEFINE_string(
    "scores", None, "scores.json that evaluate.py wrote for the run.", required=True
)
flags.DEFINE_string(
    "data", None, "The training pictures in words: a path says nothing to others.", required=True
)


def main(_):
    """Writes the weights and the card."""
    run_dir = Path(FLAGS.run_dir)
    final = run_dir / "generator.weights.h5"
    try:
        record = json.loads((run_dir / "run.json").read_text())
        scores = json.loads(Path(FLAGS.scores).read_text())
        halved = halve(final, ROOT / "srgan_tf" / "pretrained" / f"{FLAGS.name}.weights.h5")
        card = make_card(record, scores, final)
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"error: {FLAGS.run_dir} or {FLAGS.scores} is not a finished, scored run: {error}")
    halved.with_name(f"{FLAGS.name}.json").write_text(json.dumps(card, indent=2) + "\n")
    print(f"{halved}: {halved.stat().st_size / 1e6:.1f} MB")


def halve(source: Path, target: Path) -> Path:
    """Copies a .weights.h5 file with its convolution kernels as float16; Keras widens them again.

    Slopes, biases and batch statistics are small and stay float32.
    """
    import h5py

    target.parent.mkdir(exist_ok=True)
    beside = target.with_name(f"tmp.{target.name}")
    shutil.copyfile(source, beside)
    with h5py.File(source) as full, h5py.File(beside, "w") as half:

        def copy(name, item):
            if isinstance(item, h5py.Group):
                new = half.require_group(name)
            else:
                is_kernel = item.ndim == 4 and item.shape[0] > 1
                new = half.create_dataset(
                    name, data=item[()].astype("f2" if is_kernel else item.dtype)
                )
            new.attrs.update(item.attrs)

        half.attrs.update(full.attrs)
        full.visititems(copy)
    os.replace(beside, target)
    return target


def make_card(record: dict, scores: dict, final: Path) -> dict:
    """What a user should know of the weights: how they came to be and what they score."""
    from srgan_tf import training

    config = record["config"]
    usual = {field.name: field.default for field in dataclasses.fields(training.Config)}
    flags_given = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in config.items()
        if value != usual[name] and name not in ("run_dir", "train_data", "val_data")
    ]
    method = next(
        name for name, origin in scores["methods"].items() if origin.get("path") == str(final)
    )
    return {
        "variant": record["variant"],
        "steps": config["steps"],
        "vgg": record["vgg"],
        "command": " ".join(["python train.py --train_data=FOLDER", *flags_given]),
        "commit": record["commit"],
        "data": {
            "description": FLAGS.data,
            "pictures": record["train_data"]["pictures"],
            "megapixels": record["train_data"]["total_megapixels"],
        },
        "precision": config["mixed_precision"],
        "device": record["device"],
        "started_from": record["generator"],
        "versions": record["versions"],
        "scores": {name: means[method] for name, means in scores["means"].items()},
    }


if __name__ == "__main__":
    app.run(main)
