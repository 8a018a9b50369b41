"""Mean opinion scores as text, CSV, JSON and a section of the report."""

import csv
import datetime
import html
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path

from srgan_tf import files, provenance
from srgan_tf.evaluation import tables
from srgan_tf.evaluation.mos_kit import BEST, WORST

FILE = "mos.json"
_SIGNIFICANT = 0.05  # the paper's level
_METHOD_NOTE = (
    "Intervals: 95 %, bootstrap over raters and pictures. Tests: two-sided Wilcoxon "
    "signed-rank, paired by rater and picture, with Holm's correction for all pairs of a set."
)


def rater_lines(summary: dict) -> list[str]:
    """Returns lines about the raters: number, agreement, and who failed calibration."""
    alpha = summary["alpha"]
    lines = [
        tables.counted(len(summary["raters"]), "rater"),
        "Agreement: Krippendorff's alpha, interval scale: "
        + ("undefined" if alpha is None else f"{alpha:.3f}"),
    ]
    if summary["uncalibrated"]:
        lines.append(f"Failed calibration: {', '.join(summary['uncalibrated'])}")
    if summary["excluded"]:
        lines.append(f"Excluded, because they failed calibration: {', '.join(summary['excluded'])}")
    return lines


def _interval(interval: list[float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.2f} to {interval[1]:.2f}"


def _paper(mos: float | None) -> str:
    return "" if mos is None else f"{mos:.2f}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def terminal_tables(summary: dict) -> str:
    """Formats a summary for a terminal: for each set, its scores and its tests.

    Args:
        summary: From `mos.summarize`, plus "excluded", the aliases that were not counted.

    Returns:
        Lines without a newline at the end.
    """
    lines = []
    for name, results in summary["sets"].items():
        first = max(len(method) for method in results["methods"])
        lines.append(
            f"{tables.heading(name, results['pictures'])}, "
            f"{tables.counted(len(summary['raters']), 'rater')}"
        )
        scale = "".join(f"{score:>6}" for score in range(WORST, BEST + 1))
        lines.append(f"{'':{first}}   MOS  95 % interval  ratings{scale}  (paper)")
        for method, row in results["methods"].items():
            counts = "".join(f"{count:>6}" for count in row["counts"])
            lines.append(
                f"{method:{first}}  {row['mos']:.2f}  {_interval(row['interval']):13}"
                f"{row['ratings']:>9}{counts}  {_paper(row['paper']):>7}"
            )
        lines.append("")
        pairs = [" - ".join(reversed(test["methods"])) for test in results["tests"]]
        first = max(map(len, pairs))
        lines.append(f"{'':{first}}  difference         p      Holm")
        for pair, test in zip(pairs, results["tests"], strict=True):
            mark = " *" if test["holm"] < _SIGNIFICANT else ""
            lines.append(
                f"{pair:{first}}  {test['difference']:>+10.2f}{_p(test['p']):>10}"
                f"{_p(test['holm']):>10}{mark}"
            )
        lines.append("")
    note = f"{_METHOD_NOTE} *: Holm's p < {_SIGNIFICANT}"
    return "\n".join(text.rstrip() for text in [*lines, note, *rater_lines(summary)])


def write(summary: dict, skipped: Sequence[str], out_dir: str | os.PathLike) -> None:
    """Writes `mos.csv` (a line per set and method) and `mos.json` (everything).

    Args:
        summary: As in `terminal_tables`.
        skipped: A line for each rating file that was not counted.
        out_dir: An existing folder.
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    scale = [f"scored_{score}" for score in range(WORST, BEST + 1)]
    writer.writerow(["set", "method", "mos", "low", "high", "ratings", *scale, "paper"])
    for name, results in summary["sets"].items():
        for method, row in results["methods"].items():
            low, high = row["interval"] or ("", "")
            paper = "" if row["paper"] is None else row["paper"]
            values = [row["mos"], low, high, row["ratings"], *row["counts"], paper]
            writer.writerow([name, method, *values])
    files.write_text(Path(out_dir, "mos.csv"), table.getvalue())
    document = {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": provenance.versions(),
        **summary,
        "skipped": list(skipped),
    }
    files.write_text(Path(out_dir, FILE), json.dumps(document, indent=2) + "\n")


def section_html(document: dict) -> str:
    """Returns the report's section: for each set a table, the distribution (figure 5) and tests.

    Args:
        document: From `mos.json`.
    """
    lines = [_METHOD_NOTE, *rater_lines(document)]
    if document["skipped"]:
        lines.append(f"Rating files that are not counted: {len(document['skipped'])}")
    parts = [
        "<h2>Mean opinion scores</h2>",
        "<p>People rated the pictures blind, from 1 (bad) to 5 (excellent). The paper's scores are "
        "in parentheses.</p>",
    ]
    for name, results in document["sets"].items():
        table = _table_html(name, results)
        distribution = _distribution_html(name, results["methods"])
        parts.append(f'<div class="opinions">{table}{distribution}</div>')
        parts.append(_tests_html(results))
    return "\n".join([*parts, tables.list_html(lines)])


def _table_html(name: str, results: dict) -> str:
    rows = []
    for method, row in results["methods"].items():
        paper = f" <i>({_paper(row['paper'])})</i>" if row["paper"] is not None else ""
        cells = [f"{row['mos']:.2f}{paper}", _interval(row["interval"]), str(row["ratings"])]
        rows.append((method, cells))
    caption = html.escape(tables.heading(name, results["pictures"]))
    return tables.table_html(("MOS", "95 % interval", "Ratings"), rows, caption)


def _distribution_html(name: str, methods: dict) -> str:
    """Draws figure 5: a strip for each method, with a cell for each score and the mean marked."""
    strips = []
    for method, row in methods.items():
        cells = []
        for score, count in enumerate(row["counts"], WORST):
            share = count / row["ratings"]
            title = f"{score}: {tables.counted(count, 'rating')}, {share:.0%}"
            # At half strength, so that the text on the cell can be read.
            cells.append(f'<i style="--share:{50 * share:.1f}%" title="{title}">{share:.0%}</i>')
        spread = ""
        if row["interval"]:
            low, high = map(_position, row["interval"])
            spread = f'<u style="left:{low:.2f}%;width:{high - low:.2f}%"></u>'
        mean = f'<b style="left:{_position(row["mos"]):.2f}%" title="MOS {row["mos"]:.2f}"></b>'
        strips.append(
            f"<span>{html.escape(method)}</span>"
            f'<div class="cells">{"".join(cells)}{spread}{mean}</div>'
        )
    axis = "".join(f"<span>{score}</span>" for score in range(WORST, BEST + 1))
    return (
        f'<figure><div class="strip" role="img" aria-label="Distribution of the scores on '
        f'{html.escape(name)}">{"".join(strips)}<span></span><div class="scale">{axis}</div></div>'
        "<p>Shares of the scores. The red line is the mean, the bar its interval.</p></figure>"
    )


def _position(mos: float) -> float:
    """Returns the place of a score on a strip of cells centered on 1 to 5, in percent."""
    return 100 * (mos - WORST + 0.5) / (BEST - WORST + 1)


def _tests_html(results: dict) -> str:
    rows = []
    for test in results["tests"]:
        first, second = test["methods"]
        difference = f"{test['difference']:+.2f}".replace("-", "&minus;")
        corrected = html.escape(_p(test["holm"]))
        if test["holm"] < _SIGNIFICANT:
            corrected = f"<b>{corrected}</b>"
        cells = [difference, html.escape(_p(test["p"])), corrected]
        rows.append((f"{second} \N{MINUS SIGN} {first}", cells))
    table = tables.table_html(("Difference", "p", "Holm's p"), rows)
    return (
        f"<details><summary>Differences between methods; bold: Holm's p &lt; {_SIGNIFICANT}"
        f"</summary>{table}</details>"
    )
