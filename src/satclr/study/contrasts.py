"""The numbers of compare.json: every arm, every difference between two arms, references, and factorials.

Each resample draws the test tiles once, for all arms and references. One arm's interval is its estimate ± t · standard
error, over tiles and, where there are several, seeds (`metrics.standard_interval`); a difference's is the paired
bootstrap's, with each arm's seeds drawn too. R resamples, S seeds, N tiles, K labels.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import randomness
from satclr.evaluation import metrics
from satclr.evaluation.metrics import Floats
from satclr.params import Settings
from satclr.study.results import Arms, Results, Scores

Table = npt.NDArray[np.floating[Any]]  # scores (N,K)

RESAMPLES, SEED = 1000, randomness.derive(0, "bootstrap") % 2**32
LEVEL = 0.05  # of adjusted p-values
IDENTITY = ("profile", "arm", "seed")
MEASURES = {"mAP": "test", "converged_mAP": "test_converged", "within_category_mAP": "test"}  # → whose scores
OPTIONAL = {  # what compare.json takes from the files of stages that may be left out
    "robustness": ("clean_mAP", "mean_corruption_mAP", "relative_drop", "corruptions"),
    "maps": ("knn_label_overlap", "trustworthiness", "distance_rank_correlation"),
}
DEPARTURES = {  # of the released code: section, setting, and its value as released
    "statistics": ("pretrain", "normalization", "released"),
    "BatchNorm": ("probe", "batch_norm", "batch"),
    "epoch": ("probe", "select", "arbitrary"),
}


@dataclass(frozen=True)
class Measure:
    """One measure of every arm: AP of each seed and label, and on resamples."""

    ap: Mapping[str, Floats]  # arm → (S,K)
    tiles: Mapping[str, Floats]  # arm → (R,K), means over seeds, tiles redrawn
    tiles_and_seeds: Mapping[str, Floats]  # arm → (R,K), seeds redrawn too
    zero: Collection[str] = ()  # arms in whose means a label without AP counts as zero

    def mean(self, of: Mapping[str, Floats], arm: str) -> Floats:
        """The mean over labels `of` one of the above: of each seed (S,), or on each resample (R,)."""
        undefined = np.isnan(self.ap[arm]).all(0) & (arm in self.zero)
        return metrics.nan_mean(np.where(undefined, 0, of[arm]))


def measure(arms: Arms, categories: Sequence[str]) -> dict[str, Measure]:
    """Every measure of the arms that all of them have; categories: of the test tiles."""
    runs = [r for seeds in arms.values() for r in seeds]
    zero = [r.run.arm for r in runs if r.run.settings.evaluate.undefined_ap == "zero"]
    found = {}
    for name, which in MEASURES.items():
        if all(f"{which}_scores" in r.arrays for r in runs):
            scores = {arm: [r.arrays[f"{which}_scores"] for r in seeds] for arm, seeds in arms.items()}
            within = categories if name.startswith("within") else None
            found[name] = _measured(scores, runs[0].scores("test").targets, within, zero=[] if within else zero)
    return found


def _measured(
    scores: Mapping[str, Sequence[Table]], targets: npt.ArrayLike, categories: Sequence[str] | None = None,
    *, zero: Collection[str] = (), seed: int = SEED,
) -> Measure:  # fmt: skip
    """A measure of each arm's scores (N,K), one array per seed; with the tiles' categories, AP is within them."""
    samples = metrics.paired_bootstrap_over_seeds(
        list(scores.values()), targets, resamples=RESAMPLES, seed=seed, categories=categories
    )
    each = {arm: [metrics.average_precision(s, targets, categories) for s in seeds] for arm, seeds in scores.items()}
    tiles, tiles_and_seeds = ({arm: part[:, i] for i, arm in enumerate(scores)} for part in samples)
    return Measure({arm: np.stack(ap) for arm, ap in each.items()}, tiles, tiles_and_seeds, zero)


def numbers(arms: Arms, measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Mean, spread and interval of each arm, and every contrast: later arm minus earlier arm."""
    entries = {name: _arm(seeds, measures) | _optional(seeds) for name, seeds in arms.items()}
    contrasts = [contrast(measures, later, earlier) for earlier, later in combinations(arms, 2)]
    for c, adjusted in zip(contrasts, metrics.holm([c["p_wald"] for c in contrasts]), strict=True):
        c["p_holm"] = float(adjusted)
        if c["against"] == next(iter(arms)):
            sure = _sure_labels(measures["mAP"], c["arm"], c["against"])
            c |= {"labels_better": int((sure > 0).sum()), "labels_worse": int((sure < 0).sum())}
    return {"arms": entries, "contrasts": contrasts}


def _sure_labels(m: Measure, arm: str, against: str) -> Floats:
    """The differences in AP that are significant with 5% false ones expected among them (Benjamini & Hochberg)."""
    samples = m.tiles_and_seeds[arm] - m.tiles_and_seeds[against]
    delta = m.ap[arm].mean(0) - m.ap[against].mean(0)
    known = ~np.isnan(delta)
    p = [metrics.wald_p_value(d, column) for d, column in zip(delta[known], samples[:, known].T, strict=True)]
    sure: Floats = delta[known][metrics.benjamini_hochberg(p) < LEVEL]
    return sure


def contrast(measures: Mapping[str, Measure], arm: str, against: str) -> dict[str, Any]:
    """The difference in every measure with its paired interval, and how far it depends on the probe."""
    result: dict[str, Any] = {"arm": arm, "against": against}
    samples = {}
    for name, m in measures.items():
        result[f"delta_{name}"] = float(m.mean(m.ap, arm).mean() - m.mean(m.ap, against).mean())
        samples[name] = m.mean(m.tiles_and_seeds, arm) - m.mean(m.tiles_and_seeds, against)
        result["ci95" if name == "mAP" else f"delta_{name}_ci95"] = list(metrics.interval(samples[name]))
    result["p_value"] = metrics.p_value(samples["mAP"])
    result["p_wald"] = metrics.wald_p_value(result["delta_mAP"], samples["mAP"])  # `numbers` adjusts it
    if "converged_mAP" in samples:
        low, high = metrics.interval(samples["mAP"] - samples["converged_mAP"])
        result |= {"delta_by_probe_ci95": [low, high], "depends_on_probe": bool(low > 0 or high < 0)}
    return result


def gap(candidate: Sequence[Scores], champion: Sequence[Scores]) -> tuple[float, float, float]:
    """Difference in mAP on the same tiles, means over seeds, and its 95% interval by paired bootstrap over both."""
    scores = {"ours": [one.scores for one in candidate], "theirs": [one.scores for one in champion]}
    result = contrast({"mAP": _measured(scores, candidate[0].targets, seed=0)}, "ours", "theirs")
    return result["delta_mAP"], *result["ci95"]


def references(
    scores: Mapping[str, Table], targets: npt.NDArray[np.uint8], categories: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Test mAP of each reference, over all test tiles and within categories, with intervals over test tiles.

    scores: of `evaluation.references.scores`, name → (N,K). A label without positives is left out.
    """
    each = {name: [one] for name, one in scores.items()}
    measures = {"mAP": _measured(each, targets), "within_category_mAP": _measured(each, targets, categories)}
    return {name: _estimates(measures, name, tiles=len(targets)) for name in each}


def _arm(seeds: Sequence[Results], measures: Mapping[str, Measure]) -> dict[str, Any]:
    arm, each = seeds[0].run.arm, [r.metrics for r in seeds]
    return _estimates(measures, arm, tiles=len(seeds[0].scores("test").tiles)) | {
        "test_mAP_sd": _deviation(measures["mAP"].mean(measures["mAP"].ap, arm)),
        "test_mAP_bias": float(np.mean([m["test_mAP_bias"] for m in each])),
        "val_mAP": float(np.mean([m["val_mAP"] for m in each])),
        "label_efficiency": _label_efficiency(each),
        "seeds": {str(r.run.seed): {k: v for k, v in r.metrics.items() if k not in IDENTITY} for r in seeds},
    }


def _estimates(measures: Mapping[str, Measure], arm: str, *, tiles: int) -> dict[str, Any]:
    """One arm's mean over seeds by every measure, and its interval over test tiles and seeds."""
    found: dict[str, Any] = {}
    for name, m in measures.items():
        each = m.mean(m.ap, arm)
        mean = float(each.mean())
        ends = metrics.standard_interval(mean, m.mean(m.tiles, arm), tiles=tiles, seeds=each)
        found |= {f"test_{name}": mean, f"test_{name}_ci95": list(ends)}
    return found


def _label_efficiency(each: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row for each share of the training labels: mean and deviation over the subsets of all seeds."""
    rows = []
    for same in zip(*(m.get("label_efficiency", []) for m in each), strict=True):
        values = [value for row in same for value in row["subsets"]]
        size = {key: same[0][key] for key in ("fraction", "tiles")}
        rows.append(size | {"test_mAP": float(np.mean(values)), "sd": _deviation(values)})
    return rows


def _deviation(values: Sequence[float] | Floats) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _optional(seeds: Sequence[Results]) -> dict[str, Any]:
    """Robustness and maps, means over seeds, where every seed has them."""
    known = {}
    for stage, keys in OPTIONAL.items():
        trees = [r.optional(f"{stage}.json") or {} for r in seeds]
        if all(tree.get(keys[0]) is not None for tree in trees):
            known[stage] = _mean_tree([{key: tree[key] for key in keys} for tree in trees])
    return known


def _mean_tree(trees: Sequence[Any]) -> Any:
    """The mean of trees of one shape, number by number."""
    if isinstance(trees[0], dict):
        return {key: _mean_tree([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))


def by_label(measure: Measure, *, tiles: int) -> dict[str, Floats]:
    """Each arm's labels as (K,6): AP, low, high; AP minus the first arm's, low, high (paired 95% intervals).

    AP is a mean over seeds; nan for a label without positives, and in the first arm's differences.
    """
    first = next(iter(measure.ap))
    tables: dict[str, Floats] = {}
    for name, each in measure.ap.items():
        table = np.full((each.shape[1], 6), np.nan)
        for k in np.flatnonzero(~np.isnan(each).any(0)):
            table[k, 0] = each[:, k].mean()
            own = measure.tiles[name][:, k]
            table[k, 1:3] = metrics.standard_interval(table[k, 0], own, tiles=tiles, seeds=each[:, k])
            if name != first:
                apart = measure.tiles_and_seeds[name][:, k] - measure.tiles_and_seeds[first][:, k]
                table[k, 3:] = table[k, 0] - tables[first][k, 0], *metrics.interval(apart)
        tables[name] = table
    return tables


def factorials(report: Mapping[str, Any], arms: Arms, measure: Measure) -> Iterator[dict[str, Any]]:
    """What each of the released code's departures contributes to the gap, whatever the order of correcting them.

    A factorial begins at an arm where the compared arms have its settings with each subset of DEPARTURES. `alone` is a
    departure's effect without the others, `last` with all others; its Shapley value is the effect averaged over all
    orders, and the values add up to the difference of the factorial's ends. `measure` is test mAP; intervals are 95%,
    over test tiles and seeds. Source: Shapley 1953, "A Value for n-Person Games".
    """
    for start in arms:
        cells = _cells(start, arms)
        if not cells:
            continue
        means = {s: measure.mean(measure.tiles_and_seeds, arm) for s, arm in cells.items()}
        values = {s: float(report["arms"][arm]["test_mAP"]) for s, arm in cells.items()}
        none, full = frozenset[str](), frozenset(DEPARTURES)
        spreads = shapley(means)
        yield {
            "arm": cells[full],
            "against": start,
            "delta_mAP": values[full] - values[none],
            "ci95": list(metrics.interval(means[full] - means[none])),
            "cells": [{"arm": arm, "departures": sorted(s), "test_mAP": values[s]} for s, arm in cells.items()],
            "departures": [
                {
                    "departure": name,
                    "alone": values[frozenset({name})] - values[none],
                    "last": values[full] - values[full - {name}],
                    "shapley": value,
                    "ci95": list(metrics.interval(spreads[name])),
                }
                for name, value in shapley(values).items()
            ],
        }


def shapley(values: Mapping[frozenset[str], Any]) -> dict[str, Any]:
    """Each factor's Shapley value, given the value (number or array) of every subset of the factors."""
    factors = max(values, key=len)
    count, shares = len(factors), {}
    for name in sorted(factors):
        others = [s for s in values if name not in s]
        weights = [factorial(len(s)) * factorial(count - len(s) - 1) / factorial(count) for s in others]
        shares[name] = sum(w * (values[s | {name}] - values[s]) for w, s in zip(weights, others, strict=True))
    return shares


def _cells(start: str, arms: Arms) -> dict[frozenset[str], str]:
    """For each subset of the departures the arm that has them and else `start`'s settings; {} if any is missing."""
    cells: dict[frozenset[str], str] = {}
    for departures in chain.from_iterable(combinations(DEPARTURES, n) for n in range(len(DEPARTURES) + 1)):
        wanted = arms[start][0].run.settings
        for name in departures:
            wanted = changed(wanted, *DEPARTURES[name])
        arm = next((name for name, seeds in arms.items() if seeds[0].run.settings == wanted), None)
        if arm is None or arm in cells.values():  # missing, or `start` itself departs
            return {}
        cells[frozenset(departures)] = arm
    return cells


def changed(settings: Settings, section: str, key: str, value: str) -> Settings:
    """The settings with another value of one key of a section."""
    part = getattr(settings, section).model_copy(update={key: value})
    return settings.model_copy(update={section: part})
