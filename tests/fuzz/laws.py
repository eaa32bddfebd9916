"""Laws of the metrics, whatever the scores: what must not change the value, and which way it must move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from satclr.evaluation import metrics

from . import Outcomes, explore

SEEDS = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 6), st.integers(1, 9))


def run(cases: int, seed: int, folder: Path) -> Outcomes:
    """mAP, AP, F1 and thresholds under permutation, repetition, better scores and scores that are no numbers."""

    def check(case: tuple[int, int, int, int]) -> str:
        source, tiles, labels, levels = case
        rng = np.random.default_rng(source)
        scores = rng.integers(0, levels + 1, (tiles, labels)) / levels
        targets = (rng.random((tiles, labels)) < rng.random(labels)).astype(np.uint8)
        ap = metrics.average_precision(scores, targets)
        _bounds(ap, targets)
        _permutation(ap, scores, targets, rng)
        np.testing.assert_allclose(
            metrics.average_precision(np.repeat(scores, 3, 0), np.repeat(targets, 3, 0)), ap, rtol=1e-12
        )
        _better(ap, scores, targets, rng)
        _refusal(scores, targets, rng)
        return "all hold"

    return explore(SEEDS, check, cases=cases, seed=seed)


def _bounds(ap: Any, targets: Any) -> None:
    """AP is undefined exactly where there is no positive; else it is above 0 and at most 1."""
    assert (np.isnan(ap) == (targets.sum(0) == 0)).all()
    defined = ap[~np.isnan(ap)]
    assert ((defined > 0) & (defined <= 1 + 1e-12)).all()
    mean = metrics.mean_average_precision(ap)
    assert np.isnan(mean) if not len(defined) else defined.min() - 1e-12 <= mean <= defined.max() + 1e-12


def _permutation(ap: Any, scores: Any, targets: Any, rng: np.random.Generator) -> None:
    rows, columns = rng.permutation(len(scores)), rng.permutation(scores.shape[1])
    again = metrics.average_precision(scores[rows][:, columns], targets[rows][:, columns])
    np.testing.assert_allclose(again, ap[columns], rtol=1e-12)


def _better(ap: Any, scores: Any, targets: Any, rng: np.random.Generator) -> None:
    """A positive above all others, or a negative below, never lowers AP."""
    row, column = rng.integers(len(scores)), rng.integers(scores.shape[1])
    changed = scores.copy()
    changed[row, column] = 2.0 if targets[row, column] else -1.0
    again = metrics.average_precision(changed, targets)[column]
    assert np.isnan(ap[column]) or again >= ap[column] - 1e-12


def _refusal(scores: Any, targets: Any, rng: np.random.Generator) -> None:
    broken = scores.copy()
    broken[rng.integers(len(scores)), rng.integers(scores.shape[1])] = rng.choice([np.nan, np.inf, -np.inf])
    try:
        metrics.average_precision(broken, targets)
    except ValueError as error:
        assert str(error)
    else:
        raise AssertionError("a score that is no number was ranked")
