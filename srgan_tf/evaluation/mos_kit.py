"""A rating kit: a page on which people rate pictures blind, and the key to what it shows."""

import dataclasses
import datetime
import hashlib
import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from srgan_tf import files, pictures, provenance, resize, weights
from srgan_tf.evaluation import methods, scoring, sets

ORIGINAL = "original"  # the method whose picture is hr itself
PAGE, KEY, PICTURES, RATINGS = "index.html", "kit.json", "pictures", "ratings"
WORST, BEST = 1, 5  # the ends of the scale, and the scores that calibration expects

# The paper calibrates on 20 pictures. Parts of this size fit most windows at 1:1.
_CALIBRATION_PICTURES, _CALIBRATION_SIDE = 20, 384
# The sharpest photographs that scikit-image's wheel carries. The gray ones are not among the
# `sample` pictures, so that those can be rated.
_CALIBRATION_SAMPLES = (
    "astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png",
    "brick.png", "camera.png", "grass.png", "gravel.png",
)  # fmt: skip


class Item(NamedTuple):
    """The set, name and method of a picture of the kit."""

    set: str
    picture: str
    method: str


@dataclasses.dataclass(frozen=True)
class Kit:
    """The key to a kit.

    Attributes:
        id: Hash of everything in the key.
        sets: Names of the sets, in the order of the tables.
        variants: By method, in the order of the tables, the paper's name for it, or None.
        items: By file name, the pictures to rate.
        calibration: By file name, the warm-up's pictures and the score that each deserves.
        files: Names of all pictures, including the examples.
    """

    id: str
    sets: list[str]
    variants: dict[str, str | None]
    items: dict[str, Item]
    calibration: dict[str, int]
    files: frozenset[str]


def check_folder(
    folder: str | os.PathLike,
    rated: Sequence[methods.Method],
    out_dir: str | os.PathLike | None,
) -> None:
    """Checks that a kit can be written to `folder`, before hours of scoring instead of after.

    Args:
        folder: The kit's folder.
        rated: The methods to rate.
        out_dir: Where the results will be kept; None if they are not.

    Raises:
        ValueError: The folder is not empty, or will not be; it is a link; its parent is not
            writable; or a method is called "original".
    """
    if any(method.name == ORIGINAL for method in rated):
        raise ValueError(f"{ORIGINAL}: weights of this name cannot be rated; rename them")
    folder = Path(folder)
    if out_dir and Path(out_dir).resolve().is_relative_to(folder.resolve()):
        raise ValueError(f"{folder}: --out_dir lies there; choose another folder for --mos")
    # No folder can be renamed to a link.
    if folder.is_symlink() or folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(
            f"{folder}: exists already; choose another folder for --mos, because a new kit would "
            "invalidate the ratings of the one there"
        )
    files.make_folder(folder.absolute().parent)


def calibration_pictures(
    folder: str | os.PathLike | None, rated: Sequence[sets.EvaluationSet]
) -> list[np.ndarray]:
    """Chooses pictures to calibrate raters on: the middle of up to 20, none of them rated.

    Args:
        folder: Where to choose from; by default photographs that scikit-image carries.
        rated: The sets to rate, whose pictures are not used, whatever their names.

    Returns:
        hr, uint8 [H, W, 3] or [H, W], the sides multiples of 4 and at most 384.

    Raises:
        FileNotFoundError, ValueError: There are fewer than two, or one cannot be read.
    """
    if folder is None:
        paths = pictures.sample_pictures(_CALIBRATION_SAMPLES)
    else:
        paths = pictures.find_pictures(folder)
        random.Random(0).shuffle(paths)
    taken = {_fingerprint(pair.hr) for s in rated for pair in s.pairs}
    chosen = []
    for path in paths:
        if len(chosen) == _CALIBRATION_PICTURES:
            break
        if _fingerprint(path) not in taken:
            _, hr = sets.read_pair(sets.Pair(path.stem, path, None))
            chosen.append(pictures.middle(hr, _CALIBRATION_SIDE))
    if len(chosen) < 2:
        raise ValueError(
            f"{folder or 'scikit-image'}: calibration needs at least two pictures that are not in "
            "--data; choose a folder with --mos_calibration"
        )
    return chosen


def _fingerprint(path: Path) -> str | None:
    """Hashes a picture's pixels; None if it cannot be read, which is reported when it is used."""
    try:
        picture = pictures.read_scoring(path)
    except ValueError:
        return None
    return hashlib.sha256(repr(picture.shape).encode() + picture.tobytes()).hexdigest()


def write_kit(
    results: scoring.Results,
    out_dir: str | os.PathLike,
    folder: str | os.PathLike,
    calibration: Sequence[np.ndarray],
    count: int | None = None,
) -> Path:
    """Writes a kit: `index.html`, which needs no server, `pictures/`, and `kit.json`, the key.

    Args:
        results: The results to rate, from `scoring.evaluate` with the same `out_dir`.
        out_dir: Where the results are kept.
        folder: The kit's folder, checked by `check_folder`.
        calibration: From `calibration_pictures`.
        count: Pictures to rate in all versions, drawn evenly from the sets; by default all.

    Returns:
        The page's path.
    """
    folder, out_dir = Path(folder), Path(out_dir)
    chosen = _draw(list(results.originals), count)
    rated = [
        (Item(row.set, row.picture, row.method), out_dir / row.file)
        for row in results.rows
        if (row.set, row.picture) in chosen
    ]
    rated += [(Item(*place, ORIGINAL), out_dir / results.originals[place]) for place in chosen]
    examples = max(len(calibration) // 3, 1)  # shown with their scores; the others are a test
    shown = [
        (number, score, picture)
        for number, hr in enumerate(calibration)
        for score, picture in ((WORST, _nearest(hr)), (BEST, hr))
    ]
    # The names are numbers in a random order that nobody can reconstruct. Files are written in the
    # order of the numbers, so that neither names nor times tell which method made a picture.
    secret = random.SystemRandom()
    names = [f"{number:04}.png" for number in range(len(rated) + len(shown))]
    secret.shuffle(names)
    rated_names, shown_names = names[: len(rated)], names[len(rated) :]
    sources = dict(zip(names, [path for _, path in rated] + [p for *_, p in shown], strict=True))

    with files.staging(folder.absolute().parent) as staged:
        place = Path(staged, "kit")
        (place / PICTURES).mkdir(parents=True)
        for name in sorted(names):
            if isinstance(sources[name], Path):
                shutil.copyfile(sources[name], place / PICTURES / name)
            else:
                Image.fromarray(sources[name]).save(place / PICTURES / name)
        hashes = {name: weights.file_sha256(place / PICTURES / name) for name in names}
        named = list(zip(shown_names, shown, strict=True))
        key = {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "versions": provenance.versions(),
            "sets": [s.name for s in results.sets],
            "methods": {
                **{m.name: {"variant": m.variant, "card": m.card} for m in results.methods},
                ORIGINAL: {"variant": ORIGINAL, "card": {}},
            },
            "pictures": {
                name: {**item._asdict(), "sha256": hashes[name]}
                for name, (item, _) in sorted(zip(rated_names, rated, strict=True))
            },
            "examples": {name: score for name, (number, score, _) in named if number < examples},
            "calibration": {
                name: score for name, (number, score, _) in named if number >= examples
            },
        }
        key["id"] = _key_id(key)
        files.write_text(place / KEY, json.dumps(key, indent=2) + "\n")
        numbers = {place: number for number, place in enumerate(chosen)}
        page = {
            "id": key["id"],
            "examples": list(key["examples"].items()),
            # [file, which picture]: two versions of one picture should not follow each other.
            "calibration": sorted(
                [name, number] for name, (number, *_) in named if number >= examples
            ),
            "pictures": [
                [name, numbers[item["set"], item["picture"]]]
                for name, item in key["pictures"].items()
            ],
        }
        html = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
        html = html.replace("<!-- kit -->", json.dumps(page, separators=(",", ":")))
        files.write_text(place / PAGE, html)
        place.replace(folder)
    return folder / PAGE


def _draw(places: list[tuple[str, str]], count: int | None) -> list[tuple[str, str]]:
    """Draws `count` (set, picture) pairs at random, from each set in turn; all if None."""
    if count is None or count >= len(places):
        return places
    by_set: dict[str, list] = {}
    for place in random.Random(0).sample(places, len(places)):
        by_set.setdefault(place[0], []).append(place)
    in_turn = sorted((i, place) for drawn in by_set.values() for i, place in enumerate(drawn))
    drawn = {place for _, place in in_turn[:count]}
    return [place for place in places if place in drawn]


def _nearest(hr: np.ndarray) -> np.ndarray:
    height, width = hr.shape[:2]
    return methods.nearest(resize.imresize(hr, (height // 4, width // 4)))


def _key_id(key: dict) -> str:
    """Hashes a key without its id."""
    content = {name: value for name, value in key.items() if name != "id"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_kit(folder: str | os.PathLike) -> Kit:
    """Reads a kit's key.

    Raises:
        ValueError: There is no key, or it was changed after its kit was written.
    """
    path = Path(folder, KEY)
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        if key["id"] != _key_id(key):
            raise ValueError("changed after its kit was written")
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a rating kit, which has a {KEY}") from None
    except Exception as error:  # whatever the damage leads to
        raise ValueError(f"{path}: not a kit's key ({files.one_line(error)})") from error
    return Kit(
        key["id"],
        key["sets"],
        {name: method["variant"] for name, method in key["methods"].items()},
        {
            name: Item(item["set"], item["picture"], item["method"])
            for name, item in key["pictures"].items()
        },
        key["calibration"],
        frozenset().union(key["pictures"], key["calibration"], key["examples"]),
    )


def find_kit(paths: Sequence[str | os.PathLike]) -> Path:
    """Finds the kit of ratings: at one of these paths or up to two folders above.

    Raises:
        ValueError: There is no kit.
    """
    for path in map(Path, paths):
        for folder in (path, *path.absolute().parents[:2]):
            if (folder / KEY).is_file():
                return folder
    raise ValueError(f"{paths[0]}: no {KEY} there; set --mos to the kit's folder")
