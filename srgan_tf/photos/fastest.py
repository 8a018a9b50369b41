"""Finds a generator's fastest form on this machine, by measuring once, and caches it."""

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
# The default of the dial between faithful and detailed; docs/upscaling.md has the figures.
DEFAULT_DETAIL = 0.5
# The most PSNR on photographs that a faster form may cost: far less than is visible.
MOST_LOSS = 0.05  # dB

# NVIDIA (the second on a Jetson), Windows under WSL, AMD.
_GPU_DEVICES = ("nvidia[0-9]*", "nvhost-gpu", "dxg", "kfd")
_OPENVINO_FORMS = ("float32", "int8")
# The number of sample photographs that forms are compared on; the others calibrate int8.
_COMPARED = 4

# Part of each cached form's key. Raise it when `_make` or the models of `openvino_model` change.
_KEPT_VERSION = 8


def chosen(spec: str | None, detail: float | None) -> str:
    """Returns the spec for `load_network`, from given weights or from a position on the dial.

    Raises:
        ValueError: Both are given, or the detail is outside 0..1.
    """
    if spec is None:
        return f"blend:{DEFAULT_DETAIL if detail is None else detail}"
    if detail is not None:
        raise ValueError(f"detail={detail} blends the bundled pair: omit it or the weights")
    return spec


def load_network(
    spec: str,
    *,
    precision: str = "auto",
    bits: int = 8,
    threads: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[upscaling.Upscaler, str]:
    """Loads a generator in the requested precision, or in the fastest with little loss.

    On a GPU with tensor cores the fastest is mixed float16, with TensorFlow. On a CPU, OpenVINO
    runs each form that the processor supports on sample photographs, once: float32, int8, and
    perhaps bfloat16. The fastest form that loses at most `MOST_LOSS` is used. OpenVINO's files and
    the figures are cached in `srgan_tf` in the user's cache folder (`$XDG_CACHE_HOME` or
    `~/.cache`), keyed by the hash of the weights, the packages' versions and the processor.

    Args:
        spec: As in `weights.load_generator`, a network that `exported.load` loads, or a blend as
            `weights.parse_blend` reads it; both of its networks run unless its detail is 0 or 1.
        precision: One of `PRECISIONS`; for a blend also two, joined by "+".
        bits: The pictures' depth, 8 or 16. For 16, "auto" is float32; other forms would lose depth.
        threads: Number of OpenVINO's threads; None for one on each core.
        say: Receives a line about anything that takes time or differs from the request.

    Returns:
        The network, and its precision: "float32", "bfloat16", "float16", "int8" or "as exported".
        If the two networks of a blend differ in precision, both are joined by "+".

    Raises:
        FileNotFoundError, ValueError: The network cannot be loaded or does not run in this
            precision; one line.
    """
    if blend := weights.parse_blend(spec):
        specs = [blend.first] * (blend.detail < 1) + [blend.second] * (blend.detail > 0)
        wanted = precision.split("+")
        loaded = [
            load_network(s, precision=each, bits=bits, threads=threads, say=say)
            for s, each in zip(specs, wanted * (len(specs) // len(wanted)), strict=True)
        ]
        networks, precisions = zip(*loaded, strict=True)
        network = upscaling.blended(*networks, blend.detail) if len(specs) == 2 else networks[0]
        return network, "+".join(dict.fromkeys(precisions))
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: must be one of {', '.join(PRECISIONS)}")
    if exported.is_exported(spec):
        if precision != "auto":
            raise ValueError(f"{spec}: its precision is that of its export; omit --precision")
        return exported.load(spec), "as exported"
    if precision == "auto" and bits == 16:
        precision = "float32"
    gpus = [] if precision == "int8" else _gpus()
    if gpus and precision == "auto":
        precision = _gpu_precision(gpus[0])
    # TensorFlow slowly emulates types that a processor lacks; OpenVINO would silently use float32.
    lacking = precision == "float16" or (precision == "bfloat16" and not provenance.has_bfloat16())
    if lacking or gpus:
        return _by_tensorflow(spec, precision), precision
    try:
        return _kept(spec, precision, threads, say)
    except ImportError as error:  # OpenVINO does not exist for some systems
        if precision == "int8":
            needed = "pip install -r requirements.txt"
            raise ValueError(f"--precision=int8 is unavailable ({error}): {needed}") from error
        precision = "float32" if precision == "auto" else precision
        return _by_tensorflow(spec, precision), precision


def _gpus() -> list:
    if not _may_have_gpu():
        return []
    import tensorflow as tf

    return tf.config.list_physical_devices("GPU")


def _may_have_gpu() -> bool:
    """Tells whether TensorFlow may find a GPU, without loading it, which takes seconds."""
    if importlib.util.find_spec("tensorflow") is None:
        return False
    devices = (device for name in _GPU_DEVICES for device in Path("/dev").glob(name))
    # TensorFlow loads other makers' plug-ins from a package folder of this name.
    return any(devices) or importlib.util.find_spec("tensorflow-plugins") is not None


def _gpu_precision(gpu) -> str:
    import tensorflow as tf

    # Tensor cores came with compute capability 7; without them float16 is no faster.
    capability = tf.config.experimental.get_device_details(gpu).get("compute_capability", (0, 0))
    return "float16" if capability >= (7, 0) else "float32"


def _by_tensorflow(spec: str, precision: str) -> upscaling.Upscaler:
    """Builds a network that TensorFlow runs, with batch norms folded.

    It does not use XLA, which would compile again for each size of tile. XLA's effect on a GPU has
    not been measured.
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


def _kept(
    spec: str, precision: str, threads: int | None, say: Callable[[str], None]
) -> tuple[upscaling.Upscaler, str]:
    """Loads a cached form for the CPU; first builds and caches the forms if they are missing."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "srgan_tf")
    key = _key(weights.read_card(spec)["sha256"])

    def load_kept():
        try:
            return _load_kept(folder, key, precision, threads)
        except ImportError:
            raise
        except Exception:  # missing, or damaged in any way
            return None

    if result := load_kept():
        return result
    layers = weights.load_layers(spec)
    with contextlib.ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # While another process measures, too, the fastest form may look slow.
            stack.enter_context(files.locked(folder, None))
            if result := load_kept():  # the other process built them
                return result
            making = files.staging(folder)
        except OSError as error:
            say(f"the fast forms cannot be cached in {folder} ({error.strerror})")
            making = tempfile.TemporaryDirectory()
            folder = Path(making.name)
        say("building the fast forms of these weights, once")
        made = Path(stack.enter_context(making))
        _make(layers, made, key)
        # Loaded before another process replaces it.
        result = _load_kept(made, key, precision, threads)
        for form in _OPENVINO_FORMS:
            for path in _files(made, key, form):
                os.replace(path, folder / path.name)
        # Written last: it marks the forms as complete.
        os.replace(made / f"{key}.json", folder / f"{key}.json")
        return result


def _files(folder: Path, key: str, form: str) -> list[Path]:
    """Returns the files of a cached form: the network and its weights."""
    return [folder / f"{key}-{form}.{ending}" for ending in ("xml", "bin")]


def _load_kept(
    folder: Path, key: str, precision: str, threads: int | None
) -> tuple[upscaling.Upscaler, str]:
    """Loads a cached form; any error means that it is missing or damaged."""
    # Imported here so that the rest of the package runs without OpenVINO.
    from srgan_tf.formats import openvino_model

    figures = json.loads((folder / f"{key}.json").read_text())
    if precision == "auto":
        precision = _choose(figures["loss"], figures["seconds"])
    form = "int8" if precision == "int8" else "float32"
    files = _files(folder, key, form)
    if [weights.file_sha256(path) for path in files] != figures["sha256"][form]:
        raise ValueError(f"{files[0]}: damaged")
    in_bfloat16 = precision == "bfloat16"
    return openvino_model.load(files[0], bfloat16=in_bfloat16, threads=threads), precision


def _choose(loss: dict[str, float], seconds: dict[str, float]) -> str:
    """Returns the fastest of the forms that lose at most `MOST_LOSS`."""
    return min((form for form in loss if loss[form] <= MOST_LOSS), key=seconds.get)


def _make(layers: Mapping[str, folding.Layer], folder: Path, key: str) -> None:
    """Writes OpenVINO's forms and, to `key`.json, the comparison of all forms."""
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
    """Shrinks a photograph by 4 and returns the middle, at most uint8 [size, size, 3]."""
    height, width = (side // 4 for side in hr.shape[:2])
    return pictures.middle(resize.imresize(hr[: 4 * height, : 4 * width], (height, width)), size)


def _compare(
    networks: dict[str, upscaling.Upscaler], hrs: Sequence[np.ndarray]
) -> tuple[dict, dict]:
    """Measures mean PSNR and the seconds for a picture of hr 256x256, by form."""
    psnr, seconds = {form: [] for form in networks}, {form: [] for form in networks}
    for hr in hrs:
        lr = resize.imresize(hr, (64, 64))
        for form, network in networks.items():
            if not psnr[form]:
                upscaling.upscale(network, lr)  # the first call compiles
            start = time.perf_counter()
            sr = upscaling.upscale(network, lr)
            seconds[form].append(time.perf_counter() - start)
            psnr[form].append(metrics.psnr(sr, hr))
    return (
        {form: float(np.mean(values)) for form, values in psnr.items()},
        # The minimum, because other load on the machine only adds time.
        {form: min(values) for form, values in seconds.items()},
    )


def machine() -> str:
    """Returns a key for everything except the weights that the fastest form depends on."""
    return _key("")


def _key(sha256: str) -> str:
    """Returns a key for everything that a cached form depends on."""
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
