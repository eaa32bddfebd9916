"""Every metric against scikit-learn or a loop over rows, and against laws it must keep."""

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from satclr import metrics

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
seeds = st.integers(0, 2**20)
shapes = st.tuples(st.integers(1, 40), st.integers(1, 6))
levels = st.sampled_from([2, 5, 10**6])  # distinct scores: few make ties


def draw(seed: int, shape: tuple[int, int], *, levels: int = 10**6) -> tuple[Floats, Bools]:
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=shape) / levels - 0.5
    return scores, rng.random(shape) < rng.random(shape[1])


@given(seeds, shapes, levels)
@settings(deadline=None)
def test_average_precision_is_scikit_learns(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    ours = metrics.average_precision(scores, targets)
    for k, value in enumerate(ours):
        if targets[:, k].any():
            theirs = sk.average_precision_score(targets[:, k], scores[:, k])
            assert value == pytest.approx(theirs, abs=1e-12)
        else:
            assert np.isnan(value)


@given(seeds, shapes, levels)
@settings(deadline=None)
def test_means_of_average_precision_are_scikit_learns(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    some = targets.any(0)
    macro = metrics.mean_average_precision(metrics.average_precision(scores, targets))
    micro = metrics.micro_average_precision(scores, targets)
    if some.any():
        theirs = sk.average_precision_score(targets[:, some], scores[:, some], average="macro")
        assert macro == pytest.approx(theirs, abs=1e-12)
        theirs = sk.average_precision_score(targets.ravel(), scores.ravel())
        assert micro == pytest.approx(theirs, abs=1e-12)
    else:
        assert np.isnan([macro, micro]).all()


@given(seeds, shapes, levels)
@settings(deadline=None)
def test_average_precision_sees_only_the_ranking(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    ap = metrics.average_precision(scores, targets)
    np.testing.assert_array_equal(metrics.average_precision(np.exp(scores) * 3 - 1, targets), ap)
    order = np.random.default_rng(seed).permutation(shape[0])
    shuffled = metrics.average_precision(scores[order], targets[order])
    np.testing.assert_allclose(shuffled, ap, rtol=0, atol=1e-12)
    known = ap[~np.isnan(ap)]
    assert ((known > 0) & (known <= 1)).all()


def test_average_precision_of_perfect_constant_and_random_scores() -> None:
    scores, targets = draw(0, (2000, 5))
    prevalence = targets.mean(0)
    np.testing.assert_array_equal(metrics.average_precision(targets, targets), 1)
    np.testing.assert_allclose(metrics.average_precision(scores * 0, targets), prevalence)
    np.testing.assert_allclose(metrics.average_precision(scores, targets), prevalence, atol=0.05)


def repeated_map(scores: Floats, targets: Bools, counts: NDArray[np.int32]) -> float:
    """Macro mAP of the rows written out as often as they were drawn, by scikit-learn."""
    s, t = np.repeat(scores, counts, axis=0), np.repeat(targets, counts, axis=0)
    aps = [sk.average_precision_score(t[:, k], s[:, k]) for k in range(s.shape[1]) if t[:, k].any()]
    return float(np.mean(aps)) if aps else np.nan


@given(seeds, shapes, levels)
@settings(deadline=None, max_examples=40)
def test_bootstrap_equals_resample_and_recompute(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    other, _ = draw(seed + 1, shape, levels=levels)
    counts = metrics.draw_counts(shape[0], resamples=5, seed=seed)
    expected = [[repeated_map(s, targets, c) for s in (scores, other)] for c in counts.T]
    ours = metrics.paired_bootstrap([scores, other], targets, resamples=5, seed=seed)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(metrics.bootstrap(scores, targets, resamples=5, seed=seed), ours[:, 0])


def test_counts_are_draws_with_replacement() -> None:
    counts = metrics.draw_counts(50, resamples=4000, seed=3)
    assert (counts.sum(0) == 50).all()
    np.testing.assert_allclose(counts.mean(1), 1, atol=0.08)
    np.testing.assert_allclose(counts.var(1), 1 - 1 / 50, atol=0.12)  # binomial (50, 1/50)
    np.testing.assert_array_equal(counts, metrics.draw_counts(50, resamples=4000, seed=3))
    assert (counts != metrics.draw_counts(50, resamples=4000, seed=4)).any()


def test_many_resamples_cross_their_blocks_unchanged() -> None:
    scores, targets = draw(1, (60, 3), levels=7)
    counts = metrics.draw_counts(60, resamples=150, seed=0)
    whole = metrics.resampled_average_precision(scores, targets, counts)
    for r in (0, 63, 64, 149):
        np.testing.assert_array_equal(
            metrics.resampled_average_precision(scores, targets, counts[:, r : r + 1])[0], whole[r]
        )


def test_a_resample_that_draws_every_tile_once_is_the_metric() -> None:
    scores, targets = draw(2, (300, 8), levels=40)
    once = np.ones((300, 1), dtype=np.int32)
    np.testing.assert_allclose(
        metrics.resampled_average_precision(scores, targets, once)[0],
        metrics.average_precision(scores, targets),
        atol=1e-12,
    )


def test_wrong_input_is_named() -> None:
    scores, targets = draw(3, (6, 2))
    with pytest.raises(ValueError, match=r"\(6, 2\) and targets \(5, 2\)"):
        metrics.average_precision(scores, targets[:5])
    with pytest.raises(ValueError, match=r"\(6,\)"):
        metrics.average_precision(scores[:, 0], targets[:, 0])
    with pytest.raises(ValueError, match=r"targets\[2, 1\] is 2"):
        metrics.average_precision(scores, np.where([[False, False]] * 2 + [[False, True]] * 4, 2, targets))
    scores[4, 1] = np.nan
    with pytest.raises(ValueError, match=r"scores\[4, 1\] is nan"):
        metrics.micro_average_precision(scores, targets)
    with pytest.raises(ValueError, match="resamples is 0"):
        metrics.bootstrap(np.zeros((6, 2)), targets, resamples=0, seed=0)
    with pytest.raises(ValueError, match="scores_by_arm is empty"):
        metrics.paired_bootstrap([], targets, resamples=2, seed=0)
