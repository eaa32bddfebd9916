"""Where numbers come from: the commit and the versions."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("satclr", "torch", "torchvision", "timm", "numpy", "scikit-learn", "umap-learn", "mlflow", "dvc")


def commit(root: Path) -> tuple[str | None, bool]:
    """The commit checked out in `root`, and whether tracked files differ from it; (None, False) outside git.

    dvc.lock is ignored: it changes while DVC runs.
    """
    head = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return head or None, bool(changes)


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that numbers depend on."""
    installed = {package.name: package.version for package in metadata.distributions()}
    return {"python": platform.python_version()} | {n: installed[n] for n in PACKAGES if n in installed}


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
