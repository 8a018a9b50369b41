r"""Measures enlarging by 4 beside the same network in PyTorch, ONNX Runtime and OpenVINO.

    pip install -r requirements-benchmarks.txt
    python benchmarks/upscaling.py [--size=128,128]

Contenders take turns, a picture at a time: what upscale.py chooses on this machine and its float32,
both by OpenVINO, and the others with the same weights, all with their batch norms folded and on all
cores. Pictures above 512x512 are cut into tiles: ours as upscale.py cuts them, the others' as
--peers_tile says. Larger tiles cost them fewer overlaps, and 4 to 9 kB of memory for each pixel.

On sample photographs those that compute in float32 must give what ours float32 gives, within a
level. All are scored there: forms that cost more than 0.05 dB are marked, since they do not do the
same work. "of peak" counts what the paper's network does for the picture's own pixels, no overlaps.
"""

import math
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# From a checkout the package need not be installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import turns
from absl import app, flags

FLAGS = flags.FLAGS
flags.DEFINE_list("size", "128,128", "Height and width of lr: 128,128 or 339,510 or 1356,2040.")
flags.DEFINE_string("weights", "srresnet_mse", "As upscale.py takes them.")
flags.DEFINE_integer("peers_tile", 512, "Largest side that peers are given.", lower_bound=81)
flags.DEFINE_integer("rounds", 5, "Turns of each contender.", lower_bound=1)
flags.DEFINE_list("contenders", None, "Which take part; by default all that the processor has.")
flags.DEFINE_string("contender", None, "Be this one (the benchmark calls itself).")
flags.DEFINE_string("inputs", None, "Where the contender finds weights and pictures.")

_MOST_LOSS = 0.05  # dB
_FLOAT32 = ("ours float32", "PyTorch", "PyTorch compiled", "ONNX Runtime", "OpenVINO")
_ROUNDING = 1  # level of 255, where sums in another order fall on the other side of a half
_CALIBRATION = 32  # crops that OpenVINO's int8 learns its ranges from
_REACH = 40


def ours(precision: str):
    """What upscale.py uses."""
    from srgan_tf.photos import fastest

    network, form = fastest.load_network(FLAGS.weights, precision=precision)
    return network, {"form": form}


def pytorch(bfloat16: bool = False, compiled: bool = False):
    """PyTorch, channels last."""
    import torch
    import torch_networks

    torch.set_num_threads(os.cpu_count())
    weights = dict(np.load(Path(FLAGS.inputs, "weights.npz")))
    network = torch_networks.folded_generator(weights).eval()
    network = network.to(memory_format=torch.channels_last)
    if compiled:
        # Each size is compiled for itself: the second would else be compiled for all others.
        network = torch.compile(network, dynamic=False, options={"freezing": True})

    def call(lr):
        given = torch.from_numpy(lr).permute(0, 3, 1, 2).float() / 255
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            sr = network(given).float().permute(0, 2, 3, 1).numpy()
        return to_levels(sr)

    return call, {}


def onnx_runtime():
    """ONNX Runtime, on the file that export.py writes."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = os.cpu_count()
    session = onnxruntime.InferenceSession(Path(FLAGS.inputs, "generator.onnx"), options)
    [given] = session.get_inputs()

    def call(lr):
        return to_levels(session.run(None, {given.name: np.float32(lr) / 255})[0])

    return call, {}


def openvino(precision: str):
    """OpenVINO, on the same file; int8 by NNCF."""
    import openvino

    core = openvino.Core()
    model = core.read_model(Path(FLAGS.inputs, "generator.onnx"))
    if precision == "int8":
        import nncf

        crops = np.load(Path(FLAGS.inputs, "calibration.npy"))
        dataset = nncf.Dataset([np.float32(crop)[None] / 255 for crop in crops])
        model = nncf.quantize(
            model, dataset, preset=nncf.QuantizationPreset.MIXED, subset_size=len(crops)
        )
    hint = "bf16" if precision == "bfloat16" else "f32"
    options = {"INFERENCE_NUM_THREADS": os.cpu_count(), "INFERENCE_PRECISION_HINT": hint}
    compiled = {}

    def call(lr):
        if lr.shape not in compiled:  # it is faster for sizes that it knows
            model.reshape(list(lr.shape))
            compiled[lr.shape] = core.compile_model(model, "CPU", options)
        return to_levels(compiled[lr.shape](np.float32(lr) / 255)[0])

    return call, {}


def to_levels(sr: np.ndarray) -> np.ndarray:
    """Turns [-1, 1] into uint8."""
    return np.clip(np.round((sr + 1) * 127.5), 0, 255).astype(np.uint8)


CONTENDERS = {
    "ours": lambda: ours("auto"),
    "ours float32": lambda: ours("float32"),
    "PyTorch": pytorch,
    "PyTorch compiled": lambda: pytorch(compiled=True),
    "PyTorch bfloat16": lambda: pytorch(bfloat16=True),
    "ONNX Runtime": onnx_runtime,
    "OpenVINO": lambda: openvino("float32"),
    "OpenVINO bfloat16": lambda: openvino("bfloat16"),
    "OpenVINO int8 (NNCF)": lambda: openvino("int8"),
}


def precision_of(name: str, facts: dict) -> str:
    """Returns the precision in which a contender computes."""
    text = facts.get("form") or name
    return next((p for p in ("int8", "bfloat16") if p in text), "float32")


def take_part(name: str) -> None:
    """Takes turns; all go through `upscaling.upscale`."""
    from srgan_tf import upscaling

    network, facts = CONTENDERS[name]()
    if not isinstance(network, upscaling.Upscaler):
        network = upscaling.Upscaler(network, _REACH, 8, FLAGS.peers_tile)
    pictures = np.load(Path(FLAGS.inputs, "pictures.npz"))
    answer = np.stack([upscaling.upscale(network, lr) for lr in pictures["validation_lr"]])
    lr = pictures["lr"]
    # All tiles have one shape: what is prepared for it is prepared with the first.
    next(upscaling.upscaled_pieces(network, lr))
    turns.serve(lambda: upscaling.upscale(network, lr), answer, **facts)


def gflop_a_pixel(generator) -> float:
    """What a Keras generator does for a pixel of lr, a multiplication and an addition being two."""
    multiplications, scale = 0, 1
    for operation in generator.operations:
        if type(operation).__name__ == "Conv2D":
            multiplications += math.prod(operation.kernel.shape) * scale**2
        elif type(operation).__name__ == "DepthToSpace":
            scale *= operation.block_size
    return 2 * multiplications / 1e9


def write_inputs(folder: Path, height: int, width: int) -> tuple[np.ndarray, float]:
    """Writes weights and pictures; returns hr of the validation pictures, and a picture's GFLOP."""
    import torch_networks

    from srgan_tf import pictures, resize, weights
    from srgan_tf.formats import keras_model, onnx_file

    generator, _ = weights.load_generator(FLAGS.weights)
    folded = keras_model.fold_batch_norm(generator)
    np.savez(folder / "weights.npz", **torch_networks.weights_of(folded))
    onnx_file.write_onnx(generator, folder / "generator.onnx")
    samples = [pictures.read_rgb(path) for path in pictures.sample_pictures()]
    hrs = np.stack([s[22:278, 60:316] for s in samples])
    lr = samples[0]
    lr = np.pad(lr, ((0, max(0, height - lr.shape[0])), (0, max(0, width - lr.shape[1])), (0, 0)),
                mode="symmetric")[:height, :width]  # fmt: skip
    np.savez(
        folder / "pictures.npz", lr=lr, validation_lr=[resize.imresize(hr, (64, 64)) for hr in hrs]
    )
    rng = np.random.default_rng(1)
    crops = []
    for _ in range(_CALIBRATION):
        sample = samples[rng.integers(len(samples))]
        top, left = (rng.integers(side - 255) for side in sample.shape[:2])
        crops.append(resize.imresize(sample[top : top + 256, left : left + 256], (64, 64)))
    np.save(folder / "calibration.npy", crops)
    return hrs, gflop_a_pixel(generator) * height * width


def main(_) -> int:
    """Lets the contenders take turns and prints the table."""
    if FLAGS.contender:
        take_part(FLAGS.contender)
        return 0
    from srgan_tf import metrics

    height, width = map(int, FLAGS.size)
    has_bfloat16 = "bf16" in turns.machine()
    names = FLAGS.contenders or [n for n in CONTENDERS if has_bfloat16 or "bfloat16" not in n]
    if not {"ours", "ours float32"} <= set(names):
        raise app.UsageError("--contenders: 'ours' and 'ours float32' are what others are held to")
    with tempfile.TemporaryDirectory() as folder:
        hrs, gflop = write_inputs(Path(folder), height, width)
        command = [sys.executable, __file__, f"--inputs={folder}", f"--weights={FLAGS.weights}"]
        command += [f"--peers_tile={FLAGS.peers_tile}"]
        results = turns.compare({n: [*command, f"--contender={n}"] for n in names}, FLAGS.rounds)
    megapixels = 16 * height * width / 1e6
    print(f"{height}x{width} to {4 * height}x{4 * width}: seconds a picture of {megapixels:.1f} MP")
    done = {name: result for name, result in results.items() if not isinstance(result, str)}
    precisions = {name: precision_of(name, result.facts) for name, result in done.items()}
    peaks = {precision: turns.peak_gflops(precision) for precision in set(precisions.values())}
    for name, result in done.items():
        result.facts.update(gflop=gflop, peak=peaks[precisions[name]])
    best = ", ".join(f"{peak:.0f} in {precision}" for precision, peak in sorted(peaks.items()))
    print(f"{turns.machine()}; GFLOP/s in one product, at most: {best}; a picture has {gflop:.0f}")
    print(turns.table(results, "ours"))
    print("MB: the most, preparing included.")
    print("\nPSNR on sample photographs, megapixels of SR a second:")
    psnr = {
        name: np.mean([metrics.psnr(sr, hr) for sr, hr in zip(result.answer, hrs, strict=True)])
        for name, result in done.items()
    }
    for name, result in done.items():
        speed = megapixels / np.median(result.seconds)
        form = f"  ({result.facts['form']})" if "form" in result.facts else ""
        mark = "  costs too much" if psnr[name] < max(psnr.values()) - _MOST_LOSS else ""
        print(f"{name:32}{psnr[name]:>10.3f} dB{speed:>8.2f} MP/s{form}{mark}")
    checked = {n: r for n, r in results.items() if n in _FLOAT32 or n not in done}
    agree, wrong = turns.compared(checked, "ours float32", _ROUNDING)
    print("\n".join([f"The same as ours float32: {', '.join(agree) or 'none'}.", *wrong]))
    return 1 if wrong else 0


if __name__ == "__main__":
    app.run(main)
