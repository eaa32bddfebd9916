"""Pretraining images/s: the product's own loop against the limit, lightly's recipe and the paper's loop.

    python benchmarks/pretrain.py [--quick]

Ours is the loop, `satclr.pretrain.train.train`, on a tile store, its speed as it logs it each epoch; between two of its
epochs a rival has a turn of as many steps. The limit is the same step on views already in memory, in the same
process. The rivals read the same tiles as JPEG files of the store's size, with 2 workers, and run in processes
of their own; both are written from their descriptions. An image is a tile, of which a step sees two views.

Epochs are a few steps long. What ours measures at the end of each (satclr.pretrain.diagnostics) is left out: it would
be a third of an epoch of two steps. benchmarks/tracking.py has its share of a real one.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import common
import numpy as np
import torch
import views as transforms
from common import Row
from loss_memory import loss as loss_of
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from satclr import machine
from satclr.data import prepare, tiles
from satclr.params import Pretrain
from satclr.pretrain import diagnostics, train
from satclr.pretrain import encoder as enc
from satclr.pretrain import loss as objectives
from satclr.pretrain import optimizer as optimizers
from satclr.pretrain.convolution import speed_up_small_maps
from satclr.project import Run

WORKERS = 2
SPARE = 20  # tiles that are not trained on, so that every split of a small store has some

Step = Callable[[], float]  # one turn: seconds of `steps` steps


@dataclass(frozen=True)
class Size:
    arch: str
    crop_px: int
    tile_px: int
    batch_size: int
    steps: int  # a turn
    rounds: int  # of turns with a rival
    limit_rounds: int  # with the limit: a ratio near 1 needs more of them
    warm_up: int = 1  # rounds before those with a rival
    against: tuple[str, ...] = ("the limit", "lightly's recipe", "the paper's loop")
    precision: str = common.PRECISION  # ours and the limit's; the rivals' is float32


FULL: tuple[Size, ...] = (Size("resnet18", 64, 96, 128, 8, 3, 8),)
if common.PRECISION != "float32":  # ResNet-50 in float32 would take half an hour
    FULL += (
        Size("resnet18", 64, 96, 128, 8, 3, 0, against=FULL[0].against[1:], precision="float32"),
        Size("resnet50", 224, 256, 16, 2, 4, 4),
        # At 48 the paper's loop gets faster with each of its first steps, as its process gathers memory.
        Size("resnet50", 224, 256, 48, 1, 4, 3, warm_up=6, against=("the limit", "the paper's loop")),
    )
QUICK = (Size("resnet18", 64, 96, 16, 2, 1, 1), Size("resnet50", 224, 256, 2, 2, 1, 1))


def rows(*, quick: bool = False) -> list[Row]:
    return [row for size in (QUICK if quick else FULL) for row in compare(size)]


def compare(size: Size) -> list[Row]:
    """Ours over each rival, at one size."""
    sections = {
        "data": {"tile_px": size.tile_px},
        "views": {"crop_px": size.crop_px},
        "pretrain": {"arch": size.arch, "weights": "none", "precision": size.precision, "batch_size": size.batch_size},
    }
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        count = size.batch_size * size.steps
        project = common.project(Path(name), sections, count=count + SPARE, tile_px=size.tile_px)
        prepare.run(project)
        run, files = project.run("simclr"), project.data
        store = tiles.open_store(run.store)
        store = replace(store, splits=np.where(np.arange(count + SPARE) < count, "train", "val"))
        rivals: dict[str, tuple[Callable[[], AbstractContextManager[Step]], int, str]] = {
            "the limit": (lambda: nullcontext(limit(size, run.settings.pretrain)), size.limit_rounds, size.precision),
            "lightly's recipe": (lambda: apart(lightly, size, files), size.rounds, "float32"),
            "the paper's loop": (lambda: apart(paper, size, files), size.rounds, "float32"),
        }
        for rival in size.against:
            begin, rounds, precision = rivals[rival]
            warm_up = 1 if rival == "the limit" else size.warm_up
            with begin() as step:
                ours, theirs = take_turns(store, run, step, rounds=rounds, warm_up=warm_up, images=count)
            batch = f", batch {size.batch_size}" if size.arch == "resnet50" else ""
            own = ", both in float32" if size.precision != common.PRECISION else ""
            row = f"pretraining {size.arch} {size.crop_px} px{batch}{own} against {rival}"
            found.append(common.rate_row(row, ours, theirs, "images/s") | {"their_precision": precision})
    return [{**row, "batch_size": size.batch_size, "precision": size.precision} for row in found]


def take_turns(
    store: tiles.TileStore, run: Run, rival: Step, *, rounds: int, warm_up: int, images: int
) -> tuple[list[float], list[float]]:
    """Images/s of ours and of the rival, a value a round after those that warm up."""
    ours: list[float] = []
    theirs: list[float] = []

    def log(epoch: int, measured: Mapping[str, float]) -> None:
        speed = images / rival()
        if epoch > warm_up:
            ours.append(measured["tiles_per_s"])
            theirs.append(speed)

    run = common.changed(run, epochs=rounds + warm_up)
    with tempfile.TemporaryDirectory(dir=run.root) as fresh:  # no checkpoint to resume from
        encoder, width = enc.build(run.settings.pretrain.arch, run.settings.views.crop_px)
        with mock.patch.object(diagnostics, "after_epoch", return_value={}):
            train.train(store, encoder, width, run=run, folder=Path(fresh), log=log)
    return ours, theirs


@contextmanager
def apart(rival: Callable[[Size, list[Path]], Step], size: Size, files: Path) -> Iterator[Step]:
    """The rival's turns, taken in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), _begin, (rival, size, files)) as process:
        yield lambda: process.submit(_turn).result()


def _begin(rival: Callable[[Size, list[Path]], Step], size: Size, files: Path) -> None:
    global _step  # noqa: PLW0603 - all that a process of `apart` has
    _step = rival(size, sorted((files / "Images").rglob("*.jpg"))[: size.batch_size * size.steps])


def _turn() -> float:
    return _step()


_step: Step


def limit(size: Size, how: Pretrain) -> Step:
    """The same network, precision, loss and optimizer on views that lie ready."""
    encoder, width = enc.build(size.arch)
    model = nn.Sequential(encoder, enc.projection_head(width, **how.projection.model_dump())).train()
    model.to(memory_format=torch.channels_last)
    if how.matmul_convolutions:
        speed_up_small_maps(model)
    optimizer = optimizers.build(model, how)
    dtype = torch.bfloat16 if how.precision == "bfloat16" else torch.float32
    x = torch.randn(2 * size.batch_size, 3, size.crop_px, size.crop_px, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)

    def steps() -> None:
        for _ in range(size.steps):
            with machine.autocast(x.device, how.precision):
                z = model(x)
            value = objectives.nt_xent(z.float(), how.temperature)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
            optimizer.step()
            value.item()

    return lambda: common.seconds(steps)


class Files(Dataset[tuple[Tensor, Tensor]]):
    """JPEG files, decoded with PIL each time, as two views."""

    def __init__(self, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[i]) as image:
            one, two = self.transform(image.convert("RGB"))
        return one, two


def loader(size: Size, paths: list[Path], transform: Callable[[Image.Image], Tensor]) -> DataLoader[Any]:
    return DataLoader(
        Files(paths, transform),
        size.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
        multiprocessing_context="fork",
    )


def two_forwards(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: DataLoader[Any],
    loss: Callable[[Tensor, Tensor], Tensor],
) -> Step:
    """An epoch of float32, contiguous, one view after the other."""

    def steps() -> None:
        model.train()
        for one, two in batches:
            value = loss(model(one), model(two))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            value.item()

    return lambda: common.seconds(steps)


def lightly(size: Size, paths: list[Path]) -> Step:
    """lightly's documented SimCLR: its projection head, loss and SGD, its transform at the paper's settings."""
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead

    encoder, width = enc.build(size.arch)
    model = nn.Sequential(encoder, nn.Flatten(), SimCLRProjectionHead(width, width, 128))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.06)
    batches = loader(size, paths, transforms.lightly(size.crop_px))
    return two_forwards(model, optimizer, batches, NTXentLoss(temperature=0.5))


def paper(size: Size, paths: list[Path]) -> Step:
    """The paper's loop: PIL transforms, head D → 512 → 128, broadcast NT-Xent, Adam."""
    return papers_loop(*enc.build(size.arch), size, paths)


def papers_loop(encoder: nn.Module, width: int, size: Size, paths: list[Path]) -> Step:
    """The paper's loop, which trains `encoder`."""
    model = nn.Sequential(encoder, enc.projection_head(width, hidden=512, out=128, batch_norm=False))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    batches = loader(size, paths, transforms.paper(size.crop_px))
    unused = torch.empty(0)
    loss = lambda one, two: loss_of("broadcast", torch.cat([one, two]), unused)  # noqa: E731
    return two_forwards(model, optimizer, batches, loss)


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
