"""The numbers of compare.json: every arm, every difference between two arms, the ladder, and leakage.

Intervals are over test tiles and seeds: each resample draws the test tiles once, for all arms, and each arm's
seeds with replacement (`metrics.paired_bootstrap_over_seeds`). R resamples, A arms, K labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
IDENTITY = ("profile", "arm", "seed")
OPTIONAL = {  # what compare.json takes from the files of stages that may be left out
    "robustness": ("clean_mAP", "mean_corruption_mAP", "relative_drop", "corruptions"),
    "maps": ("knn_label_overlap", "trustworthiness", "distance_rank_correlation"),
}


def resample(arms: Arms) -> Floats:
    """AP of each arm and label, a mean over seeds, on each resample of test tiles and seeds: (R,A,K)."""
    scores = [np.stack([r.scores("test").scores for r in seeds]) for seeds in arms.values()]
    targets = next(iter(arms.values()))[0].scores("test").targets
    seed = randomness.derive(0, "bootstrap") % 2**32
    return metrics.paired_bootstrap_over_seeds(scores, targets, resamples=RESAMPLES, seed=seed)


def numbers(arms: Arms, samples: Floats, labels: Mapping[str, Floats]) -> dict[str, Any]:
    """Mean, spread and interval of each arm, and every contrast: later arm minus earlier arm; labels: of `by_label`."""
    means = {name: resampled_mean(seeds, samples[:, a]) for a, (name, seeds) in enumerate(arms.items())}
    entries = {name: _arm(seeds, means[name]) | _optional(seeds) for name, seeds in arms.items()}
    contrasts: list[dict[str, Any]] = [
        {
            "arm": later,
            "against": earlier,
            "delta_mAP": entries[later]["test_mAP"] - entries[earlier]["test_mAP"],
            "ci95": list(metrics.interval(means[later] - means[earlier])),
            "p_value": metrics.p_value(means[later] - means[earlier]),
        }
        for earlier, later in combinations(arms, 2)
    ]
    for c in contrasts:
        if c["against"] == next(iter(arms)):
            low, high = labels[c["arm"]][:, 4:].T
            c |= {"labels_better": int((low > 0).sum()), "labels_worse": int((high < 0).sum())}
    return {"arms": entries, "contrasts": contrasts}


def resampled_mean(seeds: Sequence[Results], ap: Floats) -> Floats:
    """Mean over labels on each resample, (R,), of ap (R,K)."""
    if seeds[0].run.settings.evaluate.undefined_ap == "zero":
        ap = np.where(seeds[0].scores("test").targets.any(axis=0), ap, 0)
    return metrics.nan_mean(ap)


def _arm(seeds: Sequence[Results], samples: Floats) -> dict[str, Any]:
    scores = [r.metrics["test_mAP"] for r in seeds]
    return {
        "test_mAP": float(np.mean(scores)),
        "test_mAP_ci95": list(metrics.interval(samples)),
        "test_mAP_sd": _deviation(scores),
        "val_mAP": float(np.mean([r.metrics["val_mAP"] for r in seeds])),
        "label_efficiency": _label_efficiency(seeds),
        "seeds": {str(r.run.seed): {k: v for k, v in r.metrics.items() if k not in IDENTITY} for r in seeds},
    }


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


def by_label(arms: Arms, samples: Floats) -> dict[str, Floats]:
    """Each arm's labels as (K,6): AP, low, high; AP minus the first arm's, low, high (paired 95% intervals).

    samples: (R,A,K). AP is a mean over seeds; nan for a label without positives, and in the first arm's differences.
    """
    tables: dict[str, Floats] = {}
    for a, (name, seeds) in enumerate(arms.items()):
        tests = [r.scores("test") for r in seeds]
        ap = np.mean([metrics.average_precision(test.scores, test.targets) for test in tests], axis=0)
        reference = tables[next(iter(arms))][:, 0] if tables else np.full_like(ap, np.nan)
        own, paired = _intervals(samples[:, a]), _intervals(samples[:, a] - samples[:, 0])
        paired[np.isnan(reference)] = np.nan
        tables[name] = np.column_stack([ap, own, ap - reference, paired])
    return tables


def _intervals(samples: Floats) -> Floats:
    """The 95% interval of each label, (K,2), from its resamples (R,K) that hold a positive; nan without any."""
    columns = [column[~np.isnan(column)] for column in samples.T]
    return np.array([metrics.interval(column) if len(column) else (np.nan, np.nan) for column in columns])


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
