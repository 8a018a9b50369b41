"""A generator as a static web page that upscales photos in the browser, with LiteRT.js."""

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import keras

from srgan_tf import folding
from srgan_tf.formats import exporting

QUANTIZE = ("float32", "float16")

_PAGE = Path(__file__).with_name("web_page")
# The version that the page is tested with, and the files that the page loads: WebAssembly with and
# without threads, and "compat" for browsers without relaxed SIMD.
RUNTIME = {"core": "@litertjs/core@2.5.3", "wasm_utils": "@litertjs/wasm-utils@2.5.3"}
_ON_CDN = {key: f"https://cdn.jsdelivr.net/npm/{package}" for key, package in RUNTIME.items()}
_COPIED = {"core": "litertjs/core", "wasm_utils": "litertjs/wasm-utils"}
_RUNTIME_FILES = (
    "core/dist/index.js",
    "wasm-utils/dist/index.js",
    *(
        f"core/wasm/litert_wasm_{variant}internal.{ending}"
        for variant in ("", "threaded_", "compat_")
        for ending in ("js", "wasm")
    ),
)


def export(
    generators: Sequence[tuple[keras.Model, dict]],
    out_dir: str | os.PathLike,
    *,
    quantize: str = "float32",
    runtime: str | os.PathLike | None = None,
    pairs: Sequence,
    facts: dict | None = None,
) -> list[exporting.Written]:
    """Writes a page's folder: the page, a .tflite file and card for each generator, the runtime.

    Args:
        generators: One, or two for a dial between their pictures: the faithful one, then the
            detailed one. Each comes with its card, from `weights.load_generator`.
        out_dir: The folder, created if it is missing. Files of the same names are replaced.
        quantize: One of `QUANTIZE`.
        runtime: The folder `@litertjs` of an npm installation, whose files are copied; without it
            the page loads them from a public CDN.
        pairs: As in `exporting.export`.
        facts: As in `exporting.export`.

    Returns:
        The .tflite files, and how they compare with the Keras models.

    Raises:
        ValueError: Files of the runtime are missing, both generators have one name, or
            `exporting.export` raises it.
    """
    out_dir = Path(out_dir)
    if runtime is not None:
        for file in _RUNTIME_FILES:
            if not (Path(runtime) / file).is_file():
                raise ValueError(
                    f"{runtime}: no {file} in it: run npm install {' '.join(RUNTIME.values())} "
                    "and give --web_runtime=node_modules/@litertjs"
                )
    names = [card["name"].removesuffix(".keras") for _, card in generators]  # as files are named
    if len(set(names)) < len(names):
        raise ValueError(f"--weights: two networks are named {names[0]}, which their files share")
    with exporting.staging(out_dir) as staged:
        written = []
        for generator, card in generators:
            [found], _ = exporting.export(
                generator,
                card,
                staged,
                formats=["tflite"],
                quantize=[quantize],
                pairs=pairs,
                facts=facts,
            )
            written.append(found)
        for file in _RUNTIME_FILES if runtime is not None else ():
            (staged / "litertjs" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(Path(runtime) / file, staged / "litertjs" / file)
        for file in ("page.css", "page.js", "worker.js", "serve.py"):
            shutil.copyfile(_PAGE / file, staged / file)
        page = (_PAGE / "index.html").read_text(encoding="utf-8")
        data = {
            "models": [
                {"name": name, "file": quote(found.path.name)}
                for name, found in zip(names, written, strict=True)
            ],
            "margin": max(folding.receptive_field(folding.fold(model)) for model, _ in generators),
            "runtime": _ON_CDN if runtime is None else _COPIED,
        }
        text = json.dumps(data).replace("<", "\\u003c")  # cannot end the script element
        page = page.replace("<!-- data -->", text)
        (staged / "index.html").write_text(page, encoding="utf-8")
        for path in sorted(path for path in staged.rglob("*") if path.is_file()):
            target = out_dir / path.relative_to(staged)
            target.parent.mkdir(parents=True, exist_ok=True)
            path.replace(target)
    return [found._replace(path=out_dir / found.path.name) for found in written]
