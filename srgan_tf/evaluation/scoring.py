"""Scores methods on sets of pictures with the measures of `metrics`; `tables` shows the means."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srgan_tf import files, metrics, pictures
from srgan_tf.evaluation.kept import KeptResults
from srgan_tf.evaluation.methods import Method, blend_pictures, match_channels
from srgan_tf.evaluation.sets import (
    SMALLEST,
    SMALLEST_LPIPS,
    EvaluationSet,
    Picture,
    read_pair,
)

MEASURES = {"psnr": "PSNR", "ssim": "SSIM (paper)", "ssim_wang": "SSIM (Wang)", "lpips": "LPIPS"}


class Row(NamedTuple):
    """The scores of one method on one picture, and where its result is kept (in `out_dir`)."""

    set: str
    picture: str
    method: str
    scores: dict[str, float]
    file: str | None


@dataclasses.dataclass(frozen=True)
class Results:
    """The scores of an evaluation.

    Attributes:
        sets: The sets, in the order of the tables.
        methods: The methods, in the order of the tables.
        rows: One for each picture and method.
        skipped: A line for each picture that could not be scored: its file and why.
        originals: Where the original of each (set, picture) is kept, in `out_dir`.
    """

    sets: Sequence[EvaluationSet]
    methods: Sequence[Method]
    rows: Sequence[Row]
    skipped: Sequence[str]
    originals: dict[tuple[str, str], str]

    def means(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns means by set and method: {set: {method: {measure: mean}}}."""
        collected: dict = {}
        for row in self.rows:
            by_method = collected.setdefault(row.set, {})
            by_method.setdefault(row.method, []).append(row.scores)
        return {
            name: {
                method: {key: float(np.mean([s[key] for s in scores])) for key in scores[0]}
                for method, scores in by_method.items()
            }
            for name, by_method in collected.items()
        }

    def measures(self) -> list[str]:
        """Returns the measures that were computed, in the order of the tables."""
        return [name for name in MEASURES if any(name in row.scores for row in self.rows)]

    def dials(self) -> list[list[tuple[float, Method]]]:
        """Returns, for each pair, (detail, method) of its blends and of its scored ends."""
        scored = {method.sha256: method for method in self.methods if not method.parts}
        dials: dict[tuple[str, ...], dict[float, Method]] = {}
        for method in self.methods:
            if method.parts:
                ends = tuple(part.sha256 for part in method.parts)
                dials.setdefault(ends, {})[method.detail] = method
        for ends, positions in dials.items():
            positions |= {i: scored[end] for i, end in enumerate(ends) if end in scored}
        return [sorted(positions.items()) for positions in dials.values()]

    def counts(self) -> dict[str, int]:
        """Returns the number of pictures scored in each set."""
        scored = {(row.set, row.picture) for row in self.rows}
        return {s.name: sum(name == s.name for name, _ in scored) for s in self.sets}


def evaluate(
    sets: Sequence[EvaluationSet],
    methods: Sequence[Method],
    *,
    out_dir: str | os.PathLike | None = None,
    fresh: bool = False,
    lpips: Callable[[np.ndarray, np.ndarray], float] | None = None,
    progress: Callable[[float, str], None] = lambda fraction, what: None,
) -> Results:
    """Scores every method on every picture.

    Args:
        sets: From `open_sets`.
        methods: From `load_methods`.
        out_dir: Where to keep results as soon as they are computed: `kept.jsonl` and `pictures/`.
            Results kept there for the same pictures and weights are reused. None keeps nothing.
        fresh: Recompute everything.
        lpips: From `lpips.load`, to measure LPIPS, too.
        progress: Called with the fraction done, in 0..1, and a description of the next step.

    Returns:
        The results. A picture that cannot be scored with every method is in `skipped`.
    """
    measures = {"psnr": metrics.psnr, "ssim": metrics.ssim, "ssim_wang": metrics.ssim_wang}
    if lpips:
        measures["lpips"] = lpips
    smallest = SMALLEST_LPIPS if lpips else SMALLEST
    rows, originals = [], {}
    skipped = [line for s in sets for line in s.skipped]
    work = _estimate_work(sets, methods)
    ahead = dict(zip(work, np.cumsum(list(work.values())[::-1])[::-1], strict=True))
    done = 0.0  # work that was computed, without kept results and skipped pictures
    with contextlib.closing(KeptResults(Path(out_dir) if out_dir else None, fresh)) as kept:
        for name, pair in [(s.name, pair) for s in sets for pair in s.pairs]:
            scored = []
            try:
                picture = Picture(name, pair.name, pair.hr, *read_pair(pair, smallest))
                original = kept.find("original", picture) or kept.add(
                    "original", picture, "original", picture.hr
                )
                reused = dict.fromkeys(part.sha256 for method in methods for part in method.parts)
                for method in methods:
                    here = name, pair.name, method.name
                    progress(done / (done + ahead[here]), f"{name} {pair.name}: {method.name}")
                    record = kept.find(method.sha256, picture)
                    # A kept result may lack a measure that is requested now.
                    if not (record and measures.keys() <= record["scores"].keys()):
                        record, sr = _result(method, picture, kept, reused)
                        record = kept.update(record | {"scores": _scores(sr, picture, measures)})
                        done += work[here]
                    scores = {key: record["scores"][key] for key in measures}
                    scored.append(Row(*here, scores, record["file"]))
            except ValueError as error:
                skipped.append(str(error))
            except MemoryError as error:
                skipped.append(f"{pair.hr}: cannot be scored ({files.one_line(error)})")
            else:  # a picture counts for all methods or for none
                rows += scored
                if original["file"]:
                    originals[name, pair.name] = original["file"]
    progress(1.0, "")
    return Results(sets, methods, rows, skipped, originals)


def _result(
    method: Method, picture: Picture, kept: KeptResults, reused: dict[str, tuple | None]
) -> tuple[dict, np.ndarray]:
    """Returns a result's record and picture, from `reused`, from disk, or upscaled and kept now.

    Args:
        method: The method.
        picture: The picture to upscale.
        kept: The results on disk.
        reused: Results of this picture in memory, by hash. A result is added if its hash is a key.

    Raises:
        ValueError: The method fails; names the picture and the method.
    """
    if found := reused.get(method.sha256):
        return found
    if record := kept.find(method.sha256, picture):
        sr = kept.read(record)
    else:
        if method.parts:
            parts = [_result(part, picture, kept, reused)[1] for part in method.parts]
            sr = blend_pictures(*parts, method.detail)
        else:
            sr = _upscaled(method, picture)
        record = kept.add(method.sha256, picture, method.name, sr)
    if method.sha256 in reused:
        reused[method.sha256] = record, sr
    return record, sr


def _upscaled(method: Method, picture: Picture) -> np.ndarray:
    """Upscales lr and matches hr's number of channels."""
    try:
        return match_channels(method.upscale(picture.lr), picture.hr)
    except MemoryError:
        reason = "not enough memory, a smaller --tile takes less"
    except Exception as error:  # the errors of TensorFlow, LiteRT and ONNX have no common class
        reason = files.one_line(error)
    raise ValueError(f"{picture.file}: cannot be upscaled by {method.name} ({reason})")


def _scores(
    sr: np.ndarray,
    picture: Picture,
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]],
) -> dict[str, float]:
    """Measures sr; a failure names the picture."""
    try:
        return {name: measure(sr, picture.hr) for name, measure in measures.items()}
    except Exception as error:  # too little memory has another class in NumPy and in each backend
        reason = files.one_line(error)
        raise ValueError(f"{picture.file}: cannot be scored ({reason})") from error


def _estimate_work(
    sets: Sequence[EvaluationSet], methods: Sequence[Method]
) -> dict[tuple[str, str, str], float]:
    """Estimates the cost of each (set, picture, method), in the order of `evaluate`."""
    # Interpolation and blends take next to no time. A file that cannot be read has no pixels.
    return {
        (s.name, pair.name, method.name): pixels * (1 if method.card and not method.parts else 0.03)
        for s in sets
        for pair in s.pairs
        for pixels in [pictures.count_pixels(pair.hr)]
        for method in methods
    }
