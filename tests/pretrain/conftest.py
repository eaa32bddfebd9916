"""A project folder with a store, and pretraining in it."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satclr import files
from satclr.data.tiles import TileStore
from satclr.pretrain import optimizer, train
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


def pretrained_anew(run: Run) -> files.Arrays:
    """The same, with every pretraining so far forgotten."""
    shutil.rmtree(run.root / ".cache")
    return pretrained(run)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same(a: files.Arrays, b: files.Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[k], b[k]) for k in a)


def losses(run: Run) -> list[float]:
    return [float(row["loss"]) for row in files.read_csv(run.results / "pretrain.csv")]


def at_step(number: int, do: Callable[[torch.nn.Module], object]) -> Callable[..., torch.Tensor]:
    """`optimizer.backward`, but `do(model)` comes before the `number`-th call (from 1)."""
    real, calls = optimizer.backward, iter(range(1, 1000))

    def backward(model: torch.nn.Module, *args: Any) -> torch.Tensor:
        if next(calls) == number:
            do(model)
        return real(model, *args)

    return backward
