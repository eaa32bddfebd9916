"""Does the fast version learn what the plain one does? Test mAP after SimCLR, seed by seed.

    python benchmarks/run.py quality          some 35 minutes on two quiet cores

Plain: torchvision's transforms on PIL pictures, float32, contiguous, a broadcast NT-Xent: nothing of the product's
but the encoder's initial weights. Both with the settings of `params.yaml` (UC Merced: ResNet-18 from random
weights, 64 px, 20 epochs) and both probed by the product's stages. Seeds run two at a time, one thread each.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import common
import torch
import views as transforms
from common import Row
from loss_memory import loss as loss_of
from PIL import Image
from torch import nn

from satclr import files, randomness
from satclr.data import prepare, tiles
from satclr.evaluation import embed, evaluate, probe
from satclr.pretrain import encoder as enc
from satclr.pretrain import train
from satclr.project import Project, Run

SEEDS = range(4)
WAYS = ("plain", "ours")


def rows() -> list[Row]:
    """Mean test mAP over seeds of ours and of the plain version, with each seed's and their spread."""
    with tempfile.TemporaryDirectory() as name:
        project = _project(Path(name))
        prepare.run(project)
        with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            jobs = {(way, seed): pool.submit(mean_ap, project, way, seed) for way in WAYS for seed in SEEDS}
            found = {way: [jobs[way, seed].result() for seed in SEEDS] for way in WAYS}
    mean = {way: statistics.mean(values) for way, values in found.items()}
    spread = {way: statistics.stdev(values) for way, values in found.items()}
    row: Row = {
        "name": "test mAP after SimCLR, against the plain version",
        "ours": round(mean["ours"], 4),
        "theirs": round(mean["plain"], 4),
        "ratio": round(mean["ours"] / mean["plain"], 3),
        "unit": f"mAP, mean of {len(SEEDS)} seeds",
        "seeds": {way: [round(value, 4) for value in values] for way, values in found.items()},
        "spread": {way: round(value, 4) for way, value in spread.items()},
    }
    return [row]


def mean_ap(project: Project, way: str, seed: int) -> float:
    """Pretrain, embed, probe and test."""
    run = project.run("simclr", seed)
    if way == "plain":
        run = replace(run, arm="plain")
        plain(run)
    else:
        train.run(run, _quiet)
    for stage in (embed, probe, evaluate):
        stage.run(run, _quiet)
    result = float(json.loads((run.results / "metrics.json").read_text())["test_mAP"])
    print(way, seed, round(result, 4), file=sys.stderr, flush=True)
    return result


def _quiet(_epoch: int, _metrics: Mapping[str, float]) -> None: ...


def plain(run: Run) -> None:
    """SimCLR as one would write it without thinking of speed; writes the run's encoder."""
    how, settings, store = run.settings.pretrain, run.settings, tiles.open_store(run.store)
    files.write_csv(run.results / "pretrain.csv", ["epoch", "loss", "learning_rate"], [])
    mean, std = store.statistics(how.normalization)
    encoder, width = enc.initial(how.arch, how.weights, seed=randomness.derive(run.seed, "encoder"), root=run.root)
    torch.manual_seed(run.seed)
    head = nn.Sequential(
        nn.Linear(width, width, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        nn.Linear(width, how.projection.out, bias=False), nn.BatchNorm1d(how.projection.out),
    )  # fmt: skip
    model = nn.Sequential(encoder, head).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=how.learning_rate)
    transform = transforms.paper(settings.views.crop_px, mean, std)
    pictures = [Image.fromarray(store.pixels[row]) for row in store.rows("train")]
    for _ in range(how.epochs):
        order = torch.randperm(len(pictures)).split(how.batch_size)
        for batch in order if len(pictures) < how.batch_size else order[: len(pictures) // how.batch_size]:
            views = torch.stack([transform(pictures[i]) for i in batch])  # (B,2,3,S,S)
            z = model(views.transpose(0, 1).flatten(0, 1))
            loss = loss_of("broadcast", z, torch.empty(0))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    facts = {"mean": mean, "std": std, "crop_px": settings.views.crop_px, "tile_px": store.stats["tile_px"]}
    enc.save(encoder.eval(), run.encoder, arch=how.arch, width=width, **facts)


def _project(folder: Path) -> Project:
    """A project with params.yaml's own profile of the data, which is not copied."""
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(common.ROOT / name, folder)
    (folder / "data").mkdir()
    (folder / "data" / common.data().name).symlink_to(common.data().absolute())
    return Project(folder, common.data().name)


if __name__ == "__main__":
    print(json.dumps(rows(), indent=2))
