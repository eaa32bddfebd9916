from __future__ import annotations

import json
import math
from itertools import chain, combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satclr.project import Project
from satclr.study import compare, contrasts, factorial
from satclr.study import report as reporting

from . import measured

FACTORS = ("statistics", "BatchNorm", "epoch")
SKILLS = {  # each departure costs skill, more where the statistics are wrong
    "baseline": 1.0,
    "baseline_statistics": 0.3,
    "baseline_batch_norm": 0.9,
    "baseline_epoch": 0.8,
    "baseline_statistics_batch_norm": 0.4,
    "baseline_statistics_epoch": 0.1,
    "baseline_batch_norm_epoch": 0.6,
    "baseline_statistics_batch_norm_epoch": 0.2,
}


def over_orders(values: dict[frozenset[str], Any]) -> dict[str, Any]:
    """Each factor's effect when added to those before it, averaged over all orders, by a double loop."""
    factors = sorted(frozenset().union(*values))
    totals: dict[str, Any] = dict.fromkeys(factors, 0.0)
    for order in permutations(factors):
        before: frozenset[str] = frozenset()
        for name in order:
            totals[name] = totals[name] + values[before | {name}] - values[before]
            before |= {name}
    return {name: total / math.factorial(len(factors)) for name, total in totals.items()}


@given(st.integers(1, 4), st.integers(0, 2**20))
def test_shapley_values_are_effects_averaged_over_orders(count: int, seed: int) -> None:
    rng, names = np.random.default_rng(seed), "abcd"[:count]
    subsets = chain.from_iterable(combinations(names, n) for n in range(count + 1))
    values = {frozenset(s): rng.normal(size=3) for s in subsets}
    found = factorial.shapley(values)
    for name, expected in over_orders(values).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-12)
    whole = values[frozenset(names)] - values[frozenset()]
    np.testing.assert_allclose(sum(found.values()), whole, atol=1e-12)


def test_eight_arms_are_attributed_with_the_intervals_of_the_contrasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(contrasts, "RESAMPLES", 100)
    project = measured.project(tmp_path, dict(reversed(SKILLS.items())), seeds=(0, 1))
    report = json.loads(json.dumps(compare.run(project)))
    (found,) = report["factorial"]
    assert (found["arm"], found["against"]) == ("baseline_statistics_batch_norm_epoch", "baseline")
    scores = {name: entry["test_mAP"] for name, entry in report["arms"].items()}
    cells = {frozenset(cell["departures"]): cell["arm"] for cell in found["cells"]}
    for departures, arm in cells.items():
        assert arm == "_".join(
            ["baseline", *(d.replace("BatchNorm", "batch_norm") for d in FACTORS if d in departures)]
        )
    expected = over_orders({departures: scores[arm] for departures, arm in cells.items()})
    rows = {row["departure"]: row for row in found["departures"]}
    assert {name: row["shapley"] for name, row in rows.items()} == pytest.approx(expected)
    assert rows["epoch"]["alone"] == pytest.approx(scores["baseline_epoch"] - scores["baseline"])
    last = scores[found["arm"]] - scores["baseline_batch_norm_epoch"]
    assert rows["statistics"]["last"] == pytest.approx(last)
    assert sum(row["shapley"] for row in rows.values()) == pytest.approx(found["delta_mAP"])
    assert all(low < row["shapley"] < high for row in rows.values() for low, high in [row["ci95"]])
    (contrast,) = [c for c in report["contrasts"] if {c["arm"], c["against"]} == {found["arm"], "baseline"}]
    assert sorted(-end for end in contrast["ci95"]) == pytest.approx(found["ci95"])
    shown = compare.factorial_tables(report)[0]
    assert f"{rows['statistics']['shapley']:+.4f}" in shown[-2]
    assert "Shapley value" in capsys.readouterr().out
    html = reporting.run(Project(tmp_path)).read_text()
    assert f"{rows['epoch']['shapley']:+.4f}" in html


def test_a_missing_cell_leaves_no_factorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "RESAMPLES", 10)
    skills = {name: skill for name, skill in SKILLS.items() if name != "baseline_batch_norm_epoch"}
    assert compare.run(measured.project(tmp_path, skills))["factorial"] == []
