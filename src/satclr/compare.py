"""The arms side by side: compare.json, figures, and tables for `dvc plots`.

In: results/<profile>/<arm>-s<seed>/ of each arm and seed that params.yaml runs. Out: reports/<profile>/.

    satclr compare --profile sample

Intervals are over test tiles and seeds: each resample draws the test tiles once, for all arms, and each arm's
seeds with replacement (`metrics.paired_bootstrap_over_seeds`).
"""

from __future__ import annotations

import csv
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from satclr import figures, metrics, randomness
from satclr.params import Arm

# Briody & Aygen's own test mAP on MLRSNet: a frozen ImageNet ResNet-50, and after SimCLR.
PAPER = {"baseline": 0.6361, "simclr": 0.9133}
CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "val_mAP": "validation mAP"}


MORE = {  # stages that may be left out: the numbers of their files that go into compare.json
    "robustness": ("clean_mAP", "mean_corruption_mAP", "relative_drop"),
    "maps": ("knn_label_overlap",),
}


class CompareError(ValueError):
    """Results that are missing or cannot be compared: exit code 2."""


@dataclass(frozen=True)
class Result:
    """What the stages left of one arm and seed."""

    arm: Arm
    metrics: dict[str, Any]
    probe: list[dict[str, float]]  # a row an epoch
    pretrain: list[dict[str, float]]
    labels: list[str]
    tiles: list[str]
    scores: npt.NDArray[np.float32]  # (N,K) of the test tiles
    targets: npt.NDArray[np.uint8]  # (N,K)
    more: dict[str, dict[str, Any]] = field(default_factory=dict)  # a stage of MORE → its file


def run(
    results: Path,
    out: Path,
    *,
    arms: Sequence[Sequence[Arm]],
    rungs: Sequence[str],
    palette: figures.Palette,
) -> dict[str, Any]:
    """Compare `arms` (one sequence of seeds each, the first is the reference) and return compare.json's tree.

    `rungs` are the arms of the ladder, in order; those that are compared are drawn, if two or more.
    Raises `CompareError` if a result is missing or was measured on other tiles.
    """
    found = {seeds[0].name: [read(results / arm.key, arm) for arm in seeds] for seeds in arms}
    _check_same_test(found)
    report = {"profile": arms[0][0].profile, **numbers(found), "paper": PAPER}
    report["ladder"] = ladder(report, rungs)
    out.mkdir(parents=True, exist_ok=True)
    (out / "compare.json").write_text(
        json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    _write_curves(out / "curves.csv", found)
    labels, aps = per_class(found)
    _write_per_class(out / "per_class_ap.csv", labels, aps)
    _draw(out / "figures", found, labels, aps, palette)
    if report["ladder"]:
        figures.ladder(out / "figures" / "ladder.png", report["ladder"], paper=PAPER, palette=palette)
    return report


def numbers(found: Mapping[str, Sequence[Result]]) -> dict[str, Any]:
    """Mean, spread and interval of each arm, and every contrast: later arm minus earlier arm."""
    names = list(found)
    first = found[names[0]][0]
    settings = first.arm.settings.evaluate
    samples = metrics.paired_bootstrap_over_seeds(
        [np.stack([r.scores for r in found[name]]) for name in names], first.targets,
        resamples=settings.bootstrap_resamples, seed=randomness.derive(0, "bootstrap") % 2**32,
    )  # fmt: skip
    for a, name in enumerate(names):
        if found[name][0].arm.settings.evaluate.undefined_ap == "zero":
            samples[:, a] *= (first.targets.sum(axis=0) > 0).mean()
    return {
        "arms": {
            name: _arm_numbers(found[name], samples[:, a]) | _more_numbers(found[name])
            for a, name in enumerate(names)
        },
        "contrasts": [
            {
                "arm": names[b],
                "against": names[a],
                "delta_mAP": _mean(found[names[b]], "test_mAP") - _mean(found[names[a]], "test_mAP"),
                "ci95": list(metrics.interval(samples[:, b] - samples[:, a])),
                "p_value": metrics.p_value(samples[:, b] - samples[:, a]),
            }
            for a, b in combinations(range(len(names)), 2)
        ],
    }


def ladder(report: Mapping[str, Any], rungs: Sequence[str]) -> list[dict[str, Any]]:
    """Each compared rung's mAP, and its change from the rung before with the paired interval."""
    found = [name for name in rungs if name in report["arms"]]
    contrasts = {(c["arm"], c["against"]): c for c in report["contrasts"]}
    steps = []
    for below, name in zip([None, *found], found, strict=False):
        arm = report["arms"][name]
        step = {"arm": name, "test_mAP": arm["test_mAP"], "ci95": arm["test_mAP_ci95"]}
        if below is not None:
            change = contrasts.get((name, below))
            sign = 1.0 if change is not None else -1.0  # compared in the other order
            change = change or contrasts[below, name]
            ends = sorted(sign * end for end in change["ci95"])
            step |= {"against": below, "delta_mAP": sign * change["delta_mAP"], "delta_ci95": ends}
        steps.append(step)
    return steps if len(steps) > 1 else []


def read(folder: Path, arm: Arm) -> Result:
    """Read results/<profile>/<arm>-s<seed>. Raises `CompareError` naming the file that is missing."""
    try:
        with np.load(folder / "scores.npz", allow_pickle=False) as scores:
            return Result(
                arm=arm,
                metrics=json.loads((folder / "metrics.json").read_text(encoding="utf-8")),
                probe=_table(folder / "probe.csv"),
                pretrain=_table(folder / "pretrain.csv"),
                labels=scores["labels"].tolist(),
                tiles=scores["test_tiles"].tolist(),
                scores=scores["test_scores"],
                targets=scores["test_targets"],
                more={
                    name: json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
                    for name in MORE
                    if (folder / f"{name}.json").is_file()
                },
            )
    except FileNotFoundError as error:
        raise CompareError(
            f"{error.filename} does not exist; run `satclr evaluate --arm {arm.name} --seed {arm.seed}` first"
        ) from None
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CompareError(
            f"{folder} holds a file that is damaged ({error}); "
            f"run `satclr evaluate --arm {arm.name} --seed {arm.seed}` again"
        ) from None


def per_class(found: Mapping[str, Sequence[Result]]) -> tuple[list[str], dict[str, npt.NDArray[np.float64]]]:
    """Labels, and each arm's test AP (K,), the mean over its seeds."""
    labels = next(iter(found.values()))[0].labels
    aps = {
        name: np.mean([metrics.average_precision(r.scores, r.targets) for r in results], axis=0)
        for name, results in found.items()
    }
    return labels, aps


def table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The report as rows a person reads: arm, test mAP (± deviation over seeds), interval, against the reference."""
    reference = next(iter(report["arms"]))
    against = {c["arm"]: c for c in report["contrasts"] if c["against"] == reference}
    rows: list[tuple[str, ...]] = [
        ("arm", "test mAP", "95% interval", "val mAP", f"against {reference}", "95% interval", "p")
    ]
    for name, arm in report["arms"].items():
        low, high = arm["test_mAP_ci95"]
        row: tuple[str, ...] = (
            name,
            f"{arm['test_mAP']:.4f}"
            + (f" ± {arm['test_mAP_sd']:.4f}" if arm["test_mAP_sd"] is not None else ""),
            f"{low:.4f} to {high:.4f}",
            f"{arm['val_mAP']:.4f}",
        )
        if name in against:
            c = against[name]
            row += (
                f"{c['delta_mAP']:+.4f}",
                f"{c['ci95'][0]:+.4f} to {c['ci95'][1]:+.4f}",
                f"{c['p_value']:.3f}",
            )
        rows.append(row + ("",) * (len(rows[0]) - len(row)))
    return rows


def ladder_table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The ladder as rows a person reads, the paper's own numbers last."""
    rows: list[tuple[str, ...]] = [("rung", "test mAP", "95% interval", "change", "95% interval")]
    for step in report["ladder"]:
        low, high = step["ci95"]
        row: tuple[str, ...] = (step["arm"], f"{step['test_mAP']:.4f}", f"{low:.4f} to {high:.4f}", "", "")
        if "against" in step:
            low, high = step["delta_ci95"]
            row = (*row[:3], f"{step['delta_mAP']:+.4f}", f"{low:+.4f} to {high:+.4f}")
        rows.append(row)
    rows += [
        (f"paper, {name} (MLRSNet)", f"{value:.4f}", "", "", "") for name, value in report["paper"].items()
    ]
    return rows


def _arm_numbers(results: Sequence[Result], samples: npt.NDArray[np.float64]) -> dict[str, Any]:
    scores = [r.metrics["test_mAP"] for r in results]
    return {
        "test_mAP": float(np.mean(scores)),
        "test_mAP_ci95": list(metrics.interval(samples)),
        "test_mAP_sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,  # over seeds
        "val_mAP": _mean(results, "val_mAP"),
        "seeds": {
            str(r.arm.seed): {k: v for k, v in r.metrics.items() if k not in _IDENTITY} for r in results
        },
    }


def _more_numbers(results: Sequence[Result]) -> dict[str, Any]:
    """Robustness and maps in numbers, means over seeds, of the stages that were not left out."""
    found = {}
    for stage, keys in MORE.items():
        known = [{key: r.more.get(stage, {}).get(key) for key in keys} for r in results]
        if all(value is not None for numbers in known for value in numbers.values()):
            found[stage] = {key: float(np.mean([numbers[key] for numbers in known])) for key in keys}
    return found


_IDENTITY = ("profile", "arm", "seed")


def _mean(results: Iterable[Result], key: str) -> float:
    return float(np.mean([r.metrics[key] for r in results]))


def _check_same_test(found: Mapping[str, Sequence[Result]]) -> None:
    everything = [r for results in found.values() for r in results]
    first = everything[0]
    for other in everything[1:]:
        if (other.tiles, other.labels) != (first.tiles, first.labels) or (
            other.targets != first.targets
        ).any():
            raise CompareError(
                f"{other.arm.key} was tested on other tiles or labels than {first.arm.key}; run `dvc repro`"
            )


def _table(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_curves(path: Path, found: Mapping[str, Sequence[Result]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "epoch", *CURVES])
        for name, results in found.items():
            for result in results:
                for row in result.probe:
                    writer.writerow([name, result.arm.seed, int(row["epoch"]), *(row[key] for key in CURVES)])


def _write_per_class(path: Path, labels: Sequence[str], aps: Mapping[str, npt.NDArray[np.float64]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "label", "AP"])
        for name, ap in aps.items():
            for label, value in zip(labels, ap, strict=True):
                writer.writerow([name, label, "" if np.isnan(value) else float(value)])


def _draw(
    out: Path,
    found: Mapping[str, Sequence[Result]],
    labels: Sequence[str],
    aps: Mapping[str, npt.NDArray[np.float64]],
    palette: figures.Palette,
) -> None:
    for key, what in CURVES.items():
        values = {name: [[row[key] for row in r.probe] for r in results] for name, results in found.items()}
        figures.curves(
            out / f"{key}.png",
            values,
            ylabel=what,
            title=f"Probe: {what}",
            palette=palette,
        )
    losses = {
        n: [[row["loss"] for row in r.pretrain] for r in rs] for n, rs in found.items() if rs[0].pretrain
    }
    if losses:
        figures.curves(
            out / "pretrain_loss.png", losses, ylabel="contrastive loss", title="Pretraining", palette=palette
        )
    reference, *others = aps
    for name in others:
        deltas = aps[name] - aps[reference]
        defined = np.flatnonzero(~np.isnan(deltas))
        figures.label_differences(
            out / f"per_class_{name}.png",
            [label for k, label in enumerate(labels) if k in defined],
            deltas[defined].tolist(),
            title=f"{name} against {reference}, label by label",
            colours=(palette.colour(name), palette.colour(reference)),
        )
