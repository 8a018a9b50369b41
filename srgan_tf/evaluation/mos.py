"""Mean opinion scores, their intervals, tests and agreement (paper section 3.3)."""

import itertools
from collections.abc import Sequence

import numpy as np
from scipy import stats

from srgan_tf.evaluation.mos_kit import BEST, WORST, Kit
from srgan_tf.evaluation.ratings import Ratings
from srgan_tf.evaluation.tables import paper_scores

_RESAMPLES = 2000


def summarize(kit: Kit, counted: Sequence[Ratings]) -> dict:
    """Computes all figures of a test.

    Args:
        kit: The kit that was rated.
        counted: The ratings to count, at least one.

    Returns:
        Values for `json.dumps`: kit; raters, their aliases; uncalibrated, the aliases of those who
        failed calibration; alpha, Krippendorff's, None if it is undefined; and sets. Each set has,
        by its name: pictures, their number; methods, see `_describe`; tests, see `_compare`.
    """
    sets = {}
    for name in kit.sets:
        pictures = sorted({item.picture for item in kit.items.values() if item.set == name})
        if pictures:
            scores = _scores(kit, counted, name, pictures)
            methods = {method: scores[..., i] for i, method in enumerate(kit.variants)}
            sets[name] = {
                "pictures": len(pictures),
                "methods": {
                    method: {
                        **_describe(values),
                        "paper": paper_scores(name, kit.variants[method]).get("mos"),
                    }
                    for method, values in methods.items()
                },
                "tests": _compare(methods),
            }
    return {
        "kit": kit.id,
        "raters": [ratings.alias for ratings in counted],
        "uncalibrated": [r.alias for r in counted if not r.is_calibrated(kit)],
        "alpha": agreement(kit, counted),
        "sets": sets,
    }


def _scores(
    kit: Kit, counted: Sequence[Ratings], set_name: str, pictures: Sequence[str]
) -> np.ndarray:
    """Returns the scores on one set: int [raters, pictures, methods]."""
    files = {item: file for file, item in kit.items.items()}
    grid = [[files[set_name, picture, method] for method in kit.variants] for picture in pictures]
    return np.array([[[r.scores[file] for file in row] for row in grid] for r in counted])


def _describe(scores: np.ndarray) -> dict:
    """Describes one method's scores, int [raters, pictures].

    Returns:
        mos; interval, see `confidence_interval`; ratings, their number; and counts, the number of
        each score from 1 to 5 (figure 5).
    """
    return {
        "mos": float(scores.mean()),
        "interval": confidence_interval(scores),
        "ratings": scores.size,
        "counts": [int((scores == score).sum()) for score in range(WORST, BEST + 1)],
    }


def confidence_interval(scores: np.ndarray) -> list[float] | None:
    """Computes the 95 % percentile interval of the mean with a bootstrap over raters and pictures.

    Both are resampled independently, because both are samples: of the people that one could have
    asked, and of the pictures that one could have shown (Owen, "The pigeonhole bootstrap", 2007).

    Args:
        scores: int [raters, pictures].

    Returns:
        Low and high; None if there is only one rater or one picture.
    """
    if min(scores.shape) < 2:
        return None

    def mean(raters, pictures, axis):
        return scores[raters[..., :, None], pictures[..., None, :]].mean(axis=(-2, -1))

    found = stats.bootstrap(
        [np.arange(side) for side in scores.shape],
        mean,
        n_resamples=_RESAMPLES,
        batch=100,
        method="percentile",
        rng=np.random.default_rng(0),
    )
    return [float(end) for end in found.confidence_interval]


def _compare(methods: dict[str, np.ndarray]) -> list[dict]:
    """Tests all pairs of methods with two-sided Wilcoxon signed-rank tests.

    A pair is the scores that one rater assigned to two versions of one picture.

    Args:
        methods: By name, int [raters, pictures].

    Returns:
        For each pair: methods, their names; difference, the second's MOS minus the first's; p; and
        holm, p after Holm's correction for the number of pairs.
    """
    tests = []
    for (first, a), (second, b) in itertools.combinations(methods.items(), 2):
        # Scores that are all equal do not differ; scipy leaves p undefined there.
        p = 1.0 if (a == b).all() else float(stats.wilcoxon(b.ravel(), a.ravel()).pvalue)
        tests.append({"methods": [first, second], "difference": float((b - a).mean()), "p": p})
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["holm"] = corrected
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Applies Holm's step-down correction (Scandinavian Journal of Statistics, 1979).

    Args:
        p_values: Uncorrected values, in any order.

    Returns:
        The corrected values, in the same order, at most 1.
    """
    order = np.argsort(p_values)
    factors = np.arange(len(p_values), 0, -1)
    corrected = np.empty(len(p_values))
    corrected[order] = np.maximum.accumulate(np.array(p_values)[order] * factors).clip(max=1)
    return corrected.tolist()


def agreement(kit: Kit, counted: Sequence[Ratings]) -> float | None:
    """Computes Krippendorff's alpha of all ratings on the interval scale: 1 is perfect, 0 chance.

    A mean of scores assumes equal steps between them, and so does this scale.

    Returns:
        Alpha; None if there is only one rater or all scores are the same.
    """
    if len(counted) < 2:
        return None
    scores = [
        (ratings.alias, file, ratings.scores[file]) for ratings in counted for file in kit.items
    ]
    if len({score for _, _, score in scores}) < 2:
        return None
    from nltk.metrics import interval_distance  # takes a second to load
    from nltk.metrics.agreement import AnnotationTask

    return float(AnnotationTask(scores, distance=interval_distance).alpha())
