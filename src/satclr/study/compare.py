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

from satclr import atomic, randomness
from satclr.evaluation import metrics
from satclr.params import Arm, Settings
from satclr.study import figures

Floats = npt.NDArray[np.float64]

# Briody & Aygen's own test mAP on MLRSNet: a frozen ImageNet ResNet-50, and after SimCLR.
PAPER = {"baseline": 0.6361, "simclr": 0.9133}
CURVES = {"train_loss": "training loss", "val_loss": "validation loss", "val_mAP": "validation mAP"}

PER_CLASS = ("AP", "AP_lo", "AP_hi", "delta_AP", "delta_AP_lo", "delta_AP_hi")
MORE = {  # stages that may be left out: the numbers of their files that go into compare.json
    "robustness": ("clean_mAP", "mean_corruption_mAP", "relative_drop", "corruptions"),
    "maps": ("knn_label_overlap", "trustworthiness", "distance_rank_correlation"),
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
    results: Path, out: Path, *, arms: Sequence[Sequence[Arm]], rungs: Sequence[str], palette: figures.Palette
) -> dict[str, Any]:
    """Compare `arms` (one sequence of seeds each, the first is the reference) and return compare.json's tree.

    `rungs` are the arms of the ladder, in order; those that are compared are drawn, if two or more.
    Raises `CompareError` if a result is missing or was measured on other tiles.
    """
    found = {seeds[0].name: [read(results / arm.key, arm) for arm in seeds] for seeds in arms}
    _check_same_test(found)
    samples = resampled(found)
    labels, aps = per_class(found)
    differences = label_differences(aps, samples)
    spans = {name: label_intervals(samples[:, a]) for a, name in enumerate(aps)}
    report = {"profile": arms[0][0].profile, **numbers(found, samples), "paper": PAPER}
    for contrast in report["contrasts"]:
        if contrast["against"] == arms[0][0].name:
            contrast.update(_better_and_worse(differences[contrast["arm"]]))
    report["ladder"] = ladder(report, rungs)
    report["leakage"] = leakage(report, found)
    atomic.write_json(out / "compare.json", report, allow_nan=True)
    _write_curves(out / "curves.csv", found)
    _write_per_class(out / "per_class_ap.csv", labels, aps, spans, differences)
    _draw(out / "figures", found, labels, aps, palette)
    if report["ladder"]:
        figures.ladder(out / "figures" / "ladder.png", report["ladder"], paper=PAPER, palette=palette)
    return report


def resampled(found: Mapping[str, Sequence[Result]]) -> Floats:
    """AP of each arm and label, a mean over seeds, on each resample of test tiles and seeds: (R,A,K)."""
    first = next(iter(found.values()))[0]
    return metrics.paired_bootstrap_over_seeds(
        [np.stack([r.scores for r in results]) for results in found.values()], first.targets,
        resamples=first.arm.settings.evaluate.bootstrap_resamples,
        seed=randomness.derive(0, "bootstrap") % 2**32,
    )  # fmt: skip


def numbers(found: Mapping[str, Sequence[Result]], samples: Floats) -> dict[str, Any]:
    """Mean, spread and interval of each arm, and every contrast: later arm minus earlier arm.

    `samples`: (R,A,K), of `resampled`.
    """
    names, means = list(found), []
    for a, results in enumerate(found.values()):
        ap = samples[:, a]
        if results[0].arm.settings.evaluate.undefined_ap == "zero":
            ap = np.where(results[0].targets.any(axis=0), ap, 0)
        means.append(metrics.nan_mean(ap))
    return {
        "arms": {
            name: _arm_numbers(results, means[a]) | _more_numbers(results)
            for a, (name, results) in enumerate(found.items())
        },
        "contrasts": [
            {
                "arm": names[b],
                "against": names[a],
                "delta_mAP": _mean(found[names[b]], "test_mAP") - _mean(found[names[a]], "test_mAP"),
                "ci95": list(metrics.interval(means[b] - means[a])),
                "p_value": metrics.p_value(means[b] - means[a]),
            }
            for a, b in combinations(range(len(names)), 2)
        ],
    }


def label_intervals(samples: Floats) -> Floats:
    """The 95% interval of each label from its resamples (R,K), without those that hold none: (K,2), else nan."""
    columns = [column[~np.isnan(column)] for column in samples.T]
    return np.array([metrics.interval(column) if len(column) else (np.nan, np.nan) for column in columns])


def label_differences(aps: Mapping[str, Floats], samples: Floats) -> dict[str, Floats]:
    """Each later arm's AP less the first one's, label by label, with its paired 95% interval: (K,3).

    aps: (K,) of each arm; samples: (R,A,K). Columns: difference, low, high; nan where a label has no AP.
    """
    first, *others = aps
    return {
        name: np.column_stack([aps[name] - aps[first], label_intervals(samples[:, a] - samples[:, 0])])
        for a, name in enumerate(others, 1)
    }


def ladder(report: Mapping[str, Any], rungs: Sequence[str]) -> list[dict[str, Any]]:
    """Each compared rung's mAP, and its change from the rung before with the paired interval."""
    found = [name for name in rungs if name in report["arms"]]
    steps = []
    for below, name in zip([None, *found], found, strict=False):
        arm = report["arms"][name]
        step = {"arm": name, "test_mAP": arm["test_mAP"], "ci95": arm["test_mAP_ci95"]}
        if below is not None:
            delta, ci95, _ = _contrast(report, name, below)
            step |= {"against": below, "delta_mAP": delta, "delta_ci95": ci95}
        steps.append(step)
    return steps if len(steps) > 1 else []


def leakage(report: Mapping[str, Any], found: Mapping[str, Sequence[Result]]) -> list[dict[str, Any]]:
    """How much near-duplicates across splits lift each arm: the arm against the one that leaves them out.

    A row for each pair of arms whose settings are equal but for `near_duplicates`: by_tile, the arm that
    learns from all training tiles; by_group, the one whose groups of near-duplicates are on one side only;
    what the first has more, with the paired interval, and by how many training tiles.
    """
    rows = []
    for name, results in found.items():
        wanted = _without_leaks(results[0].arm)
        for other, others in found.items():
            if other == name or others[0].arm.settings != wanted:
                continue
            delta, ci95, p_value = _contrast(report, name, other)
            sizes = [r[0].metrics["train_tiles"] for r in (results, others)]
            rows.append({
                "by_tile": name,
                "by_group": other,
                "test_mAP": [report["arms"][which]["test_mAP"] for which in (name, other)],
                "delta_mAP": delta,
                "ci95": ci95,
                "p_value": p_value,
                "train_tiles": sizes,
            })  # fmt: skip
    return rows


def _without_leaks(arm: Arm) -> Settings | None:
    """An arm's settings with near-duplicates left out; None where they are already, in pretraining or probe."""
    settings, out = arm.settings, {"near_duplicates": "leave_out"}
    if "leave_out" in (settings.pretrain.near_duplicates, settings.probe.near_duplicates):
        return None
    pretrain, probe = settings.pretrain.model_copy(update=out), settings.probe.model_copy(update=out)
    return settings.model_copy(update={"pretrain": pretrain, "probe": probe})


def _contrast(report: Mapping[str, Any], arm: str, against: str) -> tuple[float, list[float], float]:
    """Difference in mAP, interval and p of two arms, whichever stands first in the report."""
    for c in report["contrasts"]:
        if {c["arm"], c["against"]} == {arm, against}:
            sign = 1.0 if c["arm"] == arm else -1.0
            return sign * c["delta_mAP"], sorted(sign * end for end in c["ci95"]), c["p_value"]
    raise KeyError((arm, against))


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


def per_class(found: Mapping[str, Sequence[Result]]) -> tuple[list[str], dict[str, Floats]]:
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
            f"{arm['test_mAP']:.4f}" + (f" ± {arm['test_mAP_sd']:.4f}" if arm["test_mAP_sd"] is not None else ""),
            f"{low:.4f} to {high:.4f}",
            f"{arm['val_mAP']:.4f}",
        )
        if name in against:
            c = against[name]
            row += (f"{c['delta_mAP']:+.4f}", f"{c['ci95'][0]:+.4f} to {c['ci95'][1]:+.4f}", f"{c['p_value']:.3f}")
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
    rows += [(f"paper, {name} (MLRSNet)", f"{value:.4f}", "", "", "") for name, value in report["paper"].items()]
    return rows


def leakage_table(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The leakage as rows a person reads: test mAP with near-duplicates across splits, without, the difference."""
    rows: list[tuple[str, ...]] = [
        ("leakage of", "split by tile", "by group", "lifted by", "95% interval", "training tiles left out")
    ]
    for row in report["leakage"]:
        by_tile, by_group = (f"{value:.4f}" for value in row["test_mAP"])
        low, high = row["ci95"]
        interval = f"{low:+.4f} to {high:+.4f}"
        rows.append((
            row["by_tile"], by_tile, by_group, f"{row['delta_mAP']:+.4f}", interval, left_out(row["train_tiles"]),
        ))  # fmt: skip
    return rows


def left_out(train_tiles: Sequence[int]) -> str:
    """How many training tiles the split by group leaves out: '12 of 1,285 (0.9%)'."""
    whole, rest = train_tiles
    return f"{whole - rest:,} of {whole:,} ({(whole - rest) / whole:.1%})"


def _arm_numbers(results: Sequence[Result], samples: Floats) -> dict[str, Any]:
    scores = [r.metrics["test_mAP"] for r in results]
    return {
        "test_mAP": float(np.mean(scores)),
        "test_mAP_ci95": list(metrics.interval(samples)),
        "test_mAP_sd": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,  # over seeds
        "val_mAP": _mean(results, "val_mAP"),
        "label_efficiency": _label_efficiency(results),
        "seeds": {str(r.arm.seed): {k: v for k, v in r.metrics.items() if k not in _IDENTITY} for r in results},
    }


def _label_efficiency(results: Sequence[Result]) -> list[dict[str, Any]]:
    """A row a share of the training labels: mean and deviation over subsets, those of all seeds together."""
    rows = []
    for same in zip(*(r.metrics.get("label_efficiency", []) for r in results), strict=True):
        values = [value for row in same for value in row["subsets"]]
        sd = float(np.std(values, ddof=1)) if len(values) > 1 else None
        known = {key: same[0][key] for key in ("fraction", "tiles")}
        rows.append({**known, "test_mAP": float(np.mean(values)), "sd": sd})
    return rows


def _more_numbers(results: Sequence[Result]) -> dict[str, Any]:
    """Robustness and maps in numbers, means over seeds, of the stages that were not left out."""
    found = {}
    for stage, keys in MORE.items():
        known = [{key: r.more.get(stage, {}).get(key) for key in keys} for r in results]
        if all(value is not None for numbers in known for value in numbers.values()):
            found[stage] = _mean_of(known)
    return found


def _mean_of(trees: Sequence[Any]) -> Any:
    """Trees of the same shape as one, a mean in place of each number."""
    if isinstance(trees[0], dict):
        return {key: _mean_of([tree[key] for tree in trees]) for key in trees[0]}
    return float(np.mean(trees))


def _better_and_worse(differences: Floats) -> dict[str, int]:
    """How many labels' AP rose and fell by more than the interval allows to be chance."""
    return {"labels_better": int((differences[:, 1] > 0).sum()), "labels_worse": int((differences[:, 2] < 0).sum())}


_IDENTITY = ("profile", "arm", "seed")


def _mean(results: Iterable[Result], key: str) -> float:
    return float(np.mean([r.metrics[key] for r in results]))


def _check_same_test(found: Mapping[str, Sequence[Result]]) -> None:
    everything = [r for results in found.values() for r in results]
    first = everything[0]
    for other in everything[1:]:
        if (other.tiles, other.labels) != (first.tiles, first.labels) or (other.targets != first.targets).any():
            raise CompareError(
                f"{other.arm.key} was tested on other tiles or labels than {first.arm.key}; run `dvc repro`"
            )


def _table(path: Path) -> list[dict[str, float]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def _write_curves(path: Path, found: Mapping[str, Sequence[Result]]) -> None:
    with atomic.replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "seed", "epoch", *CURVES])
        for name, results in found.items():
            for result in results:
                for row in result.probe:
                    writer.writerow([name, result.arm.seed, int(row["epoch"]), *(row[key] for key in CURVES)])


def _write_per_class(
    path: Path,
    labels: Sequence[str],
    aps: Mapping[str, Floats],
    spans: Mapping[str, Floats],
    differences: Mapping[str, Floats],
) -> None:
    """One row an arm and label: AP, and how much more than the first arm's, each with its interval."""
    with atomic.replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["arm", "label", *PER_CLASS])
        nothing = np.full((len(labels), 3), np.nan)
        for name, ap in aps.items():
            table = np.column_stack([ap, spans[name], differences.get(name, nothing)])
            for label, row in zip(labels, table, strict=True):
                writer.writerow([name, label, *("" if np.isnan(value) else float(value) for value in row)])


def _draw(
    out: Path,
    found: Mapping[str, Sequence[Result]],
    labels: Sequence[str],
    aps: Mapping[str, Floats],
    palette: figures.Palette,
) -> None:
    for key, what in CURVES.items():
        values = {name: [[row[key] for row in r.probe] for r in results] for name, results in found.items()}
        figures.curves(out / f"{key}.png", values, ylabel=what, title=f"Probe: {what}", palette=palette)
    losses = {n: [[row["loss"] for row in r.pretrain] for r in rs] for n, rs in found.items() if rs[0].pretrain}
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
