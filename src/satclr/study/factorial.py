"""What each of the released code's departures contributes to the gap, whatever the order in which they are corrected.

The ladder corrects one departure after another, and what a rung is worth depends on those before it. The Shapley value
of a departure is its effect averaged over all orders; the values add up to the difference that all make together.
Source: Shapley 1953, "A Value for n-Person Games".
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, combinations
from math import factorial
from typing import Any

from satclr.evaluation import metrics
from satclr.study.contrasts import Arms, Measure

DEPARTURES = {  # section, setting, and its value as released
    "statistics": ("pretrain", "normalization", "released"),
    "BatchNorm": ("probe", "batch_norm", "batch"),
    "epoch": ("probe", "select", "arbitrary"),
}


def contributions(report: Mapping[str, Any], arms: Arms, measure: Measure) -> list[dict[str, Any]]:
    """Each complete factorial among the arms: its cells, and each departure's part in the difference of its ends.

    An arm begins one where the compared arms have its settings with each subset of DEPARTURES. `alone` is a departure's
    effect without the others, `last` with all others. `measure` is test mAP; intervals are 95%, over
    test tiles and seeds.
    """
    found = []
    for start in arms:
        cells = _cells(start, arms)
        if not cells:
            continue
        means = {s: measure.resampled(arm, seeds=True) for s, arm in cells.items()}
        values = {s: float(report["arms"][arm]["test_mAP"]) for s, arm in cells.items()}
        none, full = frozenset[str](), frozenset(DEPARTURES)
        entry: dict[str, Any] = {"arm": cells[full], "against": start, "delta_mAP": values[full] - values[none]}
        entry["ci95"] = list(metrics.interval(means[full] - means[none]))
        entry["cells"] = [{"arm": arm, "departures": sorted(s), "test_mAP": values[s]} for s, arm in cells.items()]
        entry["departures"] = [
            {
                "departure": name,
                "alone": values[frozenset({name})] - values[none],
                "last": values[full] - values[full - {name}],
                "shapley": value,
                "ci95": list(metrics.interval(spread)),
            }
            for (name, value), spread in zip(shapley(values).items(), shapley(means).values(), strict=True)
        ]
        found.append(entry)
    return found


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
        for section, key, value in map(DEPARTURES.__getitem__, departures):
            changed = getattr(wanted, section).model_copy(update={key: value})
            wanted = wanted.model_copy(update={section: changed})
        arm = next((name for name, seeds in arms.items() if seeds[0].run.settings == wanted), None)
        if arm is None or arm in cells.values():  # missing, or `start` itself departs
            return {}
        cells[frozenset(departures)] = arm
    return cells
