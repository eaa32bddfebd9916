"""Stage outputs as the stages write them, made up: a small encoder, a probe, scores and curves."""

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from satclr import files, randomness
from satclr.evaluation.linear import LinearProbe
from satclr.evaluation.metrics import average_precision
from satclr.pretrain import encoder
from satclr.project import Run

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


def write(run: Run, *, skill: float = 1.0, split: int = 0) -> dict[str, Any]:
    """Write all outputs of a run; `skill` separates the scores of positives from the rest. Returns its metrics."""
    _save_models(run)
    curve = [[epoch, 4.0 / epoch, 1e-3] for epoch in range(1, 4)] if run.arm != "baseline" else []
    files.write_csv(run.results / "pretrain.csv", ["epoch", "loss", "learning_rate"], curve)
    curve = [[epoch, 1 / epoch, 1.1 / epoch, skill * epoch / 10] for epoch in range(1, 6)]
    files.write_csv(run.results / "probe.csv", ["epoch", "train_loss", "val_loss", "val_mAP"], curve)
    targets = (np.random.default_rng(split).random((2, TILES, len(LABELS))) < 0.3).astype(np.uint8)
    targets[:, :, -1] = 0
    noise = np.random.default_rng([run.seed, *run.arm.encode()]).normal(size=targets.shape)
    scores = (1 / (1 + np.exp(-(skill * targets + noise)))).astype(np.float32)
    names = np.asarray([f"tile{split}_{i:04}.jpg" for i in range(TILES)])
    arrays: dict[str, Any] = {"labels": np.asarray(LABELS)}
    arrays |= {"val_tiles": np.char.add("v_", names), "val_scores": scores[0], "val_targets": targets[0]}
    arrays |= {"test_tiles": names, "test_scores": scores[1], "test_targets": targets[1]}
    np.savez(run.results / "scores.npz", **arrays)
    val, ap = map(average_precision, scores, targets)
    test_mAP = float(np.nanmean(ap))
    tree: dict[str, Any] = {"profile": run.profile, "arm": run.arm, "seed": run.seed}
    tree |= {"test_mAP": test_mAP, "test_mAP_ci95": [test_mAP - 0.03, test_mAP + 0.03], "test_micro_mAP": 0.5}
    tree |= {"val_mAP": float(np.nanmean(val)), "best_epoch": 5, "test_tiles": TILES, "labels": len(LABELS)}
    files.write_json(run.results / "details.json", tree | {"labels_without_positives": LABELS[-1:]})
    classes = [
        [label, positives, 0.3, *([value, value - 0.1, value + 0.1] if positives else [""] * 3)]
        for label, positives, value in zip(LABELS, targets[1].sum(0), ap, strict=True)
    ]
    columns = ["label", "positives", "prevalence", "AP", "AP_lo", "AP_hi"]
    files.write_csv(run.results / "per_class_ap.csv", columns, classes)
    return tree


def _save_models(run: Run) -> None:
    facts: dict[str, Any] = {"mean": MEAN, "std": STD, "crop_px": CROP_PX, "tile_px": TILE_PX, "precision": "float32"}
    facts |= {"fingerprint": f"made up {run.seed}", "weights_sha256": None}
    with randomness.seeded(run.seed):
        model, width = encoder.build(ARCH)
        weight, bias = torch.randn(len(LABELS), width).numpy(), torch.randn(len(LABELS)).numpy()
    encoder.save(model, run.encoder, arch=ARCH, width=width, **facts)
    facts |= {"arch": ARCH, "feature_dim": width}
    LinearProbe(weight, bias, LABELS, np.array(THRESHOLDS), 1.0, 5, 0.5, facts).save(run.probe)
