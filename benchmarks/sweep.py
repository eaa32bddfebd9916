"""The sweep of probes against one probe, at MLRSNet's size.

    python benchmarks/sweep.py

Ours: `sweep.best` with every learning rate and weight decay, as `evaluate` runs it. Theirs: one probe, as the
stage `probe` trains it. Both with the profile mlrsnet's settings and with validation, on made-up features: 76,412
training and 21,832 validation tiles, 2,048 features, 60 labels. The bound is a ratio of 1/3.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import common
import numpy as np
import torch
from common import Row, seconds

from satclr.evaluation import probe, sweep

TRAIN, VAL, WIDTH, LABELS = 76_412, 21_832, 2_048, 60


def rows() -> list[Row]:
    """One row: seconds of the sweep and of one probe, and the ratio (one probe / sweep)."""
    run = common.run("baseline", {})  # with the settings of the profile mlrsnet
    settings = run.settings
    epochs, size = settings.evaluate.sweep.epochs, settings.probe.batch_size
    rng = np.random.default_rng(0)
    x = rng.standard_normal((TRAIN + VAL, WIDTH), np.float32)
    y = (x @ rng.standard_normal((WIDTH, LABELS), np.float32) > 60).astype(np.uint8)  # a tenth are positive
    split = {"train": np.arange(TRAIN), "val": np.arange(TRAIN, TRAIN + VAL)}
    store = cast(Any, SimpleNamespace(targets=y, rows=split.__getitem__))

    def many() -> None:
        train, val = (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])
        steps = epochs * math.ceil(TRAIN / size)
        sweep.best(train, val, configs=sweep.GRID, steps=steps, batch_size=size, seed=0)

    def one() -> None:
        for _ in probe.train(torch.nn.Linear(WIDTH, LABELS), store, x, run=run):
            pass

    ours, theirs = seconds(many), seconds(one)
    name = "sweep of 10 probes against one at MLRSNet's size"
    return [{"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "s"}]


if __name__ == "__main__":
    for row in rows():
        print("{name}: ours {ours:.1f} {unit}, theirs {theirs:.1f} {unit}, ratio {ratio:.2f}".format(**row))
