"""A project with all that the stages leave, made up: quick, and independent of the stages."""

import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import yaml
from PIL import Image

from satclr import files, randomness
from satclr.evaluation.linear import LinearProbe
from satclr.evaluation.metrics import average_precision
from satclr.pretrain import encoder
from satclr.project import Project, Run
from tests.conftest import tiny_params

LABELS = ["airplane", "parking lot", "swimming pool", "ship/boat", "never seen"]
SKILLS = {"baseline": 1.0, "simclr": 3.5, "baseline_by_group": 0.7}
ARCH = "squeezenet1_1"  # the smallest in torchvision
TILE_PX, CROP_PX = 48, 40
MEAN, STD = (0.4, 0.41, 0.37), (0.2, 0.17, 0.18)
THRESHOLDS = [0.2, 0.4, 0.5, 0.6, 0.8]
TILES = {"train": 40, "val": 120, "test": 120}
CONVERGED = np.float32(0.5)  # by which a probe to convergence separates positives further


def project(root: Path, skills: Mapping[str, float] = SKILLS, seeds: Sequence[int] = (0,), **more: Any) -> Project:
    """A project that runs the arms of `skills`, with a store and everything that their stages leave."""
    tree = tiny_params() | {"run": list(skills), "seeds": list(seeds), "ladder": list(SKILLS), **more}
    files.write_text(root / "params.yaml", yaml.safe_dump(tree, sort_keys=False))
    made = Project(root)
    write_store(made.store)
    for runs, skill in zip(made.arms(), skills.values(), strict=True):
        for run in runs:
            write(run, skill=skill)
    return made


def truth(split: str, count: int, number: int = 0) -> tuple[list[str], npt.NDArray[np.uint8]]:
    """Names and targets (N,5) of a split's tiles; none has the last label. number: of the data set."""
    targets = np.random.default_rng([number, *split.encode()]).random((count, len(LABELS))) < (0.3, 0.3, 0.3, 0.3, 0)
    return [f"{split}{number}_{i}.jpg" for i in range(count)], targets.astype(np.uint8)


def write_store(folder: Path) -> None:
    rows = [
        [name, f"scene{sum(has)}", split, name, "|".join(np.compress(has, LABELS))]
        for split, count in TILES.items()
        for name, has in zip(*truth(split, count), strict=True)
    ]
    files.write_csv(folder / "index.csv", ["tile", "category", "split", "group", "labels"], rows)
    shape = (len(rows), TILE_PX, TILE_PX, 3)
    np.save(folder / "tiles.npy", np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    stats = {"labels": LABELS, "tile_px": TILE_PX, "tiles": TILES, "normalization": {}, "digest": "d16e57"}
    files.write_json(folder / "stats.json", stats)
    shares = {s: dict(zip(LABELS, truth(s, n)[1].mean(0).tolist(), strict=True)) for s, n in TILES.items()}
    audit = {"tiles": len(rows), "categories": 4, "labels": len(LABELS), "flagged": {}, "findings": []}
    audit |= {"labels_per_tile": {"min": 0, "mean": 1.2, "max": 3}, "label_counts": dict.fromkeys(LABELS, 40)}
    audit |= {"near_duplicates": {"groups": [], "groups_across_splits": 0}}
    audit["unlabelled"] = {"tiles": 7654, "near_duplicates_of_tested": 32}
    files.write_json(folder / "audit.json", audit | {"split": {"sizes": TILES, "prevalence": shares}})


def write(run: Run, *, skill: float = 1.0, split: int = 0, tiles: int = TILES["test"]) -> dict[str, Any]:
    """Write all outputs of a run; `skill` separates the scores of positives from the rest. Returns its details."""
    rng, arrays = np.random.default_rng([run.seed, *run.arm.encode()]), dict[str, Any](labels=np.array(LABELS))
    for name, count in (("val", TILES["val"]), ("test", tiles)):
        names, targets = truth(name, count, split)
        scores = (1 / (1 + np.exp(-(skill * targets + rng.normal(size=targets.shape))))).astype(np.float32)
        arrays |= {f"{name}_tiles": np.array(names), f"{name}_scores": scores, f"{name}_targets": targets}
    arrays["test_converged_scores"] = arrays["test_scores"] + arrays["test_targets"] * CONVERGED
    val, ap = (average_precision(arrays[f"{name}_scores"], arrays[f"{name}_targets"]) for name in ("val", "test"))
    test_mAP, plane = float(np.nanmean(ap)), rng.normal(size=(tiles, 2)).tolist()
    few = [{"fraction": f, "tiles": int(40 * f), "subsets": [test_mAP * f, test_mAP]} for f in (0.1, 1.0)]
    tree: dict[str, Any] = {"profile": run.profile, "arm": run.arm, "seed": run.seed}
    tree |= {"test_mAP": test_mAP, "test_mAP_ci95": [test_mAP - 0.03, test_mAP + 0.03], "test_mAP_bias": 0.01}
    tree |= {"test_micro_mAP": 0.5, "test_knn_mAP": skill / 9, "val_mAP": float(np.nanmean(val)), "best_epoch": 5}
    tree |= {"train_tiles": 40 - 4 * run.arm.endswith("by_group"), "test_tiles": tiles, "labels": len(LABELS)}
    tree |= {"labels_without_positives": LABELS[-1:], "label_efficiency": few, "converged_strength": 0.1}
    files.write_json(run.results / "details.json", tree)
    np.savez(run.results / "scores.npz", **arrays)
    rows = [
        [label, n, n / tiles, *([a, a - 0.1, a + 0.1] if n else [""] * 3)]
        for label, a, n in zip(LABELS, ap.tolist(), arrays["test_targets"].sum(0).tolist(), strict=True)
    ]
    for name, columns, table in (
        ("per_class_ap", "label positives prevalence AP AP_lo AP_hi", rows),
        ("probe", "epoch train_loss val_loss val_mAP", [[e, 1 / e, 1.1 / e, skill * e / 30] for e in range(1, 6)]),
        ("pretrain", "epoch loss learning_rate", [[e, 4 / e, 1e-3] for e in range(1, 4) if "baseline" not in run.arm]),
    ):
        files.write_csv(run.results / f"{name}.csv", columns.split(), table)
    corrupted = {name: {"1": skill / 8, "3": skill / 9} for name in ("haze", "rotation")}
    shares = {"clean_mAP": test_mAP, "mean_corruption_mAP": skill / 9, "relative_drop": 0.1}
    files.write_json(run.results / "robustness.json", shares | {"corruptions": corrupted})
    maps = {"tiles": arrays["test_tiles"].tolist(), "projections": {"pca": plane}, "knn_label_overlap": 0.5}
    one = {"pca": 0.9}
    files.write_json(run.results / "maps.json", maps | {"trustworthiness": one, "distance_rank_correlation": one})
    facts: dict[str, Any] = {"mean": MEAN, "std": STD, "crop_px": CROP_PX, "tile_px": TILE_PX, "precision": "float32"}
    facts |= {"fingerprint": f"made up {run.seed}", "weights_sha256": None}
    model, width = _model(run.seed)
    encoder.save(model, run.encoder, arch=ARCH, width=width, **facts)
    facts |= {"arch": ARCH, "feature_dim": width}
    weight = np.random.default_rng(run.seed).normal(size=(len(LABELS), width + 1)).astype(np.float32)
    LinearProbe(weight[:, 1:], weight[:, 0], LABELS, np.array(THRESHOLDS), 1.0, 5, 0.5, facts).save(run.probe)
    return tree


@cache
def _model(seed: int) -> tuple[torch.nn.Module, int]:
    with randomness.seeded(seed):
        return encoder.build(ARCH)


def jpeg(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).resize((TILE_PX, TILE_PX)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def pixels(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
