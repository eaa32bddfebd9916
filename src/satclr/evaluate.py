"""The test: features and probe → scores, metrics with intervals, AP of each label.

Out, in results/<profile>/<arm>/: metrics.json, per_class_ap.csv, scores.npz.

    satclr evaluate --profile sample --arm simclr --seed 0
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from satclr import metrics, randomness, tiles
from satclr.params import Arm

Floats = npt.NDArray[np.float64]


def run(store: tiles.Store, *, features: Path, probe: Path, out: Path, arm: Arm) -> dict[str, Any]:
    """Score validation and test tiles, write `out`, and return what metrics.json holds.

    Raises `tiles.TileError` when features or probe are not those of this store.
    """
    settings = arm.settings.evaluate
    val, test = store.rows("val"), store.rows("test")
    cached, layer = tiles.load_features(features, store), _read_probe(probe, store)
    scores = {"val": _scores(cached[val], layer), "test": _scores(cached[test], layer)}
    ap = metrics.average_precision(scores["test"], store.targets[test])
    samples = metrics.paired_bootstrap_average_precision(
        [scores["test"]], store.targets[test],
        resamples=settings.bootstrap_resamples, seed=randomness.derive(0, "bootstrap") % 2**32,
    )[:, 0]  # fmt: skip
    undefined = np.isnan(ap)
    if settings.undefined_ap == "zero":  # for the means only: the label's own AP stays undefined
        means = np.where(undefined, 0, ap), np.where(undefined, 0, samples)
    else:
        means = ap, samples
    result = {
        "profile": arm.profile,
        "arm": arm.name,
        "seed": arm.seed,
        "test_mAP": metrics.mean_average_precision(means[0]),
        "test_mAP_ci95": list(metrics.interval(metrics.nan_mean(means[1]))),
        "test_micro_mAP": metrics.micro_average_precision(scores["test"], store.targets[test]),
        "val_mAP": layer.val_mAP,
        "best_epoch": layer.best_epoch,
        "test_tiles": len(test),
        "labels": len(store.labels),
        "labels_without_positives": [n for n, value in zip(store.labels, ap, strict=True) if np.isnan(value)],
    }
    out.mkdir(parents=True, exist_ok=True)
    _write_per_class(out / "per_class_ap.csv", store, ap, samples)
    np.savez(
        out / "scores.npz",
        labels=np.array(store.labels),
        val_tiles=np.array([store.names[row] for row in val]),
        val_scores=scores["val"].astype(np.float32),
        val_targets=store.targets[val],
        test_tiles=np.array([store.names[row] for row in test]),
        test_scores=scores["test"].astype(np.float32),
        test_targets=store.targets[test],
    )
    (out / "metrics.json").write_text(
        json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    return result


@dataclass(frozen=True)
class _Probe:
    weight: Floats  # (K,D)
    bias: Floats  # (K,)
    best_epoch: int
    val_mAP: float  # noqa: N815 - mAP is the field's spelling


def _read_probe(path: Path, store: tiles.Store) -> _Probe:
    try:
        with safe_open(path, "np") as file:
            weight, bias, facts = file.get_tensor("weight"), file.get_tensor("bias"), file.metadata()
    except FileNotFoundError:
        raise tiles.TileError(f"{path} does not exist; run `satclr probe` first") from None
    labels = json.loads(facts["labels"])
    if labels != store.labels:
        raise tiles.TileError(f"{path} has {len(labels)} labels that are not the store's; run probe again")
    return _Probe(weight.astype(float), bias.astype(float), int(facts["best_epoch"]), float(facts["val_mAP"]))


def _scores(features: npt.NDArray[np.float32], probe: _Probe) -> npt.NDArray[np.float32]:
    """Label probabilities (N,K) of features (N,D)."""
    logits = features.astype(float) @ probe.weight.T + probe.bias
    probabilities: npt.NDArray[np.float32] = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return probabilities


def _write_per_class(path: Path, store: tiles.Store, ap: Floats, samples: Floats) -> None:
    """One row a label; an AP that is undefined (no positive in the test split) is empty."""
    positives = store.targets[store.rows("test")].sum(axis=0)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["label", "positives", "prevalence", "AP", "AP_lo", "AP_hi"])
        for k, label in enumerate(store.labels):
            count = int(positives[k])
            row: list[Any] = [label, count, count / len(store.rows("test"))]
            if count:
                defined = samples[:, k][~np.isnan(samples[:, k])]
                row += [float(ap[k]), *metrics.interval(defined)]
            else:
                row += ["", "", ""]
            writer.writerow(row)
