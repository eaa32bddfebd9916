"""The probe to convergence against the paper's probe, at MLRSNet's size.

    python benchmarks/logistic.py

Ours: `logistic.best` over all strengths, as `evaluate` runs it. Theirs: one probe of 10 epochs, as the stage `probe`
trains it. Both on an eighth of the tiles, scaled up to 76,412 training and 21,832 validation tiles, with made-up
features of falling spread (2,048) and 60 labels that depend on some of them.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import common
import numpy as np
import torch
from common import Row, seconds

from satclr.evaluation import logistic, probe

TRAIN, VAL, WIDTH, LABELS, SHARE = 76_412, 21_832, 2_048, 60, 8


def rows() -> list[Row]:
    """One row: seconds of the converged probe and of the paper's, and the ratio (the paper's / converged)."""
    run = common.run("baseline", {})  # with the settings of the profile mlrsnet
    train, val = TRAIN // SHARE, VAL // SHARE
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((train + val, 100), np.float32)
    spread = np.exp(-np.arange(WIDTH, dtype=np.float32) / 400)
    x = hidden @ rng.standard_normal((100, WIDTH), np.float32) * spread
    x = np.maximum(x + 0.5 * rng.standard_normal(x.shape, np.float32), 0)
    logits = hidden @ rng.standard_normal((100, LABELS), np.float32) + 12 * rng.standard_normal((len(x), LABELS))
    y = (logits > np.linspace(10, 35, LABELS)).astype(np.uint8)
    split = {"train": np.arange(train), "val": np.arange(train, train + val)}
    store = cast(Any, SimpleNamespace(targets=y, rows=split.__getitem__))

    def converged() -> None:
        parts = logistic.standardize(x[:train], x[train:])
        logistic.best((parts[0], y[:train]), (parts[1], y[train:]))

    def one() -> None:
        for _ in probe.train(torch.nn.Linear(WIDTH, LABELS), store, x, run=run):
            pass

    ours, theirs = SHARE * seconds(converged), SHARE * seconds(one)
    name = f"converged probe against the paper's at MLRSNet's size, scaled up from 1/{SHARE} of the tiles"
    return [{"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "s"}]


if __name__ == "__main__":
    for row in rows():
        print("{name}: ours {ours:.1f} {unit}, theirs {theirs:.1f} {unit}, ratio {ratio:.2f}".format(**row))
