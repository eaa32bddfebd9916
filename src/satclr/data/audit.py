"""What is wrong with a data set's labels, worst first.

In: `Labels` and the folder they were read from. Out: an `Audit` to print (`render`), to store (`to_dict`) and to act on
(`flagged_rows`).

    satclr audit LABELS_DIR [--images DIR] [--json FILE]
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from satclr.data import checks
from satclr.data.checks import Finding, Rows
from satclr.data.known import recognise
from satclr.data.labels import LabelError, Labels

if TYPE_CHECKING:
    from rich.console import RenderableType

LEVELS: Final = {"error": "bold red", "suspect": "bold yellow", "notice": "bold cyan"}
EXTREMES: Final = 5
DETAILS: Final = 4


@dataclass(frozen=True)
class Audit:
    """The labels, the known data set they belong to (or None), and the findings, worst first."""

    labels: Labels
    known: str | None
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types; `flagged` maps each flagged tile to the kinds of its findings."""
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
            "findings": [finding.to_dict() for finding in self.findings],
            "flagged": dict(sorted(flagged.items())),
        }


def audit(labels: Labels, folder: Path, *, images: Path | None = None) -> Audit:
    """Check `labels`, read from `folder`, for every kind of fault.

    images: the folder of `<category>/<tile>` images to compare with the rows. Raises `LabelError` when it is not a
    folder or the data set's own document is unreadable.
    """
    if images is not None and not images.is_dir():
        raise LabelError(f"{images}: no such folder; it should hold one folder of images per category")
    known = recognise(labels)
    found = [
        *checks.releases(labels, known),
        *checks.lost(labels, known),
        *checks.over_maximum(labels, known.max_labels if known else None),
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
    return np.array(sorted({row for f in report.findings if f.flagged for row in f.rows}), dtype=np.intp)


def render(report: Audit) -> RenderableType:
    """The audit as text for the terminal."""
    from rich.console import Group
    from rich.padding import Padding
    from rich.text import Text

    labels = report.labels
    counts = labels.targets.sum(1, dtype=np.int64)
    flagged = len(flagged_rows(report))
    ranked = sorted((count, name) for name, count in _label_counts(labels).items())
    listed = [f"{name} {count:,}" for count, name in ranked]
    rarest, commonest = ", ".join(listed[:EXTREMES]), ", ".join(listed[: -EXTREMES - 1 : -1])
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{len(labels.tiles):,} tiles", "bold"),
            f", {len(labels.columns)} categories, {len(labels.names)} labels; ",
            f"{counts.mean():.2f} labels per tile ({counts.min()} to {counts.max()}). ",
            (f"{flagged:,} tiles flagged ({flagged / len(counts):.2%})", "bold"),
            "; data.labels.on_problem: drop leaves them out." if flagged else ".",
        ),
        Text(f"Rarest labels: {rarest}. Most common: {commonest}."),
    ]
    for finding in report.findings:
        lines = list(finding.details[:DETAILS])
        if len(finding.details) > DETAILS:
            lines.append(f"and {len(finding.details) - DETAILS} more")
        if finding.level == "notice":
            lines = ["; ".join(lines)] if lines else []
        elif finding.examples:
            lines.append("e.g. " + ", ".join(finding.examples))
        level = (finding.level.upper(), LEVELS[finding.level])
        parts.append(Text.assemble("\n", level, " ", (finding.title, "bold")))
        text = "\n".join([*lines, f"→ {finding.advice}"])
        parts.append(Padding(Text(text), (0, 0, 0, 4), expand=False))
    if not report.findings:
        parts.append(Text("\nNo findings.", "bold green"))
    return Group(*parts)


def _label_counts(labels: Labels) -> dict[str, int]:
    return dict(zip(labels.names, labels.targets.sum(0, dtype=np.int64).tolist(), strict=True))
