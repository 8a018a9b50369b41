r"""Measures the page of export.py --format=web beside LiteRT in Python and UpscalerJS.

    python benchmarks/web.py [--data=Set5]

Needs npm, Chromium and chromedriver. All take turns, a picture at a time, on all cores and without
a GPU: the page and UpscalerJS's esrgan-slim in one headless browser, the same .tflite file in
Python. UpscalerJS runs on TensorFlow.js' WebAssembly backend, its fastest without a GPU, and takes
each picture in one piece. Times are from the start to the shown picture, without loading; each
contender has run the first picture before.
"""

import contextlib
import io
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# From a checkout the package need not be installed; the browser's driver is that of the tests.
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import numpy as np
from absl import app, flags
from PIL import Image

FLAGS = flags.FLAGS
flags.DEFINE_string("data", "sample", "Pictures to score on, as evaluate.py takes them.")
flags.DEFINE_string("weights", "srresnet_mse", "A network, as upscale.py takes it.")
flags.DEFINE_string("npm_dir", "runs/npm", "Where npm installs LiteRT.js and UpscalerJS.")

_PEER = (
    "upscaler@1.0.0",
    "@upscalerjs/esrgan-slim@1.0.0",
    "@tensorflow/tfjs@4.22.0",
    "@tensorflow/tfjs-backend-wasm@4.22.0",
)
_MODEL = "@upscalerjs/esrgan-slim/models/x4"
_SCRIPTS = (
    "@tensorflow/tfjs/dist/tf.min.js",
    "@tensorflow/tfjs-backend-wasm/dist/tf-backend-wasm.min.js",
    "@upscalerjs/esrgan-slim/dist/umd/models/esrgan-slim/src/x4/index.min.js",
    "upscaler/dist/browser/umd/upscaler.min.js",
)
_PEER_PAGE = f"""<!doctype html><link rel="icon" href="data:,"><input type="file" id="file">
{"".join(f'<script src="npm/{script}"></script>' for script in _SCRIPTS)}
<script>
let upscaler;
async function ready() {{
  tf.wasm.setWasmPaths("npm/@tensorflow/tfjs-backend-wasm/dist/");
  await tf.setBackend("wasm");
  upscaler = new Upscaler({{model: {{...ESRGANSlim4x, path: "npm/{_MODEL}/model.json"}}}});
  await upscaler.ready;
  return tf.getBackend();
}}
async function run() {{
  const image = new Image();
  image.src = URL.createObjectURL(document.getElementById("file").files[0]);
  await image.decode();
  const start = performance.now();
  const sr = await upscaler.upscale(image);
  return [(performance.now() - start) / 1000, sr];
}}
</script>
"""
_RUN_PAGE = """(async () => {
  const begin = performance.now();
  start();
  while (state === "running") await new Promise((resolve) => setTimeout(resolve, 5));
  const seconds = (performance.now() - begin) / 1000;
  if (state !== "done") throw new Error($("error").textContent);
  const shown = worker.onmessage;
  const blob = await new Promise((resolve) => {
    worker.onmessage = ({data}) => resolve(data.blob);
    download();
  });
  worker.onmessage = shown;
  const reader = new FileReader();
  await new Promise((resolve) => { reader.onload = resolve; reader.readAsDataURL(blob); });
  return [seconds, reader.result];
})()"""


def main(argv):
    """Installs, exports, runs all contenders and prints the table."""
    if argv[1:]:
        raise ValueError(f"what is {argv[1]!r}?")
    from chromium import Chromium

    from srgan_tf import metrics, upscaling, weights
    from srgan_tf.evaluation import sets
    from srgan_tf.formats import exported, web

    [pictures] = sets.open_sets([FLAGS.data])
    pairs = [sets.read_pair(pair) for pair in pictures.pairs]
    npm = Path(FLAGS.npm_dir)
    npm.mkdir(parents=True, exist_ok=True)
    # UpscalerJS 1.0.0 names older peers than those it runs with; scripts would build for Node.
    options = ["--legacy-peer-deps", "--ignore-scripts", "--silent", "--prefix", npm]
    subprocess.run(["npm", "install", *options, *web.RUNTIME.values(), *_PEER], check=True)
    modules = (npm / "node_modules").resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "page")
        [written] = web.export(
            [weights.load_generator(FLAGS.weights)],
            folder,
            runtime=modules / "@litertjs",
            pairs=pairs[:1],
        )
        (folder / "npm").symlink_to(modules)
        (folder / "peer.html").write_text(_PEER_PAGE)
        python = exported.load(written.path)
        with _serving(folder) as address, contextlib.closing(_Browsers(Chromium, temporary)) as b:
            b.page.open(address)
            b.peer.open(f"{address}peer.html")
            backend = b.peer.js("ready()")

            def in_python(lr, _):
                start = time.perf_counter()
                sr = upscaling.upscale(python, lr)
                return time.perf_counter() - start, sr

            def in_page(_, path):
                b.page.find_element("id", "file").send_keys(str(path))
                b.page.wait(f"state === 'chosen' && picture.file.name === '{path.name}'")
                return _decoded(b.page.js(_RUN_PAGE))

            def in_peer(_, path):
                b.peer.find_element("id", "file").send_keys(str(path))
                return _decoded(b.peer.js("run()"))

            contenders = {
                f"LiteRT in Python, {FLAGS.weights}": in_python,
                f"the page, {FLAGS.weights}": in_page,
                f"UpscalerJS, esrgan-slim ({backend})": in_peer,
            }
            seconds = {name: [] for name in contenders}
            scores = {name: [] for name in contenders}
            for number, (lr, hr) in enumerate([pairs[0], *pairs]):
                path = Path(temporary, f"{number}.png")
                Image.fromarray(lr).save(path)
                for name, run in contenders.items():
                    took, sr = run(lr, path)
                    if number:  # the first one is to warm up
                        seconds[name].append(took / (sr.shape[0] * sr.shape[1] / 1e6))
                        scores[name].append(metrics.psnr(sr, hr))
        runtime = "litertjs/core/wasm/litert_wasm_threaded_internal"
        files = [written.path, folder / f"{runtime}.js", folder / f"{runtime}.wasm"]
        ours = _megabytes([*files, folder / "litertjs/core/dist/index.js"])
        peers = _megabytes(
            [
                *(modules / script for script in _SCRIPTS),
                *(modules / _MODEL).iterdir(),
                modules / "@tensorflow/tfjs-backend-wasm/dist/tfjs-backend-wasm-threaded-simd.wasm",
            ]
        )
    print(f"{len(pairs)} pictures of {FLAGS.data}, {os.cpu_count()} cores; medians of s/MP of SR")
    print(f"{'':<42}{'s/MP':>8}{'PSNR':>8}{'MB':>7}")
    for name, size in zip(contenders, ("", ours, peers), strict=True):
        middle, score = statistics.median(seconds[name]), np.mean(scores[name])
        print(f"{name:<42}{middle:>8.2f}{score:>8.2f}{size:>7}")
    print("MB: what a browser loads, the network and its runtime, not compressed.")


class _Browsers:
    """One browser for each contender, so that neither lives in the other's memory."""

    def __init__(self, chromium, folder):
        self.page = chromium(Path(folder, "chromium"))
        self.peer = chromium(Path(folder, "peer"))
        for browser in (self.page, self.peer):
            browser.set_script_timeout(600)

    def close(self):
        self.page.quit()
        self.peer.quit()


@contextlib.contextmanager
def _serving(folder: Path):
    command = [sys.executable, folder / "serve.py", "0"]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **options) as server:
        try:
            yield re.search(r"http://\S+", server.stdout.readline()).group()
        finally:
            server.kill()


def _decoded(answer: list) -> tuple[float, np.ndarray]:
    seconds, address = answer
    with urllib.request.urlopen(address) as data:
        return seconds, np.asarray(Image.open(io.BytesIO(data.read())).convert("RGB"))


def _megabytes(paths) -> str:
    return f"{sum(path.stat().st_size for path in paths) / 1e6:.1f}"


if __name__ == "__main__":
    app.run(main)
