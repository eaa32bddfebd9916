import json
import math
from dataclasses import replace
from itertools import combinations, pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from satclr import files
from satclr.project import ProjectError
from satclr.study import compare, contrasts
from satclr.study import report as reporting
from satclr.study.results import Results
from tests import made_up


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contrasts, "RESAMPLES", 100)


def test_contrasts_are_later_minus_earlier_with_paired_intervals(tmp_path: Path) -> None:
    skills = {"baseline": 0.35, "simclr": 3.5, "random": 0.0}
    report = compare.run(made_up.project(tmp_path, skills, seeds=(0, 1, 2)))
    assert json.loads((tmp_path / "reports/tiny/compare.json").read_text()) == report
    arms = report["arms"]
    pairs = {(c["arm"], c["against"]): c for c in report["contrasts"]}
    assert set(pairs) == {("simclr", "baseline"), ("random", "baseline"), ("random", "simclr")}
    won, lost = pairs["simclr", "baseline"], pairs["random", "baseline"]
    assert won["delta_mAP"] == pytest.approx(arms["simclr"]["test_mAP"] - arms["baseline"]["test_mAP"])
    assert 0 < won["ci95"][0] < won["delta_mAP"] < won["ci95"][1]
    assert won["p_value"] < 0.03  # 100 resamples give no less than 0.02
    assert (won["labels_better"], won["labels_worse"], lost["labels_better"]) == (4, 0, 0)
    assert won["p_holm"] < 0.001 < lost["p_holm"] < 0.1
    assert won["depends_on_probe"]  # since the probe to convergence brings the arms together
    assert won["delta_mAP"] - won["delta_converged_mAP"] > won["delta_by_probe_ci95"][0] > 0
    assert "simclr against baseline depends on the probe: +" in next(compare.probe_notes(report))
    seeds = [entry["test_mAP"] for entry in arms["simclr"]["seeds"].values()]
    assert arms["simclr"]["test_mAP"] == pytest.approx(np.mean(seeds))
    assert arms["simclr"]["test_mAP_sd"] == pytest.approx(np.std(seeds, ddof=1))
    assert f"{np.mean(seeds):.4f} ± {np.std(seeds, ddof=1):.4f}" in compare.arm_table(report)[2]


def test_the_ladder_climbs_in_the_order_of_params(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    skills = {"simclr": 3.5, "baseline": 1.0, "baseline_batch_norm": 0.3}
    rungs = ("baseline_as_released", "baseline_batch_norm", "baseline", "simclr")
    steps = compare.run(made_up.project(tmp_path, skills, ladder=rungs))["ladder"]
    assert [step["arm"] for step in steps] == ["baseline_batch_norm", "baseline", "simclr"]
    for below, step in pairwise(steps):
        assert step["against"] == below["arm"]
        assert step["delta_mAP"] == pytest.approx(step["test_mAP"] - below["test_mAP"])
        assert step["delta_ci95"][0] < step["delta_mAP"] < step["delta_ci95"][1]
    out = capsys.readouterr().out
    assert "baseline_batch_norm" in out.partition("rung")[2]
    assert "paper, " not in out  # its data are others


def test_leakage_compares_an_arm_with_itself_without_near_duplicates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    skills = {"simclr_by_group": 1.0, "baseline": 0.3, "simclr": 3.5, "baseline_by_group": 0.3}
    report = compare.run(made_up.project(tmp_path, skills, seeds=(0, 1)))
    rows = {row["by_tile"]: row for row in report["leakage"]}
    by_group = {name: row["by_group"] for name, row in rows.items()}
    assert by_group == {"baseline": "baseline_by_group", "simclr": "simclr_by_group"}
    lifted = rows["simclr"]
    assert lifted["test_mAP"] == [report["arms"][name]["test_mAP"] for name in ("simclr", "simclr_by_group")]
    assert lifted["delta_mAP"] == pytest.approx(lifted["test_mAP"][0] - lifted["test_mAP"][1])
    assert 0 < lifted["ci95"][0] < lifted["delta_mAP"] < lifted["ci95"][1]
    assert "4 of 40 (10.0%)" in capsys.readouterr().out


def test_an_undefined_ap_counts_as_zero_only_where_asked(tmp_path: Path) -> None:
    run = made_up.project(tmp_path, {"baseline": 1.5}).run("baseline")
    for undefined_ap, share in (("exclude", 1.0), ("zero", 0.8)):
        settings = contrasts.changed(run.settings, "evaluate", "undefined_ap", undefined_ap)
        arms = {"baseline": [Results(replace(run, settings=settings))]}
        measures = contrasts.measure(arms, ["scene"] * made_up.TILES["test"])
        entry, expected = contrasts.numbers(arms, measures)["arms"]["baseline"], arms["baseline"][0].metrics["test_mAP"]
        assert entry["test_mAP"] == pytest.approx(expected * share)
        assert entry["test_mAP_ci95"][0] < entry["test_mAP"] < entry["test_mAP_ci95"][1]
        assert entry["test_within_category_mAP"] == pytest.approx(expected)
        alone = contrasts.measure(arms, [f"scene {i}" for i in range(made_up.TILES["test"])])
        assert np.isnan(contrasts.numbers(arms, alone)["arms"]["baseline"]["test_within_category_mAP"])
        assert np.isnan(contrasts.contrast(alone, "baseline", "baseline")["delta_within_category_mAP_ci95"]).all()


def test_results_that_are_damaged_missing_or_of_other_tiles_are_not_compared(tmp_path: Path) -> None:
    project = made_up.project(tmp_path)
    other = project.run("simclr")

    def refused(error: type[ValueError], message: str) -> None:
        with pytest.raises(error, match=message):
            compare.run(project)

    for name, content in (("details.json", "{"), ("probe.csv", "epoch\nx\n"), ("scores.npz", "PK")):
        before = (other.results / name).read_bytes()
        (other.results / name).write_text(content)
        refused(files.FileError, name)
        (other.results / name).write_bytes(before)
    np.savez(other.results / "scores.npz", labels=np.array(made_up.LABELS))
    refused(files.FileError, r"scores\.npz lacks 'test_scores'; run `satclr evaluate`")
    (other.results / "scores.npz").unlink()
    refused(ProjectError, r"simclr-s0/scores\.npz does not exist")
    other.results.rename(tmp_path / "before")
    made_up.write(other, tiles=50)
    refused(files.FileError, "simclr-s0 and baseline-s0 differ")


def test_changed_weights_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made_up.project(tmp_path, {"baseline": 1.5}).run("baseline")
    settings = contrasts.changed(run.settings, "pretrain", "weights", "start.safetensors")
    everything = [Results(replace(run, settings=settings))]
    start = tmp_path / "start.safetensors"
    start.write_text("before")
    files.save_tensors(run.encoder, {}, weights_sha256=files.sha256(start))
    compare.warn_of_changed_weights(everything)
    assert capsys.readouterr().err == ""
    start.write_text("after")
    compare.warn_of_changed_weights(everything)
    assert "baseline-s0 was pretrained from start.safetensors, which has changed since" in capsys.readouterr().err


SUFFIXES = {"statistics": "_statistics", "BatchNorm": "_batch_norm", "epoch": "_epoch"}
SUBSETS = [s for n in range(4) for s in combinations(SUFFIXES, n)]
SKILLS = (3.5, 1.0, 3.1, 2.8, 1.4, 0.3, 2.1, 0.7)  # each departure costs skill, more where the statistics are wrong
CELLS = {f"baseline{''.join(SUFFIXES[name] for name in s)}": skill for s, skill in zip(SUBSETS, SKILLS, strict=True)}


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
    values = {frozenset(s): rng.normal(size=3) for n in range(count + 1) for s in combinations(names, n)}
    found = contrasts.shapley(values)
    for name, expected in over_orders(values).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-12)
    whole = values[frozenset(names)] - values[frozenset()]
    np.testing.assert_allclose(sum(found.values()), whole, atol=1e-12)


def test_eight_arms_are_attributed_with_the_intervals_of_the_contrasts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    project = made_up.project(tmp_path, dict(reversed(CELLS.items())), seeds=(0, 1))
    report = json.loads(json.dumps(compare.run(project)))
    (found,) = report["factorial"]
    assert (found["arm"], found["against"]) == ("baseline_statistics_batch_norm_epoch", "baseline")
    scores = {name: entry["test_mAP"] for name, entry in report["arms"].items()}
    cells = {frozenset(cell["departures"]): cell["arm"] for cell in found["cells"]}
    assert cells == {frozenset(s): arm for s, arm in zip(SUBSETS, CELLS, strict=True)}
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
    for shown in (capsys.readouterr().out, reporting.run(project).read_text()):
        assert "Shapley value" in shown
        assert f"{rows['epoch']['shapley']:+.4f}" in shown


def test_a_missing_cell_leaves_no_factorial(tmp_path: Path) -> None:
    skills = {name: skill for name, skill in CELLS.items() if name != "baseline_batch_norm_epoch"}
    assert compare.run(made_up.project(tmp_path, skills))["factorial"] == []
