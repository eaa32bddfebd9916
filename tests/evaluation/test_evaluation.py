"""The whole evaluation: under which names its numbers stand, and that repeating it changes not a bit."""

from __future__ import annotations

import csv
import json
import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from satclr.data import tiles
from satclr import tracking

from . import made_up
from .measured import ARMS, arms, evaluation

METRICS = """
test_mAP test_mAP_ci95 test_micro_mAP val_mAP best_epoch train_tiles test_tiles labels labels_without_positives
test_macro_F1 test_micro_F1 test_macro_precision test_micro_precision test_macro_recall test_micro_recall
test_ECE test_ECE_scaled temperature test_LRAP test_one_error test_coverage
test_knn_mAP test_knn_mAP_ci95 test_sweep_mAP test_sweep_mAP_ci95 val_sweep_mAP
sweep.learning_rate sweep.weight_decay label_efficiency
test_mAP_at_10_percent test_mAP_at_10_percent_sd test_mAP_at_50_percent test_mAP_at_50_percent_sd
"""
PER_CLASS = "label positives prevalence AP AP_lo AP_hi threshold precision recall F1"
ROBUSTNESS = """
clean_mAP mean_corruption_mAP relative_drop
corruptions.haze.1 corruptions.haze.3 corruptions.rotation.1 corruptions.rotation.3
"""
MAPS = "knn_label_overlap trustworthiness.pca distance_rank_correlation.pca"
COMPARED_ARM = "test_mAP test_mAP_ci95 test_mAP_sd val_mAP label_efficiency"
CONTRAST = "arm against delta_mAP ci95 p_value labels_better labels_worse"
COMPARED_LABEL = "arm label AP AP_lo AP_hi delta_AP delta_AP_lo delta_AP_hi"

ARM_RUN = """
test/mAP test/mAP_lo test/mAP_hi test/micro_mAP val/mAP best_epoch train_tiles test/tiles labels
test/macro_F1 test/micro_F1 test/macro_precision test/micro_precision test/macro_recall test/micro_recall
test/ECE test/ECE_scaled temperature test/LRAP test/one_error test/coverage
test/knn_mAP test/knn_mAP_lo test/knn_mAP_hi test/sweep_mAP test/sweep_mAP_lo test/sweep_mAP_hi val/sweep_mAP
sweep_learning_rate sweep_weight_decay
test/mAP_at_10_percent test/mAP_at_10_percent_sd test/mAP_at_50_percent test/mAP_at_50_percent_sd
test_ap/grass test_ap/road test_ap/water
pretrain/loss pretrain/learning_rate probe/train_loss probe/val_loss probe/val_mAP
"""
COMPARE_RUN_ARM = """
test_mAP test_mAP_lo test_mAP_hi val_mAP
label_efficiency_mAP@10_percent label_efficiency_sd@10_percent label_efficiency_mAP@50_percent
label_efficiency_sd@50_percent label_efficiency_mAP@100_percent
robustness_clean_mAP robustness_mean_corruption_mAP robustness_relative_drop
robustness_corruptions@haze/1 robustness_corruptions@haze/3 robustness_corruptions@rotation/1
robustness_corruptions@rotation/3
maps_knn_label_overlap maps_trustworthiness@pca maps_distance_rank_correlation@pca
"""
COMPARE_RUN_CONTRAST = "delta_mAP delta_mAP_lo delta_mAP_hi p_value labels_better labels_worse"
COMPARE_RUN_LABEL = "delta_AP delta_AP_lo delta_AP_hi"


def load(path: Path) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(path.read_text())
    return tree


def header(path: Path) -> list[str]:
    with path.open() as file:
        return next(csv.reader(file))


def names(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """The keys of a tree, those of inner ones behind a dot."""
    found = set()
    for key, value in tree.items():
        found |= names(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key}
    return found


def test_the_files_hold_every_number_under_its_name(measured: Path) -> None:
    for arm in arms():
        folder = measured / "results" / "tiny" / arm.key
        found = load(folder / "metrics.json")
        assert names(found) == set(METRICS.split()) | {"profile", "arm", "seed"}
        assert set(found["label_efficiency"][0]) == {"fraction", "tiles", "test_mAP", "sd", "subsets"}
        assert header(folder / "per_class_ap.csv") == PER_CLASS.split()
        assert names(load(folder / "robustness.json")) == set(ROBUSTNESS.split())
        assert names(load(folder / "maps.json")) == set(MAPS.split()) | {"tiles", "projections.pca"}
    report = load(measured / "reports" / "tiny" / "compare.json")
    assert set(report) == {"profile", "arms", "contrasts", "ladder", "paper", "leakage"}
    more = {f"robustness.{key}" for key in ROBUSTNESS.split()} | {f"maps.{key}" for key in MAPS.split()}
    for entry in report["arms"].values():
        seeds = entry.pop("seeds")
        assert names(entry) == set(COMPARED_ARM.split()) | more
        assert names(seeds["0"]) == set(METRICS.split())
    for contrast in report["contrasts"]:
        first = contrast["against"] == ARMS[0]
        assert set(contrast) == {key for key in CONTRAST.split() if first or not key.startswith("labels_")}
    assert header(measured / "reports" / "tiny" / "per_class_ap.csv") == COMPARED_LABEL.split()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_holds_every_number_under_its_name(
    measured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "project"
    shutil.copytree(measured, root)
    made_up.empty_store(root)
    run_id = tracking.publish(root, profile="tiny", arm="simclr", seed=0, params={}, fingerprint="f")
    compare_id = tracking.publish_report(root, "tiny", root / "reports" / "tiny")
    client = tracking.open_store(root, "tiny").client
    assert set(client.get_run(run_id).data.metrics) == set(ARM_RUN.split())
    expected = {
        "/".join([what, arm, *rest])
        for arm in ARMS
        for what, *rest in (name.split("@") for name in COMPARE_RUN_ARM.split())
    }
    expected |= {
        f"{what}/{arm} - {against}"
        for against, arm in combinations(ARMS, 2)
        for what in COMPARE_RUN_CONTRAST.split()
        if against == ARMS[0] or not what.startswith("labels_")
    }
    expected |= {
        f"{what}/{arm}/{label}"
        for what in COMPARE_RUN_LABEL.split()
        for arm in ARMS[1:]
        for label in ("grass", "road", "water")
    }
    assert set(client.get_run(compare_id).data.metrics) == expected


def test_a_repeated_evaluation_is_bit_identical(measured: Path, store: tiles.TileStore, tmp_path: Path) -> None:
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    kept = {"pretrain.csv", "probe.csv", "report.html"}  # not of the evaluation
    before = {
        path.relative_to(tmp_path): path.read_bytes()
        for part in ("results", "reports")
        for path in (tmp_path / part).rglob("*")
        if path.is_file() and path.name not in kept
    }
    for path in before:
        (tmp_path / path).unlink()
    evaluation(store, tmp_path)
    assert {path: (tmp_path / path).read_bytes() for path in before} == before
    written = {
        "metrics.json",
        "scores.npz",
        "robustness.json",
        "maps.json",
        "compare.json",
        "per_class_ap.csv",
    }
    assert written < {path.name for path in before}
