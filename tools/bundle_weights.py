"""Turns a run folder into bundled weights.

    python evaluate.py --data=Set5 --data=Set14 --weights=runs/srresnet-mse --out_dir=scores
    python tools/bundle_weights.py --run_dir=runs/srresnet-mse --scores=scores/scores.json \
        --name=srresnet_mse --data="400 photographs of BSDS500"

This writes srgan_tf/pretrained/srresnet_mse.weights.h5 (convolution kernels in float16, everything
else unchanged) and its card, srresnet_mse.json.
"""

import json
import sys
from pathlib import Path

# In a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from absl import app, flags

import train  # noqa: F401 - its flags, for their defaults
from srgan_tf import command_line

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = ROOT / "srgan_tf" / "pretrained"
FLAGS = flags.FLAGS
# train.py's flag; here it is the folder of a finished run.
flags.declare_key_flag("run_dir")
flags.mark_flag_as_required("run_dir")
flags.DEFINE_string("name", None, "The bundled name, for --weights.", required=True)
flags.DEFINE_string(
    "scores", None, "The scores.json that evaluate.py wrote for the run.", required=True
)
flags.DEFINE_string(
    "data", None, "A description of the training pictures, not a path.", required=True
)


def main(_) -> int:
    """Writes the weights and the card."""
    command_line.load_tensorflow()
    from srgan_tf import files, weights

    final = Path(FLAGS.run_dir, "generator.weights.h5")
    record, scores = _read(final.with_name("run.json")), _read(Path(FLAGS.scores))
    try:
        card = make_card(record, scores, final)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{FLAGS.run_dir} is not a run folder, or {FLAGS.scores} not from evaluate.py "
            f"({error!r})"
        ) from error
    target = PRETRAINED / f"{FLAGS.name}.weights.h5"
    PRETRAINED.mkdir(exist_ok=True)
    with files.staging(PRETRAINED) as folder:
        half, card_file = Path(folder, target.name), Path(folder, f"{FLAGS.name}.json")
        card["sha256"] = weights.file_sha256(halve(final, half))
        card_file.write_text(json.dumps(card, indent=2) + "\n")
        half.replace(target)
        card_file.replace(PRETRAINED / card_file.name)
    print(f"{target}: {target.stat().st_size / 1e6:.1f} MB")
    return 0


def _read(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def halve(source: Path, target: Path) -> Path:
    """Copies a .weights.h5 file with convolution kernels as float16, which Keras converts back.

    Slopes, biases and batch statistics are small and stay float32.
    """
    import h5py

    with h5py.File(source) as full, h5py.File(target, "w") as half:

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
    return target


def make_card(record: dict, scores: dict, final: Path) -> dict:
    """Builds the card of trained weights: how they were trained and what they score.

    Args:
        record: The run's run.json.
        scores: The contents of evaluate.py's scores.json, with the weights under any name.
        final: The weights file.

    Returns:
        The card, for `json.dumps`.

    Raises:
        OSError: The weights file cannot be read.
        ValueError: The scores belong to other weights.
    """
    from srgan_tf import weights

    digest = weights.file_sha256(final)
    scored = [name for name, known in scores["methods"].items() if known.get("sha256") == digest]
    if not scored:
        raise ValueError(
            f"{FLAGS.scores}: no scores of the current {final}, run evaluate.py on it (again)"
        )
    config = record["config"]
    if record.get("drop_step"):  # also right for a run that continued with more steps
        config = config | {"learning_rate_drop_at": record["drop_step"] / config["steps"]}
    flags_given = [
        f"--{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, value in config.items()
        if value != FLAGS[name].default and name not in ("run_dir", "train_data", "val_data")
    ]
    variant = f"--variant={record['variant']}"
    script = record.get("script", "train.py")
    flagfiles = [p.name for p in ROOT.glob("*.flags") if variant in p.read_text().splitlines()]
    return {
        "variant": record["variant"],
        "steps": config["steps"],
        "vgg": record["vgg"],
        "ema": config.get("ema"),
        "flagfile": flagfiles[0] if flagfiles else None,
        "command": " ".join([f"python {script} --train_data=FOLDER", *flags_given]),
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
        "scores": {name: means[scored[0]] for name, means in scores["means"].items()},
    }


def run(argv) -> int:
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "interrupted: nothing was written")


if __name__ == "__main__":
    app.run(run)
