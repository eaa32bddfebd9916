"""Stage outputs as the stages write them, made up: a small encoder, a probe, scores and curves."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from satclr import files, randomness
from satclr.evaluation.linear import LinearProbe
from satclr.pretrain import encoder

LABELS = ["airplane", "parking lot", "swimming pool", "ship/boat", "tennis court"]
ARCH = "squeezenet1_1"  # the smallest in torchvision
TILE_PX, CROP_PX = 48, 40
MEAN, STD = (0.4, 0.41, 0.37), (0.2, 0.17, 0.18)
THRESHOLDS = [0.2, 0.4, 0.5, 0.6, 0.8]
TILES = 120  # of validation and of test


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((TILE_PX, TILE_PX)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def write(
    root: Path, *, arm: str, seed: int = 0, profile: str = "sample", skill: float = 1.0, split: int = 0
) -> dict[str, Any]:
    """Write all outputs of one arm and seed; `skill` separates the scores of positives from the rest."""
    from sklearn.metrics import average_precision_score

    results, models = (root / part / profile / f"{arm}-s{seed}" for part in ("results", "models"))
    _save_models(models, seed)
    curve = [[epoch, 4.0 / epoch, 1e-3] for epoch in range(1, 4)] if arm != "baseline" else []
    files.write_csv(results / "pretrain.csv", ["epoch", "loss", "learning_rate"], curve)
    curve = [[epoch, 1 / epoch, 1.1 / epoch, skill * epoch / 10] for epoch in range(1, 6)]
    files.write_csv(results / "probe.csv", ["epoch", "train_loss", "val_loss", "val_mAP"], curve)
    targets = np.random.default_rng(split).random((2, TILES, len(LABELS))) < 0.3
    targets[:, :, -1] = False
    noise = np.random.default_rng([seed, *arm.encode()]).normal(size=targets.shape)
    scores = (1 / (1 + np.exp(-(skill * targets + noise)))).astype(np.float32)
    names = np.asarray([f"tile{split}_{i:04}.jpg" for i in range(TILES)])
    arrays: dict[str, Any] = {"labels": np.asarray(LABELS)}
    arrays |= {"val_tiles": np.char.add("v_", names), "val_scores": scores[0], "val_targets": targets[0].astype("u1")}
    arrays |= {"test_tiles": names, "test_scores": scores[1], "test_targets": targets[1].astype("u1")}
    np.savez(results / "scores.npz", **arrays)
    val, ap = (
        [float(average_precision_score(targets[part, :, k], scores[part, :, k])) for k in range(len(LABELS) - 1)]
        for part in (0, 1)
    )
    test_mAP = float(np.mean(ap))
    metrics: dict[str, Any] = {
        "profile": profile,
        "arm": arm,
        "seed": seed,
        "test_mAP": test_mAP,
        "val_mAP": float(np.mean(val)),
    }
    metrics |= {"test_mAP_ci95": [test_mAP - 0.03, test_mAP + 0.03], "test_micro_mAP": 0.5, "best_epoch": 5}
    metrics |= {"test_tiles": TILES, "labels": len(LABELS), "labels_without_positives": [LABELS[-1]]}
    files.write_json(results / "details.json", metrics)
    classes = [
        [label, int(targets[1, :, k].sum()), 0.3, *([ap[k], ap[k] - 0.1, ap[k] + 0.1] if k < 4 else ["", "", ""])]
        for k, label in enumerate(LABELS)
    ]
    columns = ["label", "positives", "prevalence", "AP", "AP_lo", "AP_hi"]
    files.write_csv(results / "per_class_ap.csv", columns, classes)
    return metrics


def _save_models(folder: Path, seed: int) -> None:
    facts: dict[str, Any] = {"mean": MEAN, "std": STD, "crop_px": CROP_PX, "tile_px": TILE_PX, "precision": "float32"}
    facts |= {"fingerprint": f"made up {seed}", "weights_sha256": None}
    with randomness.seeded(seed):
        model, width = encoder.build(ARCH)
        weight, bias = torch.randn(len(LABELS), width), torch.randn(len(LABELS))
    encoder.save(model, folder / "encoder.safetensors", arch=ARCH, width=width, **facts)
    probe = LinearProbe(
        weight=weight.numpy(),
        bias=bias.numpy(),
        labels=LABELS,
        thresholds=np.array(THRESHOLDS),
        temperature=1.0,
        best_epoch=5,
        val_mAP=0.5,
        encoder=facts | {"arch": ARCH, "feature_dim": width},
    )
    probe.save(folder / "probe.safetensors")
