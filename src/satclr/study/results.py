"""What one run left in results/ and models/, read lazily, each file by one reader.

compare, report, tracking and the registry use it; nobody else parses those files.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import files
from satclr.project import ProjectError, Run


@dataclass(frozen=True)
class Scores:
    """Scores and truth of one split: N tiles, K labels."""

    scores: npt.NDArray[np.float32]  # (N,K)
    targets: npt.NDArray[np.uint8]  # (N,K)
    labels: tuple[str, ...]
    tiles: tuple[str, ...]

    def same_tiles(self, other: Scores) -> bool:
        """Whether both hold the same tiles, labels and truth, in the same order."""
        named = self.labels == other.labels and self.tiles == other.tiles
        return named and np.array_equal(self.targets, other.targets)


@dataclass(frozen=True)
class Results:
    """The files of one run."""

    run: Run

    RESULTS = ("pretrain.csv", "probe.csv", "metrics.json", "per_class_ap.csv", "scores.npz")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        tree: dict[str, Any] = json.loads(self._file("metrics.json").read_text(encoding="utf-8"))
        return tree

    def curve(self, stage: str) -> list[dict[str, str]]:
        """The rows of pretrain.csv or probe.csv."""
        return files.read_csv(self._file(f"{stage}.csv"))

    @cached_property
    def per_class(self) -> list[dict[str, str]]:
        """The rows of per_class_ap.csv, one per label."""
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
        return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None

    @cached_property
    def digest(self) -> str:
        """Stands for every file that the registry and MLflow keep of the run."""
        digest = hashlib.sha256(f"{self.run.profile}/{self.run.key}".encode())
        for path in [*map(self._file, self.RESULTS), self.run.encoder, self.run.probe]:
            digest.update(path.name.encode() + files.sha256(_existing(path, self.run)).encode())
        return digest.hexdigest()

    def _file(self, name: str) -> Path:
        return _existing(self.run.results / name, self.run)


def scores(arrays: files.Arrays, split: str) -> Scores:
    """The part of scores.npz that belongs to a split. Raises `files.FileError` where it is missing."""
    try:
        named = (tuple(map(str, arrays[key])) for key in ("labels", f"{split}_tiles"))
        return Scores(arrays[f"{split}_scores"], arrays[f"{split}_targets"], *named)
    except KeyError as error:
        raise files.FileError(f"scores.npz lacks {error}; run `satclr evaluate` again") from None


def _existing(path: Path, run: Run) -> Path:
    if not path.is_file():
        raise ProjectError(f"{path.relative_to(run.root)} does not exist; run `dvc repro`, or `dvc pull`")
    return path
