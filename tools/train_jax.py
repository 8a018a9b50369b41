"""Trains on an accelerator that has JAX but no TensorFlow, with train.py's flags.

    python tools/train_jax.py --flagfile=vgg54.flags --train_data=FOLDER --steps_per_call=100

Networks and losses are those of train.py, on Keras' JAX backend. All pictures lie in the device's
memory, where crops and their LR are made. The run folder gets what `--weights` and
tools/bundle_weights.py read, metrics.jsonl, and state.npz, from which the same command goes on: a
step's batch depends on the seed and the step alone, but is another than train.py's.
"""

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["KERAS_BACKEND"] = "jax"
# From a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import app, flags

import train
from srgan_tf import command_line

FLAGS = flags.FLAGS
flags.adopt_module_key_flags(train)

# What this script does anyway, or cannot do: other values would be silently without effect.
_FIXED = {
    "cache": False, "deterministic": True, "dry_run": False, "jit_compile": False,
    "keep_checkpoints": 3, "val_data": "",
}  # fmt: skip
_VALIDATION_SIZE = 256  # pixels of hr; one size, so that it is compiled once


def main(argv) -> int:
    """Turns flags into a config and trains."""
    if len(argv) > 1:
        raise app.UsageError(f"{argv[1]}: train_jax.py takes flags only, see --help")
    for name, value in _FIXED.items():
        if FLAGS[name].value != value:
            raise ValueError(f"--{name}: tools/train_jax.py has no such choice, leave it out")
    if FLAGS.mixed_precision == "mixed_float16":
        raise ValueError("--mixed_precision=mixed_float16: use mixed_bfloat16 here")
    from srgan_tf import recipe

    values = {field.name: FLAGS[field.name].value for field in dataclasses.fields(recipe.Config)}
    values["run_dir"] = FLAGS.run_dir or f"runs/{FLAGS.variant.lower()}"
    return run_training(recipe.Config(**values))


def run_training(config) -> int:
    """Trains to the last step, or to a signal; returns the exit code.

    Args:
        config: A `recipe.Config`.

    Raises:
        ValueError, FileNotFoundError: It cannot be done; one line.
    """
    import jax
    import keras
    import numpy as np

    from srgan_tf import provenance, recipe

    keras.utils.set_random_seed(config.seed)
    run_dir = Path(config.run_dir)
    training, validation, left_out = read_pictures(config)
    found = {
        "spec": config.train_data,
        "pictures": len(training),
        "left_out": left_out,
        "total_megapixels": round(sum(p.shape[0] * p.shape[1] for p in training) / 1e6, 3),
    }
    goes_on = (run_dir / "state.npz").exists()
    if goes_on:
        refuse_other_run(run_dir, config, found)
    generator, discriminator, content, facts = recipe.build(config)
    model = make_model(config, generator, discriminator, content)
    state, first_step = load_state(run_dir, model.state) if goes_on else (model.state, 0)
    if not goes_on:
        record = {"config": dataclasses.asdict(config), **provenance.here(), **facts}
        record["versions"]["jax"] = jax.__version__
        record |= {"variant": config.variant, "script": "tools/train_jax.py", "train_data": found}
        record["device"] = jax.devices()[0].device_kind
        text = json.dumps(record, indent=2) + "\n"
        run_dir.mkdir(parents=True, exist_ok=True)
        write_beside(run_dir / "run.json", lambda path: path.write_text(text))
    draw = make_draw(config, training)

    @jax.jit
    def many(state, first, end):
        def one(i, carry):
            state, sums = carry
            state, logs = model.step(state, *draw(i))
            return state, {name: sums[name] + value for name, value in logs.items()}

        shapes = jax.eval_shape(lambda: model.step(state, *draw(first))[1])
        zeros = {name: jax.numpy.zeros(()) for name in shapes}
        return jax.lax.fori_loop(first, end, one, (state, zeros))

    stopped = []
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda number, _: stopped.append(number))
    step, began, sums = first_step, time.perf_counter(), {}
    periods = (config.log_every, config.validate_every, config.checkpoint_every)
    rates = recipe.learning_rates(config)
    with open(run_dir / "metrics.jsonl", "a") as log:
        while step < config.steps and not stopped:
            events = [(step // period + 1) * period for period in periods]
            end = min(config.steps, step + config.steps_per_call, *events)
            state, more = many(state, step, end)
            for name, value in more.items():
                sums[name] = sums.get(name, 0) + float(value)
            if not np.isfinite(sums["loss"]):
                raise ValueError(
                    f"step {end}: the loss is not finite; the same command goes on from the last"
                    " checkpoint, a new run needs a lower --learning_rate"
                )
            count, step = end - step, end
            seconds, began = time.perf_counter() - began, time.perf_counter()
            if step % config.log_every == 0 or step == config.steps:
                steps = (step - 1) % config.log_every + 1
                row = {name: value / steps for name, value in sums.items()}
                row |= {"learning_rate": float(rates(step - 1)) if callable(rates) else rates}
                row |= {"images_per_s": round(count * config.batch_size / seconds, 1)}
                report(log, step, row)
                sums = {}
            if validation and (step % config.validate_every == 0 or step == config.steps):
                report(log, step, {"val_psnr": model.psnr(state, validation)})
            if step % config.checkpoint_every == 0 or step == config.steps or stopped:
                save(run_dir, state, step, generator, model)
    if step < config.steps:
        print(f"stopped at step {step}: the same command goes on from there", file=sys.stderr)
        return 128 + stopped[0]
    print(f"done: {run_dir / 'generator.weights.h5'}")
    return 0


def report(log, step: int, row: dict) -> None:
    """Prints a row of figures and adds it to metrics.jsonl."""
    print(f"step {step}  " + "  ".join(f"{name} {value:.5g}" for name, value in row.items()))
    log.write(json.dumps({"step": step, **row}) + "\n")
    log.flush()


def read_pictures(config):
    """Reads all pictures, uint8 [h, w, 3]: for training, crops for validation, how many left out.

    Raises:
        ValueError: There are none, or too few.
    """
    import numpy as np

    from srgan_tf import pictures

    if config.train_data.startswith("tfds:"):
        raise ValueError("--train_data: tools/train_jax.py takes a folder, or sample")
    if config.train_data == "sample":
        paths = pictures.sample_pictures()
    else:
        paths = pictures.find_pictures(Path(config.train_data))
    found = []
    for path in paths:
        try:
            picture = pictures.read_rgb(path)
        except ValueError as error:
            print(f"left out: {pictures.one_line(error)}", file=sys.stderr)
            continue
        if min(picture.shape[:2]) >= config.crop_size:
            found.append(picture)
    left_out = len(paths) - len(found)
    large = [i for i, p in enumerate(found) if min(p.shape[:2]) >= _VALIDATION_SIZE]
    count = min(config.val_pictures, len(large), len(found) // 4)
    held = set(np.random.default_rng(config.seed).permutation(large)[:count].tolist())
    validation = []
    for i in sorted(held):
        top, left = ((side - _VALIDATION_SIZE) // 2 for side in found[i].shape[:2])
        validation.append(found[i][top:, left:][:_VALIDATION_SIZE, :_VALIDATION_SIZE])
    training = [picture for i, picture in enumerate(found) if i not in held]
    if not training:
        raise ValueError(f"--train_data={config.train_data}: no pictures of {config.crop_size}")
    return training, validation, left_out


def make_draw(config, training):
    """Makes the function from a step to its batch: lr in [0, 1], hr in [-1, 1], float32.

    As `data.training_batches`: each picture once an epoch, or distinct pictures by area^0.7.
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
        places = step * config.batch_size + jnp.arange(config.batch_size)

        def one(place):
            order = jax.random.permutation(jax.random.fold_in(key, place // count), count)
            return order[place % count]

        return jax.vmap(one)(places)

    def crop(picture, chances):
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

    def draw(step):
        chances = jax.random.uniform(
            jax.random.fold_in(jax.random.fold_in(key, step), 1), [config.batch_size, 3]
        )
        hr = jax.vmap(crop)(choose(step), chances)
        lr = shrink(shrink(hr, "oh,nhwc->nowc"), "ow,nhwc->nhoc")
        return lr / 255, hr / 127.5 - 1

    return draw


class Model(NamedTuple):
    """What `run_training` does with a generator and a discriminator.

    Attributes:
        state: All that a step changes, as a tree of arrays.
        step: From (state, lr, hr) to the next state and the logs; to be compiled.
        psnr: From (state, pictures hr) to their mean PSNR, the paper's, dB.
        assign: Puts a state's weights into the Keras generator.
    """

    state: dict
    step: Callable
    psnr: Callable
    assign: Callable


def make_model(config, generator, discriminator, content) -> Model:
    """Makes of networks and losses what `gan.SRGAN` is in TensorFlow.

    Args:
        config: A `recipe.Config`.
        generator: As `recipe.build` gives it.
        discriminator: Likewise, or None.
        content: Name and function of the content loss.
    """
    import jax
    import numpy as np

    from srgan_tf import losses, metrics, recipe, resize

    def start(network, optimizer):
        optimizer.build(network.trainable_variables)
        variables = network.trainable_variables, network.non_trainable_variables
        return [[v.value for v in group] for group in (*variables, optimizer.variables)]

    optimizers = {"generator": recipe.optimizer(config), "discriminator": recipe.optimizer(config)}
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

    return Model(state, step, psnr, assign)


def write_beside(path: Path, write: Callable) -> None:
    """Has a file written beside its place and renames it, so that a kill leaves no half of it."""
    beside = path.with_name(f"part.{path.name}")
    write(beside)
    os.replace(beside, path)


def save(run_dir: Path, state, step: int, generator, model: Model) -> None:
    """Writes the weights, and then all that a run goes on from."""
    import jax
    import numpy as np

    model.assign(state)
    write_beside(run_dir / "generator.weights.h5", generator.save_weights)
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state))}
    write_beside(run_dir / "state.npz", lambda path: np.savez(path, step=step, **leaves))


def load_state(run_dir: Path, state) -> tuple:
    """Reads what `save` wrote: the state, of the same form as the one given, and the step."""
    import jax
    import numpy as np

    with np.load(run_dir / "state.npz") as stored:
        step = int(stored["step"])
        leaves = [jax.numpy.asarray(stored[str(i)]) for i in range(len(stored.files) - 1)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves), step


def refuse_other_run(run_dir: Path, config, found: dict) -> None:
    """Refuses to go on with other flags or pictures than a run was started with.

    Raises:
        ValueError: They differ.
    """
    record = json.loads((run_dir / "run.json").read_text())
    free = {"run_dir", "steps_per_call", "log_every", "validate_every", "checkpoint_every"}
    for name, value in dataclasses.asdict(config).items():
        if name not in free and record["config"][name] != value:
            raise ValueError(
                f"--{name}={value}: {run_dir} holds a run with {record['config'][name]}; give"
                " that, or another --run_dir"
            )
    if record["train_data"] != found:
        raise ValueError(f"--train_data: not the pictures that {run_dir} was started with")


def run(argv) -> int:
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "interrupted: nothing was lost that had been saved")


if __name__ == "__main__":
    app.run(run)
