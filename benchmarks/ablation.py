"""The whole ablation our way against the paper's way: passes, decodes, seconds.

    python benchmarks/ablation.py [--quick]

Both: statistics, the baseline's and SimCLR's encoder, two probes, two tests. Ours runs the stages, `prepare`
included. The paper's way, written from its description, decodes JPEG files with 2 workers in every epoch of
everything: a pass for the statistics, a pretraining in float32 with two forwards, and probes that encode
training and validation tiles again in each of their epochs. Passes and decodes are counted from the protocol
(10 + 10 epochs, splits of 70/20/10, two arms); seconds are measured on a thousand tiles, in turns, with the
paper's epochs and with fewer of pretraining.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import common
import numpy as np
import pretrain as rivals
import torch
from common import Row
from PIL import Image
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T  # noqa: N812

from satclr.data import prepare, tiles
from satclr.evaluation import embed, evaluate, probe
from satclr.pretrain import encoder as enc
from satclr.pretrain import train
from satclr.project import Project

TRAIN, VAL, TEST = 0.7, 0.2, 0.1
ARMS = ("baseline", "simclr")
BACKWARD = 2  # a backward pass costs two forward ones


@dataclass(frozen=True)
class Scale:
    tiles: int
    pretrain_epochs: int
    probe_epochs: int
    batch_size: int
    rounds: int
    crop_px: int = 64
    tile_px: int = 96
    arch: str = "resnet18"


FULL = (
    Scale(tiles=1024, pretrain_epochs=3, probe_epochs=10, batch_size=128, rounds=2),
    Scale(tiles=1024, pretrain_epochs=10, probe_epochs=10, batch_size=128, rounds=2),
)
QUICK = (Scale(tiles=48, pretrain_epochs=1, probe_epochs=2, batch_size=16, rounds=1),)
PROTOCOL = Scale(tiles=109_161, pretrain_epochs=10, probe_epochs=10, batch_size=128, rounds=0)


def rows(*, quick: bool = False) -> list[Row]:
    return [*counted(PROTOCOL), *map(measured, QUICK if quick else FULL)]


def counted(scale: Scale) -> list[Row]:
    """Encoder passes and JPEG decodes a tile of the data set, with the paper's protocol."""
    trained = scale.pretrain_epochs * TRAIN * 2 * (1 + BACKWARD)
    embedded = len(ARMS) * 1.0  # every tile once an arm
    encoded = len(ARMS) * (scale.probe_epochs * (TRAIN + VAL) + TEST)
    decoded = TRAIN + scale.pretrain_epochs * TRAIN + encoded
    table = (
        ("encoder passes of both probes and tests", embedded, encoded, "forward passes a tile"),
        ("encoder passes of the whole ablation", trained + embedded, trained + encoded,
         "passes a tile (a backward is 2)"),
        ("JPEG decodes of the whole ablation", 1.0, decoded, "decodes a tile"),
    )  # fmt: skip
    return [
        {"name": name, "ours": round(a, 2), "theirs": round(b, 2), "ratio": round(b / a, 2), "unit": unit}
        for name, a, b, unit in table
    ]


def measured(scale: Scale) -> Row:
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as name:
        for turn in range(scale.rounds):
            # A new project each time: nothing is taken from a checkpoint.
            project = common.project(Path(name) / str(turn), sections(scale), count=scale.tiles, tile_px=scale.tile_px)
            ours.append(common.seconds(lambda project=project: our_way(project)))  # type: ignore[misc]
            with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # see benchmarks/pretrain.py
                theirs.append(apart.submit(papers_seconds, scale, project.data, project.store).result())
    name = f"whole ablation, {scale.pretrain_epochs} + {scale.probe_epochs} epochs"
    row = common.rate_row(name, [1 / s for s in ours], [1 / s for s in theirs], "s")
    return row | {
        "ours": round(float(np.median(ours)), 2),
        "theirs": round(float(np.median(theirs)), 2),
        "tiles": scale.tiles,
    }


def sections(scale: Scale) -> dict[str, Any]:
    return {
        "data": {"tile_px": scale.tile_px},
        "views": {"crop_px": scale.crop_px},
        "pretrain": {"arch": scale.arch, "weights": "none", "precision": common.PRECISION,
                     "epochs": scale.pretrain_epochs, "batch_size": scale.batch_size},
        "probe": {"epochs": scale.probe_epochs},
    }  # fmt: skip


def our_way(project: Project) -> None:
    prepare.run(project)
    for arm in ARMS:
        for stage in (train, embed, probe, evaluate):
            stage.run(project.run(arm), lambda _epoch, _metrics: None)


class Labelled(Dataset[tuple[Tensor, Tensor]]):
    """JPEG files with their labels, decoded and resized each time."""

    def __init__(self, paths: list[Path], targets: Tensor, crop_px: int) -> None:
        self.paths, self.targets = paths, targets
        cubic = T.InterpolationMode.BICUBIC
        self.transform = T.Compose([T.Resize((crop_px, crop_px), interpolation=cubic), T.ToTensor()])

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        with Image.open(self.paths[i]) as image:
            return self.transform(image.convert("RGB")), self.targets[i]


def papers_seconds(scale: Scale, files: Path, build: Path) -> float:
    store = tiles.open_store(build)  # for the split and the labels alone
    return common.seconds(lambda: papers_way(scale, files, store))


def papers_way(scale: Scale, files: Path, store: tiles.TileStore) -> None:
    split: dict[str, DataLoader[Any]] = {}
    for which in tiles.SPLITS:
        paths = [files / "Images" / store.categories[row] / store.names[row] for row in store.rows(which)]
        targets = torch.from_numpy(store.targets[store.rows(which)]).float()
        split[which] = DataLoader(
            Labelled(paths, targets, scale.crop_px),
            scale.batch_size,
            shuffle=which == "train",
            num_workers=rivals.WORKERS,
            persistent_workers=True,
            multiprocessing_context="fork",
        )
        if which == "train":
            training = paths
    mean, std = statistics_of(split["train"])
    size = rivals.Size(scale.arch, scale.crop_px, scale.tile_px, scale.batch_size, 0, 0, 0)
    encoder, width = enc.build(scale.arch)
    probed(encoder, width, split, mean, std, labels=len(store.labels), epochs=scale.probe_epochs)
    encoder, width = enc.build(scale.arch)
    epoch = rivals.papers_loop(encoder, width, size, training)
    for _ in range(scale.pretrain_epochs):
        epoch()
    probed(encoder, width, split, mean, std, labels=len(store.labels), epochs=scale.probe_epochs)


def statistics_of(batches: DataLoader[Any]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation a channel, (3,1,1), by one pass over the files."""
    pixels, total, squares = 0, torch.zeros(3), torch.zeros(3)
    for x, _ in batches:
        pixels += x.numel() // 3
        total += x.sum((0, 2, 3))
        squares += x.square().sum((0, 2, 3))
    mean = total / pixels
    return mean[:, None, None], (squares / pixels - mean.square()).sqrt()[:, None, None]


def probed(
    encoder: nn.Module,
    width: int,
    split: Mapping[str, DataLoader[Any]],
    mean: Tensor,
    std: Tensor,
    *,
    labels: int,
    epochs: int,
) -> float:
    """Train a linear layer, the frozen encoder run again on every batch; returns the test mAP."""
    encoder.eval()
    layer = nn.Linear(width, labels)
    optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3)
    criterion = nn.BCEWithLogitsLoss()

    @torch.no_grad()
    def features(x: Tensor) -> Tensor:
        h: Tensor = encoder((x - mean) / std)
        return h.flatten(1)

    def scored(batches: DataLoader[Any]) -> float:
        found = [(layer(features(x)).detach(), y) for x, y in batches]
        logits, targets = (torch.cat(column).numpy() for column in zip(*found, strict=True))
        some = targets.any(0)
        return float(average_precision_score(targets[:, some], logits[:, some]))

    best = -math.inf
    for _ in range(epochs):
        for x, y in split["train"]:
            loss = criterion(layer(features(x)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        best = max(best, scored(split["val"]))
    return scored(split["test"])


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
