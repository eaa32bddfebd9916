"""Every metric against scikit-learn or a loop over rows, and against laws it must keep."""

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

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
    ours = metrics.nan_mean(
        metrics.paired_bootstrap_average_precision([scores, other], targets, resamples=5, seed=seed)
    )
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


def test_redrawn_seeds_equal_a_loop_over_drawn_seeds_and_repeated_tiles() -> None:
    arms = [np.stack([draw(10 * a + s, (25, 4), levels=9)[0] for s in range(n)]) for a, n in enumerate((3, 2))]
    _, targets = draw(4, (25, 4))
    fixed, redrawn = metrics.paired_bootstrap_over_seeds(arms, targets, resamples=30, seed=5)
    assert fixed.shape == redrawn.shape == (30, 2, 4)
    counts = metrics.draw_counts(25, resamples=30, seed=5)
    for a, arm in enumerate(arms):
        picked = _draw_seeds(len(arm), resamples=30, seed=5, arm=a)
        for r in range(30):
            each = [repeated_map(scores, targets, counts[:, r]) for scores in arm]
            assert metrics.nan_mean(fixed)[r, a] == pytest.approx(np.mean(each), abs=1e-12)
            expected = np.mean([each[s] for s in picked[r]])
            assert metrics.nan_mean(redrawn)[r, a] == pytest.approx(expected, abs=1e-12)


def test_redrawn_seeds_spread_as_the_binomial_says() -> None:
    targets = np.arange(40)[:, None] % 2 == [[0, 1]]
    perfect, constant = targets * 1.0, np.full((40, 2), 0.5)
    arm = np.stack([perfect, constant])
    values = metrics.nan_mean(metrics.paired_bootstrap_over_seeds([arm, arm], targets, resamples=4000, seed=0)[1])
    both_perfect = (values == 1).mean(0)
    np.testing.assert_allclose(both_perfect, 1 / 4, atol=0.03)
    assert (values == 1).all(1).mean() == pytest.approx(1 / 16, abs=0.02)  # arms draw apart
    once = metrics.paired_bootstrap_over_seeds([arm[:1], arm[1:]], targets, resamples=50, seed=1)
    expected = metrics.paired_bootstrap_average_precision([perfect, constant], targets, resamples=50, seed=1)
    np.testing.assert_array_equal(np.stack(once), [expected, expected])


def slow_within(scores: Floats, targets: Bools, categories: list[str]) -> list[float]:
    """AP within categories by a double loop and scikit-learn."""
    result = []
    for k in range(scores.shape[1]):
        aps = []
        for name in sorted(set(categories)):
            rows = [i for i, other in enumerate(categories) if other == name]
            if 0 < targets[rows, k].sum() < len(rows):
                aps.append(sk.average_precision_score(targets[rows, k], scores[rows, k]))
        result.append(np.mean(aps) if aps else np.nan)
    return result


@given(seeds, shapes, levels)
@settings(deadline=None, max_examples=40)
def test_within_categories_equals_a_double_loop_and_so_do_its_resamples(
    seed: int, shape: tuple[int, int], levels: int
) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    categories = np.random.default_rng(seed).choice(["quay", "road", "wood"], shape[0]).tolist()
    ours = metrics.within_category_average_precision(scores, targets, categories)
    np.testing.assert_allclose(ours, slow_within(scores, targets, categories), rtol=0, atol=1e-12)
    sampled = metrics.paired_bootstrap_average_precision([scores], targets, resamples=3, seed=1, categories=categories)
    for r, counts in enumerate(metrics.draw_counts(shape[0], resamples=3, seed=1).T):
        rows = np.repeat(np.arange(shape[0]), counts)
        expected = slow_within(scores[rows], targets[rows], [categories[i] for i in rows])
        np.testing.assert_allclose(sampled[r, 0], expected, rtol=0, atol=1e-12)


def test_standard_interval_is_t_and_adds_the_spread_of_seeds() -> None:
    samples = np.random.default_rng(0).normal(0.5, 0.02, 100_000)
    reach = stats.t.ppf(0.975, 119) * 0.02
    assert metrics.standard_interval(0.5, samples, tiles=120) == pytest.approx((0.5 - reach, 0.5 + reach), abs=5e-4)
    values = [0.46, 0.5, 0.54]  # s²/S = 0.04²/3
    variance = 0.02**2 + 0.04**2 / 3
    free = variance**2 / (0.02**4 / 119 + (0.04**2 / 3) ** 2 / 2)
    reach = stats.t.ppf(0.975, free) * np.sqrt(variance)
    found = metrics.standard_interval(0.5, samples, tiles=120, seeds=values)
    assert found == pytest.approx((0.5 - reach, 0.5 + reach), abs=5e-4)
    assert metrics.standard_interval(0.99, samples, tiles=120)[1] == 1
    assert metrics.standard_interval(1.0, np.full(9, np.nan), tiles=9) == (1, 1)
    few = np.append(samples[:50], np.nan)
    assert metrics.standard_interval(0.5, few, tiles=9) == metrics.standard_interval(0.5, samples[:50], tiles=9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(deadline=None)
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

    def test_of(tiles: int) -> tuple[Floats, Bools]:
        targets = rng.random((tiles, 20)) < 0.1
        return 1.5 * targets + rng.normal(size=targets.shape), targets

    def mean(scores: Floats, targets: Bools) -> float:
        return metrics.mean_average_precision(metrics.average_precision(scores, targets))

    tests = [test_of(120) for _ in range(60)]
    bias = np.mean([mean(*test) for test in tests]) - mean(*test_of(50_000))
    found = np.mean([metrics.jackknife_bias(*test, seed=i) for i, test in enumerate(tests)])
    assert 0.02 < bias < 0.06
    assert found == pytest.approx(bias, rel=0.35)
    assert metrics.jackknife_bias(*tests[0], seed=3) == metrics.jackknife_bias(*tests[0], seed=3)


def test_interval_cuts_off_equal_tails() -> None:
    rng = np.random.default_rng(0)
    low, high = metrics.interval(rng.normal(3, 2, 200_000))
    assert (low, high) == pytest.approx((3 - 1.96 * 2, 3 + 1.96 * 2), abs=0.05)
    assert metrics.interval(np.arange(101), level=0.5) == (25, 75)


def test_p_value_counts_the_tail_twice_and_is_never_zero() -> None:
    assert metrics.p_value(np.arange(1, 1000)) == pytest.approx(2 / 1000)
    assert metrics.p_value(-np.arange(1, 1000)) == pytest.approx(2 / 1000)
    assert metrics.p_value([-1, 2, 3, 4]) == pytest.approx(2 * 2 / 5)
    assert metrics.p_value(np.zeros(10)) == 1
    assert metrics.p_value([np.nan, -1, 2, 3, 4]) == metrics.p_value([-1, 2, 3, 4]), "a resample without positives"
    assert metrics.interval([0, np.nan, 1], level=0.5) == (0.25, 0.75)


@given(seeds, shapes, levels)
@settings(deadline=None, max_examples=50)
def test_tuned_thresholds_reach_the_best_f1_there_is(seed: int, shape: tuple[int, int], levels: int) -> None:
    scores, targets = draw(seed, shape, levels=levels)
    thresholds = metrics.tune_thresholds(scores, targets)
    for k, threshold in enumerate(thresholds):
        if not targets[:, k].any():
            assert threshold == np.inf
            continue
        f1 = {c: sk.f1_score(targets[:, k], scores[:, k] >= c) for c in np.unique(scores[:, k])[::-1].tolist()}
        best = max(f1.values())
        assert threshold == next(c for c, value in f1.items() if value > best - 1e-12)


@given(seeds, shapes)
@settings(deadline=None, max_examples=30)
def test_precision_recall_and_f1_are_scikit_learns(seed: int, shape: tuple[int, int]) -> None:
    scores, targets = draw(seed, shape)
    yes, some = (scores >= np.random.default_rng(seed).choice([-0.2, 0.0, 0.3, np.inf], shape[1]), targets.any(0))
    ours = metrics.precision_recall_f1(yes, targets)
    for values, theirs in zip(ours, (sk.precision_score, sk.recall_score, sk.f1_score), strict=True):
        for k in np.flatnonzero(some):
            assert values[k] == pytest.approx(theirs(targets[:, k], yes[:, k], zero_division=0), abs=1e-12)
    assert np.isnan(np.array(ours[1:])[:, ~some]).all()


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


def test_temperature_undoes_sharpening_and_stays_in_range() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (20_000, 3))
    targets = rng.random(logits.shape) < metrics.sigmoid(logits)
    assert metrics.fit_temperature(logits * 3, targets) == pytest.approx(3, rel=0.05)
    low, high = metrics.TEMPERATURE_RANGE
    assert metrics.fit_temperature(np.where(targets, 5, -5), targets) == pytest.approx(low)
    assert metrics.fit_temperature(np.where(targets, -5, 5), targets) == pytest.approx(high)
    assert metrics.fit_temperature(np.zeros((4, 2)), targets[:4, :2]) == 1


def test_wrong_input_is_refused() -> None:
    scores, targets = draw(3, (6, 2))
    with pytest.raises(ValueError, match=r"\(6, 2\) and targets \(5, 2\)"):
        metrics.average_precision(scores, targets[:5])
    scores[4, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 12 scores are not finite"):
        metrics.micro_average_precision(scores, targets)
    with pytest.raises(ValueError, match="resamples is 0"):
        metrics.paired_bootstrap_average_precision([np.zeros((6, 2))], targets, resamples=0, seed=0)
    with pytest.raises(ValueError, match="scores_by_arm is empty"):
        metrics.paired_bootstrap_average_precision([], targets, resamples=2, seed=0)
    with pytest.raises(ValueError, match=r"1 of .* not finite"):
        metrics.p_value([0.1, np.inf])
    with pytest.raises(ValueError, match=r"span -3 to 0.*sigmoid"):
        metrics.expected_calibration_error(np.where(targets, 0, -3), targets)
