from __future__ import annotations

import csv
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from satclr.study import compare, figures
from satclr.evaluation import evaluate
from satclr import params
from satclr.data import tiles

from .conftest import resolve

LABELS = ["grass", "road", "water", "never seen"]


def write_result(root: Path, arm: params.Arm, *, skill: float, tiles_: int = 60) -> None:
    """Results as the stages leave them, of scores that rank better the higher `skill`."""
    rng = np.random.default_rng(arm.seed + int(skill * 100))
    targets = (np.random.default_rng(9).random((tiles_, 4)) < 0.4).astype(np.uint8)
    targets[:, 3] = 0
    scores = (skill * targets + rng.random((tiles_, 4))).astype(np.float32) / (1 + skill)
    folder = root / arm.key
    folder.mkdir(parents=True)
    names = np.array([f"t{i}.jpg" for i in range(tiles_)])
    np.savez(
        folder / "scores.npz",
        labels=np.array(LABELS),
        test_tiles=names,
        test_scores=scores,
        test_targets=targets,
    )
    ap = np.mean([average_precision_score(targets[:, k], scores[:, k]) for k in range(3)])
    (folder / "metrics.json").write_text(
        json.dumps(
            {
                "test_mAP": ap,
                "val_mAP": ap,
                "seed": arm.seed,
                "train_tiles": 200 - 20 * arm.name.endswith("by_group"),
            }
        )
    )
    (folder / "probe.csv").write_text("epoch,train_loss,val_loss,val_mAP\n1,0.6,0.6,0.3\n2,0.5,0.55,0.4\n")
    (folder / "pretrain.csv").write_text(
        "epoch,loss,learning_rate\n" + "1,4.0,0.001\n" * (arm.name == "simclr")
    )


@pytest.fixture
def results(tmp_path: Path) -> Callable[..., list[list[params.Arm]]]:
    def make(skills: dict[str, float], seeds: tuple[int, ...] = (0,)) -> list[list[params.Arm]]:
        arms = [[resolve(name, seed) for seed in seeds] for name in skills]
        for group, skill in zip(arms, skills.values(), strict=True):
            for arm in group:
                write_result(tmp_path / "results", arm, skill=skill)
        return arms

    return make


def run(tmp_path: Path, arms: list[list[params.Arm]], rungs: tuple[str, ...] = ()) -> dict[str, object]:
    palette = figures.Palette([group[0].name for group in arms])
    return compare.run(tmp_path / "results", tmp_path / "report", arms=arms, rungs=rungs, palette=palette)


def test_contrasts_are_later_minus_earlier_with_paired_intervals(
    results: Callable[..., list[list[params.Arm]]], tmp_path: Path
) -> None:
    report = run(tmp_path, results({"baseline": 0.1, "simclr": 1.0, "random": 0.0}, seeds=(0, 1, 2)))
    assert json.loads((tmp_path / "report/compare.json").read_text()) == report
    arms = report["arms"]
    assert isinstance(arms, dict)
    pairs = {(c["arm"], c["against"]): c for c in report["contrasts"]}  # type: ignore[attr-defined]
    assert set(pairs) == {("simclr", "baseline"), ("random", "baseline"), ("random", "simclr")}
    won = pairs["simclr", "baseline"]
    assert won["delta_mAP"] == pytest.approx(arms["simclr"]["test_mAP"] - arms["baseline"]["test_mAP"])
    assert 0 < won["ci95"][0] < won["delta_mAP"] < won["ci95"][1]
    assert won["p_value"] < 0.03  # 100 resamples give no less than 0.02
    close = pairs["random", "baseline"]
    assert close["ci95"][0] < 0 < close["ci95"][1] or abs(close["delta_mAP"]) < 0.1
    seeds = [entry["test_mAP"] for entry in arms["simclr"]["seeds"].values()]
    assert arms["simclr"]["test_mAP"] == pytest.approx(np.mean(seeds))
    assert arms["simclr"]["test_mAP_sd"] == pytest.approx(np.std(seeds, ddof=1))
    assert f"{np.mean(seeds):.4f} ± {np.std(seeds, ddof=1):.4f}" in compare.table(report)[2]


def test_the_ladder_climbs_in_the_order_asked_for(
    results: Callable[..., list[list[params.Arm]]], tmp_path: Path
) -> None:
    arms = results({"simclr": 1.0, "baseline": 0.3, "baseline_batch_norm": 0.1})
    rungs = ("baseline_as_released", "baseline_batch_norm", "baseline", "simclr")
    report = run(tmp_path, arms, rungs)
    steps = report["ladder"]
    assert isinstance(steps, list)
    assert [step["arm"] for step in steps] == ["baseline_batch_norm", "baseline", "simclr"]
    for below, step in pairwise(steps):
        assert step["against"] == below["arm"]
        assert step["delta_mAP"] == pytest.approx(step["test_mAP"] - below["test_mAP"])
        assert step["delta_ci95"][0] < step["delta_mAP"] < step["delta_ci95"][1]
    assert (tmp_path / "report/figures/ladder.png").exists()
    assert "paper, baseline (MLRSNet)" in [row[0] for row in compare.ladder_table(report)]


def test_leakage_is_an_arm_against_itself_without_near_duplicates(
    results: Callable[..., list[list[params.Arm]]], tmp_path: Path
) -> None:
    skills = {"simclr_by_group": 0.3, "baseline": 0.1, "simclr": 1.0, "baseline_by_group": 0.1}
    report = run(tmp_path, results(skills, seeds=(0, 1)))
    rows = {row["by_tile"]: row for row in report["leakage"]}  # type: ignore[attr-defined]
    assert {name: row["by_group"] for name, row in rows.items()} == {
        "baseline": "baseline_by_group",
        "simclr": "simclr_by_group",
    }
    arms, lifted = report["arms"], rows["simclr"]
    assert isinstance(arms, dict)
    assert lifted["test_mAP"] == [arms[name]["test_mAP"] for name in ("simclr", "simclr_by_group")]
    assert lifted["delta_mAP"] == pytest.approx(lifted["test_mAP"][0] - lifted["test_mAP"][1])
    assert 0 < lifted["ci95"][0] < lifted["delta_mAP"] < lifted["ci95"][1]
    table = compare.leakage_table(report)
    assert table[-1][0] == "simclr"
    assert "20 of 200 (10.0%)" in table[-1]


def test_an_undefined_ap_counts_as_zero_only_where_asked(
    results: Callable[..., list[list[params.Arm]]], tmp_path: Path
) -> None:
    results({"baseline": 0.5})
    strict, zero = (resolve("baseline", evaluate={"undefined_ap": how}) for how in ("exclude", "zero"))
    for arm, share in ((strict, 1.0), (zero, 0.75)):
        found = {"baseline": [compare.read(tmp_path / "results" / arm.key, arm)]}
        entry = compare.numbers(found, compare.resampled(found))["arms"]["baseline"]
        low, high = entry["test_mAP_ci95"]
        assert low < entry["test_mAP"] * share < high


def test_results_on_other_tiles_are_not_compared(
    results: Callable[..., list[list[params.Arm]]], tmp_path: Path
) -> None:
    arms = results({"baseline": 0.5})
    other = resolve("simclr")
    write_result(tmp_path / "results", other, skill=1.0, tiles_=50)
    with pytest.raises(compare.CompareError, match="other tiles"):
        run(tmp_path, [*arms, [other]])
    with pytest.raises(compare.CompareError, match="satclr evaluate --arm random"):
        run(tmp_path, [*arms, [resolve("random")]])


def test_evaluate_agrees_with_scikit_learn(store: tiles.TileStore, tmp_path: Path) -> None:
    from satclr import tensorfile

    rng = np.random.default_rng(4)
    import torch

    features = rng.normal(size=(len(store.names), 6)).astype(np.float32)
    np.save(tmp_path / "features.npy", features)
    tuned = {"thresholds": [0.5, 0.5, 0.5], "temperature": 1.0}
    layer = {"weight": torch.randn(3, 6), "bias": torch.randn(3)}
    tensorfile.save(
        tmp_path / "probe.safetensors", layer, labels=store.labels, best_epoch=1, val_mAP=0.5, **tuned
    )
    arm = resolve("baseline")
    result = evaluate.run(
        store, features=tmp_path / "features.npy", probe=tmp_path / "probe.safetensors",
        out=tmp_path / "out", arm=arm,
    )  # fmt: skip
    test = store.rows("test")
    logits = features[test] @ layer["weight"].numpy().T + layer["bias"].numpy()
    expected = [average_precision_score(store.targets[test, k], logits[:, k]) for k in range(3)]
    with (tmp_path / "out/per_class_ap.csv").open() as file:
        found = [float(row["AP"]) for row in csv.DictReader(file) if row["AP"]]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert result["test_mAP"] == pytest.approx(np.mean(expected), abs=1e-12)
    low, high = result["test_mAP_ci95"]
    assert 0 <= low <= high <= 1
