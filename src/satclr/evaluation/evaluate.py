"""The test: features and probe → scores, metrics with intervals, AP of each label.

Out, in results/<profile>/<arm>/: metrics.json, per_class_ap.csv, scores.npz.

    satclr evaluate --profile sample --arm simclr --seed 0

The headline, test_mAP, is the paper's probe. Beside it on the same features: a sweep of probes, nearest
neighbours, and probes on few labels. Thresholds, temperature and the sweep's choice come from validation tiles.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from satclr import atomic, randomness, tensorfile
from satclr.data import tiles
from satclr.evaluation import knn, metrics, sweep
from satclr.params import Arm, Evaluate
from satclr.pretrain import encoder

Floats = npt.NDArray[np.float64]


def run(store: tiles.TileStore, *, features: Path, probe: Path, out: Path, arm: Arm) -> dict[str, Any]:
    """Score validation and test tiles, write `out`, and return what metrics.json holds.

    Raises `tiles.TileError` when features or probe are not those of this store.
    """
    settings = arm.settings.evaluate
    val, test = store.rows("val"), store.rows("test")
    cached, layer = tiles.load_features(features, store), _read_probe(probe, store)
    logits = {name: layer.logits(cached[rows]) for name, rows in (("val", val), ("test", test))}
    scores = {name: metrics.sigmoid(z).astype(np.float32) for name, z in logits.items()}
    targets = store.targets[test]
    headline, samples = _mean_ap(scores["test"], targets, settings)
    others, other_scores = _other_taggers(store, cached, arm)
    result = {
        "profile": arm.profile,
        "arm": arm.name,
        "seed": arm.seed,
        "test_mAP": headline["mAP"],
        "test_mAP_ci95": headline["mAP_ci95"],
        "test_micro_mAP": metrics.micro_average_precision(scores["test"], targets),
        "val_mAP": layer.val_mAP,
        "best_epoch": layer.best_epoch,
        "train_tiles": len(store.rows("train")),
        "test_tiles": len(test),
        "labels": len(store.labels),
        "labels_without_positives": [label for k, label in enumerate(store.labels) if not targets[:, k].any()],
        **_decisions(scores["test"], targets, layer),
        **_calibration(logits["test"], targets, layer),
        "test_LRAP": metrics.label_ranking_average_precision(scores["test"], targets),
        "test_one_error": metrics.one_error(scores["test"], targets),
        "test_coverage": metrics.coverage_error(scores["test"], targets),
        **others,
    }
    _write_per_class(out / "per_class_ap.csv", store, scores["test"], samples, layer)
    more: dict[str, Any] = {f"test_{name}_scores": s.astype(np.float32) for name, s in other_scores.items()}
    with atomic.replacing(out / "scores.npz") as part, part.open("wb") as file:
        np.savez(
            file,
            labels=np.array(store.labels),
            val_tiles=np.array([store.names[row] for row in val]),
            val_scores=scores["val"],
            val_targets=store.targets[val],
            test_tiles=np.array([store.names[row] for row in test]),
            test_scores=scores["test"],
            test_targets=targets,
            thresholds=layer.thresholds,
            **more,
        )
    atomic.write_json(out / "metrics.json", _plain(result))
    return result


@dataclass(frozen=True)
class _Probe:
    weight: Floats  # (K,D)
    bias: Floats  # (K,)
    thresholds: Floats  # (K,) of probabilities
    temperature: float
    best_epoch: int
    val_mAP: float  # noqa: N815 - mAP is the field's spelling

    def logits(self, features: npt.NDArray[np.float32]) -> Floats:
        """Logits (N,K) of features (N,D)."""
        z: Floats = features.astype(float) @ self.weight.T + self.bias
        return z


def _read_probe(path: Path, store: tiles.TileStore) -> _Probe:
    try:
        tensors, facts = tensorfile.load(path)
    except FileNotFoundError:
        raise tiles.TileError(f"{path} does not exist; run `satclr probe` first") from None
    if "thresholds" not in facts:
        raise tiles.TileError(f"{path} has no thresholds; an earlier version wrote it: run probe again")
    labels = json.loads(facts["labels"])
    if labels != store.labels:
        raise tiles.TileError(f"{path} has {len(labels)} labels that are not the store's; run probe again")
    return _Probe(
        tensors["weight"].double().numpy(),
        tensors["bias"].double().numpy(),
        np.array(json.loads(facts["thresholds"])),
        float(facts["temperature"]),
        int(facts["best_epoch"]),
        float(facts["val_mAP"]),
    )


def _mean_ap(
    scores: npt.NDArray[Any], targets: npt.NDArray[np.uint8], settings: Evaluate
) -> tuple[dict[str, Any], Floats]:
    """Macro mAP and its interval, and AP of each label on each resample (R,K)."""
    ap = metrics.average_precision(scores, targets)
    samples = metrics.paired_bootstrap_average_precision(
        [scores], targets,
        resamples=settings.bootstrap_resamples, seed=randomness.derive(0, "bootstrap") % 2**32,
    )[:, 0]  # fmt: skip
    if settings.undefined_ap == "zero":  # for the means only: the label's own AP stays undefined
        undefined = np.isnan(ap)
        means = np.where(undefined, 0, ap), np.where(undefined, 0, samples)
    else:
        means = ap, samples
    interval = list(metrics.interval(metrics.nan_mean(means[1])))
    return {"mAP": metrics.mean_average_precision(means[0]), "mAP_ci95": interval}, samples


def _decisions(scores: npt.NDArray[np.float32], targets: npt.NDArray[np.uint8], probe: _Probe) -> dict[str, Any]:
    """F1, precision and recall at the thresholds that validation tiles gave."""
    found = metrics.decide(scores, targets, probe.thresholds)
    return {
        "test_macro_F1": found.macro_f1,
        "test_micro_F1": found.micro_f1,
        "test_macro_precision": float(metrics.nan_mean(found.precision)),
        "test_micro_precision": found.micro_precision,
        "test_macro_recall": float(metrics.nan_mean(found.recall)),
        "test_micro_recall": found.micro_recall,
    }


def _calibration(logits: Floats, targets: npt.NDArray[np.uint8], probe: _Probe) -> dict[str, Any]:
    return {
        "test_ECE": metrics.expected_calibration_error(metrics.sigmoid(logits), targets),
        "test_ECE_scaled": metrics.expected_calibration_error(metrics.sigmoid(logits / probe.temperature), targets),
        "temperature": probe.temperature,
    }


def _other_taggers(
    store: tiles.TileStore, cached: npt.NDArray[np.float32], arm: Arm
) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Sweep, nearest neighbours and few labels on the same features; numbers and test scores of each."""
    settings, device = arm.settings.evaluate, encoder.device()
    x = {name: torch.from_numpy(cached[store.rows(name)]).to(device) for name in tiles.SPLITS}
    y = {name: torch.from_numpy(store.targets[store.rows(name)]).to(device) for name in tiles.SPLITS}
    targets = store.targets[store.rows("test")]
    near = knn.scores(x["test"], x["train"], y["train"], k=settings.knn.k, temperature=settings.knn.temperature)
    scores: dict[str, npt.NDArray[Any]] = {"knn": near.cpu().numpy()}
    if settings.sweep.standardize:
        x = {name: sweep.standardize(part, x["train"]) for name, part in x.items()}
    best = _sweep(x, y, arm=arm, rows=torch.arange(len(x["train"]), device=device), subset=0)
    scores["sweep"] = best.scores(x["test"])
    result: dict[str, Any] = {}
    for name, found in scores.items():
        numbers, _ = _mean_ap(found, targets, settings)
        result |= {f"test_{name}_{key}": value for key, value in numbers.items()}
    result["val_sweep_mAP"] = best.val_mAP
    result["sweep"] = {"learning_rate": best.learning_rate, "weight_decay": best.weight_decay}
    result["label_efficiency"] = _few_labels(x, y, targets, arm=arm)
    for row in result["label_efficiency"]:
        name = f"test_mAP_at_{100 * row['fraction']:g}_percent"
        result |= {name: row["test_mAP"], f"{name}_sd": row["sd"]}
    whole = {"fraction": 1.0, "tiles": len(x["train"]), "test_mAP": result["test_sweep_mAP"], "sd": None}
    result["label_efficiency"].append({**whole, "subsets": [result["test_sweep_mAP"]]})
    return result, scores


def _few_labels(
    x: Mapping[str, torch.Tensor], y: Mapping[str, torch.Tensor], targets: npt.NDArray[np.uint8], *, arm: Arm
) -> list[dict[str, Any]]:
    """The sweep on seeded subsets of the training tiles, the same for all arms: a row a fraction."""
    count, device, rows = len(x["train"]), x["train"].device, []
    few = arm.settings.evaluate.labels
    for fraction in few.fractions:
        size, values = max(1, round(fraction * count)), []
        for subset in range(few.subsets):
            drawn = randomness.permutation(count, arm.seed, "few labels", subset)[:size].to(device)
            best = _sweep(x, y, arm=arm, rows=drawn, subset=subset)
            ap = metrics.average_precision(best.scores(x["test"]), targets)
            zero = arm.settings.evaluate.undefined_ap == "zero"
            values.append(metrics.mean_average_precision(np.nan_to_num(ap) if zero else ap))
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        mean = float(np.mean(values))
        rows.append({"fraction": fraction, "tiles": size, "test_mAP": mean, "sd": sd, "subsets": values})
    return rows


def _sweep(
    x: Mapping[str, torch.Tensor], y: Mapping[str, torch.Tensor], *, arm: Arm, rows: torch.Tensor, subset: int
) -> sweep.Best:
    how, size = arm.settings.evaluate.sweep, arm.settings.probe.batch_size
    return sweep.best(
        (x["train"][rows], y["train"][rows]),
        (x["val"], y["val"]),
        configs=[(rate, decay) for rate in how.learning_rates for decay in how.weight_decays],
        steps=how.epochs * math.ceil(len(x["train"]) / size),  # of the whole, however few the rows
        batch_size=size,
        seed=randomness.derive(arm.seed, "sweep", subset),
    )


def _plain(value: Any) -> Any:
    """`value` with null for what is not a number: JSON has no nan."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_per_class(
    path: Path, store: tiles.TileStore, scores: npt.NDArray[np.float32], samples: Floats, probe: _Probe
) -> None:
    """One row a label; what is undefined without a positive in the test split is empty."""
    targets = store.targets[store.rows("test")]
    ap = metrics.average_precision(scores, targets)
    found = metrics.decide(scores, targets, probe.thresholds)
    positives = targets.sum(axis=0)
    header = ["label", "positives", "prevalence", "AP", "AP_lo", "AP_hi", "threshold", "precision"]
    with atomic.replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*header, "recall", "F1"])
        for k, label in enumerate(store.labels):
            count = int(positives[k])
            row: list[Any] = [label, count, count / len(targets)]
            if count:
                defined = samples[:, k][~np.isnan(samples[:, k])]
                row += [float(ap[k]), *metrics.interval(defined)]
            else:
                row += ["", "", ""]
            row += [float(probe.thresholds[k]), float(found.precision[k])]
            row += [float(found.recall[k]), float(found.f1[k])] if count else ["", ""]
            writer.writerow(row)
