"""What a training step costs with each objective, beside NT-Xent's: time and memory.

    python benchmarks/objectives.py [--quick]

A step of pretraining (a ResNet-18 on 64 px views) is timed in rounds in which every objective has a turn; a ratio is
the median over rounds. Memory is the peak of resident memory of a process of its own that trains a few steps (Linux).
Ratios are NT-Xent's over the objective's: below 1, the objective costs more.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import get_args
from unittest import mock

import common
import numpy as np
import torch
from common import Row, memory_kib

from satclr.data import tiles
from satclr.params import Objective
from satclr.pretrain import diagnostics, train
from satclr.pretrain import encoder as enc

ARMS = {name: "simclr" if name == "nt_xent" else name for name in get_args(Objective)[1:]}  # after `none`
STEPS, WARM_UP, ROUNDS, BATCH = 6, 2, 5, 128
TILES, LABELS, TILE_PX = 2 * BATCH, 60, 96


def rows(*, quick: bool = False) -> list[Row]:
    rounds = 1 if quick else ROUNDS
    store = made_store(count=16 if quick else TILES)
    times: dict[str, list[float]] = {name: [] for name in ARMS}
    for _ in range(rounds):
        for name in ARMS:
            times[name].append(step_ms(name, store, steps=2 if quick else STEPS))
    found = [row(f"a step with {name}", times[name], times["nt_xent"], "ms") for name in ARMS if name != "nt_xent"]
    peaks = {name: [peak_mib(name, len(store.pixels))] for name in ARMS}
    found += [row(f"memory with {name}", peaks[name], peaks["nt_xent"], "MiB") for name in ARMS if name != "nt_xent"]
    return found


def row(name: str, ours: list[float], theirs: list[float], unit: str) -> Row:
    ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
    ends = (round(statistics.median(values), 1) for values in (ours, theirs))
    return {"name": name, **dict(zip(("ours", "theirs"), ends, strict=True)), "ratio": round(ratio, 3), "unit": unit}


def made_store(count: int) -> tiles.TileStore:
    """Random tiles, each with a twelfth of 60 labels."""
    draw = np.random.default_rng(0)
    store = common.made_store(draw.integers(0, 256, (count, TILE_PX, TILE_PX, 3), dtype=np.uint8))
    targets = (draw.random((count, LABELS)) < 1 / 12).astype(np.uint8)
    return replace(store, targets=targets, labels=[f"label{k}" for k in range(LABELS)])


def step_ms(name: str, store: tiles.TileStore, *, steps: int) -> float:
    """Milliseconds of one step, from epochs of two steps after one that warms up."""
    size = len(store.pixels) // 2
    sections = {
        "data": {"tile_px": TILE_PX},
        "views": {"crop_px": 64},
        "pretrain": {"arch": "resnet18", "weights": "none", "precision": common.PRECISION, "batch_size": size},
    }
    speeds: list[float] = []

    def log(_epoch: int, measured: Mapping[str, float]) -> None:
        speeds.append(measured["tiles_per_s"])

    with tempfile.TemporaryDirectory() as folder:
        run = common.changed(common.run(ARMS[name], sections, Path(folder)), epochs=(WARM_UP + steps) // 2)
        encoder, width = enc.build("resnet18", 64)
        after_epoch = mock.patch.object(diagnostics, "after_epoch", return_value={})
        with after_epoch, mock.patch.object(train, "_label_logits", return_value={}):
            train.train(store, encoder, width, run=run, folder=Path(folder), log=log)
    return 1000 * size / statistics.median(speeds[1:])


def peak_mib(name: str, count: int) -> float:
    done = subprocess.run([sys.executable, __file__, name, str(count)], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 2:
        torch.manual_seed(0)
        step_ms(sys.argv[1], made_store(int(sys.argv[2])), steps=2)
        print(memory_kib()["VmHWM"])
    else:
        for line in rows(quick="--quick" in sys.argv):
            print("{name}: {ours:.1f} {unit}, NT-Xent {theirs:.1f}, ratio {ratio:.2f}".format(**line))
