"""Trains on an accelerator that has JAX but no TensorFlow, with train.py's flags.

    python tools/train_jax.py --flagfile=vgg54.flags --train_data=FOLDER \
        --steps_per_call=100 --log_every=100

Networks and losses are the same as in train.py, on Keras' JAX backend. All pictures are in the
device's memory, where crops and their LR are computed. Like train.py's, the run folder holds
run.json, metrics.jsonl and the weights: generator.newest.weights.h5 during the run, and
generator.weights.h5 at its end. The same command resumes from state.npz. A step's batch depends
only on the seed and the step, but differs from train.py's.
"""

import contextlib
import dataclasses
import hashlib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "jax"
# Without this, a GPU sums in any order, and a resumed run ends with other bits.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_deterministic_ops=true"
# In a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

import train
from srgan_tf import command_line

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(train)

# Flags that this script supports with these values only.
_FIXED = {
    "cache": False, "deterministic": True, "dry_run": False, "jit_compile": False,
    "keep_checkpoints": 3, "val_data": "", "validate_lpips": None,
}  # fmt: skip
_SCRIPT = "tools/train_jax.py"
_VALIDATION_SIZE = 256  # pixels of hr; one size, so that it is compiled once


def main(argv) -> int:
    """Turns flags into a config and trains."""
    if len(argv) > 1:
        raise ValueError(f"{argv[1]}: train_jax.py takes flags only, see --help")
    for name, value in _FIXED.items():
        if FLAGS[name].value != value:
            raise ValueError(f"--{name}: not supported by {_SCRIPT}, leave it out")
    if importlib.util.find_spec("jax") is None:
        raise ValueError(f"{_SCRIPT} needs JAX: pip install jax")
    if FLAGS.mixed_precision == "mixed_float16":
        raise ValueError("--mixed_precision=mixed_float16: use mixed_bfloat16 here")
    from srgan_tf.training import recipe

    config = train.read_config(f"runs/{FLAGS.variant.lower()}-jax")
    recipe.require_consistent(config)
    with command_line.caught_signals() as received:
        return run_training(config, received)


def run_training(config, received: list[int]) -> int:
    """Trains to the last step or until `received` is not empty; returns the exit code.

    Args:
        config: A `recipe.Config`.
        received: From `command_line.caught_signals`.

    Raises:
        ValueError, FileNotFoundError: The flags ask for something impossible; one line.
    """
    import keras

    from srgan_tf.training import recipe, resume

    keras.utils.set_random_seed(config.seed)
    run_dir = Path(config.run_dir)
    has_state = (run_dir / "state.npz").exists()
    record = resume.earlier_run(config, has_state=has_state, script=_SCRIPT)
    config = resume.with_first_drop(config, record)
    training, validation, skipped = read_pictures(config)
    found = describe(training, skipped)
    draw, pixels = make_draw(config, training)
    del training
    generator, model, state, step = start_or_resume(config, record, found)
    many = compiled_steps(model, draw)
    averaged = averages(config, model, draw)
    rows = Rows(config, run_dir, step)
    with contextlib.closing(rows):
        while step < config.steps:
            end = recipe.next_return(config, step)
            state, sums = many(state, pixels, step, end)
            step = end
            is_last, stopped = step == config.steps, bool(received)
            rows.add(step, sums, is_last or step % config.log_every == 0)
            validates = validation and (is_last or step % config.validate_every == 0)
            saves = is_last or stopped or step % config.checkpoint_every == 0
            shown = averaged(state, pixels, step) if validates or saves else None
            if validates:
                rows.write(step, {"validation_psnr": model.psnr(shown, validation)})
            if saves:
                save(run_dir, state, shown, step, generator, model, is_last)
            if stopped and not is_last:
                print(f"stopped at step {step}: the same command resumes from there")
                return 128 + received[0]
    print(f"done: {run_dir / 'generator.weights.h5'}")
    return 0


def read_pictures(config) -> tuple[list, list, int]:
    """Reads all pictures, uint8 [h, w, 3].

    Returns:
        Pictures to train on, crops to validate on, and the number of skipped pictures.

    Raises:
        ValueError: There are no pictures, or too few.
    """
    import numpy as np

    from srgan_tf import files, pictures

    if config.train_data.startswith("tfds:"):
        raise ValueError(f"--train_data: {_SCRIPT} takes a folder, or sample")
    sample = config.train_data == "sample"
    paths = pictures.sample_pictures() if sample else pictures.find_pictures(config.train_data)
    found = []
    for path in paths:
        try:
            picture = pictures.read_rgb(path)
            if min(picture.shape[:2]) < config.crop_size:
                raise ValueError(f"{path}: smaller than a crop of {config.crop_size} pixels")
            found.append(picture)
        except ValueError as error:
            print(f"skipped: {files.one_line(error)}", file=sys.stderr)
    large = [i for i, p in enumerate(found) if min(p.shape[:2]) >= _VALIDATION_SIZE]
    count = min(config.val_pictures, len(large), len(found) // 4)
    held = sorted(np.random.default_rng(config.seed).permutation(large)[:count].tolist())
    validation = [pictures.middle(found[i], _VALIDATION_SIZE) for i in held]
    training = [picture for i, picture in enumerate(found) if i not in held]
    if not training:
        raise ValueError(f"--train_data={config.train_data}: no picture to train on")
    return training, validation, len(paths) - len(found)


def describe(training: list, skipped: int) -> dict:
    """Describes the pictures for run.json, wherever their files are."""
    digest = hashlib.sha256()
    for picture in training:
        digest.update(f"{picture.shape}".encode() + picture.tobytes())
    return {
        "pictures": len(training),
        "left_out": skipped,
        "total_megapixels": round(sum(p.shape[0] * p.shape[1] for p in training) / 1e6, 1),
        "fingerprint": digest.hexdigest(),
    }


def start_or_resume(config, record: dict | None, found: dict) -> tuple:
    """Builds the networks and records the start or resumption of the run.

    Args:
        config: A `recipe.Config`.
        record: From `resume.earlier_run`; None for a new run.
        found: From `describe`.

    Returns:
        The Keras generator, the `Model`, its state and the number of steps done.
    """
    import jax

    from srgan_tf import files
    from srgan_tf.training import recipe, resume, run_folder

    run_dir = Path(config.run_dir)
    built = resume.as_started(config, record) if record else config
    generator, discriminator, content, facts = recipe.build(built)
    model = make_model(config, generator, discriminator, content)
    facts |= {"variant": config.variant, "script": _SCRIPT, "train_data": found}
    facts |= {"device": jax.devices()[0].device_kind, "replicas": 1}
    if not record:
        files.make_folder(run_dir)
        run_folder.write_start(run_dir, dataclasses.asdict(config), facts)
        return generator, model, model.state, 0
    resume.require_same_findings(config, record, facts)
    state, step = load_state(run_dir, model.state)
    run_folder.add_resumption(run_dir, step, dataclasses.asdict(config), facts)
    return generator, model, state, step


def compiled_steps(model: "Model", draw: Callable) -> Callable:
    """Makes the function that trains from one step to another.

    Returns:
        (state, pixels, first, end) -> the next state, and the sums of the logs of these steps.
    """
    import jax

    def many(state, pixels, first, end):
        def one(i, carry):
            state, sums = carry
            state, logs = model.step(state, *draw(pixels, i))
            return state, {name: sums[name] + value for name, value in logs.items()}

        logs = jax.eval_shape(lambda: model.step(state, *draw(pixels, first))[1])
        zeros = {name: jax.numpy.zeros(()) for name in logs}
        return jax.lax.fori_loop(first, end, one, (state, zeros))

    return jax.jit(many, donate_argnums=0)


def averages(config, model: "Model", draw: Callable) -> Callable:
    """Makes the function that returns the state to validate and to write: with --ema the average.

    Returns:
        (state, pixels, step) -> without --ema, the state itself. With it, a state that has the
        averaged generator, with batch statistics measured on the 100 batches from the step on.
    """
    import jax

    from srgan_tf.training import recipe

    if not config.ema:
        return lambda state, pixels, step: state
    lr = jax.jit(lambda pixels, step: draw(pixels, step)[0])

    def averaged(state, pixels, step):
        steps = range(step, step + recipe.AVERAGING_BATCHES)
        return model.averaged(state, [lr(pixels, i) for i in steps])

    return averaged


class Rows:
    """metrics.jsonl and lines on stdout: means since the last row, and other figures."""

    def __init__(self, config, run_dir: Path, step: int):
        """Opens the file of a run that starts or resumes after a step."""
        from srgan_tf.training import run_folder

        self._config = config
        self._file = run_folder.open_metrics(run_dir, step)
        self._start(step)

    def _start(self, step: int) -> None:
        self._step, self._sums, self._began = step, {}, time.perf_counter()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def add(self, step: int, sums: dict, is_row: bool) -> None:
        """Adds the sums of the logs up to a step; if `is_row`, also writes their means.

        Raises:
            ValueError: The loss is not finite.
        """
        from srgan_tf.training import recipe

        for name, value in sums.items():  # float() waits for the device
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        bad = [name for name, value in self._sums.items() if not abs(value) < float("inf")]
        if bad:
            raise ValueError(
                f"step {step}: {bad[-1]} is not finite; start a new run with a lower"
                " --learning_rate"
            )
        if is_row:
            count = step - self._step
            seconds = time.perf_counter() - self._began
            row = {name: value / count for name, value in self._sums.items()}
            row["learning_rate"] = recipe.learning_rate(self._config, step)
            row["images_per_second"] = count * self._config.batch_size / seconds
            self.write(step, row)
            self._start(step)

    def write(self, step: int, row: dict) -> None:
        """Writes a row; the time since the last means does not count."""
        text = "  ".join(f"{name} {value:.4g}" for name, value in row.items())
        print(f"step {step}  {text}", flush=True)
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        if not self._sums:
            self._began = time.perf_counter()


def make_draw(config, training: list) -> tuple:
    """Makes the function from pixels and a step to its batch, like `data.training_batches`.

    Returns:
        (pixels, step) -> lr float32 [N, s/4, s/4, 3] in [0, 1] and hr [N, s, s, 3] in [-1, 1]; and
        the pixels on the device. The pixels are an argument, since a compiled function would embed
        captured arrays in its program.

    Raises:
        ValueError: There are too many pixels, or too few pictures.
    """
    import jax
    import jax.numpy as jnp
    import numpy as np

    from srgan_tf import resize

    size, count = config.crop_size, len(training)
    sides = np.array([picture.shape[:2] for picture in training])
    areas = sides.prod(axis=1)
    if areas.sum() >= 2**31:
        raise ValueError("--train_data: more than 2 gigapixels do not fit 32-bit places")
    if config.sample_by_area and count < config.batch_size:
        raise ValueError("--sample_by_area needs as many pictures as --batch_size")
    pixels = jax.device_put(np.concatenate([p.reshape(-1, 3) for p in training]))
    offsets = jnp.asarray(np.cumsum(areas) - areas, jnp.int32)
    heights, widths = jnp.asarray(sides[:, 0], jnp.int32), jnp.asarray(sides[:, 1], jnp.int32)
    matrix = jnp.asarray(resize.bicubic_matrix(size, size // 4), jnp.float32)
    log_weights = jnp.asarray(0.7 * np.log(areas))
    key = jax.random.key(config.seed)

    def choose(step):
        if config.sample_by_area:
            noise = jax.random.gumbel(jax.random.fold_in(key, step), [count])
            return jax.lax.top_k(log_weights + noise, config.batch_size)[1]

        def ordered(epoch):
            return jax.random.permutation(jax.random.fold_in(key, epoch), count)

        if count >= config.batch_size:  # an incomplete last batch is not drawn
            batches = count // config.batch_size
            first = step % batches * config.batch_size
            return jax.lax.dynamic_slice(ordered(step // batches), [first], [config.batch_size])
        places = step * config.batch_size + jnp.arange(config.batch_size)
        return jax.vmap(lambda place: ordered(place // count)[place % count])(places)

    def crop(pixels, picture, chances):
        top = jnp.floor(chances[0] * (heights[picture] - size + 1)).astype(jnp.int32)
        left = jnp.floor(chances[1] * (widths[picture] - size + 1)).astype(jnp.int32)
        rows, columns = top + jnp.arange(size), left + jnp.arange(size)
        square = pixels[offsets[picture] + rows[:, None] * widths[picture] + columns]
        if config.augment:
            turn = jnp.floor(chances[2] * 8).astype(jnp.int32)
            square = jnp.where(turn & 1, square[:, ::-1], square)
            square = jnp.where(turn & 2, square[::-1], square)
            square = jnp.where(turn & 4, square.transpose(1, 0, 2), square)
        return square.astype(jnp.float32)

    def shrink(pictures, axes):
        # In full float32: products of 8-bit values then add up exactly, as in `resize`.
        shrunk = jnp.einsum(axes, matrix, pictures, precision="highest")
        return jnp.clip(jnp.floor(shrunk + 0.5), 0, 255)

    def draw(pixels, step):
        chances = jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(key, step), 1), [config.batch_size, 3]
        )
        hr = jax.vmap(crop, in_axes=(None, 0, 0))(pixels, choose(step), chances)
        lr = shrink(shrink(hr, "oh,nhwc->nowc"), "ow,nhwc->nhoc")
        return lr / 255, hr / 127.5 - 1

    return draw, pixels


class Model(NamedTuple):
    """The functions that train a generator and a discriminator.

    Attributes:
        state: Everything that a step changes, as a tree of arrays.
        step: From (state, lr, hr) to the next state and the logs; to be compiled.
        psnr: From (state, pictures hr) to their mean PSNR as in the paper, in dB.
        assign: Assigns a state's weights to the Keras generator.
        averaged: From (state, batches lr) to a state with the averaged generator of --ema, whose
            batch statistics are means over the batches.
    """

    state: dict
    step: Callable
    psnr: Callable
    assign: Callable
    averaged: Callable


def make_model(config, generator, discriminator, content) -> Model:
    """Makes the JAX counterpart of `gan.SRGAN` from networks and losses.

    Args:
        config: A `recipe.Config`.
        generator: As `recipe.build` returns it.
        discriminator: As `recipe.build` returns it, or None.
        content: Name and function of the content loss.
    """
    import jax
    import keras
    import numpy as np

    from srgan_tf import losses, metrics, resize
    from srgan_tf.training import recipe

    def start(network, optimizer):
        optimizer.build(network.trainable_variables)
        variables = network.trainable_variables, network.non_trainable_variables
        # Copies: a step overwrites its arguments.
        groups = (*variables, optimizer.variables)
        return [[jax.numpy.array(v.value) for v in group] for group in groups]

    optimizers = {
        "generator": recipe.optimizer(config, ema=config.ema),
        "discriminator": recipe.optimizer(config),
    }
    state = {"generator": start(generator, optimizers["generator"])}
    if discriminator is not None:
        state["discriminator"] = start(discriminator, optimizers["discriminator"])

    def apply(name, gradients, trained, others, slots):
        trained, slots = optimizers[name].stateless_apply(slots, gradients, trained)
        return [trained, others, slots]

    def train_discriminator(state, hr, sr):
        trained, others, slots = state

        def loss(trained):
            hr_logits, seen = discriminator.stateless_call(trained, others, hr, training=True)
            sr_logits, seen = discriminator.stateless_call(trained, seen, sr, training=True)
            return losses.discriminator(hr_logits, sr_logits), (seen, hr_logits, sr_logits)

        (value, (seen, hr_logits, sr_logits)), gradients = jax.value_and_grad(loss, has_aux=True)(
            trained
        )
        logs = {
            "discriminator": value,
            "d_hr": jax.nn.sigmoid(hr_logits).mean(),
            "d_sr": jax.nn.sigmoid(sr_logits).mean(),
        }
        return apply("discriminator", gradients, trained, seen, slots), logs

    def step(state, lr, hr):
        trained, others, slots = state["generator"]

        def forward(trained):
            return generator.stateless_call(trained, others, lr, training=True)

        sr, backward, seen = jax.vjp(forward, trained, has_aux=True)
        state, logs = dict(state), {}
        if discriminator is not None:
            state["discriminator"], logs = train_discriminator(state["discriminator"], hr, sr)

        def loss(sr):
            terms = {name: each(hr, sr) for name, each in content.items()}
            if config.total_variation_weight:
                variation = losses.total_variation(sr)
                terms["total_variation"] = config.total_variation_weight * variation
            if discriminator is not None:
                logits, _ = discriminator.stateless_call(
                    *state["discriminator"][:2], sr, training=True
                )
                terms["adversarial"] = config.adversarial_weight * losses.adversarial(logits)
            return sum(terms.values()), terms

        (value, terms), gradient = jax.value_and_grad(loss, has_aux=True)(sr)
        [gradients] = backward(gradient)
        state["generator"] = apply("generator", gradients, trained, seen, slots)
        return state, {"loss": value, **terms, **logs}

    @jax.jit
    def upscale(state, lr):
        return generator.stateless_call(*state["generator"][:2], lr, training=False)[0]

    def psnr(state, pictures):
        values = []
        for hr in pictures:
            lr = resize.imresize(hr, (hr.shape[0] // 4, hr.shape[1] // 4))
            sr = np.asarray(upscale(state, lr[None] / np.float32(255)))[0]
            levels = np.clip(np.round((sr + 1) * 127.5), 0, 255).astype(np.uint8)
            values.append(metrics.psnr(levels, hr))
        return float(np.mean(values))

    def assign(state):
        trained, others, _ = state["generator"]
        for variable, value in zip(generator.trainable_variables, trained, strict=True):
            variable.assign(value)
        for variable, value in zip(generator.non_trainable_variables, others, strict=True):
            variable.assign(value)

    norms = [x for x in generator.layers if isinstance(x, keras.layers.BatchNormalization)]

    @jax.jit
    def batch_statistics(trained, lr):
        # One call moves zeros toward the batch's statistics by this share.
        share = 1 - norms[0].momentum
        zeros = [jax.numpy.zeros_like(v.value) for v in generator.non_trainable_variables]
        moved = generator.stateless_call(trained, zeros, lr, training=True)[1]
        return [value / share for value in moved]

    def averaged(state, batches):
        trained, others, slots = state["generator"]
        optimizer = optimizers["generator"]
        for variable, value in zip(optimizer.variables, slots, strict=True):
            variable.assign(value)
        optimizer.finalize_variable_values(generator.trainable_variables)
        trained = [v.value for v in generator.trainable_variables]
        measured = [batch_statistics(trained, lr) for lr in batches]
        others = [np.mean(values, axis=0) for values in zip(*measured, strict=True)]
        return {**state, "generator": [trained, others, slots]}

    return Model(state, step, psnr, assign, averaged)


def save(run_dir: Path, state, shown, step: int, generator, model: Model, is_last: bool) -> None:
    """Writes the weights of the state `shown`, then the state that a run resumes from.

    Raises:
        ValueError: A value of the state is not finite.
    """
    import jax
    import numpy as np

    from srgan_tf import files, weights

    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(state)]
    if not all(np.isfinite(leaf).all() for leaf in leaves):
        raise ValueError(
            f"step {step}: weights are not finite; start a new run with a lower --learning_rate"
        )
    model.assign(shown)
    newest = run_dir / "generator.newest.weights.h5"
    weights.save_weights(generator, run_dir / "generator.weights.h5" if is_last else newest)
    named = {str(i): leaf for i, leaf in enumerate(leaves)}
    with files.replacing(run_dir / "state.npz") as beside:
        np.savez(beside, step=step, **named)
    if is_last:
        newest.unlink(missing_ok=True)
        files.write_text(run_dir / "scores.json", json.dumps({"steps": step}) + "\n")


def load_state(run_dir: Path, state) -> tuple:
    """Reads the state, in the structure of the given one, and the step that `save` wrote."""
    import jax
    import numpy as np

    with np.load(run_dir / "state.npz") as stored:
        step = int(stored["step"])
        leaves = [jax.numpy.asarray(stored[str(i)]) for i in range(len(stored.files) - 1)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), step


def run(argv) -> int:
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "interrupted: the last saved state is kept")


if __name__ == "__main__":
    app.run(run)
