"""A project folder with a store, and pretraining in it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from satclr import files
from satclr.data.tiles import TileStore
from satclr.pretrain import train
from satclr.progress import Log
from satclr.project import Run
from tests.conftest import ROOT


@pytest.fixture
def root(store: TileStore, tmp_path: Path) -> Path:
    return make_root(tmp_path, store)


def make_root(folder: Path, store: TileStore) -> Path:
    """A project folder around the profile tiny's store."""
    (folder / "build").mkdir(parents=True)
    (folder / "build" / "tiny").symlink_to(store.folder)
    shutil.copy(ROOT / "dvc.yaml", folder)
    return folder


def pretrained(run: Run, log: Log = lambda _epoch, _metrics: None) -> files.Arrays:
    """The encoder that the stage writes."""
    train.run(run, log)
    return files.load_tensors(run.encoder)[0]


def same(a: files.Arrays, b: files.Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def losses(run: Run) -> list[float]:
    return [float(row["loss"]) for row in files.read_csv(run.results / "pretrain.csv")]


def fresh(run: Run) -> None:
    """Forget that the run was pretrained."""
    shutil.rmtree(run.root / ".cache")
