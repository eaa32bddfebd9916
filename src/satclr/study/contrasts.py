"""The numbers of compare.json: every arm, every difference between two arms, references, the ladder, and leakage.

Each resample draws the test tiles once, for all arms and references. One arm's interval is its estimate ± t · standard
error, over tiles and, where there are several, seeds (`metrics.standard_interval`); a difference's is the paired
bootstrap's, with each arm's seeds drawn too. R resamples, A arms, K labels.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import randomness
from satclr.evaluation import metrics
from satclr.params import Settings
from satclr.study.results import Results

Floats = npt.NDArray[np.float64]
Arms = Mapping[str, Sequence[Results]]  # arm → its seeds

RESAMPLES = 1000
LEVEL = 0.05  # of adjusted p-values
IDENTITY = ("profile", "arm", "seed")
MEASURES = {"mAP": "test", "converged_mAP": "test_converged", "within_category_mAP": "test"}  # → whose scores
OPTIONAL = {  # what compare.json takes from the files of stages that may be left out
    "robustness": ("clean_mAP", "mean_corruption_mAP", "relative_drop", "corruptions"),
    "maps": ("knn_label_overlap", "trustworthiness", "distance_rank_correlation"),
}


@dataclass(frozen=True)
class Measure:
    """One measure of every arm: AP of each seed and label, and on resamples."""

    ap: Mapping[str, Floats]  # arm → (S,K)
    tiles: Floats  # (R,A,K), means over seeds, tiles redrawn
    tiles_and_seeds: Floats  # (R,A,K), seeds redrawn too
    zero: Collection[str] = ()  # arms in whose means a label without AP counts as zero

    def seeds(self, arm: str) -> Floats:
        """The mean over labels of each seed, (S,)."""
        return self._mean(self.ap[arm], arm)

    def resampled(self, arm: str, *, seeds: bool) -> Floats:
        """The mean over labels on each resample, (R,)."""
        return self._mean((self.tiles_and_seeds if seeds else self.tiles)[:, list(self.ap).index(arm)], arm)

    def _mean(self, ap: Floats, arm: str) -> Floats:
        undefined = np.isnan(self.ap[arm]).all(0) & (arm in self.zero)
        return metrics.nan_mean(np.where(undefined, 0, ap))


def measure(arms: Arms, categories: Sequence[str]) -> dict[str, Measure]:
    """Every measure of the arms that all of them have; categories: of the test tiles."""
    runs = [r for seeds in arms.values() for r in seeds]
    zero = [r.run.arm for r in runs if r.run.settings.evaluate.undefined_ap == "zero"]
    found = {}
    for name, which in MEASURES.items():
        if all(f"{which}_scores" in r.arrays for r in runs):
            scores = {arm: np.stack([r.arrays[f"{which}_scores"] for r in seeds]) for arm, seeds in arms.items()}
            within = categories if name.startswith("within") else None
            found[name] = measured(scores, runs[0].scores("test").targets, within, zero=[] if within else zero)
    return found


def measured(
    scores: Mapping[str, npt.NDArray[np.floating[Any]]], targets: npt.NDArray[np.uint8],
    categories: Sequence[str] | None, *, zero: Collection[str] = (),
) -> Measure:  # fmt: skip
    """A measure of scores, arm → (S,N,K), on targets (N,K); with the tiles' categories, AP is within them."""
    seed = randomness.derive(0, "bootstrap") % 2**32
    samples = metrics.paired_bootstrap_over_seeds(
        list(scores.values()), targets, resamples=RESAMPLES, seed=seed, categories=categories
    )

    def ap(one: npt.NDArray[np.floating[Any]]) -> Floats:
        if categories is None:
            return metrics.average_precision(one, targets)
        return metrics.within_category_average_precision(one, targets, categories)

    return Measure({name: np.stack([ap(one) for one in each]) for name, each in scores.items()}, *samples, zero)


def numbers(arms: Arms, measures: Mapping[str, Measure]) -> dict[str, Any]:
    """Mean, spread and interval of each arm, and every contrast: later arm minus earlier arm."""
    count = len(next(iter(arms.values()))[0].scores("test").tiles)
    entries = {name: _arm(seeds, measures, tiles=count) | _optional(seeds) for name, seeds in arms.items()}
    contrasts = [contrast(measures, later, earlier) for earlier, later in combinations(arms, 2)]
    for c, adjusted in zip(contrasts, metrics.holm([c["p_holm"] for c in contrasts]), strict=True):
        c["p_holm"] = float(adjusted)
        if c["against"] == next(iter(arms)):
            sure = _sure_labels(measures["mAP"], c["arm"], c["against"])
            c |= {"labels_better": int((sure > 0).sum()), "labels_worse": int((sure < 0).sum())}
    return {"arms": entries, "contrasts": contrasts}


def _sure_labels(m: Measure, arm: str, against: str) -> Floats:
    """The differences in AP that are significant with 5% false ones expected among them (Benjamini & Hochberg)."""
    names = list(m.ap)
    samples = m.tiles_and_seeds[:, names.index(arm)] - m.tiles_and_seeds[:, names.index(against)]
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
        result[f"delta_{name}"] = float(m.seeds(arm).mean() - m.seeds(against).mean())
        samples[name] = m.resampled(arm, seeds=True) - m.resampled(against, seeds=True)
        drawn = samples[name][~np.isnan(samples[name])]  # with few tiles, labels may vary within no category
        ends = metrics.interval(drawn) if len(drawn) else (np.nan, np.nan)
        result["ci95" if name == "mAP" else f"delta_{name}_ci95"] = list(ends)
    result["p_value"] = metrics.p_value(samples["mAP"])
    result["p_holm"] = metrics.wald_p_value(result["delta_mAP"], samples["mAP"])  # `numbers` adjusts it
    if "converged_mAP" in samples:
        low, high = metrics.interval(samples["mAP"] - samples["converged_mAP"])
        result |= {"delta_by_probe_ci95": [low, high], "depends_on_probe": bool(low > 0 or high < 0)}
    return result


def references(
    scores: Mapping[str, npt.NDArray[np.floating[Any]]], targets: npt.NDArray[np.uint8], categories: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Test mAP of each reference, over all test tiles and within categories, with intervals over test tiles.

    scores: of `evaluation.references.scores`, name → (N,K). A label without positives is left out.
    """
    each, tiles = {name: s[None] for name, s in scores.items()}, len(targets)
    whole, within = measured(each, targets, None), measured(each, targets, categories)
    return {
        name: _estimate(whole, name, "mAP", tiles=tiles) | _estimate(within, name, "within_category_mAP", tiles=tiles)
        for name in each
    }


def _arm(seeds: Sequence[Results], measures: Mapping[str, Measure], *, tiles: int) -> dict[str, Any]:
    entry: dict[str, Any] = {}
    for name, m in measures.items():
        entry |= _estimate(m, seeds[0].run.arm, name, tiles=tiles)
    biases = [r.metrics["test_mAP_bias"] for r in seeds]
    return entry | {
        "test_mAP_sd": _deviation(measures["mAP"].seeds(seeds[0].run.arm).tolist()),
        "test_mAP_bias": float(np.mean(biases)),
        "val_mAP": float(np.mean([r.metrics["val_mAP"] for r in seeds])),
        "label_efficiency": _label_efficiency(seeds),
        "seeds": {str(r.run.seed): {k: v for k, v in r.metrics.items() if k not in IDENTITY} for r in seeds},
    }


def _estimate(m: Measure, arm: str, name: str, *, tiles: int) -> dict[str, Any]:
    """One arm's mean over seeds, and its interval over test tiles and seeds."""
    each = m.seeds(arm)
    mean = float(each.mean())
    interval = metrics.standard_interval(mean, m.resampled(arm, seeds=False), tiles=tiles, seeds=each)
    return {f"test_{name}": mean, f"test_{name}_ci95": list(interval)}


def _label_efficiency(seeds: Sequence[Results]) -> list[dict[str, Any]]:
    """One row for each share of the training labels: mean and deviation over the subsets of all seeds."""
    rows = []
    for same in zip(*(r.metrics.get("label_efficiency", []) for r in seeds), strict=True):
        values = [value for row in same for value in row["subsets"]]
        size = {key: same[0][key] for key in ("fraction", "tiles")}
        rows.append({**size, "test_mAP": float(np.mean(values)), "sd": _deviation(values)})
    return rows


def _deviation(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def _optional(seeds: Sequence[Results]) -> dict[str, Any]:
    """Robustness and maps, means over seeds, where every seed has them."""
    known = {}
    for stage, keys in OPTIONAL.items():
        trees = [r.optional(f"{stage}.json") or {} for r in seeds]
        parts = [{key: tree.get(key) for key in keys} for tree in trees]
        if all(value is not None for part in parts for value in part.values()):
            known[stage] = _mean_tree(parts)
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
    for a, (name, each) in enumerate(measure.ap.items()):
        table = np.full((each.shape[1], 6), np.nan)
        for k in np.flatnonzero(~np.isnan(each).any(0)):
            table[k, 0] = each[:, k].mean()
            own = measure.tiles[:, a, k]
            table[k, 1:3] = metrics.standard_interval(table[k, 0], own, tiles=tiles, seeds=each[:, k])
            if name != first:
                table[k, 3] = table[k, 0] - tables[first][k, 0]
                samples = measure.tiles_and_seeds[:, a, k] - measure.tiles_and_seeds[:, 0, k]
                table[k, 4:] = metrics.interval(samples[~np.isnan(samples)])
        tables[name] = table
    return tables


def ladder(report: Mapping[str, Any], rungs: Sequence[str]) -> list[dict[str, Any]]:
    """Each compared rung's mAP, and its change from the rung before with the paired interval."""
    known = [name for name in rungs if name in report["arms"]]
    steps = []
    for below, name in zip([None, *known], known, strict=False):
        arm = report["arms"][name]
        step = {"arm": name, "test_mAP": arm["test_mAP"], "ci95": arm["test_mAP_ci95"]}
        if below is not None:
            delta, ci95, _ = _contrast(report, name, below)
            step |= {"against": below, "delta_mAP": delta, "delta_ci95": ci95}
        steps.append(step)
    return steps if len(steps) > 1 else []


def leakage(report: Mapping[str, Any], arms: Arms) -> list[dict[str, Any]]:
    """How much near-duplicates across splits lift each arm, compared with the arm that leaves them out.

    One row for each pair of arms whose settings differ in `near_duplicates` alone: by_tile keeps them, by_group not.
    """
    rows = []
    for by_tile, seeds in arms.items():
        wanted = _without_leaks(seeds[0].run.settings)
        for by_group, others in arms.items():
            if others[0].run.settings != wanted:
                continue
            delta, ci95, p_value = _contrast(report, by_tile, by_group)
            row: dict[str, Any] = {"by_tile": by_tile, "by_group": by_group}
            row["test_mAP"] = [report["arms"][name]["test_mAP"] for name in (by_tile, by_group)]
            row |= {"delta_mAP": delta, "ci95": ci95, "p_value": p_value}
            rows.append(row | {"train_tiles": [r[0].metrics["train_tiles"] for r in (seeds, others)]})
    return rows


def _without_leaks(settings: Settings) -> Settings | None:
    """The settings with near-duplicates left out; None where pretraining or probe leaves them out already."""
    change = {"near_duplicates": "leave_out"}
    if "leave_out" in (settings.pretrain.near_duplicates, settings.probe.near_duplicates):
        return None
    pretrain, probe = settings.pretrain.model_copy(update=change), settings.probe.model_copy(update=change)
    return settings.model_copy(update={"pretrain": pretrain, "probe": probe})


def _contrast(report: Mapping[str, Any], arm: str, against: str) -> tuple[float, list[float], float]:
    """Difference in mAP, interval and p-value of two arms, in either order."""
    for c in report["contrasts"]:
        if {c["arm"], c["against"]} == {arm, against}:
            sign = 1.0 if c["arm"] == arm else -1.0
            return sign * c["delta_mAP"], sorted(sign * end for end in c["ci95"]), c["p_value"]
    raise KeyError((arm, against))
