"""Does the fast version learn what the plain one does? Test mAP after SimCLR, seed by seed.

    python benchmarks/run.py quality          some 35 minutes on two quiet cores

Plain: torchvision's transforms on PIL pictures, float32, contiguous, a broadcast NT-Xent: nothing of the product's
but the encoder's initial weights. Both with the settings of `params.yaml` (UC Merced: ResNet-18 from random
weights, 64 px, 20 epochs) and both probed by the product's stages. Seeds run two at a time, one thread each.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import common
import torch
import views as transforms
from common import Row
from loss_memory import loss as loss_of
from PIL import Image
from torch import nn

from satclr import params, randomness
from satclr.data import prepare, tiles
from satclr.evaluation import embed, evaluate, probe
from satclr.params import Arm
from satclr.pretrain import encoder as enc
from satclr.pretrain import stage as pretrain

SEEDS = range(4)
WAYS = ("plain", "ours")


def rows() -> list[Row]:
    """Mean test mAP over seeds of ours and of the plain version, with each seed's and their spread."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare.run(common.data(), folder / "build", _arm(0).settings.data)
        with ProcessPoolExecutor(2, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
            jobs = {(way, seed): pool.submit(mean_ap, folder, way, seed) for way in WAYS for seed in SEEDS}
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


def mean_ap(folder: Path, way: str, seed: int) -> float:
    """Pretrain, embed, probe and test, all in a folder of its own."""
    store, arm, out = tiles.open_store(folder / "build"), _arm(seed), folder / f"{way}-{seed}"
    out.mkdir()
    settings = arm.settings
    encoder, features, layer = out / "encoder.safetensors", out / "features.npy", out / "probe.safetensors"
    if way == "ours":
        pretrain.train(store, settings=settings, seed=seed, root=folder, folder=out, log=lambda *_: None)
    else:
        plain(store, arm, folder, encoder)
    embed.run(store, encoder=encoder, out=features, settings=settings)
    probe.run(
        store,
        features=features,
        encoder=encoder,
        out=layer,
        curve=out / "probe.csv",
        settings=settings,
        seed=seed,
        log=lambda *_: None,
    )
    result = evaluate.run(store, features=features, probe=layer, out=out, arm=arm)
    print(way, seed, round(result["test_mAP"], 4), file=sys.stderr, flush=True)
    return float(result["test_mAP"])


def plain(store: tiles.TileStore, arm: Arm, root: Path, out: Path) -> None:
    """SimCLR as one would write it without thinking of speed; writes the encoder to `out`."""
    how, settings = arm.settings.pretrain, arm.settings
    mean, std = store.statistics(how.normalization)
    encoder, width = enc.initial(
        how.arch, how.weights, seed=randomness.derive(arm.seed, "encoder"), root=root
    )
    torch.manual_seed(arm.seed)
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
    enc.save(encoder.eval(), out, arch=how.arch, width=width, **facts)


def _arm(seed: int) -> Arm:
    return params.resolve(params.load(common.ROOT / "params.yaml"), common.data().name, "simclr", seed)


if __name__ == "__main__":
    print(json.dumps(rows(), indent=2))
