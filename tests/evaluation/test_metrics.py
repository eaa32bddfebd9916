"""Every metric against scikit-learn or a loop over rows, and against laws it must keep."""

import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from torchmetrics.functional.classification import binary_calibration_error
from torchmetrics.retrieval import RetrievalPrecision

from satclr.evaluation import metrics
from satclr.evaluation.metrics.bootstrap import _draw_seeds

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


def test_redrawn_seeds_equal_a_loop_over_drawn_seeds_and_repeated_tiles() -> None:
    arms = [
        np.stack([draw(10 * a + s, (25, 4), levels=9)[0] for s in range(n)]) for a, n in enumerate((3, 2))
    ]
    _, targets = draw(4, (25, 4))
    each = metrics.paired_bootstrap_over_seeds(arms, targets, resamples=30, seed=5)
    assert each.shape == (30, 2, 4)
    ours = metrics.nan_mean(each)
    counts = metrics.draw_counts(25, resamples=30, seed=5)
    for a, arm in enumerate(arms):
        picked = _draw_seeds(len(arm), resamples=30, seed=5, arm=a)
        for r in range(30):
            expected = np.mean([repeated_map(arm[s], targets, counts[:, r]) for s in picked[r]])
            assert ours[r, a] == pytest.approx(expected, abs=1e-12)


def test_redrawn_seeds_spread_as_the_binomial_says() -> None:
    targets = np.arange(40)[:, None] % 2 == [[0, 1]]
    perfect, constant = targets * 1.0, np.full((40, 2), 0.5)
    arm = np.stack([perfect, constant])
    values = metrics.nan_mean(
        metrics.paired_bootstrap_over_seeds([arm, arm], targets, resamples=4000, seed=0)
    )
    both_perfect = (values == 1).mean(0)
    np.testing.assert_allclose(both_perfect, 1 / 4, atol=0.03)
    assert (values == 1).all(1).mean() == pytest.approx(1 / 16, abs=0.02)  # arms draw apart
    once = metrics.paired_bootstrap_over_seeds([arm[:1], arm[1:]], targets, resamples=50, seed=1)
    expected = metrics.paired_bootstrap([perfect, constant], targets, resamples=50, seed=1)
    np.testing.assert_array_equal(metrics.nan_mean(once), expected)


def test_interval_cuts_off_equal_tails() -> None:
    rng = np.random.default_rng(0)
    low, high = metrics.interval(rng.normal(3, 2, 200_000))
    assert (low, high) == pytest.approx((3 - 1.96 * 2, 3 + 1.96 * 2), abs=0.05)
    assert metrics.interval(np.arange(101), level=0.5) == (25, 75)


def test_interval_and_p_value_of_a_mean_behave_under_no_difference() -> None:
    rng = np.random.default_rng(1)
    p = []
    for _ in range(300):
        sample = rng.normal(0, 1, 60)
        p.append(metrics.p_value(sample[rng.integers(60, size=(400, 60))].mean(1)))
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=0.035)
    assert np.mean(p) == pytest.approx(0.5, abs=0.06)


def test_p_value_counts_the_tail_twice_and_is_never_zero() -> None:
    assert metrics.p_value(np.arange(1, 1000)) == pytest.approx(2 / 1000)
    assert metrics.p_value(-np.arange(1, 1000)) == pytest.approx(2 / 1000)
    assert metrics.p_value([-1, 2, 3, 4]) == pytest.approx(2 * 2 / 5)
    assert metrics.p_value(np.zeros(10)) == 1


@given(seeds, shapes, levels)
@settings(deadline=None, max_examples=50)
def test_tuned_thresholds_reach_the_best_f1_there_is(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    thresholds = metrics.tune_thresholds(scores, targets)
    for k, threshold in enumerate(thresholds):
        if not targets[:, k].any():
            assert threshold == np.inf
            continue
        f1 = {
            c: sk.f1_score(targets[:, k], scores[:, k] >= c) for c in np.unique(scores[:, k])[::-1].tolist()
        }
        best = max(f1.values())
        assert threshold == next(c for c, value in f1.items() if value > best - 1e-12)


@given(seeds, shapes, levels)
@settings(deadline=None, max_examples=50)
def test_precision_recall_and_f1_are_scikit_learns(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    thresholds = np.random.default_rng(seed).choice([-0.2, 0.0, 0.3, np.inf], shape[1])
    ours = metrics.decide(scores, targets, thresholds)
    yes, some = scores >= thresholds, targets.any(0)
    each = [(ours.precision, sk.precision_score), (ours.recall, sk.recall_score), (ours.f1, sk.f1_score)]
    for values, theirs in each:
        for k in np.flatnonzero(some):
            assert values[k] == pytest.approx(theirs(targets[:, k], yes[:, k], zero_division=0), abs=1e-12)
    assert np.isnan(ours.f1[~some]).all()
    assert np.isnan(ours.recall[~some]).all()
    if some.any():
        t, y = targets.ravel(), yes.ravel()
        f1 = [sk.f1_score(targets[:, k], yes[:, k], zero_division=0) for k in np.flatnonzero(some)]
        assert ours.macro_f1 == pytest.approx(np.mean(f1), abs=1e-12)
        assert ours.micro_f1 == pytest.approx(sk.f1_score(t, y, zero_division=0), abs=1e-12)
        assert ours.micro_precision == pytest.approx(sk.precision_score(t, y, zero_division=0), abs=1e-12)
        assert ours.micro_recall == pytest.approx(sk.recall_score(t, y, zero_division=0), abs=1e-12)
    else:
        assert np.isnan([ours.macro_f1, ours.micro_f1, ours.micro_recall]).all()


@given(seeds, st.tuples(st.integers(1, 40), st.integers(2, 6)), levels)
@settings(deadline=None, max_examples=50)
def test_rankings_of_labels_are_scikit_learns(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    lrap = sk.label_ranking_average_precision_score(targets, scores)
    assert metrics.label_ranking_average_precision(scores, targets) == pytest.approx(lrap, abs=1e-12)
    coverage = sk.coverage_error(targets, scores)
    assert metrics.coverage_error(scores, targets) == pytest.approx(coverage, abs=1e-12)
    wrong = []
    for row, labels in zip(scores, targets, strict=True):
        top = [k for k, value in enumerate(row) if value == max(row)]
        wrong.append(sum(not labels[k] for k in top) / len(top))
    assert metrics.one_error(scores, targets) == pytest.approx(np.mean(wrong), abs=1e-12)


def test_one_error_is_what_torchmetrics_precision_at_one_leaves() -> None:
    rng = np.random.default_rng()
    scores, targets = rng.random((40, 6)), rng.random((40, 6)) < 0.3
    targets[:3] = False  # and scores above 0: torchmetrics never counts one below as said
    precision = RetrievalPrecision(top_k=1, empty_target_action="neg")
    tile = torch.arange(40).repeat_interleave(6)
    found = precision(torch.from_numpy(scores).flatten(), torch.from_numpy(targets).flatten(), indexes=tile)
    assert metrics.one_error(scores, targets) == pytest.approx(1 - found.item(), abs=1e-6)


@given(seeds, shapes, st.integers(1, 20))
@settings(deadline=None, max_examples=50)
def test_calibration_error_equals_a_loop_over_bins(seed: int, shape: tuple[int, int], bins: int) -> None:
    scores, targets = draw(seed, shape)
    p = scores + 0.5
    p[0, 0] = 1
    expected = 0.0
    for b in range(bins):
        inside = (p * bins >= b) & ((p * bins < b + 1) | ((p == 1) & (b == bins - 1)))
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - targets[inside].mean())
    assert metrics.expected_calibration_error(p, targets, bins=bins) == pytest.approx(expected, abs=1e-12)


@given(seeds, shapes, st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_calibration_error_is_torchmetrics(seed: int, shape: tuple[int, int], bins: int) -> None:
    rng = np.random.default_rng(seed)
    p = (
        2 * rng.integers(2**16, size=shape) + 1
    ) / 2**17  # never where two bins meet: float32 may differ there
    targets = rng.random(shape) < 0.4
    theirs = binary_calibration_error(
        torch.from_numpy(p).flatten(), torch.from_numpy(targets).flatten().long(), n_bins=bins, norm="l1"
    )
    ours = metrics.expected_calibration_error(p, targets, bins=bins)
    assert ours == pytest.approx(theirs.item(), abs=1e-5)


def test_true_probabilities_are_calibrated_and_sharpened_ones_are_not() -> None:
    rng = np.random.default_rng(0)
    p = rng.random((20_000, 5))
    targets = rng.random(p.shape) < p
    assert metrics.expected_calibration_error(p, targets) < 0.01
    assert metrics.expected_calibration_error(p**3, targets) > 0.1


@given(seeds, st.floats(0.2, 5))
@settings(deadline=None, max_examples=30)
def test_temperature_minimises_cross_entropy(seed: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (200, 3))
    targets = rng.random(logits.shape) < metrics.sigmoid(logits)
    fitted = metrics.fit_temperature(logits * sharpness, targets)

    def cross_entropy(temperature: float) -> float:
        return float(sk.log_loss(targets.ravel(), metrics.sigmoid(logits.ravel() * sharpness / temperature)))

    best = cross_entropy(fitted)
    for factor in (0.2, 0.9, 0.999, 1.001, 1.1, 5.0):
        assert best < cross_entropy(fitted * factor)
    assert fitted == pytest.approx(metrics.fit_temperature(logits, targets) * sharpness, rel=1e-9)


def test_temperature_is_the_inverse_of_scikit_learns_only_coefficient() -> None:
    rng = np.random.default_rng()
    logits = rng.normal(0, 3, (300, 4))
    targets = rng.random(logits.shape) < metrics.sigmoid(logits / 2)
    model = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10)
    slope = model.fit(logits.reshape(-1, 1), targets.ravel()).coef_.item()
    assert metrics.fit_temperature(logits, targets) == pytest.approx(1 / slope, rel=1e-4)


def test_temperature_undoes_sharpening_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    targets = rng.random(logits.shape) < metrics.sigmoid(logits)
    assert metrics.fit_temperature(logits * 3, targets) == pytest.approx(3, rel=0.05)
    low, high = metrics.TEMPERATURE_RANGE
    assert metrics.fit_temperature(np.where(targets, 5, -5), targets) == pytest.approx(low)
    assert metrics.fit_temperature(np.where(targets, -5, 5), targets) == pytest.approx(high)
    assert metrics.fit_temperature(np.zeros((4, 2)), targets[:4, :2]) == 1


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
        metrics.paired_bootstrap([np.zeros((6, 2))], targets, resamples=0, seed=0)
    with pytest.raises(ValueError, match="scores_by_arm is empty"):
        metrics.paired_bootstrap([], targets, resamples=2, seed=0)
    with pytest.raises(ValueError, match=r"1 of .* not finite"):
        metrics.p_value([0.1, np.nan])
    with pytest.raises(ValueError, match=r"one number for each label"):
        metrics.decide(np.zeros((6, 2)), targets, [0.5])
    with pytest.raises(ValueError, match=r"span -3 to 0.*sigmoid"):
        metrics.expected_calibration_error(np.where(targets, 0, -3), targets)
    with pytest.raises(ValueError, match="bins is 0"):
        metrics.expected_calibration_error(np.zeros((6, 2)), targets, bins=0)
