"""Scores methods on sets of pictures by the measures of `metrics`; `tables` prints the means."""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from srgan_tf import metrics, pictures
from srgan_tf.evaluation.kept import KeptResults
from srgan_tf.evaluation.methods import Method, match_channels
from srgan_tf.evaluation.sets import (
    SMALLEST,
    SMALLEST_LPIPS,
    EvaluationSet,
    Pair,
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
        """Means by set and method: {set: {method: {measure: mean}}}."""
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
        """The measures that were taken, in the order of the tables."""
        return [name for name in MEASURES if any(name in row.scores for row in self.rows)]

    def counts(self) -> dict[str, int]:
        """Number of pictures scored in each set."""
        scored = {(row.set, row.picture) for row in self.rows}
        return {s.name: sum(name == s.name for name, _ in scored) for s in self.sets}


def load_lpips() -> Callable[[np.ndarray, np.ndarray], float]:
    """Loads the perceptual distance of Zhang et al. (2018), the `lpips` package with AlexNet.

    Returns:
        A function of sr and hr, uint8 [H, W] or [H, W, 3], which it compares whole and in RGB.

    Raises:
        ValueError: The package is not installed, or AlexNet's weights cannot be had.
    """
    try:
        import lpips
        import torch
    except ImportError as error:
        raise ValueError("--lpips needs the lpips package: pip install lpips") from error
    try:
        network = lpips.LPIPS(net="alex", verbose=False).eval()
    except Exception as error:  # the download fails in the ways of urllib, of torch and of the disk
        reason = " ".join(str(error).split())
        raise ValueError(
            f"--lpips: AlexNet's weights are unavailable ({reason}); lpips downloads them from "
            "download.pytorch.org once, into ~/.cache/torch"
        ) from error

    def tensor(picture):
        rgb = picture if picture.ndim == 3 else np.stack([picture] * 3, axis=-1)
        return torch.from_numpy(rgb.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)

    def measure(sr, hr):
        with torch.no_grad():
            return float(network(tensor(sr), tensor(hr)))

    return measure


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
        lpips: From `load_lpips`, to measure that too.
        progress: Called with the fraction done, in 0..1, and a description of what is next.

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
    done = 0.0  # work on what is computed: not on kept results and skipped pictures
    with contextlib.closing(KeptResults(Path(out_dir) if out_dir else None, fresh)) as kept:
        for name, pair in [(s.name, pair) for s in sets for pair in s.pairs]:
            scored = []
            try:
                picture = Picture(name, pair.name, *read_pair(pair, smallest))
                original = kept.find("original", picture) or kept.add(
                    "original", picture, "original", picture.hr, {}
                )
                for method in methods:
                    here = name, pair.name, method.name
                    progress(done / (done + ahead[here]), f"{name} {pair.name}: {method.name}")
                    record = kept.find(method.sha256, picture)
                    # A kept result may lack a measure that is asked for now.
                    if not (record and measures.keys() <= record["scores"].keys()):
                        record = _score(method, picture, pair, record, kept, measures)
                        done += work[here]
                    scores = {measure: record["scores"][measure] for measure in measures}
                    scored.append(Row(*here, scores, record["file"]))
            except ValueError as error:
                skipped.append(str(error))
            except (MemoryError, RuntimeError) as error:  # NumPy's and LPIPS's
                skipped.append(f"{pair.hr}: cannot be scored ({pictures.one_line(error)})")
            else:  # a picture counts for all methods or for none
                rows += scored
                if original["file"]:
                    originals[name, pair.name] = original["file"]
    progress(1.0, "")
    return Results(sets, methods, rows, skipped, originals)


def _score(
    method: Method,
    picture: Picture,
    pair: Pair,
    record: dict | None,
    kept: KeptResults,
    measures: dict[str, Callable[[np.ndarray, np.ndarray], float]],
) -> dict:
    """Scores the kept result of `record`, or a new one, and returns its complete record."""
    sr = kept.read(record) if record else _upscaled(method, picture, pair)
    scores = {name: measure(sr, picture.hr) for name, measure in measures.items()}
    if record:
        return kept.update(record | {"scores": scores})
    return kept.add(method.sha256, picture, method.name, sr, scores)


def _upscaled(method: Method, picture: Picture, pair: Pair) -> np.ndarray:
    """Upscales lr into as many channels as hr has; a failure names the picture and the method."""
    try:
        return match_channels(method.upscale(picture.lr), picture.hr)
    except MemoryError:
        reason = "not enough memory, a smaller --tile takes less"
    except Exception as error:  # the errors of TensorFlow, LiteRT and ONNX have no common class
        reason = pictures.one_line(error)
    raise ValueError(f"{pair.hr}: cannot be upscaled by {method.name} ({reason})")


def _estimate_work(
    sets: Sequence[EvaluationSet], methods: Sequence[Method]
) -> dict[tuple[str, str, str], float]:
    """Estimates what each (set, picture, method) costs, in the order of `evaluate`."""
    # Interpolation takes next to no time. A file that cannot be read has no pixels.
    return {
        (s.name, pair.name, method.name): pixels * (1 if method.card else 0.03)
        for s in sets
        for pair in s.pairs
        for pixels in [pictures.count_pixels(pair.hr)]
        for method in methods
    }
