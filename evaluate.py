"""Scores upscaling methods by the paper's measures, in a table and in an HTML report.

  python evaluate.py
  python evaluate.py --data=Set5 --data=Set14 --data=BSD100 --weights=runs/mine --out_dir=scores

Scores nearest, bicubic and every --weights on every --data. With --mos, people can rate the
results, too:

  python evaluate.py --data=Set5 --weights=runs/mine --mos=kit
  python evaluate.py --mos_ratings=kit/ratings --out_dir=scores

Exit code: 0 if all pictures or rating files were counted, 2 if some were skipped (each is named),
1 if none could be counted.
"""

import contextlib
import sys
import tempfile
from pathlib import Path

from absl import app, flags

from srgan_tf import command_line, files

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
    "all bundled weights. If empty (--weights=): only nearest and bicubic.",
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
    "Folder for scores.csv, scores.json, report.html and pictures/. Each result is kept at "
    "once, so that the same command resumes after an interruption. Without it, nothing is kept.",
)
flags.DEFINE_bool("fresh", False, "Recompute everything, whatever --out_dir holds.")
flags.DEFINE_bool(
    "lpips",
    False,
    "Also measure LPIPS (AlexNet), the perceptual distance to the original. Lower is better.",
)
flags.DEFINE_integer(
    "tile",
    None,
    "Largest side, in LR pixels, of the tiles that a network runs on; smaller tiles take less "
    "memory. Default: 512.",
    lower_bound=1,
)
flags.DEFINE_string(
    "mos",
    None,
    "Write a rating kit to this new folder: a page on which people rate all versions of all "
    "pictures blind, from 1 to 5. With --mos_ratings: the kit that was rated.",
)
flags.DEFINE_integer(
    "mos_pictures",
    None,
    "Number of pictures to rate in all versions, drawn evenly from the sets, the same for all "
    "raters. Default: all.",
    lower_bound=1,
)
flags.DEFINE_string(
    "mos_calibration",
    None,
    "Folder of pictures to calibrate raters on; up to 20 are used. The paper took them from "
    "BSD300's training set. Default: photographs that come with scikit-image.",
)
flags.DEFINE_multi_string(
    "mos_ratings",
    None,
    "Count ratings instead of scoring, repeatable: a rating file, or a folder of them. The results "
    "are printed and, with --out_dir, written to mos.csv, mos.json and report.html.",
)
flags.DEFINE_bool(
    "mos_calibrated", False, "With --mos_ratings: exclude raters who failed calibration."
)

_FLAGS_OF_COUNTING = ("mos", "mos_ratings", "mos_calibrated", "out_dir")
_BUSY = "another evaluate.py writes there: wait for it, or give another --out_dir"


def main(argv):
    """Scores pictures or counts ratings."""
    if argv[1:]:
        raise ValueError(
            f"unexpected argument {argv[1]!r}: use --data for pictures, --weights for weights"
        )
    for flag, needed in (
        ("fresh", "out_dir"),
        ("mos_pictures", "mos"),
        ("mos_calibration", "mos"),
        ("mos_calibrated", "mos_ratings"),
    ):
        if FLAGS[flag].value and not FLAGS[needed].value:
            raise ValueError(f"--{flag} needs --{needed}")
    if FLAGS.out_dir and Path(FLAGS.out_dir, "run.json").exists():
        raise ValueError(
            f"{FLAGS.out_dir}: a run folder, whose scores.json is the run's own; give another "
            "--out_dir"
        )
    if not FLAGS.mos_ratings:
        return score()
    unused = [flag for flag in flag_values() if FLAGS[flag].present]
    unused = [f"--{flag}" for flag in unused if flag not in _FLAGS_OF_COUNTING]
    if unused:
        raise ValueError(f"--mos_ratings only counts ratings, without {', '.join(unused)}")
    return count_ratings()


def score() -> int:
    """Scores, prints the table, and writes the report and the rating kit."""
    # Imported here so that --help is fast.
    from srgan_tf import lpips, weights
    from srgan_tf.evaluation import methods, mos_kit, report, scoring, sets, tables

    opened = sets.open_sets(FLAGS.data, FLAGS.out_dir)
    specs = weights.bundled() if FLAGS.weights is None else list(filter(None, FLAGS.weights))
    specs += [f"blend:{detail}" for detail in FLAGS.dial]
    with command_line.native_logs_hidden():
        distance = lpips.load() if FLAGS.lpips else None
        loaded = methods.load_methods(specs, tile=FLAGS.tile)
    if FLAGS.mos:
        mos_kit.check_folder(FLAGS.mos, loaded, FLAGS.out_dir)
        calibration = mos_kit.calibration_pictures(FLAGS.mos_calibration, opened)
    with contextlib.ExitStack() as stack:
        if FLAGS.out_dir:
            out_dir = Path(FLAGS.out_dir)
            files.make_folder(out_dir)
            stack.enter_context(files.locked(out_dir, _BUSY))
            report.read_opinions(out_dir)  # fails now, not after the scoring
        else:
            # A kit is built from kept pictures.
            out_dir = stack.enter_context(tempfile.TemporaryDirectory()) if FLAGS.mos else None
        results = scoring.evaluate(
            opened,
            loaded,
            out_dir=out_dir,
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
        if FLAGS.mos:
            page = mos_kit.write_kit(results, out_dir, FLAGS.mos, calibration, FLAGS.mos_pictures)
            print(f"Open {page} in a browser to rate the pictures. Give raters no {mos_kit.KEY}.")
    return 2 if results.skipped else 0


def count_ratings() -> int:
    """Counts ratings, prints the mean opinion scores, and writes them into the report."""
    from srgan_tf.evaluation import mos, mos_kit, mos_tables, ratings, report

    paths = ratings.find_files(FLAGS.mos_ratings)
    kit = mos_kit.read_kit(FLAGS.mos or mos_kit.find_kit(FLAGS.mos_ratings))
    counted, skipped = ratings.read_files(paths, kit)
    for line in skipped:
        print(f"skipped: {line}", file=sys.stderr)
    excluded = [r for r in counted if FLAGS.mos_calibrated and not r.is_calibrated(kit)]
    counted = [r for r in counted if r not in excluded]
    if not counted:
        raise ValueError("none of the rating files could be counted")
    summary = mos.summarize(kit, counted) | {"excluded": [r.alias for r in excluded]}
    print(mos_tables.terminal_tables(summary))
    if FLAGS.out_dir:
        files.make_folder(Path(FLAGS.out_dir))
        with files.locked(Path(FLAGS.out_dir), _BUSY):
            mos_tables.write(summary, skipped, FLAGS.out_dir)
            print(f"Open {report.write_opinions(FLAGS.out_dir)} in a browser to see the figures.")
    return 2 if skipped else 0


def flag_values() -> dict:
    """Returns the values of this script's own flags."""
    return {flag.name: flag.value for flag in FLAGS.get_key_flags_for_module(sys.modules[__name__])}


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    kept = "the same command resumes from here" if FLAGS.out_dir else "nothing was kept"
    return command_line.exit_code(main, argv, f"interrupted: {kept}")


if __name__ == "__main__":
    app.run(run)
