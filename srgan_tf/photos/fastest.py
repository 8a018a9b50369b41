"""A generator in the form that is fastest on this machine, made and measured once and then kept."""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np

from srgan_tf import files, folding, metrics, pictures, provenance, resize, upscaling, weights
from srgan_tf.formats import exported

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
# Of the dial between faithful and detailed; docs/upscaling.md has the figures behind it.
DEFAULT_DETAIL = 0.5
# What a faster form may cost, in PSNR on photographs: far less than can be seen.
MOST_LOSS = 0.05  # dB

# NVIDIA's (on a Jetson the second), those of Windows under WSL, AMD's.
_GPU_DEVICES = ("nvidia[0-9]*", "nvhost-gpu", "dxg", "kfd")
_OPENVINO_FORMS = ("float32", "int8")
# How many sample photographs forms are compared on; the others are for calibration.
_COMPARED = 4

# Part of each kept form's key: raise it when `_make` or what `openvino_model` builds changes.
_KEPT_VERSION = 7


def chosen(spec: str | None, detail: float | None) -> str:
    """Returns the spec for `load_network` of weights or of a position on the dial.

    Raises:
        ValueError: Both are given, or the detail is outside 0..1.
    """
    if spec is None:
        return f"blend:{DEFAULT_DETAIL if detail is None else detail}"
    if detail is not None:
        raise ValueError(
            f"detail={detail} blends the bundled pair: leave it out where weights are given"
        )
    return spec


def load_network(
    spec: str,
    *,
    precision: str = "auto",
    bits: int = 8,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[upscaling.Upscaler, str]:
    """Loads a generator in the precision that is asked for, or in the fastest that costs nothing.

    On a GPU with tensor cores that is mixed float16, by TensorFlow. On a CPU the forms that it is
    able to run are compared once on sample photographs, by OpenVINO: float32, 8 bits, and bfloat16
    where the processor has it. The fastest that loses at most `MOST_LOSS` is taken. OpenVINO's
    files and the figures are kept in the user's cache folder (`$XDG_CACHE_HOME` or `~/.cache`, in
    `srgan_tf`) by the hash of the weights, the packages' versions and the processor.

    Args:
        spec: As in `weights.load_generator`, a network that `exported.load` loads, or a blend as
            `weights.parse_blend` reads it, of which both networks run unless its detail is 0 or 1.
        precision: One of `PRECISIONS`.
        bits: Of the pictures, 8 or 16. For 16, "auto" is float32: less would leave less than 16.
        say: Told, in a line, what takes time or is not as asked for.

    Returns:
        The network, and its precision: "float32", "bfloat16", "float16", "int8" or "as exported";
        two of them joined by "+" where those of a blend differ.

    Raises:
        FileNotFoundError, ValueError: It cannot be loaded, or not in this precision; one line.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
    if blend := weights.parse_blend(spec):
        specs = [blend.first] * (blend.detail < 1) + [blend.second] * (blend.detail > 0)
        loaded = [load_network(s, precision=precision, bits=bits, say=say) for s in specs]
        networks, precisions = zip(*loaded, strict=True)
        network = upscaling.blended(*networks, blend.detail) if len(specs) == 2 else networks[0]
        return network, "+".join(dict.fromkeys(precisions))
    if exported.is_exported(spec):
        if precision != "auto":
            raise ValueError(f"{spec}: its precision is that of its export; leave out --precision")
        return exported.load(spec), "as exported"
    if precision == "auto" and bits == 16:
        precision = "float32"
    gpus = [] if precision == "int8" else _gpus()
    if gpus and precision == "auto":
        precision = _gpu_precision(gpus[0])
    # What a processor lacks TensorFlow does all the same, slowly; OpenVINO would take float32.
    lacking = precision == "float16" or (precision == "bfloat16" and not provenance.has_bfloat16())
    if lacking or gpus:
        return _by_tensorflow(spec, precision), precision
    try:
        return _kept(spec, precision, say)
    except ImportError as error:  # there is no OpenVINO for some systems
        if precision == "int8":
            needed = "pip install -r requirements.txt"
            raise ValueError(f"--precision=int8 cannot be had ({error}): {needed}") from error
        precision = "float32" if precision == "auto" else precision
        return _by_tensorflow(spec, precision), precision


def _gpus() -> list:
    if not _may_have_gpu():
        return []
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


def _may_have_gpu() -> bool:
    """Whether TensorFlow may find one; to ask it takes seconds, in which it is loaded."""
    if importlib.util.find_spec("tensorflow") is None:
        return False
    devices = (device for name in _GPU_DEVICES for device in Path("/dev").glob(name))
    # Makers of others have TensorFlow load what is in a package folder of this name.
    return any(devices) or importlib.util.find_spec("tensorflow-plugins") is not None


def _gpu_precision(gpu) -> str:
    import tensorflow as tf

    # Tensor cores came with compute capability 7; before them float16 is no faster.
    capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
    return "float16" if capability >= (7, 0) else "float32"


def _by_tensorflow(spec: str, precision: str) -> upscaling.Upscaler:
    """Makes a network that TensorFlow runs, its batch norms folded.

    XLA is left out: it compiles anew for each size of tile. What it would save on a GPU was not
    measured, since none was at hand.
    """
    import keras

    from srgan_tf.formats import keras_model

    generator, _ = weights.load_generator(spec)
    folded = keras_model.fold_batch_norm(generator)
    margin = folding.receptive_field(folding.fold(generator))
    if precision == "float32":
        return keras_model.compiled(folded, margin)

    def convert(layer):
        config = layer.get_config()
        if isinstance(layer, keras.layers.Layer) and layer.name not in ("lr", "conv_out"):
            config["dtype"] = f"mixed_{precision}"
        return type(layer).from_config(config)

    mixed = keras.models.clone_model(folded, clone_function=convert)
    mixed.set_weights(folded.get_weights())
    return keras_model.compiled(mixed, margin)


def _kept(spec: str, precision: str, say: Callable[[str], None]) -> tuple[upscaling.Upscaler, str]:
    """Loads a form for the CPU by what is kept of it, and makes that if need be."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "srgan_tf")
    key = _key(weights.read_card(spec)["sha256"])
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        return _load_kept(folder, key, precision)
    layers = weights.load_layers(spec)
    say("making these weights' fast forms for this machine, once")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        making = files.staging(folder)
    except OSError as error:
        say(f"the fast forms cannot be kept in {folder} ({error.strerror})")
        making = tempfile.TemporaryDirectory()
        folder = Path(making.name)
    with making as made:
        _make(layers, Path(made), key)
        # Before another process puts its own there.
        result = _load_kept(Path(made), key, precision)
        for form in _OPENVINO_FORMS:
            for path in _files(Path(made), key, form):
                os.replace(path, folder / path.name)
        # The last says that all is there.
        os.replace(Path(made, f"{key}.json"), folder / f"{key}.json")
        return result


def _files(folder: Path, key: str, form: str) -> list[Path]:
    """What is kept of a form: the network, and its weights."""
    return [folder / f"{key}-{form}.{ending}" for ending in ("xml", "bin")]


def _load_kept(folder: Path, key: str, precision: str) -> tuple[upscaling.Upscaler, str]:
    """Loads a form that is kept; any error says that it is missing or damaged."""
    # Here, so that the rest of the package runs without OpenVINO.
    from srgan_tf.formats import openvino_model

    figures = json.loads((folder / f"{key}.json").read_text())
    if precision == "auto":
        precision = _choose(figures["loss"], figures["seconds"])
    form = "int8" if precision == "int8" else "float32"
    files = _files(folder, key, form)
    if [weights.file_sha256(path) for path in files] != figures["sha256"][form]:
        raise ValueError(f"{files[0]}: damaged")
    in_bfloat16 = precision == "bfloat16"
    return openvino_model.load(files[0], bfloat16=in_bfloat16), precision


def _choose(loss: dict[str, float], seconds: dict[str, float]) -> str:
    """The fastest of the forms that lose at most `MOST_LOSS`."""
    return min((form for form in loss if loss[form] <= MOST_LOSS), key=seconds.get)


def _make(layers: Mapping[str, folding.Layer], folder: Path, key: str) -> None:
    """Writes OpenVINO's forms, and as `key`.json how all forms compare."""
    from srgan_tf.formats import openvino_model

    samples = [pictures.read_rgb(path) for path in pictures.sample_pictures()]
    models = {
        "float32": openvino_model.build(layers),
        "int8": openvino_model.quantized(
            layers, [_lr(sample, 128) for sample in samples[_COMPARED:]]
        ),
    }
    networks, sha256 = {}, {}
    for form in _OPENVINO_FORMS:
        files = _files(folder, key, form)
        openvino_model.write(models[form], files[0])
        networks[form] = openvino_model.load(files[0])
        sha256[form] = [weights.file_sha256(path) for path in files]
    if provenance.has_bfloat16():
        [path, _] = _files(folder, key, "float32")
        networks["bfloat16"] = openvino_model.load(path, bfloat16=True)
    psnr, seconds = _compare(networks, [pictures.middle(s, 256) for s in samples[:_COMPARED]])
    loss = {form: psnr["float32"] - value for form, value in psnr.items()}
    figures = {"loss": loss, "seconds": seconds, "sha256": sha256}
    (folder / f"{key}.json").write_text(json.dumps(figures, indent=2) + "\n")


def _lr(hr: np.ndarray, size: int) -> np.ndarray:
    """Shrinks a photograph by 4 and returns the middle, uint8 [size, size, 3] at the most."""
    height, width = (side // 4 for side in hr.shape[:2])
    return pictures.middle(resize.imresize(hr[: 4 * height, : 4 * width], (height, width)), size)


def _compare(
    networks: dict[str, upscaling.Upscaler], hrs: Sequence[np.ndarray]
) -> tuple[dict, dict]:
    """Measures mean PSNR and the seconds for one picture on hr 256x256."""
    psnr, seconds = {form: [] for form in networks}, {form: [] for form in networks}
    for hr in hrs:
        lr = resize.imresize(hr, (64, 64))
        for form, network in networks.items():
            if not psnr[form]:
                upscaling.upscale(network, lr)  # the first call prepares
            start = time.perf_counter()
            sr = upscaling.upscale(network, lr)
            seconds[form].append(time.perf_counter() - start)
            psnr[form].append(metrics.psnr(sr, hr))
    return (
        {form: float(np.mean(values)) for form, values in psnr.items()},
        # The least: what else the machine does can only add to it.
        {form: min(values) for form, values in seconds.items()},
    )


def _key(sha256: str) -> str:
    """Identifies what a kept form depends on."""
    digest = hashlib.sha256(f"{_KEPT_VERSION} {sha256}".encode())
    with contextlib.suppress(metadata.PackageNotFoundError):
        digest.update(f"openvino {metadata.version('openvino')}".encode())
    digest.update(f"{_processor()} {os.cpu_count()}".encode())
    return digest.hexdigest()[:16]


def _processor() -> str:
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "".join(sorted({line for line in lines if line.startswith(("model name", "flags"))}))
    return f"{platform.machine()} {platform.processor()}"
