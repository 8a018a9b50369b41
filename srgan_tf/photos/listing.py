"""Lists the pictures that a cluster upscales, and names their results.

Names are strings, not paths, and are yielded as they are found: there may be a hundred million.
"""

import functools
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from srgan_tf import files
from srgan_tf.photos import enlarge, stores

_PATTERN = re.compile(r"[*?\[]")


def jobs(
    inputs: Sequence[str],
    out_dir: str,
    *,
    format: str,
    overwrite: bool,
    say: Callable[[str], None],
) -> Iterator[tuple[str, str]]:
    """Yields pictures and their results, named as in `enlarge.plan`.

    Args:
        inputs: As in `cluster.run`.
        out_dir: The folder for results.
        format: The results' ending.
        overwrite: Also yield pictures that already have their result.
        say: Receives lines that count the skipped pictures.

    Raises:
        FileNotFoundError, ValueError: Pictures cannot be found or named; one line.
    """
    # The lines of a list may jump between folders.
    list_folder = functools.lru_cache(64)(stores.list_folder)
    count, there, example, named_like_results = 0, 0, "", []
    for to, chosen in _found(inputs, out_dir, say):
        present = frozenset() if overwrite else frozenset(list_folder(to))
        # Joined once for each folder: there may be a hundred million names.
        before = {folder: stores.join(folder, "-")[:-1] for folder in chosen}
        into = stores.join(to, "-")[:-1]
        for folder, name, result in enlarge.name_results(chosen, list_folder, to, format):
            if result is None:
                named_like_results.append(before[folder] + name)
                continue
            count += 1
            if result in present:
                there += 1
                example = into + result
            else:
                yield before[folder] + name, into + result
    if named_like_results:
        number = len(named_like_results)
        say(f"skipped {number} named like results, such as {named_like_results[0]}")
    if there:
        which = example if count == 1 else f"{there} of {count}"
        say(f"{which} skipped: already there (--overwrite recomputes)")


def _found(
    inputs: Sequence[str], out_dir: str, say: Callable[[str], None]
) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yields each folder of results with the names of its pictures, by the pictures' folder.

    A single folder or list is read step by step. Several inputs may have results in one folder, so
    their names are held in memory.
    """
    lists = [given for given in inputs if given.startswith("@")]
    if lists:
        if len(inputs) > 1:
            raise ValueError(f"{lists[0]}: a list of pictures must be the only argument")
        yield from _listed(stores.plain(lists[0][1:]), out_dir)
        return
    given = [name for each in inputs for name in _expanded(stores.plain(each))]
    if len(given) == 1:
        for folder, to, names in _pieces(given[0], out_dir, say):
            yield to, {folder: names}
        return
    chosen = defaultdict(lambda: defaultdict(list))
    seen = defaultdict(set)
    for each in given:
        for folder, to, names in _pieces(each, out_dir, say):
            chosen[to][folder] += [name for name in names if name not in seen[folder]]
            seen[folder].update(names)
    yield from chosen.items()


def _pieces(
    given: str, out_dir: str, say: Callable[[str], None]
) -> Iterator[tuple[str, str, list[str]]]:
    """Yields (folder, folder of the results, names) of one file, or of each folder in a folder."""
    if not stores.is_folder(given):
        folder, name = stores.split(given)
        yield folder, out_dir, [name]
        return
    empty, top = True, stores.absolute(given) + "/"
    results = stores.absolute(out_dir) + "/"
    nested = results != top and results.startswith(top)
    for folder, names in stores.walk(given, say):
        if nested and (stores.absolute(folder) + "/").startswith(results):
            continue
        below = folder[len(given.rstrip("/")) :].strip("/")
        yield stores.join(folder), stores.join(out_dir, below), sorted(names)
        empty = False
    if empty:
        raise ValueError(f"{given}: no pictures in this folder")


def _expanded(given: str) -> list[str]:
    """Returns the files and folders that a name or pattern stands for.

    Raises:
        FileNotFoundError: Nothing matches.
    """
    if stores.exists(given):
        return [given]
    found = stores.matches(given) if _PATTERN.search(given) else []
    if not found:
        raise FileNotFoundError(f"{given}: no such file or folder")
    return found


def _listed(path: str, out_dir: str) -> Iterator[tuple[str, dict[str, list[str]]]]:
    """Yields the pictures that the lines of a text file name, as `_found` does.

    Results keep the folders of the names, because among millions of lines some names are equal.
    """
    kind = None
    with files.naming(path, "cannot be read"), stores.opened(path) as lines:
        names = filter(None, (os.fsdecode(line).rstrip("\r\n") for line in lines))
        for start, group in itertools.groupby(names, lambda name: name[: name.rfind("/") + 1]):
            folder = stores.join(stores.plain(start))
            scheme, _, rest = folder.rpartition("://")
            root = scheme or ("/" if folder.startswith("/") else ".")
            if kind is None:
                kind = root
            if root != kind or ".." in rest.split("/"):
                raise ValueError(
                    f"{path}: {folder} could lead to the results of another folder: give all "
                    "names from / or from the same bucket or folder, without .."
                )
            yield (
                stores.join(out_dir, rest.strip("/")),
                {folder: list(dict.fromkeys(name[len(start) :] for name in group))},
            )
