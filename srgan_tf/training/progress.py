"""Reports of a run: start report, progress line, logs, pictures, scores.

metrics.jsonl               losses and validation scores by step
tensorboard/                the same, and validation pictures
validation.png              bicubic, SR and HR of up to three pictures, at the latest validation
generator.weights.h5        the last weights
generator.best.weights.h5   the weights with the lowest content loss or LPIPS on these pictures
scores.json                 the validation scores of the last weights
"""

import collections
import datetime
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from srgan_tf import files, metrics, resize, upscaling
from srgan_tf.formats import keras_model
from srgan_tf.training import run_folder

# (name, lr uint8 [h, w, 3], hr uint8 [4h, 4w, 3]) of each validation picture.
Pairs = Sequence[tuple[str, np.ndarray, np.ndarray]]

# The progress line's labels for those logs of train_step that have other names there.
_LABELS = {"d_hr": "D(HR)", "d_sr": "D(SR)"}

_SHOWN = 3  # validation pictures
_REPAINT = 0.2  # seconds between two repaints of the progress line


# A run of more hours is long, and the report suggests the steps that fit the second number.
_LONG_HOURS, _SHORT_HOURS = 24, 8


def start_report(config: dict, facts: dict, faster: Sequence[str]) -> str:
    """Formats a run's metadata as lines to read before the first step.

    Args:
        config: Flags by name.
        facts: As in `run_folder.write_start`.
        faster: Further flags that speed up training on this machine.
    """
    data, validation = facts["train_data"], facts["validation"]
    rows = [
        ("variant", config["variant"]),
        ("generator", facts["generator"]),
        ("train data", f"{data['spec']}: {data['pictures']} used, {data['left_out']} skipped"),
        ("validation", f"{len(validation['pictures'])} pictures, {validation['data']}"),
        ("LR", facts["lr_operator"]),
        ("VGG19 weights", facts["vgg"] or "not used"),
        ("precision", config["mixed_precision"]),
        *[("average", f"validated and written: --ema={config['ema']}")] * bool(config["ema"]),
        ("replicas", f"{facts['replicas']} ({facts['strategy']}), {facts['device']}"),
    ]
    for name, term in facts["terms"].items():
        text = f"{term['value']:.4g}, gradient norm in the generator {term['gradient_norm']:.4g}"
        rows.append((f"term {name}", text))
    rows += [
        ("speed", f"{facts['seconds_per_step']:.3g} s a step"),
        ("time left", f"{facts['estimated_hours_left']:.2f} h to step {config['steps']}"),
    ]
    hours, seconds = facts["estimated_hours_left"], facts["seconds_per_step"]
    if hours > _LONG_HOURS:
        steps = config["steps"] - round((hours - _SHORT_HOURS) * 3600 / seconds)
        flags = ", ".join([*faster, "a smaller --batch_size"])
        rows.append(("long run", f"--steps={steps} would take {_SHORT_HOURS} h; faster: {flags}"))
    sheet = ", with validation.png: bicubic, SR, HR" if validation["pictures"] else ""
    rows.append(("run folder", config["run_dir"] + sheet))
    return _table(rows)


def end_report(config: dict, faster: Sequence[str]) -> str:
    """Formats where a finished run's results are and which commands come next.

    Args:
        config: Flags by name.
        faster: As in `start_report`.
    """
    run_dir = config["run_dir"]
    weights = shlex.quote(f"--weights={run_dir}")
    rows = [("done", f"{run_dir}/generator.weights.h5, {config['steps']:,} steps")]
    if (Path(run_dir) / "validation.png").exists():
        rows.append(("look at", f"{run_dir}/validation.png: bicubic, SR and HR side by side"))
    rows += [
        ("compare", f"python evaluate.py {weights} --out_dir=scores"),
        ("upscale", f"python upscale.py photo.jpg {weights}"),
    ]
    if config["train_data"] == "sample":
        flags = ["--train_data=FOLDER", *faster]
        if config["variant"].startswith(("SRGAN-", "SRResNet-")):
            name = config["variant"].lower().removeprefix("srgan-").replace("-", "_")
            flags.insert(0, f"--flagfile={name}.flags")
        rows.append(("your photos", f"python train.py {' '.join(flags)}"))
    return _table(rows)


def _table(rows: Sequence[tuple[str, str]]) -> str:
    width = 2 + max(len(name) for name, _ in rows)
    return "\n".join(f"{name + ':':{width}}{text}" for name, text in rows)


def score(
    generator: keras.Model, content, pairs: Pairs, lpips: Callable | None = None
) -> tuple[dict[str, float], list]:
    """Upscales the validation pictures and scores them.

    Args:
        generator: As `networks.build_generator` makes it.
        content: The content loss, a function of (hr, sr) in [-1, 1].
        pairs: The pictures, at least one.
        lpips: As `lpips.load` returns it.

    Returns:
        Mean `validation_psnr` (the paper's, in dB), `validation_loss` (the content loss of 8-bit
        pictures) and with `lpips` `validation_lpips`; and the sr pictures, uint8 [4h, 4w, 3].
    """
    network = keras_model.compiled(generator)
    srs = [upscaling.upscale(network, lr) for _, lr, _ in pairs]
    measures = {
        "validation_psnr": metrics.psnr,
        "validation_loss": lambda sr, hr: float(content(_symmetric(hr), _symmetric(sr))),
    }
    if lpips:
        measures["validation_lpips"] = lpips
    scored = [(sr, hr) for sr, (_, _, hr) in zip(srs, pairs, strict=True)]
    means = {
        name: float(np.mean([measure(sr, hr) for sr, hr in scored]))
        for name, measure in measures.items()
    }
    return means, srs


def _symmetric(picture: np.ndarray) -> np.ndarray:
    """Converts uint8 [H, W, 3] to float32 [1, H, W, 3] in [-1, 1]."""
    return picture[None].astype(np.float32) / 127.5 - 1


class DiscriminatorWatch:
    """Reports once, from the last `SPAN` steps, that the discriminator has won or lost."""

    SPAN = 500

    def __init__(self):
        """Starts without steps."""
        self._recent = collections.deque(maxlen=self.SPAN)
        self._reported = None

    def add(self, names: Sequence[str], rows: np.ndarray) -> str | None:
        """Adds steps; returns one line if the state has changed to won or lost, else None.

        Args:
            names: Names of the logs, with `d_hr` and `d_sr` where there is a discriminator.
            rows: Their values, float32 [steps, names].
        """
        if "d_sr" not in names:
            return None
        self._recent.extend(rows[:, [names.index("d_hr"), names.index("d_sr")]].tolist())
        if len(self._recent) < self.SPAN:
            return None
        hr, sr = np.mean(self._recent, axis=0)
        state = None
        if hr > 0.95 and sr < 0.05:
            state = "won: it learns little more from SR; more pictures, --augment or a larger"
            state += " --batch_size help"
        elif hr - sr < 0.05:
            state = "lost: it cannot tell SR from HR; a lower --adversarial_weight or a better"
            state += " --init_generator helps"
        is_new, self._reported = state != self._reported, state
        if not state or not is_new:
            return None
        return f"D(HR) {hr:.2f}, D(SR) {sr:.2f} over {self.SPAN} steps: D has {state}"


class RunLog:
    """Progress line, metrics.jsonl, TensorBoard and validation.png of a run; a context manager."""

    def __init__(self, run_dir: Path, first_step: int, steps: int):
        """Opens the logs of a run that starts or resumes after `first_step` of `steps`."""
        self._run_dir = run_dir
        self._first_step = first_step
        self._steps = steps
        self._is_terminal = sys.stderr.isatty()
        self._file = run_folder.open_metrics(run_dir, first_step)
        self._writer = tf.summary.create_file_writer(os.fspath(run_dir / "tensorboard"))
        # Start times of the run and of the current line of the log, and the pictures since then.
        self._started = self._line_started = time.perf_counter()
        self._pictures = self._line_pictures = 0
        self._painted = 0.0
        self._watch = DiscriminatorWatch()

    def __enter__(self) -> "RunLog":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the files and keeps the progress line."""
        with self._writing():
            self._file.close()
            self._writer.close()
        if self._is_terminal:
            print(file=sys.stderr)

    def progress(self, step: int, values: dict[str, float], pictures: int) -> None:
        """Counts trained pictures and, on a terminal, repaints the progress line.

        Args:
            step: Steps done.
            values: Losses of the last of them, as `gan.SRGAN.train_step` returns them.
            pictures: Crops trained on since the last call.
        """
        self._pictures += pictures
        self._line_pictures += pictures
        now = time.perf_counter()
        if self._is_terminal and (now - self._painted > _REPAINT or step == self._steps):
            self._painted = now
            line = self._line(step, values, self._pictures / (now - self._started))
            line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)

    def watch(self, step: int, names: Sequence[str], rows: np.ndarray) -> None:
        """Prints one line when the discriminator has won or lost; see `DiscriminatorWatch.add`."""
        line = self._watch.add(names, rows)
        if line:
            start = "\r\x1b[2K" if self._is_terminal else ""
            print(f"{start}step {step}: {line}", file=sys.stderr, flush=True)

    def means(self, step: int, values: dict[str, float], learning_rate: float) -> None:
        """Writes the means since the last call to the logs and, without a terminal, as a line.

        Args:
            step: Steps done.
            values: Means of the losses since the last call.
            learning_rate: The learning rate of the last step.
        """
        now = time.perf_counter()
        images_per_second = self._line_pictures / (now - self._line_started)
        self._line_started, self._line_pictures = now, 0
        if not self._is_terminal:
            print(self._line(step, values, images_per_second), file=sys.stderr, flush=True)
        more = {"learning_rate": learning_rate, "images_per_second": images_per_second}
        self._record(step, values | more)

    def _line(self, step: int, values: dict[str, float], images_per_second: float) -> str:
        done = max(1, step - self._first_step)
        left = (time.perf_counter() - self._started) / done * (self._steps - step)
        eta = str(datetime.timedelta(seconds=round(left)))
        if left >= 86400:
            eta = f"{left // 86400:.0f}d {left % 86400 // 3600:.0f}h"
        # The most watched values come first: a terminal of 80 columns has no room for all.
        first = [f"{text} {values[name]:.2f}" for name, text in _LABELS.items() if name in values]
        terms = [f"{name} {value:.3g}" for name, value in values.items() if name not in _LABELS]
        return "  ".join([
            f"step {step}/{self._steps}", f"ETA {eta}", f"{images_per_second:.1f} images/s",
            *first, *terms,
        ])  # fmt: skip

    def _record(self, step: int, values: dict[str, float]) -> None:
        with self._writing():
            self._file.write(json.dumps({"step": step, **values}) + "\n")
            self._file.flush()
            with self._writer.as_default(step):
                for name, value in values.items():
                    tf.summary.scalar(name, value)
            self._writer.flush()

    def _writing(self):
        return files.naming(self._run_dir, "its logs cannot be written")

    def validate(
        self,
        step: int,
        generator: keras.Model,
        content: dict[str, Callable],
        pairs: Pairs,
        lpips=None,
    ) -> dict[str, float]:
        """Scores the validation pictures and shows the first of them; returns `score`'s means."""
        began = time.perf_counter()
        (loss,) = content.values()
        values, srs = score(generator, loss, pairs, lpips)
        shown = [
            np.hstack([resize.imresize(lr, hr.shape[:2]), sr, hr])
            for (_, lr, hr), sr in zip(pairs[:_SHOWN], srs, strict=False)
        ]
        with self._writer.as_default(step):
            for number, row in enumerate(shown, start=1):
                tf.summary.image(f"validation {number} (bicubic, SR, HR)", row[None])
        self._record(step, values)
        width = max(row.shape[1] for row in shown)
        sheet = np.vstack([np.pad(r, ((0, 4), (0, width - r.shape[1]), (0, 0))) for r in shown])
        with files.replacing(self._run_dir / "validation.png") as temporary:
            Image.fromarray(sheet).save(temporary)

        psnr, loss = values["validation_psnr"], values["validation_loss"]
        start = "\r\x1b[2K" if self._is_terminal else ""
        line = f"{start}step {step}: validation PSNR {psnr:.2f} dB, content loss {loss:.4g}"
        if lpips:
            line += f", LPIPS {values['validation_lpips']:.4f}"
        print(line, file=sys.stderr, flush=True)
        # Validation does not count as training time.
        spent = time.perf_counter() - began
        self._started += spent
        self._line_started += spent
        return values
