"""What one run left in results/ and models/, read lazily; the commit and versions behind it.

compare, report, tracking and the registry use it; nobody else parses those files.
"""

import hashlib
import json
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from satclr import files
from satclr.project import ProjectError, Run

PACKAGES = ("satclr", "torch", "torchvision", "timm", "numpy", "scikit-learn", "umap-learn", "mlflow", "dvc")


@dataclass(frozen=True)
class Scores:
    """Scores and truth of one split: N tiles, K labels."""

    scores: npt.NDArray[np.float32]  # (N,K)
    targets: npt.NDArray[np.uint8]  # (N,K)
    labels: tuple[str, ...]
    tiles: tuple[str, ...]

    def same_tiles(self, other: Self) -> bool:
        """Whether both hold the same tiles, labels and truth, in the same order."""
        named = self.labels == other.labels and self.tiles == other.tiles
        return named and np.array_equal(self.targets, other.targets)


@dataclass(frozen=True)
class Results:
    """The files of one run. Readers raise `ProjectError` for a missing file, `files.FileError` for a damaged one."""

    run: Run

    RESULTS = ("pretrain.csv", "probe.csv", "details.json", "per_class_ap.csv", "scores.npz")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """All numbers of details.json."""
        return read_json(self._file("details.json"))

    def curve(self, stage: str) -> list[dict[str, float]]:
        """The rows of pretrain.csv or probe.csv, one per epoch; none where nothing was trained."""
        path = self._file(f"{stage}.csv")
        try:
            rows = files.read_csv(path)  # a cell is empty where nothing was measured in that epoch
            return [{key: float(value) for key, value in row.items() if value != ""} for row in rows]
        except (TypeError, ValueError) as error:
            raise files.FileError(f"{path} is not a table of numbers ({error}); run `dvc repro`") from None

    @cached_property
    def per_class(self) -> list[dict[str, str]]:
        """The rows of per_class_ap.csv, one per label; cells are empty where a label has no positive test tile."""
        return files.read_csv(self._file("per_class_ap.csv"))

    @cached_property
    def arrays(self) -> files.Arrays:
        """All of scores.npz."""
        return files.load_npz(self._file("scores.npz"))

    def scores(self, split: str) -> Scores:
        """Scores of `val` or `test` tiles."""
        return scores(self.arrays, split)

    def optional(self, name: str) -> dict[str, Any] | None:
        """robustness.json or maps.json; None where the stage did not run."""
        path = self.run.results / name
        return read_json(path) if path.is_file() else None

    @cached_property
    def digest(self) -> str:
        """Stands for every file that the registry and MLflow keep of the run."""
        digest = hashlib.sha256(f"{self.run.profile}/{self.run.key}".encode())
        for path in [*map(self._file, self.RESULTS), self.run.encoder, self.run.probe]:
            digest.update(path.name.encode() + files.sha256(existing(path, self.run.root)).encode())
        return digest.hexdigest()

    def _file(self, name: str) -> Path:
        return existing(self.run.results / name, self.run.root)


Arms = Mapping[str, Sequence[Results]]  # arm → its seeds


def scores(arrays: files.Arrays, split: str) -> Scores:
    """The part of scores.npz that belongs to a split. Raises `files.FileError` where it is missing."""
    try:
        named = (tuple(map(str, arrays[key])) for key in ("labels", f"{split}_tiles"))
        return Scores(arrays[f"{split}_scores"], arrays[f"{split}_targets"], *named)
    except KeyError as error:
        raise files.FileError(f"scores.npz lacks {error}; run `satclr evaluate` again") from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that a stage wrote. Raises `files.FileError` where it is damaged."""
    try:
        tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise files.FileError(f"{path} is not complete JSON ({error}); run `dvc repro`") from None
    return tree


def existing(path: Path, root: Path) -> Path:
    """`path`. Raises `ProjectError` where no such file exists."""
    if not path.is_file():
        raise ProjectError(f"{path.relative_to(root)} does not exist; run `dvc repro`, or `dvc pull`")
    return path


def git_state(root: Path) -> tuple[str | None, bool]:
    """The commit checked out in `root`, and whether tracked files differ from it; (None, False) outside git.

    dvc.lock is ignored: it changes while DVC runs.
    """
    command = ["git", "status", "--porcelain=v2", "--branch", "--untracked-files=no", "--", ".", ":!dvc.lock"]
    try:
        text = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False).stdout
    except OSError:  # git is not installed
        return None, False
    head = re.search(r"^# branch\.oid ([0-9a-f]+)$", text, re.MULTILINE)
    return head and head[1], bool(re.search(r"^[^#]", text, re.MULTILINE))


def versions() -> dict[str, str]:
    """The versions of Python and of the installed packages that numbers depend on."""
    installed = {package.name: package.version for package in metadata.distributions()}
    return {"python": platform.python_version()} | {n: installed[n] for n in PACKAGES if n in installed}
