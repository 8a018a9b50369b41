"""Reads and validates the files in which a kit's page saves ratings."""

import json
import os
import re
import zlib
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from srgan_tf.evaluation.mos_kit import BEST, KEY, WORST, Kit

LONGEST_ALIAS = 40


class Ratings(NamedTuple):
    """One rater's scores, integers from 1 to 5 by file name, in the order of rating.

    Attributes:
        alias: The name that the rater chose.
        seed: 128 random bits in hexadecimal, drawn by the page: identifies the session.
        calibration: The scores of the calibration pictures.
        scores: The scores of the rated pictures.
    """

    alias: str
    seed: str
    calibration: dict[str, int]
    scores: dict[str, int]

    def is_calibrated(self, kit: Kit) -> bool:
        """Tells whether at least three quarters of the scores are within 1 of the expected."""
        near = [abs(score - kit.calibration[file]) <= 1 for file, score in self.calibration.items()]
        return sum(near) >= 0.75 * len(near)


def parse(content: bytes, kit: Kit) -> Ratings:
    """Reads the content of a rating file.

    Args:
        content: As the kit's page wrote it.
        kit: The kit that was rated.

    Returns:
        The ratings, with a score for each picture of the kit.

    Raises:
        ValueError: It is anything else; the message states the reason but does not name the file.
    """
    try:
        document = json.loads(content)
        saved = checksum(document)
        if document["format"] != 1 or document["checksum"] is None:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError("not a rating file") from None
    if document["kit"] != kit.id:
        raise ValueError("rates another kit")
    if document["checksum"] != saved:
        raise ValueError("changed after it was saved")
    alias, seed = document["alias"], document["seed"]
    if not (alias.strip() and alias.isprintable() and len(alias) <= LONGEST_ALIAS):
        raise ValueError(f"the alias must be 1 to {LONGEST_ALIAS} printable characters")
    if not re.fullmatch("[0-9a-f]{32}", seed):
        raise ValueError("the seed must have 32 hexadecimal digits")
    return Ratings(
        alias.strip(),
        seed,
        _scores(document["calibration"], kit.calibration, "calibration"),
        _scores(document["ratings"], kit.items, "rated"),
    )


def checksum(document: dict) -> str:
    """Computes the CRC-32 of a rating file's lines, as the page does, to detect edited files.

    It protects from mistakes, not from forgery, which nothing in a browser can prevent.

    Raises:
        KeyError, TypeError, ValueError: The document is not a rating file.
    """
    lines = [document["kit"], document["seed"], document["alias"]]
    for scores in (document["calibration"], document["ratings"]):
        lines += [f"{file}:{score}" for file, score in scores]
    text = "\n".join(lines)
    return f"{zlib.crc32(text.encode()):08x}"


def _scores(pairs: list, expected: Collection[str], kind: str) -> dict[str, int]:
    """Checks [file, score] pairs: an integer score for each expected file, once."""
    scores: dict[str, int] = {}
    for file, score in pairs:
        if not isinstance(file, str) or file not in expected:
            raise ValueError(f"{file!r:.40}: not one of the kit's {kind} pictures")
        if file in scores:
            raise ValueError(f"{file}: scored twice")
        if type(score) is not int or not WORST <= score <= BEST:
            raise ValueError(f"{file}: {score!r:.40} is not an integer from {WORST} to {BEST}")
        scores[file] = score
    if len(scores) < len(expected):
        raise ValueError(f"partial: {len(scores)} of {len(expected)} {kind} pictures")
    return scores


def find_files(specs: Sequence[str]) -> list[Path]:
    """Lists rating files: the given files, and the .json files in folders, except a kit's key.

    Raises:
        FileNotFoundError: A path does not exist.
        ValueError: There are no rating files.
    """
    found: list[Path] = []
    for path in map(Path, specs):
        if path.is_dir():
            found += files_in(path)
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder")
    if not found:
        raise ValueError(f"{', '.join(specs)}: no rating files")
    return list(dict.fromkeys(found))


def files_in(folder: Path) -> list[Path]:
    """Lists the rating files in a folder: its .json files, except a kit's key and hidden files."""
    inside = sorted(folder.glob("*.json"))
    return [
        path
        for path in inside
        if path.is_file() and path.name != KEY and not path.name.startswith(".")
    ]


def read_files(paths: Sequence[str | os.PathLike], kit: Kit) -> tuple[list[Ratings], list[str]]:
    """Reads rating files; each rater and each session counts once.

    Args:
        paths: The files.
        kit: The kit that was rated.

    Returns:
        The ratings, and a line for each file that is skipped: its name and why.
    """
    counted: dict[Path, Ratings] = {}
    skipped = []
    for path in map(Path, paths):
        try:
            ratings = parse(path.read_bytes(), kit)
            for other, earlier in counted.items():
                if earlier.seed == ratings.seed:
                    raise ValueError(f"the same session as {other}")
                if is_same_alias(earlier.alias, ratings.alias):
                    raise ValueError(f"the same alias as {other}: {ratings.alias}")
        except OSError as error:
            skipped.append(f"{path}: cannot be read ({error.strerror})")
        except ValueError as error:
            skipped.append(f"{path}: {error}")
        else:
            counted[path] = ratings
    return list(counted.values()), skipped


def is_same_alias(one: str, other: str) -> bool:
    """Tells whether two aliases are the same except for case: one person who rated twice."""
    return one.casefold() == other.casefold()
