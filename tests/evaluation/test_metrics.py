"""Every metric against scikit-learn or a loop over rows, and against laws it must keep."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from satclr.evaluation import metrics
from satclr.evaluation.metrics import Bools, Floats, decisions

Case = tuple[Floats, Bools]


def draw(seed: int, shape: tuple[int, int], levels: int = 10**6) -> Case:
    rng = np.random.default_rng(seed)
    scores = rng.integers(levels, size=shape) / levels - 0.5
    return scores, rng.random(shape) < rng.random(shape[1])


seeds, shapes = st.integers(0, 2**20), st.tuples(st.integers(1, 40), st.integers(1, 6))
cases = st.builds(draw, seeds, shapes, st.sampled_from([2, 5, 10**6]))  # distinct scores: few make ties


def law(*drawn: st.SearchStrategy[Any], examples: int = 50) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A property of drawn cases."""
    return lambda test: settings(deadline=None, max_examples=examples)(given(*drawn)(test))


def slow_ap(scores: Floats, targets: Bools, categories: NDArray[np.str_] | None = None) -> Floats:
    """AP of each label by a loop and scikit-learn, also within categories; nan where it is undefined."""
    result = np.full(targets.shape[1], np.nan)
    for k, (s, t) in enumerate(zip(scores.T, targets.T, strict=True)):
        if categories is None:
            parts = [t >= 0] if t.any() else []
        else:
            parts = [categories == name for name in set(categories) if 0 < t[categories == name].mean() < 1]
        if parts:
            result[k] = np.mean([sk.average_precision_score(t[rows], s[rows]) for rows in parts])
    return result


@law(cases, examples=100)
def test_average_precision_is_scikit_learns(case: Case) -> None:
    ours, theirs = metrics.average_precision(*case), slow_ap(*case)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    mean = np.mean(theirs[~np.isnan(theirs)]) if case[1].any() else np.nan
    assert metrics.mean_average_precision(*case) == pytest.approx(mean, abs=1e-12, nan_ok=True)


@law(cases, seeds, examples=100)
def test_average_precision_sees_only_the_ranking(case: Case, seed: int) -> None:
    scores, targets = case
    ap = metrics.average_precision(scores, targets)
    np.testing.assert_array_equal(metrics.average_precision(np.exp(scores) * 3 - 1, targets), ap)
    order = np.random.default_rng(seed).permutation(len(scores))
    shuffled = metrics.average_precision(scores[order], targets[order])
    np.testing.assert_allclose(shuffled, ap, rtol=0, atol=1e-12)


def test_average_precision_of_perfect_constant_and_random_scores() -> None:
    scores, targets = draw(0, (2000, 5))
    prevalence = targets.mean(0)
    np.testing.assert_array_equal(metrics.average_precision(targets, targets), 1)
    np.testing.assert_allclose(metrics.average_precision(scores * 0, targets), prevalence)
    np.testing.assert_allclose(metrics.average_precision(scores, targets), prevalence, atol=0.05)


@law(cases, cases, seeds, examples=40)
def test_resamples_equal_repeated_rows_also_within_categories(case: Case, other: Case, seed: int) -> None:
    targets, arms = case[1], [case[0], np.resize(other[0], case[0].shape)]
    names = np.random.default_rng(seed).choice(["quay", "road", "wood"], len(targets))
    ours = metrics.average_precision(arms[0], targets, names.tolist())
    np.testing.assert_allclose(ours, slow_ap(arms[0], targets, names), rtol=0, atol=1e-12)
    each = metrics.paired_bootstrap_average_precision(arms, targets, resamples=5, seed=seed)
    within = metrics.paired_bootstrap_average_precision(
        arms, targets, resamples=5, seed=seed, categories=names.tolist()
    )
    for r, counts in enumerate(metrics.draw_counts(len(targets), resamples=5, seed=seed).T):
        rows = np.repeat(np.arange(len(targets)), counts)
        expected = [slow_ap(s[rows], targets[rows]) for s in arms]
        np.testing.assert_allclose(each[r], expected, rtol=0, atol=1e-12)
        expected = [slow_ap(s[rows], targets[rows], names[rows]) for s in arms]
        np.testing.assert_allclose(within[r], expected, rtol=0, atol=1e-12)


def test_counts_are_draws_with_replacement() -> None:
    counts = metrics.draw_counts(50, resamples=4000, seed=3)
    assert (counts.sum(0) == 50).all()
    np.testing.assert_allclose(counts.mean(1), 1, atol=0.08)
    np.testing.assert_allclose(counts.var(1), 1 - 1 / 50, atol=0.12)  # binomial (50, 1/50)
    assert (counts != metrics.draw_counts(50, resamples=4000, seed=4)).any()


def test_redrawn_seeds_equal_a_loop_over_drawn_seeds_and_repeated_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "BLOCK", 7)
    arms = [np.stack([draw(10 * a + s, (25, 4), levels=9)[0] for s in range(n)]) for a, n in enumerate((3, 2))]
    _, targets = draw(4, (25, 4))
    fixed, redrawn = metrics.paired_bootstrap_over_seeds(arms, targets, resamples=30, seed=5)
    counts = metrics.draw_counts(25, resamples=30, seed=5)
    for a, arm in enumerate(arms):
        stream = np.random.default_rng(np.random.SeedSequence(5, spawn_key=(a,)))  # arms draw apart
        picked = stream.integers(len(arm), size=(30, len(arm)))
        for r in range(30):
            each = [slow_ap(np.repeat(s, counts[:, r], 0), np.repeat(targets, counts[:, r], 0)) for s in arm]
            np.testing.assert_allclose(fixed[r, a], np.mean(each, 0), atol=1e-12)
            np.testing.assert_allclose(redrawn[r, a], np.mean([each[s] for s in picked[r]], 0), atol=1e-12)


def test_standard_interval_is_t_and_adds_the_spread_of_seeds() -> None:
    samples = np.random.default_rng(0).normal(0.5, 0.02, 100_000)
    several = 0.02**2 + 0.04**2 / 3  # the seeds below have s² = 0.04²
    free = several**2 / (0.02**4 / 119 + (0.04**2 / 3) ** 2 / 2)
    for seeds, variance, freedom in (((), 0.02**2, 119), ((0.46, 0.5, 0.54), several, free)):
        reach = stats.t.ppf(0.975, freedom) * np.sqrt(variance)
        found = metrics.standard_interval(0.5, samples, tiles=120, seeds=seeds)
        assert found == pytest.approx((0.5 - reach, 0.5 + reach), abs=5e-4)
    assert metrics.standard_interval(0.99, samples, tiles=120)[1] == 1
    assert metrics.standard_interval(1.0, np.full(9, np.nan), tiles=9) == (1, 1)
    few = np.append(samples[:50], np.nan)
    assert metrics.standard_interval(0.5, few, tiles=9) == metrics.standard_interval(0.5, samples[:50], tiles=9)


@law(st.lists(st.floats(0, 1), min_size=1, max_size=20), examples=100)
def test_adjusted_p_values_are_scipys_and_holms_step_down(p: list[float]) -> None:
    np.testing.assert_allclose(metrics.benjamini_hochberg(p), stats.false_discovery_control(p), atol=1e-12)
    level, rejected = 0.05, set()
    for step, i in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        if p[i] * (len(p) - step) > level:
            break
        rejected.add(i)
    assert set(np.flatnonzero(metrics.holm(p) <= level).tolist()) == rejected


def test_wald_p_value_is_the_normal_tail_and_has_no_floor() -> None:
    samples = np.random.default_rng(0).normal(0.1, 0.05, 100_000)
    assert metrics.wald_p_value(0.1, samples) == pytest.approx(2 * stats.norm.sf(2), rel=0.03)
    assert 0 < metrics.wald_p_value(0.5, samples) < 1e-15
    assert metrics.wald_p_value(0.0, np.zeros(9)) == 1


def test_the_jackknife_estimates_most_of_the_bias_of_few_tiles() -> None:
    """Against the truth: mAP of 120 tiles on average, less that of 50,000."""
    rng = np.random.default_rng(0)

    def test_of(tiles: int) -> Case:
        targets = rng.random((tiles, 20)) < 0.1
        return 1.5 * targets + rng.normal(size=targets.shape), targets

    tests = [test_of(120) for _ in range(60)]
    few, many = (np.mean([metrics.average_precision(*t) for t in each]) for each in (tests, [test_of(50_000)]))
    found = np.mean([metrics.jackknife_bias(*test, seed=i) for i, test in enumerate(tests)])
    assert 0.02 < few - many < 0.06
    assert found == pytest.approx(few - many, rel=0.35)


def test_interval_cuts_off_equal_tails() -> None:
    low, high = metrics.interval(np.append(np.random.default_rng(0).normal(3, 2, 200_000), np.nan))
    assert (low, high) == pytest.approx((3 - 1.96 * 2, 3 + 1.96 * 2), abs=0.05)
    assert np.isnan(metrics.interval([np.nan])).all()


def test_p_value_counts_the_tail_twice_and_is_never_zero() -> None:
    for values, expected in ((np.arange(1, 1000), 2 / 1000), ([-1, 2, 3, 4, np.nan], 2 * 2 / 5), (np.zeros(10), 1)):
        for sign in (1, -1):
            assert metrics.p_value(sign * np.array(values)) == pytest.approx(expected)


@law(cases)
def test_tuned_thresholds_reach_the_best_f1_there_is(case: Case) -> None:
    assert decisions.NEVER > 1
    for threshold, s, t in zip(decisions.tune_thresholds(*case), case[0].T, case[1].T, strict=True):
        f1 = {c: sk.f1_score(t, s >= c) for c in np.unique(s)[::-1].tolist()} if t.any() else {decisions.NEVER: 0}
        assert threshold == next(c for c, value in f1.items() if value > max(f1.values()) - 1e-12)


@law(cases, seeds)
def test_precision_recall_and_f1_are_scikit_learns(case: Case, seed: int) -> None:
    scores, targets = case
    yes = scores >= np.random.default_rng(seed).choice([-0.2, 0.0, 0.3, np.inf], targets.shape[1])
    some = targets.any(0)
    ours = decisions.precision_recall_f1(yes, targets)
    for k in np.flatnonzero(some):
        theirs = sk.precision_recall_fscore_support(targets[:, k], yes[:, k], average="binary", zero_division=0)[:3]
        np.testing.assert_allclose([values[k] for values in ours], theirs, atol=1e-12)
    assert np.isnan(np.array(ours[1:])[:, ~some]).all()


@law(cases.filter(lambda case: case[0].shape[1] > 1))
def test_rankings_of_labels_are_scikit_learns(case: Case) -> None:
    scores, targets = case
    lrap = sk.label_ranking_average_precision_score(targets, scores)
    assert decisions.label_ranking_average_precision(scores, targets) == pytest.approx(lrap, abs=1e-12)
    assert decisions.coverage_error(scores, targets) == pytest.approx(sk.coverage_error(targets, scores), abs=1e-12)
    wrong = [np.mean(~labels[row == max(row)]) for row, labels in zip(scores, targets, strict=True)]
    assert decisions.one_error(scores, targets) == pytest.approx(np.mean(wrong), abs=1e-12)


@law(cases)
def test_calibration_error_equals_a_loop_over_bins(case: Case) -> None:
    p, targets, bins = case[0] + 0.5, case[1], decisions.BINS
    p[0, 0] = 1
    expected = 0.0
    for b in range(bins):
        inside = (p * bins >= b) & ((p * bins < b + 1) | ((p == 1) & (b == bins - 1)))
        if inside.any():
            expected += inside.mean() * abs(p[inside].mean() - targets[inside].mean())
    assert decisions.expected_calibration_error(p, targets) == pytest.approx(expected, abs=1e-12)


@law(seeds, st.floats(0.2, 5))
def test_temperature_minimises_cross_entropy_and_undoes_sharpening(seed: int, sharpness: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (200, 3))
    targets = rng.random(logits.shape) < decisions.sigmoid(logits)
    fitted = decisions.fit_temperature(logits * sharpness, targets)

    best, *others = (
        sk.log_loss(targets.ravel(), decisions.sigmoid(logits.ravel() * sharpness / (fitted * factor)))
        for factor in (1, 0.2, 0.9, 0.999, 1.001, 1.1, 5.0)
    )
    assert best < min(others)
    assert fitted == pytest.approx(decisions.fit_temperature(logits, targets) * sharpness, rel=1e-9)


def test_temperature_stays_in_range() -> None:
    targets = draw(0, (60, 3))[1]
    for logit, expected in zip((5, -5, 0), (*decisions.TEMPERATURE_RANGE, 1), strict=True):
        assert decisions.fit_temperature(np.where(targets, logit, -logit), targets) == pytest.approx(expected)


def test_wrong_input_is_refused() -> None:
    scores, targets = draw(3, (6, 2))
    with pytest.raises(ValueError, match=r"\(6, 2\) and targets \(5, 2\)"):
        metrics.average_precision(scores, targets[:5])
    scores[4, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 12 scores are not finite"):
        decisions.one_error(scores, targets)
