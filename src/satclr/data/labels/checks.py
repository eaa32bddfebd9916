"""The checks an audit makes, each a function from `Labels` to findings.

Only `releases` needs to know the data set. Each threshold stands below with the reason for its value.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from satclr.data.labels.known import Known, Release, digests, documented
from satclr.data.labels.tables import Labels, canonical

Rows = npt.NDArray[np.intp]
Level = Literal["error", "suspect", "notice"]

EXAMPLES: Final = 5
IMAGE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})

# No row of MLRSNet's first release (109,161 rows, 60 columns) has more than 3 ones side by side, and one of
# UC Merced's 2,100 has 4; a filled range has up to dozens.
RUN_MIN: Final = 4
# Common labels may well stand side by side. A run counts when fewer than this many of its kind are expected
# in the whole data set, were labels independent with the prevalences found.
RUN_EXPECTED_MAX: Final = 1.0
# Tukey's outer fence: three interquartile ranges above the upper quartile.
FENCE_IQR: Final = 3.0
# A label on fewer of its own category's tiles than this is lost; on more than RARELY_MISSING of them, the
# tiles without it are slips. In between the tables cannot tell: a tile of an airport may show no airport.
LOST_MAX: Final = 0.01
RARELY_MISSING: Final = 0.99
# Fewer tiles than this cannot be split three ways and scored.
RARE_MIN: Final = 10
# A document that more of the tiles than this disagree with is about other labels, or is not understood.
MISFIT_MAX: Final = 1 / 3
# A name contained in another says something from this length on.
WORD_MIN: Final = 4


@dataclass(frozen=True)
class Finding:
    """One kind of fault. rows: the tiles it concerns; flagged: whether `on_problem: drop` removes them."""

    kind: str
    level: Level
    title: str
    advice: str
    rows: tuple[int, ...] = ()
    flagged: bool = False
    details: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()


def releases(labels: Labels, known: Known | None) -> Iterator[Finding]:
    """Say which published release the tables are, and what is known to be wrong with it."""
    if known is None or not known.releases:
        return
    found = digests(labels)

    def matches(release: Release) -> set[str]:
        return {category for category, digest in found.items() if release.tables.get(category) == digest}

    nearest = max(known.releases, key=lambda release: len(matches(release)))
    others = len(found) - len(matches(nearest))
    title = f"{known.name}, release of {nearest.name}"
    if others == len(found):
        title = f"{known.name}'s labels, but no table equals a published one"
    elif others:
        title += f", but for {others} of {len(found)} tables"
    # A few damaged tables among sound ones are damage all the same.
    damaged = {c: r for r in known.releases for c in matches(r) & set(r.corrupt_rows)}
    if damaged:
        wrong = {category: release.corrupt_rows[category] for category, release in damaged.items()}
        ranked = sorted(wrong, key=lambda category: (-wrong[category], category))
        yield Finding(
            "known-release",
            "error",
            f"{title}: {sum(wrong.values()):,} rows are corrupt",
            damaged[ranked[0]].advice,
            details=tuple([f"{category}: {wrong[category]:,} corrupt rows" for category in ranked]),
        )
    else:
        advice = "Compare them with the release they were made from." if others else nearest.advice
        yield Finding("known-release", "notice", title, advice)


def lost(labels: Labels, known: Known | None) -> Iterator[Finding]:
    """Find categories whose tiles lack the label that the category's name stands for."""
    gone: list[Rows] = []
    slips: list[Rows] = []
    partly: list[Rows] = []
    told: list[str] = []
    likely: list[Rows] = []
    likely_told: list[str] = []
    for category, rows, _ in _tables(labels):
        name, certain = namesake(category, labels.names, known)
        if name is None:
            continue
        missing = rows[labels.targets[rows, labels.names.index(name)] == 0]
        share = 1 - len(missing) / len(rows)
        if share <= LOST_MAX:
            line = f"{category}: {len(missing):,} of {len(rows):,} tiles lack {name!r}"
            (told if certain else likely_told).append(line)
            (gone if certain else likely).append(missing)
        elif certain and len(missing):
            (slips if share >= RARELY_MISSING else partly).append(missing)
    if gone:
        title = f"The label their name stands for is lost: {_count(len(gone), 'category', 'categories')}"
        advice = "Their rows are wrong: restore the column from an earlier release, or drop them."
        yield _finding(labels, "lost-label", "error", gone, title=title, advice=advice, details=told)
    if likely:
        title = (
            f"The label their name may stand for is absent: {_count(len(likely), 'category', 'categories')}"
        )
        advice = "Look at a few tiles; where the label is visible, restore the column."
        yield _finding(
            labels,
            "lost-label",
            "suspect",
            likely,
            title=title,
            advice=advice,
            details=likely_told,
            flagged=False,
        )
    if slips:
        title = (
            f"Their category's own label is missing, which {RARELY_MISSING:.0%} there have: {_tiles(slips)}"
        )
        advice = "Look at them; add the label if visible."
        yield _finding(labels, "missing-namesake", "suspect", slips, title=title, advice=advice)
    if partly:
        title = f"Their category's own label is missing, as on many tiles there: {_tiles(partly)}"
        advice = "Look at a few: either the label is not visible there, or it was lost."
        yield _finding(
            labels, "missing-namesake", "notice", partly, title=title, advice=advice, flagged=False
        )


def over_maximum(labels: Labels, maximum: int | None) -> Iterator[Finding]:
    """Find rows with more labels than documented, or, undocumented, far more than the others have."""
    counts = labels.targets.sum(1, dtype=np.int64)
    lower, upper = np.percentile(counts, (25, 75))
    fence = float(upper + FENCE_IQR * max(upper - lower, 1.0)) if maximum is None else maximum
    rows = [np.flatnonzero(counts > fence)]
    if not rows[0].size:
        return
    if maximum is None:
        title = f"Far more labels than others (up to {counts.max()}; half have {lower:g} to {upper:g})"
        advice = "Look at them; correct or drop the rows."
    else:
        title = f"More labels than the documented {maximum} (up to {counts.max()})"
        advice = "Restore these rows from an earlier release, or drop them."
    level: Level = "suspect" if maximum is None else "error"
    yield _finding(labels, "too-many-labels", level, rows, title=f"{title}: {_tiles(rows)}", advice=advice)


def runs(labels: Labels) -> Iterator[Finding]:
    """Find long runs of ones along the table's column order, the trace of a filled range of cells."""
    length, last = longest_runs(labels)
    prevalence = labels.targets.mean(0)
    marked: dict[tuple[str, str, str], list[int]] = {}
    for category, rows, columns in _tables(labels):
        logs = np.concatenate(([0.0], np.cumsum(np.log(np.maximum(prevalence[columns], 1e-12)))))
        for row in rows[length[rows] >= RUN_MIN]:
            end = last[row] + 1
            start = end - length[row]
            if len(labels.tiles) * np.exp(logs[end] - logs[start]) < RUN_EXPECTED_MAX:
                key = (category, labels.names[columns[start]], labels.names[columns[last[row]]])
                marked.setdefault(key, []).append(int(row))
    if not marked:
        return
    ranked = sorted(marked.items(), key=lambda item: (-len(item[1]), item[0]))
    details = [
        f"{category}: {length[found[0]]} labels from {first!r} to {final!r} on {_count(len(found), 'tile')}"
        for (category, first, final), found in ranked
    ]
    filled = [np.array(found, dtype=np.intp) for found in marked.values()]
    title = f"A range of neighbouring columns filled with ones: {_tiles(filled)}"
    advice = "Restore these rows from an earlier release, or drop them."
    yield _finding(labels, "run-of-ones", "error", filled, title=title, advice=advice, details=details)


def undocumented(labels: Labels, known: Known | None, folder: Path) -> Iterator[Finding]:
    """Find labels outside those that the data set documents for the tile's category."""
    own = documented(folder, labels)
    allowed = own[1] if own else known.documented if known else {}
    source = own[0] if own else f"{known.name}'s documentation" if known else ""
    beside = known.undocumented if known else {}
    strange: list[tuple[str, Rows]] = []
    usual: list[tuple[str, Rows]] = []
    for category, rows, _ in _tables(labels):
        for k, name in enumerate(labels.names):
            if category in allowed and name not in allowed[category]:
                found = rows[labels.targets[rows, k] == 1]
                pairs = usual if name in beside.get(category, ()) else strange
                if found.size:
                    pairs.append((f"{category}: {name!r} on {_count(len(found), 'tile')}", found))
    misfits = len(np.unique(np.concatenate([found for _, found in strange]))) if strange else 0
    if misfits > MISFIT_MAX * len(labels.tiles):
        title = f"{source} does not fit these labels: {_count(misfits, 'tile')} have others than it lists"
        yield Finding("undocumented-label", "notice", title, "Look at whether it belongs to this data set.")
    elif strange:
        yield _beyond(labels, strange, f"Labels that {source} does not list for their category", known=False)
    if usual:
        yield _beyond(labels, usual, f"Labels that {source} omits and the sound release has", known=True)


def _beyond(labels: Labels, pairs: list[tuple[str, Rows]], title: str, *, known: bool) -> Finding:
    rows = [found for _, found in pairs]
    return _finding(
        labels,
        "undocumented-label",
        "notice" if known else "suspect",
        rows,
        title=f"{title}: {_tiles(rows)}",
        advice="Nothing to do: the document is incomplete." if known else "Correct the rows, or drop them.",
        details=[line for line, _ in sorted(pairs, key=lambda pair: -len(pair[1]))],
        flagged=not known,
    )


def unlabelled(labels: Labels) -> Iterator[Finding]:
    """Find tiles without any label."""
    rows = [np.flatnonzero(labels.targets.sum(1, dtype=np.int64) == 0)]
    if rows[0].size:
        title = f"No label at all: {_tiles(rows)}"
        yield _finding(labels, "no-label", "suspect", rows, title=title, advice="Label them or drop them.")


def unusable(labels: Labels) -> Iterator[Finding]:
    """Find labels that cannot be learnt or scored: never set, always set, rare, or a copy of another."""
    counts = labels.targets.sum(0, dtype=np.int64)
    for kind, which, title in (
        ("unused-label", counts == 0, "On no tile"),
        ("constant-label", counts == len(labels.tiles), "On every tile"),
        ("rare-label", (counts > 0) & (counts < RARE_MIN), f"On fewer than {RARE_MIN} tiles"),
    ):
        names = [labels.names[k] for k in np.flatnonzero(which)]
        if names:
            advice = "No meaningful AP: leave the label out or find tiles."
            yield Finding(
                kind, "notice", f"{title}: {_count(len(names), 'label')}", advice, details=tuple(names)
            )
    same: dict[bytes, list[str]] = {}
    for k in np.flatnonzero((counts > 0) & (counts < len(labels.tiles))):
        same.setdefault(labels.targets[:, k].tobytes(), []).append(labels.names[k])
    sets = [" = ".join(names) for names in same.values() if len(names) > 1]
    if sets:
        title = f"Labels that always coincide: {_count(len(sets), 'set')}"
        advice = "They count twice in every mean: keep one, or check how the table was made."
        yield Finding("identical-labels", "notice", title, advice, details=tuple(sets))


def repairs(labels: Labels) -> Iterator[Finding]:
    """Report what was read otherwise than written."""
    if labels.repairs:
        title = f"Read otherwise than written: {_count(len(labels.repairs), 'header')}"
        yield Finding("repaired-header", "notice", title, "Nothing to do.", details=tuple(labels.repairs))


def images(labels: Labels, folder: Path) -> Iterator[Finding]:
    """Compare the rows with the images in `<folder>/<category>/`."""
    files = {
        (directory.name, file.name)
        for directory in sorted(folder.iterdir())
        if directory.is_dir()
        for file in directory.iterdir()
        if file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")
    }
    expected = dict.fromkeys(zip(labels.categories, labels.tiles, strict=True))
    absent = [np.array([row for row, tile in enumerate(expected) if tile not in files], dtype=np.intp)]
    if absent[0].size:
        title = f"No image in {folder}: {_count(len(absent[0]), 'row')}"
        advice = "Fetch the images, or delete the rows."
        yield _finding(labels, "row-without-image", "error", absent, title=title, advice=advice)
    extra = sorted(file for file in files if file not in expected)
    if extra:
        title = f"No row for {_count(len(extra), 'image')} in {folder}"
        examples = tuple("/".join(file) for file in extra[:EXAMPLES])
        yield Finding(
            "image-without-row", "error", title, "Label them, or move them away.", examples=examples
        )


def namesake(category: str, names: Iterable[str], known: Known | None) -> tuple[str | None, bool]:
    """The label that a category's name stands for, and whether that is certain.

    Certain when the data set says so or the names are equal but for case, blanks and a plural s; likely when
    it is the one label whose words are among the category's (storage_tank, tanks).
    """
    if known and category in known.namesakes:
        return known.namesakes[category], True
    own = _singular(category)
    keys = {_singular(name): name for name in names}
    equal = [name for key, name in keys.items() if key.replace(" ", "") == own.replace(" ", "")]
    if equal:
        return equal[0], True
    inside = [name for key, name in keys.items() if len(key) >= WORD_MIN and _within(key, own)]
    return (inside[0], False) if len(inside) == 1 else (None, False)


def _singular(name: str) -> str:
    return " ".join(word.removesuffix("s") for word in re.findall(r"[^\W_]+", canonical(name.casefold())))


def _within(label: str, category: str) -> bool:
    """Whether a label's words are among a category's, or, in a category written as one word, at an end."""
    if " " in category:
        return f" {label} " in f" {category} "
    return category.startswith(label.replace(" ", "")) or category.endswith(label.replace(" ", ""))


def longest_runs(labels: Labels) -> tuple[Rows, Rows]:
    """Each row's longest run of ones along its own table's columns: (N,) length, (N,) last position."""
    length = np.zeros(len(labels.tiles), dtype=np.intp)
    last = np.zeros_like(length)
    for _, rows, columns in _tables(labels):
        current = np.zeros(len(rows), dtype=np.intp)
        for position, column in enumerate(columns):
            current = (current + 1) * labels.targets[rows, column]
            longer = current > length[rows]
            length[rows[longer]] = current[longer]
            last[rows[longer]] = position
    return length, last


def _tables(labels: Labels) -> Iterator[tuple[str, Rows, list[int]]]:
    """Yield each category, its rows, and its labels' indices in its table's column order."""
    categories = np.asarray(labels.categories)
    position = {name: k for k, name in enumerate(labels.names)}
    for category, columns in labels.columns.items():
        yield category, np.flatnonzero(categories == category), [position[name] for name in columns]


def _finding(
    labels: Labels,
    kind: str,
    level: Level,
    rows: list[Rows],
    *,
    title: str,
    advice: str,
    flagged: bool = True,
    details: Iterable[str] | None = None,
) -> Finding:
    indices = tuple(np.unique(np.concatenate(rows)).tolist())
    if details is None:
        sizes = Counter(labels.categories)
        counts = Counter(labels.categories[row] for row in indices)
        details = [f"{category}: {n:,} of {sizes[category]:,} tiles" for category, n in counts.most_common()]
    examples = tuple(labels.tiles[row] for row in indices[:: max(1, len(indices) // EXAMPLES)][:EXAMPLES])
    return Finding(kind, level, title, advice, indices, flagged, tuple(details), examples)


def _count(count: int, noun: str, plural: str | None = None) -> str:
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def _tiles(rows: list[Rows]) -> str:
    return _count(len(np.unique(np.concatenate(rows))), "tile")
