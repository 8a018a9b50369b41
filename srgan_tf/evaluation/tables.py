"""An evaluation's tables, with the paper's figures beside ours, as text, CSV, JSON and HTML."""

import csv
import datetime
import html
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from srgan_tf import files, provenance
from srgan_tf.evaluation import scoring

# The paper's tables 1 and 2 (arXiv 1609.04802v5) at x4: PSNR, SSIM and MOS.
PAPER = {
    "Set5": {
        "nearest": (26.26, 0.7552, 1.28),
        "bicubic": (28.43, 0.8211, 1.97),
        "SRResNet-MSE": (32.05, 0.9019, 3.37),
        "SRResNet-VGG22": (30.51, 0.8803, 3.46),
        "SRGAN-MSE": (30.64, 0.8701, 3.77),
        "SRGAN-VGG22": (29.84, 0.8468, 3.78),
        "SRGAN-VGG54": (29.40, 0.8472, 3.58),
        "original": (math.inf, 1.0, 4.32),
    },
    "Set14": {
        "nearest": (24.64, 0.7100, 1.20),
        "bicubic": (25.99, 0.7486, 1.80),
        "SRResNet-MSE": (28.49, 0.8184, 2.98),
        "SRResNet-VGG22": (27.19, 0.7807, 3.15),
        "SRGAN-MSE": (26.92, 0.7611, 3.43),
        "SRGAN-VGG22": (26.44, 0.7518, 3.57),
        "SRGAN-VGG54": (26.02, 0.7397, 3.72),
        "original": (math.inf, 1.0, 4.32),
    },
    "BSD100": {
        "nearest": (25.02, 0.6606, 1.11),
        "bicubic": (25.94, 0.6935, 1.47),
        "SRResNet-MSE": (27.58, 0.7620, 2.29),
        "SRGAN-VGG54": (25.16, 0.6688, 3.56),
        "original": (math.inf, 1.0, 4.46),
    },
}

# The source of the weights' VGG features, by `vgg.build_features`'s name; paths stay as they are.
_VGG_NAMES = {
    "imagenet": "Keras' VGG19",
    "vgg16": "torchvision's VGG16",
    "hed": "hed (not comparable with the paper)",
}


def paper_scores(set_name: str, variant: str | None) -> dict[str, float]:
    """Returns the paper's PSNR, SSIM and MOS of a variant or "original" on a set, if it has any."""
    known = {name.lower(): figures for name, figures in PAPER.items()}.get(set_name.lower(), {})
    return dict(zip(("psnr", "ssim", "mos"), known.get(variant, ()), strict=False))


def format_score(measure: str, value: float) -> str:
    """Formats a score as the paper does: two decimals for decibels, four for the others."""
    return f"{value:.2f}" if measure == "psnr" else f"{value:.4f}"


def measure_lines(results: scoring.Results) -> list[str]:
    """Returns a line for each measure that needs an explanation."""
    if "lpips" not in results.measures():
        return []
    return ["LPIPS (AlexNet): perceptual distance to the original, lower is better"]


def method_lines(results: scoring.Results) -> list[str]:
    """Returns a line for each set of weights (training, hash, path) or blend (its parts)."""
    lines = []
    for method in results.methods:
        card = method.card
        if method.parts:
            first, second = (part.name for part in method.parts)
            lines.append(
                f"{method.name}: {1 - method.detail:g} of {first}, {method.detail:g} of {second}"
            )
        elif card:
            steps = card.get("steps")
            facts = [
                card.get("variant") or "variant unknown",
                "steps unknown" if steps is None else f"{steps:,} steps",
                _vgg_text(card),
                *([f"averaged with ema {card['ema']}"] if card.get("ema") else []),
                f"sha256 {method.sha256[:12]}",
                str(card["path"]),
            ]
            lines.append(f"{method.name}: {', '.join(facts)}")
    return lines


def _vgg_text(card: dict) -> str:
    if not card.get("variant"):
        return "VGG unknown"
    vgg = card["vgg"] or "none"
    return f"VGG: {_VGG_NAMES.get(vgg, vgg)}"


def heading(set_name: str, count: int) -> str:
    """Formats a set's name and number of pictures."""
    return f"{set_name}, {counted(count, 'picture')}"


def counted(number: int, what: str) -> str:
    """Formats a number of things, with a plural noun unless it is 1."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def set_lines(results: scoring.Results) -> list[str]:
    """Returns a line for each set: its number of pictures and the source of their LR."""
    counts = results.counts()
    return [f"{heading(s.name, counts[s.name])}, LR {s.lr}" for s in results.sets]


def terminal_table(results: scoring.Results) -> str:
    """Formats the means for a terminal: methods down, sets across, the paper's figures below ours.

    Returns:
        Lines without a newline at the end.
    """
    means, counts, measures = results.means(), results.counts(), results.measures()
    names = list(means)
    widths = {m: max(len(scoring.MEASURES[m]), 7) for m in measures}

    def line(label: str, cells: Iterable[dict[str, str]]) -> str:
        texts = (f"  {cell.get(m, ''):>{widths[m]}}" for cell in cells for m in measures)
        return f"{label:{first}}{''.join(texts)}"

    def formatted(scores: dict[str, float]) -> dict[str, str]:
        return {m: format_score(m, value) for m, value in scores.items()}

    paper = "  (paper)"
    first = max(len(label) for label in [paper, *(method.name for method in results.methods)])
    width = sum(widths.values()) + 2 * len(measures)
    heads = "".join(f"  {heading(name, counts[name]):{width - 2}}" for name in names)
    lines = [" " * first + heads, line("", [scoring.MEASURES] * len(names))]
    for method in results.methods:
        lines.append(line(method.name, [formatted(means[name][method.name]) for name in names]))
        theirs = [formatted(paper_scores(name, method.variant)) for name in names]
        if any(theirs):
            lines.append(line(paper, theirs))
    lines += ["", *measure_lines(results), *set_lines(results), *method_lines(results)]
    return "\n".join(text.rstrip() for text in lines)


def list_html(lines: Iterable[str]) -> str:
    """Formats lines of text as an HTML list."""
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def table_html(
    heads: Iterable[str], rows: Iterable[tuple[str, Sequence[str]]], caption: str = ""
) -> str:
    """Formats a table as HTML.

    Args:
        heads: The headings of the columns after the first, as text.
        rows: The name of each row, as text, and its cells, as HTML.
        caption: The caption, as HTML.
    """
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in heads)
    body = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{"</td><td>".join(cells)}</td></tr>'
        for name, cells in rows
    )
    return (
        f"<table>{caption and f'<caption>{caption}</caption>'}"
        f"<thead><tr><td></td>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def write_scores(results: scoring.Results, out_dir: str | os.PathLike, flags: dict) -> None:
    """Writes `scores.csv` (a line per picture and method) and `scores.json` (means, provenance).

    Args:
        results: From `evaluate`.
        out_dir: An existing folder.
        flags: The flags of the evaluation, to record.
    """
    out_dir = Path(out_dir)
    measures = results.measures()
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["set", "picture", "method", *measures])
    for row in results.rows:
        values = [f"{row.scores[m]:.6f}" for m in measures]
        writer.writerow([row.set, row.picture, row.method, *values])
    files.write_text(out_dir / "scores.csv", table.getvalue())
    means, counts = results.means(), results.counts()
    document = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "flags": flags,
        "versions": provenance.versions(),
        "measures": scoring.MEASURES,
        "sets": {
            s.name: {"folder": s.folder, "pictures": counts[s.name], "lr": s.lr}
            for s in results.sets
        },
        "methods": {method.name: method.card for method in results.methods},
        "means": means,
        "paper": {
            s.name: {
                m.name: paper for m in results.methods if (paper := paper_scores(s.name, m.variant))
            }
            for s in results.sets
        },
        "left_out": results.skipped,
    }
    text = json.dumps(finite(document), indent=2) + "\n"
    files.write_text(out_dir / "scores.json", text)


def finite(value):
    """Replaces values that are not finite, which JSON cannot express, with None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
