"""A project with made-up results in the stages' own files: quick, and independent of the stages."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from satclr import files
from satclr.evaluation import metrics
from satclr.evaluation.linear import LinearProbe
from satclr.project import Project, Run
from tests.conftest import tiny_params

LABELS = ["grass", "road", "water", "never seen"]
SKILLS = {"baseline": 0.3, "simclr": 1.0, "baseline_by_group": 0.2}
TILES = {"train": 40, "val": 30, "test": 60}
TILE_PX = 24
CONVERGED = np.float32(0.5)  # by which a probe to convergence separates positives further


def project(root: Path, skills: Mapping[str, float] = SKILLS, seeds: Sequence[int] = (0,), **more: Any) -> Project:
    """A project that runs the arms of `skills`; the higher the skill, the better its scores rank."""
    tree = tiny_params() | {"run": list(skills), "seeds": list(seeds), "ladder": list(SKILLS), **more}
    files.write_text(root / "params.yaml", yaml.safe_dump(tree, sort_keys=False))
    made = Project(root)
    write_store(made.store)
    for runs, skill in zip(made.arms(), skills.values(), strict=True):
        for run in runs:
            write_results(run, skill)
    return made


def truth(split: str, count: int) -> tuple[list[str], Any]:
    """Names and targets (N,4) of a split's tiles; no tile has the last label."""
    targets = np.random.default_rng([9, *split.encode()]).random((count, 4)) < (0.4, 0.4, 0.4, 0)
    return [f"{split}_{i}.jpg" for i in range(count)], targets.astype(np.uint8)


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
    audit = {"tiles": len(rows), "categories": 4, "labels": 4, "flagged": {}, "findings": []}
    audit |= {"labels_per_tile": {"min": 0, "mean": 1.2, "max": 3}, "label_counts": dict.fromkeys(LABELS, 40)}
    audit |= {"near_duplicates": {"groups": [], "groups_across_splits": 0}}
    audit["unlabelled"] = {"tiles": 7654, "near_duplicates_of_tested": 32}
    files.write_json(folder / "audit.json", audit | {"split": {"sizes": TILES, "prevalence": shares}})


def write_results(run: Run, skill: float, *, tiles: int = TILES["test"]) -> None:
    """Everything that the stages leave of one run."""
    rng = np.random.default_rng(run.seed + int(skill * 100))
    arrays: dict[str, Any] = {"labels": np.array(LABELS)}
    for split, count in {"val": TILES["val"], "test": tiles}.items():
        names, targets = truth(split, count)
        scores = (skill * targets + rng.random(targets.shape)).astype(np.float32) / np.float32(1 + skill)
        arrays |= {f"{split}_tiles": np.array(names), f"{split}_scores": scores, f"{split}_targets": targets}
    arrays["test_converged_scores"] = arrays["test_scores"] + arrays["test_targets"] * CONVERGED
    run.results.mkdir(parents=True)
    np.savez(run.results / "scores.npz", **arrays)
    ap = metrics.average_precision(arrays["test_scores"], arrays["test_targets"])
    test_mAP = float(np.nanmean(ap))
    few = [{"fraction": f, "tiles": int(40 * f), "subsets": [test_mAP * f, test_mAP]} for f in (0.1, 1.0)]
    values = {"test_mAP": test_mAP, "val_mAP": skill / 2, "test_knn_mAP": skill / 3, "label_efficiency": few}
    values |= {"test_mAP_bias": 0.01, "converged_strength": 0.1, "train_tiles": 40 - 4 * run.arm.endswith("by_group")}
    files.write_json(run.results / "details.json", {"arm": run.arm, "seed": run.seed, **values})
    rows = [
        [label, n, n / tiles, *([a, a, a] if n else ["", "", ""])]
        for label, a, n in zip(LABELS, ap.tolist(), arrays["test_targets"].sum(0).tolist(), strict=True)
    ]
    curve = [[1, 4.0, 1e-3], [2, 3.5, 1e-3]] if run.arm == "simclr" else []
    for name, columns, table in (
        ("per_class_ap", "label positives prevalence AP AP_lo AP_hi", rows),
        ("probe", "epoch train_loss val_loss val_mAP", [[1, 0.6, 0.6, 0.3], [2, 0.5, 0.55, skill / 2]]),
        ("pretrain", "epoch loss learning_rate", curve),
    ):
        files.write_csv(run.results / f"{name}.csv", columns.split(), table)
    corrupted = {name: {"1": skill / 2, "3": skill / 3} for name in ("haze", "rotation")}
    shares = {"clean_mAP": test_mAP, "mean_corruption_mAP": skill / 3, "relative_drop": 0.1}
    files.write_json(run.results / "robustness.json", shares | {"corruptions": corrupted})
    plane, one = rng.normal(size=(tiles, 2)).tolist(), {"pca": 0.9}
    tree = {"tiles": arrays["test_tiles"].tolist(), "projections": {"pca": plane}, "knn_label_overlap": 0.5}
    tree |= {"trustworthiness": one, "distance_rank_correlation": one}
    files.write_json(run.results / "maps.json", tree)
    weight, facts = np.zeros((4, 8), np.float32), {"arch": "shufflenet_v2_x0_5", "tile_px": TILE_PX}
    files.save_tensors(run.encoder, {"weight": weight}, **facts, weights_sha256=None)
    zeros = weight[:, 0]
    LinearProbe(weight, zeros, LABELS, zeros.astype(float), 1.0, 2, skill / 2, {"tile_px": TILE_PX}).save(run.probe)
