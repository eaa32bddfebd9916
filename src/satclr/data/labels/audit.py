"""What is wrong with a data set's labels, worst first.

In: `Labels` and the folder they were read from. Out: an `Audit` to print (`render`), to store (`to_dict`)
and to act on (`flagged_rows`). Command: `satclr audit LABELS_DIR [--images DIR] [--json FILE]`.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from satclr.data.labels import checks
from satclr.data.labels.checks import Finding, Rows
from satclr.data.labels.known import recognise
from satclr.data.labels.tables import LabelError, Labels

LEVELS: Final = {"error": "bold red", "suspect": "bold yellow", "notice": "bold cyan"}
EXTREMES: Final = 5
DETAILS: Final = 4


@dataclass(frozen=True)
class Audit:
    """The labels, the known data set they are (or None), and the findings, worst first."""

    labels: Labels
    known: str | None
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; `flagged` names each flagged tile with the kinds of its findings."""
        counts = self.labels.targets.sum(1, dtype=np.int64)
        flagged: dict[str, list[str]] = {}
        for finding in self.findings:
            for row in finding.rows if finding.flagged else ():
                flagged.setdefault(self.labels.tiles[row], []).append(finding.kind)
        return {
            "data_set": self.known,
            "tiles": len(self.labels.tiles),
            "categories": len(self.labels.columns),
            "labels": len(self.labels.names),
            "labels_per_tile": {
                "min": int(counts.min()),
                "mean": float(counts.mean()),
                "median": float(np.median(counts)),
                "max": int(counts.max()),
                "histogram": dict(sorted((str(n), c) for n, c in Counter(counts.tolist()).items())),
            },
            "label_counts": _label_counts(self.labels),
            "findings": [
                {
                    "kind": finding.kind,
                    "level": finding.level,
                    "title": finding.title,
                    "advice": finding.advice,
                    "tiles": len(finding.rows),
                    "flagged": finding.flagged,
                    "details": list(finding.details),
                    "examples": list(finding.examples),
                }
                for finding in self.findings
            ],
            "flagged": dict(sorted(flagged.items())),
        }


def audit(
    labels: Labels, folder: Path, *, images: Path | None = None, max_labels: int | None = None
) -> Audit:
    """Look for every kind of fault in `labels`, read from `folder`.

    images: the folder of `<category>/<tile>` images to compare with the rows. max_labels: the most labels
    the data set documents for a tile; a known data set brings its own.

    Raises LabelError when `images` is no folder or the data set's own document is unreadable.
    """
    if images is not None and not images.is_dir():
        raise LabelError(f"{images}: no such folder; it should hold one folder of images a category")
    known = recognise(labels)
    if max_labels is None and known is not None:
        max_labels = known.max_labels
    found = [
        *checks.releases(labels, known),
        *checks.lost(labels, known),
        *checks.over_maximum(labels, max_labels),
        *checks.runs(labels),
        *checks.undocumented(labels, known, folder),
        *checks.unlabelled(labels),
        *checks.unusable(labels),
        *checks.repairs(labels),
        *(checks.images(labels, images) if images is not None else ()),
    ]
    order = list(LEVELS)
    found.sort(key=lambda f: (order.index(f.level), f.kind != "known-release", -len(f.rows)))
    return Audit(labels, known.name if known else None, tuple(found))


def flagged_rows(report: Audit) -> Rows:
    """The rows that `on_problem: drop` leaves out, ascending."""
    rows = {row for finding in report.findings if finding.flagged for row in finding.rows}
    return np.array(sorted(rows), dtype=np.intp)


def render(report: Audit) -> RenderableType:
    """The audit as a person reads it in a minute."""
    labels = report.labels
    counts = labels.targets.sum(1, dtype=np.int64)
    flagged = len(flagged_rows(report))
    summary = Text.assemble(
        (f"{len(labels.tiles):,} tiles", "bold"),
        f", {len(labels.columns)} categories, {len(labels.names)} labels; ",
        f"{counts.mean():.2f} labels a tile ({counts.min()} to {counts.max()}). ",
        (f"{flagged:,} tiles flagged ({flagged / len(counts):.2%})", "bold"),
        *(["; data.labels.on_problem: drop leaves these out."] if flagged else ["."]),
    )
    ranked = sorted(_label_counts(labels).items(), key=lambda item: (item[1], item[0]))
    extremes = Text(
        "Rarest labels: "
        + _listed(ranked[:EXTREMES])
        + ". Commonest: "
        + _listed(ranked[: -EXTREMES - 1 : -1])
        + "."
    )
    parts: list[RenderableType] = [summary, extremes]
    for finding in report.findings:
        parts.append(
            Text.assemble("\n", (finding.level.upper(), LEVELS[finding.level]), " ", (finding.title, "bold"))
        )
        parts.append(Padding(Text("\n".join(_body(finding))), (0, 0, 0, 4), expand=False))
    if not report.findings:
        parts.append(Text("\nNothing found.", "bold green"))
    return Group(*parts)


def _body(finding: Finding) -> list[str]:
    """The lines below a finding's title; a notice has fewer."""
    lines = list(finding.details[:DETAILS])
    if len(finding.details) > DETAILS:
        lines.append(f"and {len(finding.details) - DETAILS} more")
    if finding.level == "notice":
        lines = ["; ".join(lines)] if lines else []
    elif finding.examples:
        lines.append("e.g. " + ", ".join(finding.examples))
    return [*lines, f"→ {finding.advice}"]


def _label_counts(labels: Labels) -> dict[str, int]:
    return dict(zip(labels.names, labels.targets.sum(0, dtype=np.int64).tolist(), strict=True))


def _listed(ranked: list[tuple[str, int]]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in ranked)
