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

import numpy as np
import torch
from common import ROOT, Row, seconds

from satclr import params
from satclr.evaluation import probe, sweep

TRAIN, VAL, WIDTH, LABELS = 76_412, 21_832, 2_048, 60


def rows() -> list[Row]:
    """One row: seconds of the sweep and of one probe, and the ratio (one probe / sweep)."""
    settings = params.resolve(params.load(ROOT / "params.yaml"), "mlrsnet", "baseline", 0).settings
    how, size = settings.evaluate.sweep, settings.probe.batch_size
    configs = [(rate, decay) for rate in how.learning_rates for decay in how.weight_decays]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TRAIN + VAL, WIDTH, generator=generator)
    y = (x @ torch.randn(WIDTH, LABELS, generator=generator) > 60).to(torch.uint8)  # a tenth are positive
    split = {"train": np.arange(TRAIN), "val": np.arange(TRAIN, TRAIN + VAL)}
    store = cast(Any, SimpleNamespace(targets=y.numpy(), rows=split.__getitem__))
    features = x.numpy()

    def many() -> None:
        steps = how.epochs * math.ceil(TRAIN / size)
        train, val = (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])
        sweep.best(train, val, configs=configs, steps=steps, batch_size=size, seed=0)

    def one() -> None:
        layer = torch.nn.Linear(WIDTH, LABELS)
        encode = lambda rows: torch.from_numpy(features[rows])  # noqa: E731
        for _ in probe.train(layer, store, encode, features, settings=settings, seed=0):
            pass

    ours, theirs = seconds(many), seconds(one)
    name = "sweep of 10 probes against one at MLRSNet's size"
    return [{"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "s"}]


if __name__ == "__main__":
    for row in rows():
        print("{name}: ours {ours:.1f} {unit}, theirs {theirs:.1f} {unit}, ratio {ratio:.2f}".format(**row))
