"""Compare the arms: compare.json, tables, and figures.

In: results/<profile>/<arm>-s<seed>/ of each arm and seed that params.yaml runs. Out: reports/<profile>/.

    satclr compare --profile sample
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satclr import files, progress
from satclr.project import Project
from satclr.study import contrasts, figures
from satclr.study.contrasts import Arms, Floats
from satclr.study.results import Results

# Briody & Aygen's own test mAP on MLRSNet: a frozen ImageNet ResNet-50, and after SimCLR.
PAPER = {"baseline": 0.6361, "simclr": 0.9133}
CURVES = {"val_mAP": "validation mAP", "train_loss": "training loss", "val_loss": "validation loss"}
CURVE_COLUMNS = ("arm", "seed", "epoch", "train_loss", "val_loss", "val_mAP")
LABEL_COLUMNS = ("arm", "label", "AP", "AP_lo", "AP_hi", "delta_AP", "delta_AP_lo", "delta_AP_hi")
TABLE_WIDTH = 120  # of the widest table; narrower terminals wrap its lines

Row = tuple[str, ...]


class CompareError(ValueError):
    """Results that cannot be compared. Exit code 2."""


def run(project: Project) -> dict[str, Any]:
    """Compare the arms that params.yaml runs, the first as the reference; print tables and return compare.json.

    Raises `CompareError` for results on different test tiles, and as `Results` does for missing or damaged ones.
    """
    arms = {seeds[0].arm: [Results(run) for run in seeds] for seeds in project.arms()}
    _check_same_test(arms)
    warn_of_changed_weights(arms)
    samples, aps = contrasts.resample(arms), contrasts.average_precision(arms)
    differences = contrasts.label_differences(aps, samples)
    report = {"profile": project.profile, **contrasts.numbers(arms, samples), "paper": PAPER}
    for contrast in report["contrasts"]:
        if contrast["against"] == project.params.run[0]:
            contrast.update(contrasts.better_and_worse(differences[contrast["arm"]]))
    report["ladder"] = contrasts.ladder(report, project.params.ladder)
    report["leakage"] = contrasts.leakage(report, arms)

    out, palette = project.reports, figures.Palette(list(project.params.arms))
    files.write_json(out / "compare.json", report, allow_nan=True)
    _write_curves(out / "curves.csv", arms)
    spans = {name: contrasts.label_intervals(samples[:, a]) for a, name in enumerate(aps)}
    labels = arms[project.params.run[0]][0].scores("test").labels
    _write_labels(out / "per_class_ap.csv", labels, aps, spans, differences)
    for name, fig in training_curves(arms, palette).items():
        figures.save(fig, out / "figures" / f"{name}.png")
    for name, table in differences.items():
        known = ~np.isnan(table[:, 0])
        shown = [label for label, is_known in zip(labels, known, strict=True) if is_known]
        xlabel = f"difference in test AP to {project.params.run[0]}"
        fig = figures.by_label(*_sorted(shown, table[known], name), palette, xlabel=xlabel)
        figures.save(fig, out / "figures" / f"per_class_{name}.png")
    if report["ladder"]:
        figures.save(figures.ladder(report["ladder"], palette, paper=PAPER), out / "figures" / "ladder.png")
    _print(arm_table(report), ladder_table(report), leakage_table(report))
    return report


def training_curves(arms: Arms, palette: figures.Palette) -> dict[str, Any]:
    """The curves of the probe, and of pretraining where an arm was pretrained: name → figure."""
    probe = {name: [r.curve("probe") for r in seeds] for name, seeds in arms.items()}
    pretrain = {name: [r.curve("pretrain") for r in seeds] for name, seeds in arms.items()}
    pretrain = {name: seeds for name, seeds in pretrain.items() if seeds[0]}

    def drawn(tables: Mapping[str, Sequence[list[dict[str, float]]]], key: str, ylabel: str) -> Any:
        values = {name: [[row[key] for row in rows] for rows in seeds] for name, seeds in tables.items()}
        return figures.curves(values, palette, ylabel=ylabel)

    curves = {key: drawn(probe, key, ylabel) for key, ylabel in CURVES.items()}
    return ({"pretrain_loss": drawn(pretrain, "loss", "contrastive loss")} if pretrain else {}) | curves


def arm_table(report: Mapping[str, Any]) -> list[Row]:
    """The report as rows: arm, test mAP (± deviation over seeds), interval, difference to the reference."""
    reference = next(iter(report["arms"]))
    against = {c["arm"]: c for c in report["contrasts"] if c["against"] == reference}
    rows: list[Row] = [("arm", "test mAP", "95% interval", "val mAP", f"against\n{reference}", "95% interval", "p")]
    for name, arm in report["arms"].items():
        sd = f" ± {arm['test_mAP_sd']:.4f}" if arm["test_mAP_sd"] is not None else ""
        row: Row = (name, f"{arm['test_mAP']:.4f}{sd}", _interval(arm["test_mAP_ci95"]), f"{arm['val_mAP']:.4f}")
        if name in against:
            c = against[name]
            row += (f"{c['delta_mAP']:+.4f}", _interval(c["ci95"], "+"), f"{c['p_value']:.3f}")
        rows.append(row + ("",) * (len(rows[0]) - len(row)))
    return rows


def ladder_table(report: Mapping[str, Any]) -> list[Row]:
    """The ladder as rows, the paper's own numbers last; empty without a ladder."""
    if not report["ladder"]:
        return []
    rows: list[Row] = [("rung", "test mAP", "95% interval", "change", "95% interval")]
    for step in report["ladder"]:
        row: Row = (step["arm"], f"{step['test_mAP']:.4f}", _interval(step["ci95"]))
        change = (f"{step['delta_mAP']:+.4f}", _interval(step["delta_ci95"], "+")) if "against" in step else ("", "")
        rows.append(row + change)
    return rows + [(f"paper, {name} (MLRSNet)", f"{value:.4f}", "", "", "") for name, value in report["paper"].items()]


def leakage_table(report: Mapping[str, Any]) -> list[Row]:
    """Leakage as rows: test mAP with near-duplicates across splits, without, the difference; empty without any."""
    if not report["leakage"]:
        return []
    rows: list[Row] = [("leakage of", "split by tile", "by group", "lifted by", "95% interval", "training tiles left out")]
    for row in report["leakage"]:
        by_tile, by_group = (f"{value:.4f}" for value in row["test_mAP"])
        whole, rest = row["train_tiles"]
        left_out = f"{whole - rest:,} of {whole:,} ({(whole - rest) / whole:.1%})"
        rows.append((row["by_tile"], by_tile, by_group, f"{row['delta_mAP']:+.4f}", _interval(row["ci95"], "+"), left_out))
    return rows


def _interval(ends: Sequence[float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.4f} to {ends[1]:{sign}.4f}"


def _print(*tables: Sequence[Row]) -> None:
    """Print tables to standard output, each under its header, with a blank line between them."""
    from rich.console import Console
    from rich.table import Table

    console = Console(markup=False, highlight=False, width=TABLE_WIDTH)
    for i, (header, *rows) in enumerate(filter(None, tables)):
        if i:
            console.print()
        shown = Table(*header, box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
        for row in rows:
            shown.add_row(*row)
        console.print(shown)


def _check_same_test(arms: Arms) -> None:
    first, *others = (r for seeds in arms.values() for r in seeds)
    for other in others:
        if not other.scores("test").same_tiles(first.scores("test")):
            raise CompareError(f"{other.run.key} was tested on other tiles or labels than {first.run.key}; run `dvc repro`")


def warn_of_changed_weights(arms: Arms) -> None:
    """One line for each encoder that started from a file whose content has changed since."""
    for run, path in ((r.run, r.changed_weights()) for seeds in arms.values() for r in seeds):
        if path is not None:
            progress.say(
                f"warning: {run.key} was pretrained from {run.settings.pretrain.weights}, which has changed since; run "
                f"`dvc repro --force --single-item pretrain@{run.profile}-{run.arm}-{run.seed}`, then `dvc repro`"
            )


def _write_curves(path: Path, arms: Arms) -> None:
    results = [r for seeds in arms.values() for r in seeds]
    rows = [
        [r.run.arm, r.run.seed, int(row["epoch"]), *(row[key] for key in CURVE_COLUMNS[3:])]
        for r in results
        for row in r.curve("probe")
    ]
    files.write_csv(path, CURVE_COLUMNS, rows)


def _write_labels(
    path: Path,
    labels: Sequence[str],
    aps: Mapping[str, Floats],
    spans: Mapping[str, Floats],
    differences: Mapping[str, Floats],
) -> None:
    """One row for each arm and label: AP and its difference to the first arm's, each with its interval."""
    nothing = np.full((len(labels), 3), np.nan)
    tables = {name: np.column_stack([ap, spans[name], differences.get(name, nothing)]) for name, ap in aps.items()}
    rows = [
        [name, label, *("" if np.isnan(value) else float(value) for value in row)]
        for name, table in tables.items()
        for label, row in zip(labels, table, strict=True)
    ]
    files.write_csv(path, LABEL_COLUMNS, rows)


def _sorted(labels: Sequence[str], values: Floats, arm: str) -> tuple[list[str], dict[str, Floats]]:
    """Labels and their values, the largest first."""
    order = np.argsort(-values[:, 0], kind="stable")
    return [labels[k] for k in order], {arm: values[order]}
