import json
import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, save_photograph

pytest.importorskip("jax")

# One step of SRGAN on the backend that argv[1] names, from weights that are the same on each.
ONE_STEP = """
import dataclasses, sys
import numpy as np
import train
from srgan_tf.training import recipe
config = dataclasses.replace(
    train.read_config(""), residual_blocks=2, filters=8, crop_size=32, batch_size=3,
    init_generator="none", content_loss="block2_conv2", vgg_weights="vgg16",
    adversarial_weight=1e-3, total_variation_weight=1e-7, ema=float(sys.argv[3]),
)
generator, discriminator, content, _ = recipe.build(config)
rng = np.random.default_rng(1)
for network in (generator, discriminator):
    network.set_weights([
        np.abs(w) + rng.uniform(0, 0.1, w.shape) if "variance" in v.path
        else rng.normal(0, 0.5 / np.sqrt(max(1, np.prod(w.shape[:-1]))), w.shape)
        for v, w in zip(network.weights, network.get_weights())
    ])
lr = rng.uniform(0, 1, [3, 8, 8, 3]).astype(np.float32)
hr = rng.uniform(-1, 1, [3, 32, 32, 3]).astype(np.float32)
if sys.argv[1] == "jax":
    import jax
    sys.path.insert(0, "tools")
    import train_jax
    model = train_jax.make_model(config, generator, discriminator, content)
    state, logs = jax.jit(model.step)(model.state, lr, hr)
    if config.ema:
        state = model.averaged(state, [lr, lr])
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        for variables, values in zip(
            (network.trainable_variables, network.non_trainable_variables), state[name]
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
else:
    import tensorflow as tf
    from srgan_tf import gan
    from srgan_tf.training import adam
    model = gan.SRGAN(
        generator, content, discriminator=discriminator,
        total_variation_weight=config.total_variation_weight,
    )
    model.compile(
        recipe.optimizer(config, adam.Adam, ema=config.ema), recipe.optimizer(config, adam.Adam)
    )
    logs = model.train_step((tf.constant(lr), tf.constant(hr)))
    if config.ema:
        model.optimizer.finalize_variable_values(generator.trainable_variables)
        for layer in generator.layers:
            layer.momentum = 0  # of batch norms: a call then leaves its batch's statistics
        generator(lr, training=True)
weights = [w for network in (generator, discriminator) for w in network.get_weights()]
np.savez(sys.argv[2], *weights, **{name: float(value) for name, value in logs.items()})
assert ("tensorflow" in sys.modules) == (sys.argv[1] == "tensorflow")
"""

# Dies like a machine that is taken away, right after the first checkpoint.
KILLED = """
import os, runpy, sys
sys.modules["tensorflow"] = None  # as where there is none
replace = os.replace
def die(source, target):
    replace(source, target)
    if str(target).endswith("state.npz"):
        os._exit(9)
os.replace = die
sys.argv = ["tools/train_jax.py", *sys.argv[1:]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""

DRAW = """
import dataclasses, sys
import numpy as np
sys.path.insert(0, "tools")
import train
import train_jax
from srgan_tf import resize

def place(crop, turns):
    for i, picture in enumerate(pictures):
        for top, left in np.ndindex(picture.shape[0] - 31, 19):
            for turn in turns:
                turned = turn(picture[top : top + 32, left : left + 32])
                if np.array_equal(turned[0, :4], crop[0, :4]) and np.array_equal(turned, crop):
                    return i, top, left
    raise SystemExit("a crop of no picture")

rng = np.random.default_rng(1)
pictures = [rng.integers(0, 256, [40 + i, 50, 3], np.uint8) for i in range(5)]
upright = [lambda a: a]
eight = [lambda a, k=k, f=f: np.rot90(a[:, ::f], k) for k in range(4) for f in (1, -1)]
for options in ({}, {"augment": True}, {"sample_by_area": True}, {"batch_size": 7}):
    config = dataclasses.replace(
        train.read_config(""), crop_size=32, **{"batch_size": 5} | options
    )
    draw, pixels = train_jax.make_draw(config, pictures)
    lr, hr = (np.asarray(x) for x in draw(pixels, 7))
    levels = np.round((hr + 1) * 127.5).astype(np.uint8)
    for small, large in zip(np.round(lr * 255), levels, strict=True):
        np.testing.assert_array_equal(small, resize.imresize(large, (8, 8)))
    found = [place(crop, eight if "augment" in options else upright) for crop in levels]
    assert {i for i, _, _ in found} == set(range(5)) and len({p[1:] for p in found}) > 2
    if "augment" in options:
        assert any(not np.array_equal(c, pictures[i][t : t + 32, l : l + 32])
                   for c, (i, t, l) in zip(levels, found))
    again, other = draw(pixels, 7)[1], draw(pixels, 8)[1]
    assert np.array_equal(hr, again) and not np.array_equal(hr, other)
"""


def _python(*arguments, code=0, backend="jax"):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.parametrize("ema", [0, 0.5])
def test_a_step_computes_the_same_weights_as_tensorflow(tmp_path, ema):
    found = {}
    for backend in ("tensorflow", "jax"):
        path = tmp_path / f"{backend}.npz"
        _python("-c", ONE_STEP, backend, path, ema, backend=backend)
        found[backend] = dict(np.load(tmp_path / f"{backend}.npz"))
    assert found["jax"].keys() == found["tensorflow"].keys() and "adversarial" in found["jax"]
    for name, value in found["tensorflow"].items():
        difference = np.abs(found["jax"][name] - value) - 1e-4 * np.abs(value)
        # A first step of Adam is the gradient's sign, which rounding decides where it is all but 0.
        assert (difference > 1e-5).mean() < 1e-4 and difference.max() < 2.1e-4, name


def test_batches_are_crops_and_their_matlab_bicubic():
    _python("-c", DRAW)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        save_photograph(tmp_path / "photos" / f"{i}.png", 256 + i, 256)
    flags = ["--flagfile=srresnet_mse.flags", "--steps=5", f"--train_data={tmp_path / 'photos'}"]
    flags += ["--residual_blocks=1", "--filters=8", "--crop_size=32", "--batch_size=2"]
    flags += [
        "--ema=0.5",
        "--steps_per_call=3",
        "--checkpoint_every=3",
        "--log_every=2",
        "--validate_every=2",
    ]
    out = _python("tools/train_jax.py", *flags, f"--run_dir={tmp_path}/whole").stdout
    assert "step 2  loss " in out and "step 4  validation_psnr " in out and "done: " in out
    _python("-c", KILLED, *flags, f"--run_dir={tmp_path}/killed", code=9)
    assert (tmp_path / "killed/generator.newest.weights.h5").exists()
    _python("tools/train_jax.py", *flags, f"--run_dir={tmp_path}/killed")
    assert not (tmp_path / "killed/generator.newest.weights.h5").exists()

    whole, killed = ({**np.load(tmp_path / run / "state.npz")} for run in ("whole", "killed"))
    assert whole["step"] == 5
    for name, value in whole.items():
        np.testing.assert_array_equal(killed[name], value)
    rows = [_rows(tmp_path / run / "metrics.jsonl") for run in ("whole", "killed")]
    assert (
        [row["step"] for row in rows[0]] == [row["step"] for row in rows[1]] == [2, 2, 4, 4, 5, 5]
    )
    # Except for the losses of step 4, whose mean is of the steps after the kill.
    assert all(
        a == b for a, b in zip(*rows, strict=True) if "validation_psnr" in a or a["step"] != 4
    )

    from srgan_tf import weights

    assert json.loads((tmp_path / "whole" / "scores.json").read_text()) == {"steps": 5}
    generator, card = weights.load_generator(str(tmp_path / "whole"))
    assert len(generator.weights) and card["variant"] == "SRResNet-MSE" and card["steps"] == 5

    # Neither script resumes the other's run, or a run with other flags.
    _refused(*flags, f"--run_dir={tmp_path}/whole", "--seed=2", message="other flags: --seed=2")
    _refused(*flags, "--cache", message="--cache: not supported by tools/train_jax.py")
    _refused("--flagfile=vgg54.flags", "--init_generator=", message="SRGAN starts from")
    done = _python("train.py", *flags, f"--run_dir={tmp_path}/whole", code=1, backend="tensorflow")
    assert "holds a run of tools/train_jax.py" in done.stderr
    (tmp_path / "killed/state.npz").unlink()
    _refused(*flags, f"--run_dir={tmp_path}/killed", message="holds weights but no checkpoint")
    record = tmp_path / "whole/run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"script": None}))
    _refused(*flags, f"--run_dir={tmp_path}/whole", message="holds a run of train.py")


def _rows(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return [{name: row[name] for name in row if name != "images_per_second"} for row in rows]


def _refused(*flags, message):
    last = _python("tools/train_jax.py", *flags, code=1).stderr.splitlines()[-1]
    assert last.startswith("error: ") and message in last
