"""Where a report comes from: the commit, the versions, every parameter."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from satclr.params import Arm

PACKAGES = ("satclr", "torch", "torchvision", "numpy", "scikit-learn", "umap-learn", "mlflow", "dvc")


def commit(root: Path) -> str | None:
    """The commit that `root` has checked out, and whether tracked files differ; None outside a repository.

    dvc.lock is left aside: it changes while DVC runs.
    """
    head = _git(root, "rev-parse", "HEAD")
    if not head:
        return None
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return f"{head} with changes" if changes else head


def parameters(arms: Sequence[Arm]) -> list[tuple[str, list[str]]]:
    """Every setting, one column an arm."""
    flat = [arm.flat() for arm in arms]
    return [(key, [f[key] for f in flat]) for key in flat[0] if key not in ("profile", "arm", "seed")]


def versions() -> dict[str, str]:
    """Python's and those of the packages that the numbers depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
