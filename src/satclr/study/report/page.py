"""Gathers what the stages left and fills the template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from satclr import atomic
from satclr.data import tiles
from satclr.params import Arm
from satclr.study import figures
from satclr.study.report import charts, provenance, sections
from satclr.study.report.sections import Run

MAX_MB = 15
CURVES = {"val_mAP": "validation mAP", "train_loss": "training loss", "val_loss": "validation loss"}


class ReportError(ValueError):
    """A report that cannot be written: exit code 2."""


def run(
    results: Path,
    reports: Path,
    store: tiles.TileStore,
    *,
    arms: Sequence[Sequence[Arm]],
    palette: figures.Palette,
    commit: str | None,
) -> Path:
    """Write report.html below `reports` and return its path.

    `arms`: one sequence of seeds each, the first is the reference, as compare had them. Raises `ReportError`
    naming the file that is missing, or the size of a page that would be too large to send.
    """
    try:
        compare = json.loads((reports / "compare.json").read_text(encoding="utf-8"))
        audit = json.loads((store.folder / "audit.json").read_text(encoding="utf-8"))
        runs = {seeds[0].name: [Run(arm, results / arm.key) for arm in seeds] for seeds in arms}
        if list(compare["arms"]) != list(runs):
            raise ReportError(
                f"compare.json has the arms {', '.join(compare['arms'])}, params.yaml runs {', '.join(runs)}; "
                "run `satclr compare` again"
            )
        html = _render(compare, audit, runs, store, palette=palette, commit=commit, reports=reports)
    except FileNotFoundError as error:
        raise ReportError(f"{error.filename} does not exist; run `satclr compare` first") from None
    if len(html.encode()) > MAX_MB * 1e6:
        raise ReportError(f"the report is {len(html.encode()) / 1e6:.1f} MB, over {MAX_MB}; run fewer arms")
    path = reports / "report.html"
    atomic.write_text(path, html)
    return path


def _render(
    compare: dict[str, Any],
    audit: dict[str, Any],
    runs: Mapping[str, Sequence[Run]],
    store: tiles.TileStore,
    *,
    palette: figures.Palette,
    commit: str | None,
    reports: Path,
) -> str:
    import jinja2
    import plotly.offline

    folder = resources.files("satclr.study.report")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string((folder / "template.html").read_text(encoding="utf-8"))
    first, entries = {name: seeds[0] for name, seeds in runs.items()}, compare["arms"]
    best = max(entries, key=lambda name: float(entries[name]["val_mAP"]))
    verdict = answer(compare)
    labels = sections.per_label(
        sections.table(reports / "per_class_ap.csv"),
        next(iter(first.values())).table("per_class_ap.csv"),
        arm=verdict.get("arm", best),
    )
    robustness = sections.robustness(entries, store, audit["flagged"])
    return template.render(
        profile=compare["profile"],
        css=(folder / "style.css").read_text(encoding="utf-8"),
        script=(folder / "page.js").read_text(encoding="utf-8"),
        plotly=plotly.offline.get_plotlyjs(),
        colours={name: palette.colour(name) for name in runs},
        arms=entries,
        chosen=_chosen(entries),
        means={name: _means(entry) for name, entry in entries.items()},
        contrasts=compare["contrasts"],
        answer=verdict,
        ladder=sections.ladder(reports),
        paper=compare["paper"],
        leakage=compare["leakage"],
        best=best,
        seeds=[r.arm.seed for r in next(iter(runs.values()))],
        charts=_charts(runs, compare, labels, robustness, audit, palette),
        labels=labels,
        hardest=sections.hardest(first[best], store),
        robustness=robustness,
        maps=sections.maps(first, entries, store),
        audit=audit,
        store=store,
        parameters=provenance.parameters([r.arm for r in first.values()]),
        versions=provenance.versions(),
        commit=commit,
    )


def answer(compare: Mapping[str, Any]) -> dict[str, Any]:
    """The reference and the arm that validates best against it: verdict yes, no or open, and the contrast."""
    reference, *others = compare["arms"]
    if not others:
        return {"verdict": None, "reference": reference}
    best = max(others, key=lambda name: float(compare["arms"][name]["val_mAP"]))
    contrast = next(c for c in compare["contrasts"] if c["arm"] == best and c["against"] == reference)
    low, high = contrast["ci95"]
    verdict = "yes" if low > 0 else "no" if high < 0 else "open"
    return {"verdict": verdict, "reference": reference, "arm": best, "contrast": contrast}


def _means(entry: Mapping[str, Any]) -> dict[str, float]:
    """Each number of an arm, the mean over its seeds."""
    seeds = list(entry["seeds"].values())
    keys = [k for k, v in seeds[0].items() if isinstance(v, int | float) and not isinstance(v, bool)]
    return {k: float(np.mean([s[k] for s in seeds])) for k in keys if all(s.get(k) is not None for s in seeds)}


def _chosen(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """What the sweep chose for each arm, in words; the first seed's."""
    first = {name: next(iter(entry["seeds"].values())).get("sweep") for name, entry in entries.items()}
    return {
        name: f"learning rate {sweep['learning_rate']:g}, weight decay {sweep['weight_decay']:g}"
        for name, sweep in first.items()
        if sweep
    }


def _charts(
    runs: Mapping[str, Sequence[Run]],
    compare: dict[str, Any],
    labels: Sequence[Mapping[str, Any]],
    robustness: Mapping[str, Any] | None,
    audit: Mapping[str, Any],
    palette: figures.Palette,
) -> dict[str, str]:
    entries = compare["arms"]
    drawn = {
        "arms": charts.arms(entries, palette),
        "labels": charts.labels(labels, list(entries), palette),
        "prevalence": charts.prevalence(audit["label_counts"]),
        "map": charts.embedding(),
    }
    if len(entries) > 1:
        drawn["differences"] = charts.differences(labels, list(entries), palette)
    probes = {name: [run.table("probe.csv") for run in seeds] for name, seeds in runs.items()}
    for key, what in CURVES.items():
        values = {n: [[float(row[key]) for row in rows] for rows in tables] for n, tables in probes.items()}
        drawn[key] = charts.curves(values, palette, ylabel=what)
    pretraining = {
        n: [[float(row["loss"]) for row in run.table("pretrain.csv")] for run in seeds] for n, seeds in runs.items()
    }
    if trained := {n: lines for n, lines in pretraining.items() if lines[0]}:
        drawn["pretrain"] = charts.curves(trained, palette, ylabel="contrastive loss")
    few = {name: entry["label_efficiency"] for name, entry in entries.items()}
    if all(few.values()):
        drawn["label_efficiency"] = charts.label_efficiency(few, palette)
    if robustness:
        drawn["robustness"] = charts.robustness(robustness["arms"], palette)
    return {name: charts.to_json(figure) for name, figure in drawn.items()}
