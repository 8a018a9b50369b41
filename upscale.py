"""Upscales photographs by 4.

  python upscale.py photo.jpg
  python upscale.py holiday/ more.png --out_dir=large --format=jpg

photo.jpg becomes photo_x4.png, or photo.jpg_x4.png if there is also a photo.png. Results are
written beside the pictures or to --out_dir, where folders keep their structure. EXIF, color
profile, alpha, grayscale and 16-bit depth are kept. A picture that already has its result is
skipped, so that you can repeat a stopped command. Exit code: 1 if a picture could not be upscaled
(each is named) or nothing could be done, otherwise 0.
"""

import functools
import sys
from pathlib import Path

from absl import app, flags

from srgan_tf import command_line

FLAGS = flags.FLAGS

flags.DEFINE_string("out_dir", None, "Folder for results. Default: beside each picture.")
flags.DEFINE_string(
    "weights",
    None,
    "A bundled name, a run folder, a weights file, or an exported SavedModel folder, .tflite or "
    ".onnx file, instead of the bundled pair that --detail blends.",
)
flags.DEFINE_float(
    "detail",
    None,
    "From 0 (SRResNet-MSE: faithful and smooth) to 1 (SRGAN-VGG54: with invented detail). Values "
    "between blend both pictures, which takes twice the time. Default: 0.5.",
)
flags.DEFINE_enum(
    "format",
    "png",
    ["png", "jpg", "webp", "tif"],
    "Format of the results. Only PNG is written row by row and keeps 16-bit color.",
)
flags.DEFINE_integer(
    "quality", None, "Quality of JPEG and WebP. Default: 92.", lower_bound=1, upper_bound=100
)
flags.DEFINE_integer(
    "tile",
    None,
    "Largest side, in pixels of the photograph, that the network processes at once. Smaller tiles "
    "take less memory and more time. Default: 768 with OpenVINO (on CPUs), otherwise 512.",
    lower_bound=1,
)
flags.DEFINE_enum(
    "precision",
    "auto",
    ["auto", "float32", "bfloat16", "float16", "int8"],
    "How the network computes. 'auto' on a CPU: the fastest form that costs at most 0.05 dB; on a "
    "GPU: float16 if it has tensor cores; for 16-bit pictures: float32.",
)
flags.DEFINE_bool("overwrite", False, "Also upscale pictures that already have their result.")
flags.DEFINE_string(
    "ray",
    None,
    "Upscale on a Ray cluster, into the same files: its address, auto (this machine's cluster), or "
    "local (this machine alone). Pictures and --out_dir may also be s3:// and gs://, and a single "
    "@FILE names a picture on each line. Needs requirements-cluster.txt.",
)
flags.DEFINE_integer(
    "ray_cpus",
    None,
    "CPUs of each network on the cluster. Default: an equal part of the smallest node, up to 8.",
    lower_bound=1,
)
flags.DEFINE_float(
    "max_megapixels",
    179,
    "Refuse larger pictures: a small file that unpacks to a huge picture may be an attack.",
    lower_bound=0,
)


def main(argv):
    """Plans the work, reports what is skipped, and upscales."""
    if not argv[1:]:
        raise ValueError("give pictures or folders to upscale: python upscale.py photo.jpg")
    if FLAGS.quality is not None and FLAGS.format not in ("jpg", "webp"):
        raise ValueError(f"--quality is for --format=jpg and webp, not for .{FLAGS.format}")
    if FLAGS.detail is not None and FLAGS.weights is not None:
        raise ValueError("--detail blends the bundled pair: leave out --weights or --detail")
    if FLAGS.detail is not None and not 0 <= FLAGS.detail <= 1:
        raise ValueError(f"--detail={FLAGS.detail:g} must be from 0 to 1")

    if FLAGS.ray is not None and FLAGS.out_dir is None:
        raise ValueError("--ray writes all results to one folder: give --out_dir")
    if FLAGS.ray is None and FLAGS.ray_cpus is not None:
        raise ValueError("--ray_cpus is for --ray")

    # Imported here so that --help is fast.
    from srgan_tf import files, weights
    from srgan_tf.photos import enlarge, fastest, photographs

    spec = fastest.chosen(FLAGS.weights, FLAGS.detail)
    weights.parse_blend(spec)  # a misspelled one is refused before any work

    # Created with the first picture, so that its clock starts after the network is loaded.
    bar = functools.cache(command_line.progress_bar)

    def line(text, stream):
        if sys.stderr.isatty():
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)  # the bar is repainted
        print(text, file=stream, flush=True)

    quality = FLAGS.quality or photographs.DEFAULT_QUALITY
    reports = {
        "progress": lambda fraction, what: bar()(fraction, what),
        "say": lambda text: line(text, sys.stdout),
        "note": lambda text: line(text, sys.stderr),
    }
    if FLAGS.ray is not None:
        try:
            from srgan_tf.photos import cluster
        except ModuleNotFoundError as error:
            needed = "pip install -r requirements-cluster.txt"
            raise ValueError(f"--ray is unavailable ({error}): {needed}") from error
        options = cluster.Options(
            spec=spec,
            precision=FLAGS.precision,
            format=FLAGS.format,
            quality=quality,
            tile=FLAGS.tile,
            max_megapixels=FLAGS.max_megapixels,
            overwrite=FLAGS.overwrite,
        )
        failed, total = cluster.run(
            argv[1:], FLAGS.out_dir, options, address=FLAGS.ray, cpus=FLAGS.ray_cpus, **reports
        )
        return _exit_code(failed, total, f"see {cluster.FAILED}")

    photographs.refuse_above(FLAGS.max_megapixels)
    jobs = enlarge.plan(argv[1:], out_dir=FLAGS.out_dir, format=FLAGS.format, say=print)
    missing = [job for job in jobs if FLAGS.overwrite or not job.target.exists()]
    if len(missing) < len(jobs):
        there = jobs[0].target if len(jobs) == 1 else f"{len(jobs) - len(missing)} of {len(jobs)}"
        print(f"{there} skipped: already there (--overwrite recomputes)")

    if missing and FLAGS.out_dir is not None:
        files.make_folder(Path(FLAGS.out_dir))

    def load(bits):
        with command_line.native_logs_hidden():
            return fastest.load_network(
                spec,
                precision=FLAGS.precision,
                bits=bits,
                say=lambda text: line(text, sys.stderr),
            )

    failed = enlarge.run(
        missing,
        load,
        format=FLAGS.format,
        quality=quality,
        tile=FLAGS.tile,
        **reports,
    )
    return _exit_code(len(failed), len(missing), "see above")


def _exit_code(failed, total, where):
    if failed:
        print(f"error: {failed} of {total} pictures failed, {where}", file=sys.stderr)
    return 1 if failed else 0


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    resume = "interrupted: the same command resumes from here"
    return command_line.exit_code(main, argv, resume)


if __name__ == "__main__":
    app.run(run)
