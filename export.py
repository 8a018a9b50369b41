"""Exports a generator as files for other programs and checks that they make the same pictures.

  python export.py --weights=srresnet_mse
  python export.py --weights=runs/mine --format=tflite --quantize=int8 --calibration_data=photos
  python export.py --weights=srresnet_mse,srgan_vgg54 --format=web

Each file runs on --data and is compared with the Keras model. A form that misses its bound is named
but not written; the others are. Exit code: 0 if all forms are written, otherwise 1.
"""

import sys
from pathlib import Path

from absl import app, flags, logging

from srgan_tf import command_line

FLAGS = flags.FLAGS

flags.DEFINE_string(
    "weights",
    "srresnet_mse",
    "Weights to export: a bundled name, a run folder or a file. For web, one or two of them, "
    "separated by a comma: the faithful and the detailed end of a dial.",
)
flags.DEFINE_string("out_dir", "export", "Folder for all files.")
flags.DEFINE_list(
    "format",
    "savedmodel,tflite",
    "Some of savedmodel, tflite and onnx (which needs the packages onnx and onnxruntime); or web, "
    "a page that upscales photos in the browser, in the folder web of --out_dir.",
)
flags.DEFINE_list(
    "quantize",
    "float32,float16,dynamic,int8",
    "For tflite, some of float32; float16: half the size; dynamic: int8 kernels, float in and out; "
    "int8: int8 inside, uint8 pictures in and out. For web: float32 (its default) or float16.",
)
flags.DEFINE_list(
    "input_size",
    None,
    "H,W of LR, for tflite on mobile GPUs and NPUs, which need a fixed size; all forms are then "
    "compared on crops of this size. Default: any size.",
)
flags.DEFINE_string(
    "web_runtime",
    None,
    "The folder @litertjs of an npm installation, for web: its files are copied into the page's "
    "folder. Without it the page loads them from cdn.jsdelivr.net.",
)
flags.DEFINE_string(
    "calibration_data",
    "sample",
    "Photographs to calibrate int8 files with: a folder, tfds:NAME or 'sample'.",
)
flags.DEFINE_string(
    "data",
    "sample",
    "Photographs to compare files with the Keras model on, in the same way. If it equals "
    "--calibration_data and int8 files are written, each takes every other picture.",
)

# The number of center crops and their size: enough for ranges and means, but still fast.
_PICTURES, _SIZE = 16, 384

_LEGEND = """
PSNR: mean over the pictures, dB; change: of that mean. Pooled: change of the PSNR of all pictures'
squared errors together, which bounds dynamic and int8. Worst: the largest difference in a pixel,
levels of 255. s/MP: seconds for a megapixel of SR, on this machine.""".strip()


def main(argv):
    """Loads, exports, compares and prints."""
    if argv[1:]:
        raise ValueError(f"what is {argv[1]!r}? Give weights with --weights=")

    # Imported here so that --help does not wait for TensorFlow.
    command_line.load_tensorflow()
    logging.set_verbosity(logging.WARNING)  # TensorFlow logs each detail of a SavedModel
    from srgan_tf import provenance, weights
    from srgan_tf.formats import exporting, litert, web

    _check_names("format", FLAGS.format, (*exporting.FORMATS, "web"))
    _check_names("quantize", FLAGS.quantize, litert.QUANTIZE)
    input_size = _input_size()
    _refuse_idle_flags()
    facts = {
        "data": FLAGS.data,
        "calibration_data": FLAGS.calibration_data,
        **provenance.here(),
    }
    if "web" in FLAGS.format:
        quantize = _web_quantize(web.QUANTIZE)
        specs = FLAGS.weights.split(",")
        if len(specs) > 2:
            raise ValueError(f"--weights={FLAGS.weights}: a page takes one or two")
        written = web.export(
            [weights.load_generator(spec) for spec in specs],
            Path(FLAGS.out_dir) / "web",
            quantize=quantize,
            runtime=FLAGS.web_runtime,
            pairs=pictures(None)[1],
            facts=facts,
        )
        _print_table(written)
        print(f"To open the page: python {Path(FLAGS.out_dir) / 'web' / 'serve.py'}")
        return 0
    generator, card = weights.load_generator(FLAGS.weights)
    calibration, pairs = pictures(input_size)
    written, failed = exporting.export(
        generator,
        card,
        FLAGS.out_dir,
        formats=FLAGS.format,
        quantize=FLAGS.quantize,
        input_size=input_size,
        calibration=calibration,
        pairs=pairs,
        facts=facts,
    )
    _print_table(written)
    for line in failed:
        print(f"error: not exported: {line}", file=sys.stderr)
    return 1 if failed else 0


def _print_table(written) -> None:
    print(f"On {len(written[0].parity.changes)} pictures of {FLAGS.data}, against the Keras model:")
    print(f"{'form':<10}{'MB':>6}{'PSNR':>9}{'change':>9}{'pooled':>9}{'worst':>7}{'s/MP':>7} file")
    for form, path, found in written:
        print(
            f"{form:<10}{found.megabytes:>6.2f}{found.psnr:>9.3f}{found.change:>+9.3f}"
            f"{found.pooled:>+9.3f}{found.worst:>7}{found.seconds:>7.2f} {path}"
        )
    print(_LEGEND)


def pictures(input_size):
    """Reads lr pictures to calibrate with, and pairs of lr and hr to compare on."""
    from srgan_tf import data

    size = max([_SIZE, *(4 * side for side in input_size or ())])

    def read(spec, count):
        found = data.validation_pairs(data.open_source(spec), count=count, max_size=size)
        return [(lr, hr) for _, lr, hr in found]

    if _calibrated() and FLAGS.data == FLAGS.calibration_data:
        pairs = read(FLAGS.data, 2 * _PICTURES)
        return [lr for lr, _ in pairs[::2]], pairs[1::2] or pairs
    calibration = read(FLAGS.calibration_data, _PICTURES) if _calibrated() else []
    return [lr for lr, _ in calibration], read(FLAGS.data, _PICTURES)


def _check_names(flag: str, given: list[str], known: tuple[str, ...]) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"--{flag}: there is no {name!r}, give some of {','.join(known)}")
    if not given:
        raise ValueError(f"--{flag} is empty: give some of {','.join(known)}")


def _web_quantize(known: tuple[str, ...]) -> str:
    if len(FLAGS.format) > 1:
        raise ValueError("--format: export web by itself, since a page takes other flags")
    if not FLAGS["quantize"].present:
        return known[0]
    if len(FLAGS.quantize) > 1 or FLAGS.quantize[0] not in known:
        raise ValueError(f"--quantize: for web give one of {','.join(known)}")
    return FLAGS.quantize[0]


def _refuse_idle_flags() -> None:
    if FLAGS.web_runtime is not None and "web" not in FLAGS.format:
        raise ValueError("--web_runtime is for --format=web")
    for name in ("quantize", "input_size"):
        if name == "quantize" and "web" in FLAGS.format:
            continue
        if FLAGS[name].present and "tflite" not in FLAGS.format:
            given = ",".join(FLAGS.format)
            raise ValueError(f"--{name} is for tflite, which is not in --format={given}")
    if FLAGS["calibration_data"].present and not _calibrated():
        raise ValueError("--calibration_data is for tflite's dynamic and int8: neither is made")


def _calibrated() -> bool:
    """Tells whether a requested form takes calibration pictures."""
    return "tflite" in FLAGS.format and bool({"dynamic", "int8"} & set(FLAGS.quantize))


def _input_size() -> tuple[int, int] | None:
    if FLAGS.input_size is None:
        return None
    try:
        height, width = map(int, FLAGS.input_size)
    except ValueError:
        height = width = 0
    if min(height, width) < 1:
        raise ValueError(f"--input_size={','.join(FLAGS.input_size)}: give height,width of LR")
    return height, width


def run(argv):
    """Runs `main`; a user's mistake is one line and exit code 1."""
    return command_line.exit_code(main, argv, "interrupted: nothing was written")


if __name__ == "__main__":
    app.run(run)
