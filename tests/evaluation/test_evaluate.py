from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from sklearn import metrics as reference

from satclr.pretrain import encoder
from satclr.evaluation import evaluate, probe
from satclr import tensorfile
from satclr.data import tiles
from satclr.params import Arm

from .conftest import resolve

QUICK = {
    "bootstrap_resamples": 100,
    "sweep": {"epochs": 3},
    "knn": {"k": 5},
    "labels": {"fractions": [0.2, 0.5], "subsets": 3},
}


@pytest.fixture
def features(store: tiles.TileStore, tmp_path: Path) -> Path:
    """Fresh features that say something of the labels, and an encoder's file beside them."""
    rng = np.random.default_rng()
    mixed = store.targets @ rng.normal(size=(len(store.labels), 8)) + rng.normal(size=(len(store.names), 8))
    np.save(tmp_path / "features.npy", mixed.astype(np.float32))
    module, width = encoder.build("shufflenet_v2_x0_5")
    encoder.save(
        module, tmp_path / "encoder.safetensors", arch="shufflenet_v2_x0_5", width=width,
        mean=[0.5] * 3, std=[0.2] * 3, crop_px=32, tile_px=40,
    )  # fmt: skip
    return tmp_path / "features.npy"


def measure(store: tiles.TileStore, features: Path, arm: Arm) -> dict[str, Any]:
    folder = features.parent
    probe.run(
        store, features=features, encoder=folder / "encoder.safetensors", out=folder / "probe.safetensors",
        curve=folder / "results" / "probe.csv", settings=arm.settings, seed=arm.seed, log=lambda *_: None,
    )  # fmt: skip
    out = folder / "results"
    evaluate.run(store, features=features, probe=folder / "probe.safetensors", out=out, arm=arm)
    found: dict[str, Any] = json.loads((out / "metrics.json").read_text(), parse_constant=refuse)
    return found


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_the_numbers_are_scikit_learns(store: tiles.TileStore, features: Path) -> None:
    found = measure(store, features, resolve(evaluate=QUICK))
    with np.load(features.parent / "results" / "scores.npz") as saved:
        scores, targets, thresholds = (saved[k] for k in ("test_scores", "test_targets", "thresholds"))
        knn = saved["test_knn_scores"]
    said = scores >= thresholds
    expected = {
        "test_mAP": reference.average_precision_score(targets, scores, average="macro"),
        "test_micro_mAP": reference.average_precision_score(targets, scores, average="micro"),
        "test_knn_mAP": reference.average_precision_score(targets, knn, average="macro"),
        "test_LRAP": reference.label_ranking_average_precision_score(targets, scores),
        "test_coverage": reference.coverage_error(targets, scores),
        **{f"test_{a}_F1": reference.f1_score(targets, said, average=a, zero_division=0) for a in AVERAGES},
        **{
            f"test_{a}_{name}": score(targets, said, average=a, zero_division=0)
            for a in AVERAGES
            for name, score in (("precision", reference.precision_score), ("recall", reference.recall_score))
        },
    }
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    low, high = found["test_mAP_ci95"]
    assert 0 <= low < high <= 1
    rows = list(csv.DictReader((features.parent / "results" / "per_class_ap.csv").read_text().splitlines()))
    each = reference.f1_score(targets, said, average=None, zero_division=0)
    assert [float(row["F1"]) for row in rows] == pytest.approx(each)
    assert [row["label"] for row in rows] == store.labels


AVERAGES = ("macro", "micro")


def test_scaling_by_the_temperature_mends_overconfident_scores(store: tiles.TileStore, features: Path) -> None:
    arm = resolve(evaluate=QUICK, probe={"epochs": 40, "learning_rate": 0.5})
    found = measure(store, features, arm)
    assert found["temperature"] > 1
    assert found["test_ECE_scaled"] != found["test_ECE"]
    with np.load(features.parent / "results" / "scores.npz") as scores:
        p, y = scores["val_scores"].astype(float).clip(1e-7, 1 - 1e-7), scores["val_targets"]
    logits = np.log(p / (1 - p))

    def loss(temperature: float) -> float:
        return float(np.logaddexp(0, np.where(y == 1, -1, 1) * logits / temperature).mean())

    assert loss(found["temperature"]) < loss(1.0)


def test_a_repeated_evaluation_is_bit_identical(store: tiles.TileStore, features: Path) -> None:
    arm = resolve(evaluate=QUICK)
    folder = features.parent / "results"

    def everything() -> dict[str, bytes]:
        measure(store, features, arm)
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    assert everything() == everything()


def test_few_labels_are_seeded_subsets_and_end_at_the_sweep(store: tiles.TileStore, features: Path) -> None:
    found = measure(store, features, resolve(evaluate=QUICK))
    train = len(store.rows("train"))
    rows = found["label_efficiency"]
    assert [row["tiles"] for row in rows] == [round(0.2 * train), round(0.5 * train), train]
    assert [len(row["subsets"]) for row in rows] == [3, 3, 1]
    assert rows[0]["test_mAP"] == pytest.approx(np.mean(rows[0]["subsets"]))
    assert rows[0]["sd"] == pytest.approx(np.std(rows[0]["subsets"], ddof=1))
    assert len(set(rows[0]["subsets"])) > 1
    assert found["test_mAP_at_20_percent"] == rows[0]["test_mAP"]
    assert rows[-1]["test_mAP"] == found["test_sweep_mAP"]


def test_thresholds_are_tuned_on_validation_and_travel_with_the_probe(
    store: tiles.TileStore, features: Path
) -> None:
    measure(store, features, resolve(evaluate=QUICK))
    with np.load(features.parent / "results" / "scores.npz") as saved:
        scores, targets, thresholds = (saved[k] for k in ("val_scores", "val_targets", "thresholds"))
    with safe_open(features.parent / "probe.safetensors", "np") as file:
        assert json.loads(file.metadata()["thresholds"]) == thresholds.tolist()
    for k, threshold in enumerate(thresholds):
        tried = [reference.f1_score(targets[:, k], scores[:, k] >= t) for t in scores[:, k]]
        assert reference.f1_score(targets[:, k], scores[:, k] >= threshold) == pytest.approx(max(tried))


def test_a_label_that_validation_lacks_is_never_said() -> None:
    targets = np.array([[1, 0], [0, 0], [1, 0]], np.uint8)
    layer = {"weight": torch.randn(2, 3), "bias": torch.zeros(2)}
    found = probe.decisions(layer, np.random.default_rng().normal(size=(3, 3)).astype(np.float32), targets)
    assert found["thresholds"][1] == probe.NEVER > 1
    assert 0 < found["thresholds"][0] < 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda file: file.unlink(), "run `satclr probe` first"),
        (lambda file: write(file, labels=["other"]), "1 labels that are not the store's"),
        (lambda file: write(file, thresholds=None), "no thresholds"),
    ],
)
def test_another_probe_is_refused(
    store: tiles.TileStore, features: Path, change: Callable[[Path], None], says: str
) -> None:
    arm = resolve(evaluate=QUICK)
    measure(store, features, arm)
    file = features.parent / "probe.safetensors"
    change(file)
    with pytest.raises(tiles.TileError, match=says):
        evaluate.run(store, features=features, probe=file, out=features.parent / "other", arm=arm)
    assert not (features.parent / "other").exists()


def write(file: Path, **change: Any) -> None:
    facts = {"labels": [], "thresholds": [0.5], "temperature": 1, "best_epoch": 1, "val_mAP": 0.5} | change
    kept = {key: value for key, value in facts.items() if value is not None}
    tensorfile.save(file, {"weight": torch.zeros(1, 8), "bias": torch.zeros(1)}, **kept)
