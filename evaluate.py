"""Scores upscaling methods by the paper's measures, in a table and in an HTML report.

  python evaluate.py
  python evaluate.py --data=Set5 --data=Set14 --data=BSD100 --weights=runs/mine --out_dir=scores

Nearest, bicubic and every --weights are scored on every --data. Exit code: 0 if all pictures were
scored, 2 if some were skipped (each is named), 1 if none could be scored.
"""

import sys

from absl import app, flags

from srgan_tf import command_line

FLAGS = flags.FLAGS

flags.DEFINE_multi_string(
    "data",
    ["sample"],
    "Pictures to score on, repeatable: a folder with HR/ and optionally LR_x4/; a folder of HR "
    "pictures (LR is then made with Matlab's bicubic, and sizes are cropped to a multiple of 4); "
    "or 'sample', the photographs that come with scikit-image.",
)
flags.DEFINE_multi_string(
    "weights",
    None,
    "Weights to score, repeatable: a run folder, a weights file, a bundled name, an exported "
    "SavedModel folder, .tflite or .onnx file; or a blend of two of these, spelled "
    "blend:DETAIL:FIRST:SECOND, where DETAIL, 0 to 1, is the weight of SECOND's picture. Default: "
    "all bundled weights. Empty (--weights=): only nearest and bicubic.",
)
flags.DEFINE_list(
    "dial",
    [],
    "Positions of the dial between the bundled srresnet_mse (0) and srgan_vgg54 (1) to score too, "
    "such as 0,0.25,0.5,0.75,1: blends of their pictures, as upscale.py --detail makes them.",
)
flags.DEFINE_string(
    "out_dir",
    None,
    "Folder for scores.csv, scores.json, report.html and pictures/. Each result is kept there at "
    "once, so that the same command resumes after an interruption. Without it nothing is kept.",
)
flags.DEFINE_bool("fresh", False, "Recompute everything, whatever --out_dir holds.")
flags.DEFINE_bool(
    "lpips",
    False,
    "Also measure LPIPS (AlexNet), the perceptual distance to the original: lower is better.",
)
flags.DEFINE_integer(
    "tile",
    None,
    "Largest side, in LR pixels, of the tiles that a network runs on; smaller tiles take less "
    "memory. Default: 512.",
    lower_bound=1,
)


def main(argv):
    """Scores, prints the table and writes the report."""
    if argv[1:]:
        raise ValueError(
            f"unexpected argument {argv[1]!r}: use --data for pictures, --weights for weights"
        )
    if FLAGS.fresh and not FLAGS.out_dir:
        raise ValueError("--fresh needs --out_dir: nothing is kept without it")

    # Imported here so that --help is fast.
    from srgan_tf import lpips, weights
    from srgan_tf.evaluation import methods, report, scoring, sets, tables

    opened = sets.open_sets(FLAGS.data, FLAGS.out_dir)
    specs = weights.bundled() if FLAGS.weights is None else list(filter(None, FLAGS.weights))
    specs += [f"blend:{detail}" for detail in FLAGS.dial]
    with command_line.native_logs_hidden():
        distance = lpips.load() if FLAGS.lpips else None
        loaded = methods.load_methods(specs, tile=FLAGS.tile)
    results = scoring.evaluate(
        opened,
        loaded,
        out_dir=FLAGS.out_dir,
        fresh=FLAGS.fresh,
        lpips=distance,
        progress=command_line.progress_bar(),
    )
    for line in results.skipped:
        print(f"skipped: {line}", file=sys.stderr)
    if not results.rows:
        raise ValueError("none of the pictures could be scored")
    print(tables.terminal_table(results))
    if FLAGS.out_dir:
        tables.write_scores(results, FLAGS.out_dir, flag_values())
        page = report.write_report(results, FLAGS.out_dir)
        print(f"Open {page} in a browser to see the pictures.")
    return 2 if results.skipped else 0


def flag_values() -> dict:
    """The values of this script's own flags."""
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    kept = "the same command resumes from here" if FLAGS.out_dir else "nothing was kept"
    return command_line.exit_code(main, argv, f"interrupted: {kept}")


if __name__ == "__main__":
    app.run(run)
