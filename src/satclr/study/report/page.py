"""Write the study as one page.

In: compare.json, the arms' results, the tile store and its audit. Out: reports/<profile>/report.html, some 5 MB,
and its figures as PNG.

    satclr report --profile sample
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from satclr import files
from satclr.data import tiles
from satclr.project import Project
from satclr.study import compare, figures
from satclr.study.report import sections
from satclr.study.results import Results, existing, git_state, read_json, versions


class ReportError(ValueError):
    """A report that cannot be written. Exit code 2."""


def run(project: Project) -> Path:
    """Write report.html, print its path and size, and return the path.

    Raises `ReportError` where compare.json has other arms than params.yaml runs, and as `Results` does for
    missing or damaged files.
    """
    arms = {seeds[0].arm: [Results(run) for run in seeds] for seeds in project.arms()}
    report = read_json(existing(project.reports / "compare.json", project.root))
    if list(report["arms"]) != list(arms):
        raise ReportError(
            f"compare.json has the arms {', '.join(report['arms'])}, params.yaml runs {', '.join(arms)}; "
            "run `satclr compare` again"
        )
    html, drawn = _render(project, report, arms)
    for name, figure in drawn.items():
        figures.save(figure, project.reports / "figures" / f"{name}.png")
    path = project.reports / "report.html"
    files.write_text(path, html)
    print(f"{path.relative_to(project.root)}: {path.stat().st_size / 1e6:.1f} MB")
    return path


def _render(
    project: Project, report: dict[str, Any], arms: Mapping[str, Sequence[Results]]
) -> tuple[str, dict[str, Any]]:
    """The page, and its figures by name."""
    import jinja2
    from plotly.offline import get_plotlyjs

    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    store = tiles.open_store(project.store)
    audit = read_json(existing(store.folder / "audit.json", project.root))
    entries, verdict = report["arms"], compare.answer(report)
    best = max(entries, key=lambda name: float(entries[name]["val_mAP"]))
    first = {name: seeds[0] for name, seeds in arms.items()}
    rows = files.read_csv(existing(project.reports / "per_class_ap.csv", project.root))
    labels = sections.per_label(rows, next(iter(first.values())).per_class, arm=verdict.get("arm", best))
    robust = all("robustness" in entry for entry in entries.values())
    tested = entries[best]["robustness"]["corruptions"] if robust else {}
    palette, flat = (figures.Palette(list(project.params.arms)), [r.run.settings.flat() for r in first.values()])
    commit, dirty = git_state(project.root)
    drawn = _charts(arms, report, labels, audit["label_counts"], palette)
    html = environment.get_template("template.html").render(
        report,
        plotly=get_plotlyjs(),
        colours={name: figures.PAGE_COLOURS.get(colour := palette.colour(name), colour) for name in arms},
        answer=verdict,
        best=best,
        seeds=project.params.seeds,
        charts={name: figures.svg(figure) for name, figure in drawn.items()},
        labels=labels,
        hardest=sections.hardest(first[best], store),
        corruptions=tested,
        corrupted=sections.corrupted(tested, store, audit["flagged"]) if robust else [],
        maps=sections.maps(first, entries, store),
        audit=audit,
        store=store,
        settings={key: [f[key] for f in flat] for key in flat[0]},
        versions=versions(),
        commit=f"{commit} with changes" if dirty else commit,
    )
    return html, drawn


def _charts(
    arms: Mapping[str, Sequence[Results]],
    report: Mapping[str, Any],
    labels: Sequence[Mapping[str, Any]],
    label_counts: Mapping[str, int],
    palette: figures.Palette,
) -> dict[str, Any]:
    """Every figure of the page, by name."""
    entries, names = report["arms"], [row["label"] for row in labels]
    drawn = _training_curves(arms, palette)
    drawn["arms"] = figures.arms(entries, palette, references=report["references"])
    drawn["labels"] = figures.dots(names, sections.intervals(labels, "AP"), palette, xlabel="test AP")
    if len(entries) > 1:
        values, xlabel = (sections.intervals(labels, "delta_AP"), f"difference in test AP to {next(iter(entries))}")
        drawn["differences"] = figures.dots(names, values, palette, xlabel=xlabel, lanes=len(entries))
    if report["ladder"]:
        drawn["ladder"] = figures.ladder(report["ladder"], palette, paper=report["paper"])
    for name, rows in (("label_efficiency", sections.few_labels), ("robustness", sections.strengths)):
        named = {arm: rows(entry) for arm, entry in entries.items()}
        if all(named.values()):
            tables = {arm: np.array(list(table.values())) for arm, table in named.items()}
            drawn[name] = figures.dots(list(next(iter(named.values()))), tables, palette, xlabel="test mAP")
    drawn["prevalence"] = figures.prevalence(label_counts)
    return drawn


def _training_curves(arms: Mapping[str, Sequence[Results]], palette: figures.Palette) -> dict[str, Any]:
    """The curves of the probe, and of pretraining where an arm was pretrained."""
    drawn = {}
    curves = [("pretrain", "loss", "contrastive loss"), *(("probe", *c) for c in compare.CURVES.items())]
    for stage, key, ylabel in curves:
        tables = {name: [r.curve(stage) for r in seeds] for name, seeds in arms.items()}
        values = {name: [[row[key] for row in rows] for rows in t] for name, t in tables.items() if t[0]}
        if values:
            name = "pretrain_loss" if stage == "pretrain" else key
            drawn[name] = figures.curves(values, palette, ylabel=ylabel)
    return drawn
