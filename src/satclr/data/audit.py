"""What is wrong with a data set's labels, worst first, and which published data set it is.

In: a folder of label tables. Out: an `Audit` to print (`render`), to store (`to_dict`) and to act on
(`flagged`). What is known about published data sets is in `published/<name>.json`, one file each: their documented
labels, their releases and the damage in them; other data sets are audited without it.

    satclr audit LABELS_DIR [--images DIR] [--json FILE]
"""

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from satclr.data import checks
from satclr.data.checks import Finding, Rows
from satclr.data.labels import LabelError, Labels, read
from satclr.files import counted

LEVELS: Final = {"error": "bold red", "suspect": "bold yellow", "notice": "bold cyan"}
EXTREMES: Final = 5
DETAILS: Final = 4


class Release(BaseModel, frozen=True, extra="forbid", strict=True):
    """A published state of the label tables: each category's digest, and how many rows of it are wrong."""

    name: str
    advice: str
    tables: dict[str, str]
    corrupt_rows: dict[str, int]


class Known(BaseModel, frozen=True, extra="forbid", strict=True):
    """A published data set; without values, one that nothing is known of.

    max_labels: the most labels that its authors document for a tile. documented: the labels that go with each category.
    undocumented: those that its sound release has besides. namesakes: the label that a category is named after.
    """

    name: str | None = None
    source: str = ""
    max_labels: int | None = None
    labels: frozenset[str] = frozenset()
    categories: frozenset[str] = frozenset()
    documented: dict[str, frozenset[str]] = {}
    undocumented: dict[str, frozenset[str]] = {}
    namesakes: dict[str, str] = {}
    releases: tuple[Release, ...] = ()


@dataclass(frozen=True)
class Audit:
    """The labels, the known data set they belong to (or None), and the findings, worst first."""

    labels: Labels
    known: str | None
    findings: tuple[Finding, ...]

    @property
    def flagged(self) -> dict[int, list[str]]:
        """The rows that `on_problem: drop` leaves out, each with the kinds of its findings."""
        flagged: dict[int, list[str]] = {}
        for finding in self.findings:
            for row in finding.rows if finding.flagged else ():
                flagged.setdefault(row, []).append(finding.kind)
        return flagged

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON types, the flagged tiles by name."""
        counts = self.labels.targets.sum(1, dtype=np.int64)
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
            "flagged": dict(sorted((self.labels.tiles[row], kinds) for row, kinds in self.flagged.items())),
        }


def audit(folder: Path, *, images: Path | None = None) -> Audit:
    """Read the label tables in `folder` and check them for every kind of fault.

    images: the folder of `<category>/<tile>` images to compare with the rows. Raises `LabelError` when it is not a
    folder, and when a table or the data set's own document is unreadable.
    """
    labels = read(folder)
    if images is not None and not images.is_dir():
        raise LabelError(f"{images}: no such folder; it should hold one folder of images per category")
    same = (known for known in _published() if known.labels == set(labels.names))
    known = next((known for known in same if known.categories >= set(labels.columns)), Known())
    document = checks.documented(folder, labels) or (f"{known.name}'s documentation", known.documented)
    found = [
        *(_releases(labels, known) if known.releases else ()),
        *checks.lost(labels, known.namesakes),
        *checks.over_maximum(labels, known.max_labels),
        *checks.runs(labels),
        *checks.undocumented(labels, *document, known.undocumented),
        *checks.unlabelled(labels),
        *checks.unusable(labels),
        *checks.repairs(labels),
        *(checks.images(labels, images) if images is not None else ()),
    ]
    order = list(LEVELS)
    found.sort(key=lambda f: (order.index(f.level), f.kind != "known-release", -len(f.rows)))
    return Audit(labels, known.name, tuple(found))


@cache
def _published() -> list[Known]:
    entries = sorted(files("satclr.data").joinpath("published").iterdir(), key=lambda entry: entry.name)
    return [Known.model_validate_json(e.read_text("utf-8")) for e in entries if e.name.endswith(".json")]


def _releases(labels: Labels, known: Known) -> Iterator[Finding]:
    """Tell which published release the tables are, and what is known to be wrong with it."""
    digests = {category: _digest(labels, rows) for category, rows, _ in checks.tables(labels)}
    equal = [{c for c, digest in digests.items() if release.tables.get(c) == digest} for release in known.releases]
    nearest, same = max(zip(known.releases, equal, strict=True), key=lambda pair: len(pair[1]))
    title = f"{known.name}, release of {nearest.name}"
    if not same:
        title = f"{known.name}'s labels, but no table equals a published one"
    elif others := len(digests) - len(same):
        title += f", but for {others} of {len(digests)} tables"
    # A few damaged tables among sound ones are still damage.
    damaged = {c: r for r, tables in zip(known.releases, equal, strict=True) for c in tables & set(r.corrupt_rows)}
    if damaged:
        wrong = {category: release.corrupt_rows[category] for category, release in damaged.items()}
        ranked = sorted(wrong, key=lambda category: (-wrong[category], category))
        title = f"{title}: {sum(wrong.values()):,} rows are corrupt"
        details = tuple(f"{category}: {wrong[category]:,} corrupt rows" for category in ranked)
        yield Finding("known-release", "error", title, damaged[ranked[0]].advice, details=details)
    else:
        advice = nearest.advice if same == set(digests) else "Compare them with the release they were made from."
        yield Finding("known-release", "notice", title, advice)


def _digest(labels: Labels, rows: Rows) -> str:
    """Digest a category's table by content, independent of encoding, line ends, row and column order."""
    ordered = sorted(rows.tolist(), key=labels.tiles.__getitem__)
    digest = hashlib.sha256("\n".join([*labels.names, *(labels.tiles[i] for i in ordered)]).encode())
    digest.update(np.packbits(labels.targets[ordered], axis=1).tobytes())
    return digest.hexdigest()[:16]


def render(report: Audit) -> RenderableType:
    """The audit as text for the terminal."""
    labels = report.labels
    counts = labels.targets.sum(1, dtype=np.int64)
    flagged = len(report.flagged)
    ranked = sorted((count, name) for name, count in _label_counts(labels).items())
    listed = [f"{name} {count:,}" for count, name in ranked]
    rarest, commonest = ", ".join(listed[:EXTREMES]), ", ".join(listed[: -EXTREMES - 1 : -1])
    parts: list[RenderableType] = [
        Text.assemble(
            (f"{len(labels.tiles):,} tiles", "bold"),
            f", {counted(len(labels.columns), 'category', 'categories')}, {counted(len(labels.names), 'label')}; ",
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
