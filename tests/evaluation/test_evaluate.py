import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.neighbors import NearestNeighbors

from satclr import files
from satclr.data import tiles
from satclr.evaluation import evaluate, logistic, probe
from satclr.evaluation.linear import LinearProbe
from satclr.evaluation.metrics import decisions
from satclr.project import Run

from .conftest import MakeRun, log

METRICS = """
profile arm seed test_mAP test_mAP_ci95 test_mAP_bias test_within_category_mAP test_micro_mAP val_mAP best_epoch
train_tiles test_tiles labels labels_without_positives test_macro_F1 test_micro_F1 test_macro_precision
test_micro_precision test_macro_recall test_micro_recall test_ECE test_ECE_scaled temperature test_LRAP test_one_error
test_coverage test_knn_mAP test_knn_mAP_ci95 test_converged_mAP test_converged_mAP_ci95 val_converged_mAP
converged_strength label_efficiency test_mAP_at_20_percent test_mAP_at_20_percent_sd test_mAP_at_50_percent
test_mAP_at_50_percent_sd references
"""
rng = np.random.default_rng()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BOOTSTRAP_RESAMPLES", 100)
    monkeypatch.setattr(evaluate, "LABEL_FRACTIONS", (0.2, 0.5))
    monkeypatch.setattr(evaluate, "NEIGHBOURS", 5)


def measure(run: Run) -> dict[str, Any]:
    probe.run(run, log)
    evaluate.run(run, log)
    text = (run.results / "details.json").read_text()
    found: dict[str, Any] = json.loads(text, parse_constant=lambda c: pytest.fail(f"{c} is not JSON"))
    return found


def test_the_numbers_are_scikit_learns(
    run_of: MakeRun, store: tiles.TileStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of()
    found = measure(run)
    assert list(found) == METRICS.split()
    saved = files.load_npz(run.results / "scores.npz")
    scores, targets, thresholds = (saved[k] for k in ("test_scores", "test_targets", "thresholds"))
    said = scores >= thresholds
    expected = {
        "test_mAP": reference.average_precision_score(targets, scores),
        "test_micro_mAP": reference.average_precision_score(targets, scores, average="micro"),
        "test_knn_mAP": reference.average_precision_score(targets, saved["test_knn_scores"]),
        "test_converged_mAP": reference.average_precision_score(targets, saved["test_converged_scores"]),
        "test_LRAP": reference.label_ranking_average_precision_score(targets, scores),
        "test_coverage": reference.coverage_error(targets, scores),
    }
    for average in ("macro", "micro"):
        values = reference.precision_recall_fscore_support(targets, said, average=average, zero_division=0)
        expected |= {f"test_{average}_{n}": v for n, v in zip(("precision", "recall", "F1"), values, strict=False)}
    assert {key: found[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    low, high = found["test_mAP_ci95"]
    perfect = (low, found["test_mAP"], high) == (1, 1, 1)  # then every resample is, too
    assert perfect or 0 <= low < found["test_mAP"] < high <= 1
    prevalence = found["references"]["label_prevalence"]
    assert prevalence["mAP"] == pytest.approx(targets.mean(0).mean())
    assert found["references"]["category_prior"]["mAP"] > prevalence["mAP"]
    assert found["references"]["category_prior"]["within_category_mAP"] == prevalence["within_category_mAP"]
    rows = files.read_csv(run.results / "per_class_ap.csv")
    each = reference.f1_score(targets, said, average=None, zero_division=0)
    assert tuple(rows[0]) == evaluate.PER_CLASS
    assert [float(row["F1"]) for row in rows] == pytest.approx(each)
    assert [row["label"] for row in rows] == store.labels
    assert f"simclr-s0: test mAP {found['test_mAP']:.4f} [" in capsys.readouterr().out


def test_overconfident_scores_are_scaled_by_the_temperature(run_of: MakeRun, store: tiles.TileStore) -> None:
    run = run_of(probe={"epochs": 40, "learning_rate": 0.5})
    np.save(run.features, rng.normal(size=(48, 8)).astype(np.float32))  # the probe learns by heart
    found = measure(run)
    assert found["temperature"] > 1
    test = store.rows("test")
    logits = LinearProbe.load(run.probe).logits(np.load(run.features)[test])
    for scale, name in ((1.0, "test_ECE"), (found["temperature"], "test_ECE_scaled")):
        scaled = decisions.expected_calibration_error(1 / (1 + np.exp(-logits / scale)), store.targets[test])
        assert found[name] == pytest.approx(scaled)


def test_a_repeated_evaluation_is_bit_identical(run_of: MakeRun) -> None:
    def everything() -> dict[str, bytes]:
        run = run_of()
        measure(run)
        return {file.name: file.read_bytes() for file in run.results.iterdir()}

    assert everything() == everything()


def test_few_labels_are_seeded_subsets_and_end_at_the_converged_probe(
    run_of: MakeRun, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = logistic.best, []

    def best(train: Any, val: Any) -> logistic.Best:
        drawn.append(train[0].tobytes())
        return real(train, val)

    monkeypatch.setattr(logistic, "best", best)
    found = measure(run_of(evaluate={"labels": {"subsets": 3}}))
    train, rows = len(store.rows("train")), found["label_efficiency"]
    assert [row["tiles"] for row in rows] == [round(0.2 * train), round(0.5 * train), train]
    assert [len(row["subsets"]) for row in rows] == [3, 3, 1]
    assert rows[0]["test_mAP"] == pytest.approx(np.mean(rows[0]["subsets"]))
    assert rows[0]["sd"] == pytest.approx(np.std(rows[0]["subsets"], ddof=1))
    assert len(drawn) == len(set(drawn)) == 1 + 2 * 3  # the whole, and three different subsets of each fraction
    assert found["test_mAP_at_20_percent"] == rows[0]["test_mAP"]
    assert rows[-1]["test_mAP"] == found["test_converged_mAP"]


def test_a_label_without_test_positives_is_reported_and_left_out_or_zero(
    run_of: MakeRun, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    targets = store.targets.copy()
    targets[store.rows("test"), 1] = 0
    changed = replace(store, targets=targets)
    monkeypatch.setattr(tiles, "open_store", lambda _folder: changed)
    excluded = measure(run_of())
    rows = files.read_csv(run_of().results / "per_class_ap.csv")
    zero = measure(run_of(evaluate={"undefined_ap": "zero"}))
    assert excluded["labels_without_positives"] == [store.labels[1]]
    assert (rows[1]["AP"], rows[1]["recall"], rows[1]["F1"]) == ("", "", "")
    defined = [float(row["AP"]) for row in rows if row["AP"]]
    assert excluded["test_mAP"] == pytest.approx(np.mean(defined))
    assert zero["test_mAP"] == pytest.approx(sum(defined) / 3)
    assert zero["references"] == excluded["references"]
    assert sum(zero["test_mAP_ci95"]) == pytest.approx(2 * zero["test_mAP"])  # about the estimate, also with zeros


def test_knn_scores_are_scikit_learns_neighbours_weighted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate, "BLOCK", 7)
    features, queries = rng.normal(size=(70, 9)), rng.normal(size=(30, 9))
    targets = rng.integers(0, 2, (70, 5), np.uint8)
    distance, nearest = NearestNeighbors(n_neighbors=8, metric="cosine").fit(features).kneighbors(queries)
    weight = np.exp((1 - distance) / 0.1)
    expected = (weight[..., None] * targets[nearest]).sum(1) / weight.sum(1, keepdims=True)
    np.testing.assert_allclose(evaluate.knn(queries, features, targets, k=8, temperature=0.1), expected, atol=1e-5)


def test_of_equally_near_tiles_the_first_vote_and_at_most_all_of_them() -> None:
    features, targets = np.eye(4)[[0, 1, 1, 1, 1, 2]], np.eye(6, dtype=np.uint8)
    found = evaluate.knn(np.eye(4)[1:2], features, targets, k=2, temperature=1.0)
    np.testing.assert_allclose(found, [[0, 0.5, 0.5, 0, 0, 0]])
    found = evaluate.knn(np.ones((3, 2)), np.ones((3, 2)), targets[:3, :1], k=20, temperature=0.07)
    np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)
