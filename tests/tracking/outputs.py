"""What the stages write for one run, without training: a small encoder, a probe, scores and curves."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml
from PIL import Image
from sklearn.metrics import average_precision_score

from satclr import files
from satclr.evaluation.linear import LinearProbe
from satclr.project import Project, Run
from tests.conftest import tiny_params

LABELS = ["airplane", "parking lot", "swimming pool", "ship/boat", "tennis court"]
THRESHOLDS = [0.2, 0.4, 0.5, 0.6, 0.8]
TILE_PX, CROP_PX, WIDTH = 48, 40, 512
FACTS = {
    "tile_px": TILE_PX, "crop_px": CROP_PX, "mean": [0.4, 0.41, 0.37], "std": [0.2, 0.17, 0.18],
    "precision": "float32", "fingerprint": "f0",
}  # fmt: skip


def make_project(root: Path, *arms: str, seeds: tuple[int, ...] = (0,), minimum: float = 0.0) -> Project:
    """A project of the tiny profile that runs `arms`."""
    tree = tiny_params() | {"run": list(arms), "seeds": list(seeds)}
    tree["profiles"]["tiny"]["register"] = {"minimum_val_mAP": minimum}
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    return Project(root)


def write(run: Run, *, skill: float = 1.0, split: int = 0, tiles: int = 120) -> dict[str, Any]:
    """Write all outputs of a run and return its metrics; `skill` separates the scores of positives from the rest."""
    write_models(run)
    for name, header, rows in (
        ("pretrain.csv", ["epoch", "loss"], [[epoch, 4.0 / epoch] for epoch in (1, 2, 3)]),
        ("probe.csv", ["epoch", "val_mAP"], [[epoch, skill * epoch / 10] for epoch in (1, 2)]),
    ):
        files.write_csv(run.results / name, header, rows)
    targets = np.random.default_rng(split).random((2, tiles, len(LABELS))) < 0.3
    targets[:, :, -1] = False
    noise = np.random.default_rng([run.seed, *run.arm.encode()]).normal(size=targets.shape)
    scores = (1 / (1 + np.exp(-(skill * targets + noise)))).astype(np.float32)
    arrays = {"labels": np.asarray(LABELS)}
    for part, name in enumerate(("val", "test")):
        arrays[f"{name}_scores"], arrays[f"{name}_targets"] = scores[part], targets[part].astype(np.uint8)
        arrays[f"{name}_tiles"] = np.asarray([f"{name}{split}_{i}.jpg" for i in range(tiles)])
    np.savez(run.results / "scores.npz", **arrays)
    val, ap = (
        [average_precision_score(t[:, k], s[:, k]) for k in range(4)] for t, s in zip(targets, scores, strict=True)
    )
    mean = float(np.mean(ap))
    metrics: dict[str, Any] = {
        "profile": run.profile, "arm": run.arm, "seed": run.seed, "test_mAP": mean,
        "test_mAP_ci95": [mean - 0.03, mean + 0.03], "val_mAP": float(np.mean(val)), "best_epoch": 2,
        "test_tiles": tiles, "labels": len(LABELS), "labels_without_positives": [LABELS[-1]],
    }  # fmt: skip
    (run.results / "metrics.json").write_text(json.dumps(metrics))
    classes = [
        [label, 30, *([ap[k], ap[k] - 0.1, ap[k] + 0.1] if k < 4 else [""] * 3)] for k, label in enumerate(LABELS)
    ]
    files.write_csv(run.results / "per_class_ap.csv", ["label", "positives", "AP", "AP_lo", "AP_hi"], classes)
    return metrics


def write_models(run: Run, encoder: dict[str, npt.NDArray[np.float32]] | None = None, **facts: Any) -> None:
    """A probe and an encoder file; one that is no encoder unless `encoder` holds its tensors."""
    encoder = {"x": np.zeros(1, np.float32)} if encoder is None else encoder
    facts = FACTS | facts
    files.save_tensors(run.encoder, encoder, **{key: json.dumps(value) for key, value in facts.items()})
    rng = np.random.default_rng(run.seed)
    weight = rng.normal(size=(len(LABELS), WIDTH)).astype(np.float32)
    thresholds = np.asarray(THRESHOLDS)
    LinearProbe(weight, weight[:, 0], LABELS, thresholds, 1.0, 2, 0.5, facts).save(run.probe)


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (TILE_PX, TILE_PX, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
