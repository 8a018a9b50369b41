import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import save_photograph

ROOT = Path(__file__).parents[1]
pytest.importorskip("jax")

# One step of SRGAN on the backend that argv[1] names, from weights that are the same on each.
ONE_STEP = """
import sys
import numpy as np
from srgan_tf import recipe
config = recipe.Config(
    run_dir="", residual_blocks=2, filters=8, crop_size=32, batch_size=3, init_generator="none",
    content_loss="block2_conv2", vgg_weights="hed", adversarial_weight=1e-3,
    total_variation_weight=1e-7,
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
    for name, network in (("generator", generator), ("discriminator", discriminator)):
        for variables, values in zip(
            (network.trainable_variables, network.non_trainable_variables), state[name]
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
else:
    import tensorflow as tf
    from srgan_tf import gan
    model = gan.SRGAN(
        generator, content, discriminator=discriminator,
        total_variation_weight=config.total_variation_weight,
    )
    model.compile(recipe.optimizer(config), recipe.optimizer(config))
    logs = model.train_step((tf.constant(lr), tf.constant(hr)))
weights = [w for network in (generator, discriminator) for w in network.get_weights()]
np.savez(sys.argv[2], *weights, **{name: float(value) for name, value in logs.items()})
assert ("tensorflow" in sys.modules) == (sys.argv[1] == "tensorflow")
"""

# Dies like a machine that is taken away, right after the first checkpoint.
KILLED = """
import os, runpy, sys
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
import sys
import numpy as np
sys.path.insert(0, "tools")
import train_jax
from srgan_tf import recipe, resize
rng = np.random.default_rng(1)
pictures = [rng.integers(0, 256, [40 + i, 50, 3], np.uint8) for i in range(5)]
for options in ({}, {"augment": True}, {"sample_by_area": True}):
    config = recipe.Config(run_dir="", batch_size=5, crop_size=32, **options)
    draw = train_jax.make_draw(config, pictures)
    lr, hr = map(np.asarray, draw(7))
    assert lr.shape == (5, 8, 8, 3) and hr.shape == (5, 32, 32, 3)
    for small, large in zip(np.round(lr * 255), np.round((hr + 1) * 127.5).astype(np.uint8)):
        np.testing.assert_array_equal(small, resize.imresize(large, (8, 8)))
        turned = [np.rot90(a, k) for a in (large, large[:, ::-1]) for k in range(4)]
        turned = turned if "augment" in options else [large]
        assert any(
            np.array_equal(p[t : t + 32, l : l + 32], crop)
            for crop in turned for p in pictures
            for t in range(p.shape[0] - 31) for l in range(19)
            if np.array_equal(p[t, l : l + 4], crop[0, :4])
        )
    assert np.array_equal(lr, draw(7)[0]) and not np.array_equal(lr, draw(8)[0])
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


def test_a_step_gives_the_weights_that_tensorflow_gives(tmp_path):
    found = {}
    for backend in ("tensorflow", "jax"):
        _python("-c", ONE_STEP, backend, tmp_path / f"{backend}.npz", backend=backend)
        found[backend] = dict(np.load(tmp_path / f"{backend}.npz"))
    assert found["jax"].keys() == found["tensorflow"].keys() and "adversarial" in found["jax"]
    for name, value in found["tensorflow"].items():
        difference = np.abs(found["jax"][name] - value) - 1e-4 * np.abs(value)
        # A first step of Adam is the gradient's sign, which rounding decides where it is all but 0.
        assert (difference > 1e-5).mean() < 1e-4 and difference.max() < 2.1e-4, name


def test_batches_are_crops_of_the_pictures_and_what_matlab_makes_of_them():
    _python("-c", DRAW)


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        save_photograph(tmp_path / "photos" / f"{i}.png", 40 + i, 50)
    flags = ["--flagfile=srresnet_mse.flags", "--steps=4"]
    flags += [f"--train_data={tmp_path / 'photos'}", "--residual_blocks=1", "--filters=8"]
    flags += ["--crop_size=32", "--batch_size=2", "--checkpoint_every=2", "--steps_per_call=3"]
    flags += ["--log_every=2"]
    out = _python("tools/train_jax.py", *flags, f"--run_dir={tmp_path}/whole").stdout
    assert "step 2 " in out and "val_psnr" not in out and "done: " in out
    _python("-c", KILLED, *flags, f"--run_dir={tmp_path}/killed", code=9)
    _python("tools/train_jax.py", *flags, f"--run_dir={tmp_path}/killed")
    states = [dict(np.load(tmp_path / run / "state.npz")) for run in ("whole", "killed")]
    assert states[0]["step"] == 4
    for name, value in states[0].items():
        np.testing.assert_array_equal(states[1][name], value)

    from srgan_tf import weights

    generator, card = weights.load_generator(str(tmp_path / "whole"))
    assert len(generator.weights) and card["variant"] == "SRResNet-MSE" and card["steps"] == 4
    rows = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").open()]
    assert [row["step"] for row in rows] == [2, 4] and rows[1]["loss"] > 0

    done = _python("tools/train_jax.py", *flags, f"--run_dir={tmp_path}/whole", "--seed=2", code=1)
    assert "error: --seed=2: " in done.stderr
    done = _python("tools/train_jax.py", "--cache", code=1)
    assert done.stderr == "error: --cache: tools/train_jax.py has no such choice, leave it out\n"
