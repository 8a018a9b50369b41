"""An evaluation as one HTML page with its tables and pictures, which needs no network."""

import base64
import html
import json
import os
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np

from srgan_tf import files, pictures
from srgan_tf.evaluation import mos_tables, plane, scoring, tables

PAGE = "report.html"
_OPINIONS = re.compile("(<!-- opinions -->).*?(<!-- /opinions -->)", re.DOTALL)

# Above this size the page links to the pictures in the folder beside it; below it embeds them.
SELF_CONTAINED_BYTES = 30_000_000
CROP = 64  # pixels of the original on each side


def write_report(results: scoring.Results, out_dir: str | os.PathLike) -> Path:
    """Writes `report.html` beside the kept pictures.

    Args:
        results: From `scoring.evaluate` with the same `out_dir`.
        out_dir: Holds `pictures/`. The page embeds these if that keeps it below 30 MB, and
            otherwise works only beside this folder.

    Returns:
        The page's path.

    Raises:
        ValueError: `read_opinions` raises it.
    """
    out_dir = Path(out_dir)
    shown = list(dict.fromkeys([*results.originals.values(), *(row.file for row in results.rows)]))
    size = sum((out_dir / file).stat().st_size for file in shown) * 4 / 3
    embedded = shown if size <= SELF_CONTAINED_BYTES else []
    page = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    skipped = results.skipped
    parts = {
        "tables": _tables_html(results),
        "planes": _planes_html(results),
        "notes": tables.list_html(
            [
                *tables.measure_lines(results),
                *tables.set_lines(results),
                *tables.method_lines(results),
            ]
        ),
        "skipped": f"<h2>Skipped</h2>{tables.list_html(skipped)}" if skipped else "",
        "data": _script_json(_viewer_data(results, out_dir, embedded)),
        "embedded": "\n".join(
            f'<script type="text/plain" id="file{i}">{_base64(out_dir / file)}</script>'
            for i, file in enumerate(embedded)
        ),
    }
    for name, text in parts.items():
        page = page.replace(f"<!-- {name} -->", text)
    path = out_dir / PAGE
    files.write_text(path, _with_opinions(page, out_dir))
    return path


def write_opinions(out_dir: str | os.PathLike) -> Path:
    """Puts the mean opinion scores of `mos.json` into the report, or into a page of their own.

    Args:
        out_dir: Holds `mos.json` and perhaps the report of an evaluation.

    Returns:
        The page's path.

    Raises:
        ValueError: An older version wrote the report there.
    """
    path = Path(out_dir, PAGE)
    if path.is_file():
        page = path.read_text(encoding="utf-8", errors="surrogateescape")
        if not _OPINIONS.search(page):
            raise ValueError(f"{path}: older than this version; run the evaluation again")
    else:
        template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        page = re.sub("<!-- scores -->.*?<!-- /scores -->", "", template, flags=re.DOTALL)
    files.write_text(path, _with_opinions(page, out_dir))
    return path


def read_opinions(out_dir: str | os.PathLike) -> str:
    """Returns the report's section of mean opinion scores, from `mos.json`; "" if there is none.

    Raises:
        ValueError: The file holds something else; one line.
    """
    path = Path(out_dir, mos_tables.FILE)
    if not path.is_file():
        return ""
    with files.naming(path, "no mean opinion scores; remove it"):
        return mos_tables.section_html(json.loads(path.read_text(encoding="utf-8")))


def _with_opinions(page: str, out_dir: str | os.PathLike) -> str:
    """Replaces a page's section of mean opinion scores."""
    section = read_opinions(out_dir)
    return _OPINIONS.sub(lambda found: f"{found[1]}{section}{found[2]}", page, count=1)


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def _script_json(value) -> str:
    """Returns JSON that cannot end the script element around it."""
    return json.dumps(tables.finite(value), separators=(",", ":")).replace("<", "\\u003c")


def _tables_html(results: scoring.Results) -> str:
    """Returns a table of means for each set, with the paper's figures in parentheses."""
    counts = results.counts()
    heads = [scoring.MEASURES[m] for m in results.measures()]

    def cell(measure, value, paper):
        theirs = paper.get(measure)
        note = "" if theirs is None else f" <i>({tables.format_score(measure, theirs)})</i>"
        return tables.format_score(measure, value) + note

    texts = []
    for i, (name, means) in enumerate(results.means().items()):
        rows = []
        for method in results.methods:
            paper = tables.paper_scores(name, method.variant)
            cells = [cell(measure, value, paper) for measure, value in means[method.name].items()]
            rows.append((method.name, cells))
        text = html.escape(tables.heading(name, counts[name]))
        texts.append(tables.table_html(heads, rows, f'<a href="#set{i}">{text}</a>'))
    return "\n".join(texts)


def _planes_html(results: scoring.Results) -> str:
    """Returns a perception-distortion plane for each set if LPIPS was measured, else ""."""
    if "lpips" not in results.measures():
        return ""
    figures = []
    for name, by_method in results.means().items():
        points = {
            method: plane.Point(scores["psnr"], scores["lpips"])
            for method, scores in by_method.items()
            if np.isfinite(scores["psnr"])
        }
        dials = [
            [(m.name, f"{detail:g}" if m.parts else m.name) for detail, m in dial]
            for dial in results.dials()
            if all(m.name in points for _, m in dial)
        ]
        if points:
            svg = plane.draw(points, dials)
            caption = html.escape(name)
            figures.append(f"<figure><figcaption>{caption}</figcaption>{svg}</figure>")
    return (
        "<h2>Distortion and perception</h2>"
        "<p>Mean scores of each method. The best corner is the bottom right. A line connects the "
        "blends of two networks.</p>"
        f'<div class="planes">{"".join(figures)}</div>'
    )


def _viewer_data(results: scoring.Results, out_dir: Path, embedded: list[str]) -> dict:
    """Returns the data of the page's script: each picture's size, scores, crop and files."""
    places = {file: f"#file{i}" for i, file in enumerate(embedded)}
    methods, measures = [method.name for method in results.methods], results.measures()
    by_picture: dict = {}
    for row in results.rows:
        by_picture.setdefault((row.set, row.picture), {})[row.method] = row
    sets: dict[str, list] = {}
    for (set_name, picture), rows in by_picture.items():
        original = results.originals[set_name, picture]
        hr = pictures.read_scoring(out_dir / original)
        files = [*(rows[method].file for method in methods), original]
        sets.setdefault(set_name, []).append(
            {
                "name": picture,
                "width": hr.shape[1],
                "height": hr.shape[0],
                "crop": _hardest_crop(pictures.read_scoring(out_dir / rows["bicubic"].file), hr),
                "files": [places.get(file, quote(file)) for file in files],
                "scores": [rows[method].scores for method in methods],
            }
        )
    return {
        "methods": [*methods, "original"],
        "measures": [[m, scoring.MEASURES[m]] for m in measures],
        "dials": [
            [[detail, methods.index(method.name)] for detail, method in dial]
            for dial in results.dials()
        ],
        "sets": [{"name": name, "pictures": items} for name, items in sets.items()],
        "crop": CROP,
    }


def _hardest_crop(bicubic: np.ndarray, hr: np.ndarray) -> list[int]:
    """Returns the center (x, y) of the crop where bicubic differs most from the original."""
    error = np.square(bicubic.astype(np.float64) - hr)
    error = error if error.ndim == 2 else error.sum(axis=-1)
    size = min(CROP, *error.shape)
    sums = np.pad(error.cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    windows = sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    y, x = np.unravel_index(np.argmax(windows), windows.shape)
    return [int(x) + size // 2, int(y) + size // 2]
