"""Where results come from: the commit."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit(root: Path) -> tuple[str | None, bool]:
    """The commit, and whether tracked files other than dvc.lock (which changes while DVC runs) differ from it."""
    sha = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return sha, bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # git is not installed
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
