"""Stage outputs as the stages write them, made up: a small encoder, a probe, scores and curves."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from satclr import randomness
from satclr.evaluation.linear import LinearProbe
from satclr.pretrain import encoder

LABELS = ["airplane", "parking lot", "swimming pool", "ship/boat", "tennis court"]
ARCH = "squeezenet1_1"  # the smallest in torchvision
TILE_PX, CROP_PX = 48, 40
MEAN, STD = (0.4, 0.41, 0.37), (0.2, 0.17, 0.18)
THRESHOLDS = [0.2, 0.4, 0.5, 0.6, 0.8]


def jpeg(seed: int, side_px: int = 40) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side_px, side_px, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((TILE_PX, TILE_PX)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write(
    root: Path,
    *,
    arm: str,
    seed: int = 0,
    profile: str = "sample",
    skill: float = 1.0,
    split: int = 0,
    thresholds: bool = True,
    tiles: int = 120,
) -> dict[str, Any]:
    """Write all outputs of one arm and seed; `skill` separates the scores of positives from the rest."""
    from sklearn.metrics import average_precision_score

    results, models = (root / part / profile / f"{arm}-s{seed}" for part in ("results", "models"))
    for folder in (results, models):
        folder.mkdir(parents=True, exist_ok=True)
    _save_models(models, seed, thresholds)
    curve = [[epoch, 4.0 / epoch, 1e-3] for epoch in range(1, 4)] if arm != "baseline" else []
    _table(results / "pretrain.csv", ["epoch", "loss", "learning_rate"], curve)
    curve = [[epoch, 1 / epoch, 1.1 / epoch, skill * epoch / 10] for epoch in range(1, 6)]
    _table(results / "probe.csv", ["epoch", "train_loss", "val_loss", "val_mAP"], curve)
    targets = np.random.default_rng(split).random((2, tiles, len(LABELS))) < 0.3
    targets[:, :, -1] = False
    noise = np.random.default_rng([seed, *arm.encode()]).normal(size=targets.shape)
    scores = (1 / (1 + np.exp(-(skill * targets + noise)))).astype(np.float32)
    names = np.asarray([f"tile{split}_{i:04}.jpg" for i in range(tiles)])
    np.savez(
        results / "scores.npz",
        val_scores=scores[0],
        val_targets=targets[0].astype(np.uint8),
        test_scores=scores[1],
        test_targets=targets[1].astype(np.uint8),
        labels=np.asarray(LABELS),
        val_tiles=np.char.add("v_", names),
        test_tiles=names,
    )
    val, ap = (
        [average_precision_score(targets[part, :, k], scores[part, :, k]) for k in range(len(LABELS) - 1)]
        for part in (0, 1)
    )
    metrics = {
        "profile": profile,
        "arm": arm,
        "seed": seed,
        "test_mAP": float(np.mean(ap)),
        "test_mAP_ci95": [float(np.mean(ap)) - 0.03, float(np.mean(ap)) + 0.03],
        "test_micro_mAP": 0.5,
        "val_mAP": float(np.mean(val)),
        "best_epoch": 5,
        "test_tiles": tiles,
        "labels": len(LABELS),
        "labels_without_positives": [LABELS[-1]],
    }
    (results / "details.json").write_text(json.dumps(metrics), encoding="utf-8")
    classes = [
        [label, int(targets[1, :, k].sum()), 0.3, *([ap[k], ap[k] - 0.1, ap[k] + 0.1] if k < 4 else ["", "", ""])]
        for k, label in enumerate(LABELS)
    ]
    _table(results / "per_class_ap.csv", ["label", "positives", "prevalence", "AP", "AP_lo", "AP_hi"], classes)
    return metrics


def _save_models(folder: Path, seed: int, thresholds: bool) -> None:
    facts = {"mean": MEAN, "std": STD, "crop_px": CROP_PX, "tile_px": TILE_PX, "precision": "float32"}
    facts |= {"fingerprint": f"made up {seed}", "weights_sha256": None}
    with randomness.seeded(seed):
        model, width = encoder.build(ARCH)
        weight, bias = torch.randn(len(LABELS), width), torch.randn(len(LABELS))
    encoder.save(model, folder / "encoder.safetensors", arch=ARCH, width=width, **facts)
    probe = LinearProbe(
        weight=weight.numpy(),
        bias=bias.numpy(),
        labels=LABELS,
        thresholds=np.array(THRESHOLDS if thresholds else [0.5] * len(LABELS)),
        temperature=1.0,
        best_epoch=5,
        val_mAP=0.5,
        encoder=facts | {"arch": ARCH, "feature_dim": width},
    )
    probe.save(folder / "probe.safetensors")


def _table(path: Path, header: list[str], rows: list[list[Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def empty_store(folder: Path) -> Path:
    """Make an empty MLflow store of the sample profile, to be copied: a database takes seconds to make."""
    from satclr.tracking import store

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.open_store(folder, "sample")
    return folder
