r"""Draws docs/comparison.png: details of two sample photographs: LR, bicubic, each --weights, HR.

python tools/comparison.py --weights=srresnet_mse --weights=srgan_vgg54
"""

import sys
from pathlib import Path

# In a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from absl import app, flags
from PIL import Image, ImageDraw, ImageFont

from srgan_tf import command_line

ROOT = Path(__file__).parents[1]
FLAGS = flags.FLAGS
flags.DEFINE_multi_string(
    "weights", ["srresnet_mse", "srgan_vgg54"], "As in evaluate.py, repeatable."
)
flags.DEFINE_string("out", str(ROOT / "docs" / "comparison.png"), "The picture to write.")

# Top and left of the detail of each sample photograph, in HR pixels, multiples of 4.
_DETAILS = {"chelsea": (64, 112), "coffee": (80, 176)}
_HEIGHT, _WIDTH, _GAP, _LABEL = 180, 200, 4, 22


def main(_) -> int:
    """Upscales, crops, joins and writes."""
    command_line.load_tensorflow()
    from srgan_tf import files, pictures
    from srgan_tf.evaluation import methods, sets

    samples = {path.stem: path for path in pictures.sample_pictures()}
    loaded = methods.load_methods(FLAGS.weights)
    names = [method.card.get("variant") or method.name for method in loaded[1:]]
    labels = ["LR", *names, "HR"]
    sheet = Image.new(
        "RGB",
        (len(labels) * (_WIDTH + _GAP) - _GAP, _LABEL + len(_DETAILS) * (_HEIGHT + _GAP) - _GAP),
        "white",
    )
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for column, label in enumerate(labels):
        draw.text((column * (_WIDTH + _GAP) + _WIDTH // 2, 2), label, "black", font, "ma")
    for row, (name, (top, left)) in enumerate(_DETAILS.items()):
        lr, hr = sets.read_pair(sets.Pair(name, samples[name], None))
        # The first method is nearest, which shows LR.
        for column, whole in enumerate([*(method.upscale(lr) for method in loaded), hr]):
            detail = np.ascontiguousarray(whole[top : top + _HEIGHT, left : left + _WIDTH])
            place = column * (_WIDTH + _GAP), _LABEL + row * (_HEIGHT + _GAP)
            sheet.paste(Image.fromarray(detail), place)
    with files.replacing(Path(FLAGS.out)) as beside:
        sheet.save(beside, optimize=True)
    print(FLAGS.out)
    return 0


def run(argv) -> int:
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "interrupted: nothing was written")


if __name__ == "__main__":
    app.run(run)
