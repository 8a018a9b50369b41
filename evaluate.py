"""Scores upscaling methods by the paper's own measures, in a table and on a page to look at.

  python evaluate.py
  python evaluate.py --data=Set5 --data=Set14 --data=BSD100 --weights=runs/mine --out_dir=scores

Nearest, bicubic and every --weights are scored on every --data. Exit code: 0 when all pictures were
scored, 2 when some were left out (each is named), 1 when nothing could be done.
"""

import sys

from absl import app, flags

from srgan_tf import command_line

FLAGS = flags.FLAGS

flags.DEFINE_multi_string(
    "data",
    ["sample"],
    "What to score on, repeatable: a folder with HR/ and perhaps LR_x4/, or a folder of HR "
    "pictures (LR is then made by Matlab's bicubic, sizes cut to a multiple of 4), or 'sample', "
    "the photographs that scikit-image carries.",
)
flags.DEFINE_multi_string(
    "weights",
    None,
    "What to score, repeatable: a run folder, a weights file, a bundled name, an exported "
    "SavedModel folder, .tflite or .onnx file. Default: all bundled weights. Empty (--weights=): "
    "nearest and bicubic alone.",
)
flags.DEFINE_string(
    "out_dir",
    None,
    "Folder for scores.csv, scores.json, report.html and pictures/. Results are kept there as they "
    "come, so that the same command goes on after an interruption. Without it nothing is kept.",
)
flags.DEFINE_bool("fresh", False, "Compute all again, whatever --out_dir holds.")
flags.DEFINE_bool(
    "lpips",
    False,
    "Also measure LPIPS (AlexNet), with the lpips package: pip install lpips.",
)
flags.DEFINE_integer(
    "tile",
    None,
    "Largest side of lr that a network is given at once; smaller takes less memory. Default: 512.",
    lower_bound=1,
)


def main(argv):
    """Loads what the flags name, scores, prints and writes."""
    if argv[1:]:
        raise ValueError(f"what is {argv[1]!r}? Folders go into --data=, weights into --weights=")
    if FLAGS.fresh and not FLAGS.out_dir:
        raise ValueError("--fresh needs --out_dir: nothing is kept elsewhere")

    # Here, so that --help need not wait for these imports.
    from srgan_tf import weights
    from srgan_tf.evaluation import report, scoring, sets, tables

    sets = sets.open_sets(FLAGS.data, FLAGS.out_dir)
    lpips = scoring.load_lpips() if FLAGS.lpips else None
    specs = weights.bundled() if FLAGS.weights is None else filter(None, FLAGS.weights)
    with command_line.native_logs_hidden():
        methods = scoring.load_methods(specs, tile=FLAGS.tile)
    results = scoring.evaluate(
        sets,
        methods,
        out_dir=FLAGS.out_dir,
        fresh=FLAGS.fresh,
        lpips=lpips,
        progress=command_line.progress_bar(),
    )
    for line in results.left_out:
        print(f"left out: {line}", file=sys.stderr)
    if not results.rows:
        raise ValueError("none of the pictures could be scored")
    print(tables.terminal_table(results))
    if FLAGS.out_dir:
        tables.write_scores(results, FLAGS.out_dir, flags_given())
        page = report.write_report(results, FLAGS.out_dir)
        print(f"Open {page} in a browser to look at the pictures.")
    return 2 if results.left_out else 0


def flags_given() -> dict:
    """The values of this script's own flags."""
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    kept = "the same command goes on from here" if FLAGS.out_dir else "nothing was kept"
    return command_line.exit_code(main, argv, f"interrupted: {kept}")


if __name__ == "__main__":
    app.run(run)
