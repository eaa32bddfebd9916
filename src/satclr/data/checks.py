"""The checks of an audit, each a function from `Labels` to findings.

They work on any data set, with what is known of it where it is a published one. Each threshold is listed below with its
reason.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from satclr.data.labels import DOCUMENTS, Labels, canonical, nfc, sheets
from satclr.data.tiles import SUFFIXES
from satclr.files import counted

Rows = npt.NDArray[np.intp]
Documented = Mapping[str, AbstractSet[str]]  # the labels that go with a category

EXAMPLES: Final = 5
# No row of MLRSNet's first release (109,161 rows, 60 columns) has more than 3 adjacent ones, and one of UC Merced's
# 2,100 has 4; a filled range has up to dozens.
RUN_MIN: Final = 4
# Common labels may well be adjacent. A run counts when fewer than this many of its kind are expected in the whole data
# set, if labels were independent with the observed prevalences.
RUN_EXPECTED_MAX: Final = 1.0
FENCE_IQR: Final = 3.0  # Tukey's outer fence: three interquartile ranges above the upper quartile
# A label on fewer of its own category's tiles than this is lost; on more than RARELY_MISSING of them, the tiles
# without it are slips. In between the tables cannot tell: a tile of an airport may show no airport.
LOST_MAX: Final = 0.01
RARELY_MISSING: Final = 0.99
RARE_MIN: Final = 10  # fewer tiles than this cannot be split three ways and scored
MISFIT_MAX: Final = 1 / 3  # a document that disagrees with more of the tiles is about other labels
WORD_MIN: Final = 4  # letters from which on a name contained in another one means something
DROP: Final = "Restore these rows from an earlier release, or drop them."


@dataclass(frozen=True)
class Finding:
    """One kind of fault. rows: the affected tiles; flagged: whether `on_problem: drop` removes them."""

    kind: str
    level: str  # error, suspect or notice
    title: str
    advice: str
    rows: tuple[int, ...] = ()
    flagged: bool = False
    details: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON types, with the number of tiles instead of the rows."""
        return {"tiles" if k == "rows" else k: len(v) if k == "rows" else v for k, v in vars(self).items()}


def lost(labels: Labels, namesakes: Mapping[str, str]) -> Iterator[Finding]:
    """Find categories whose tiles lack the label that the category is named after; `namesakes` are known ones."""
    gone, likely = dict[str, Rows](), dict[str, Rows]()
    slips, partly = dict[str, Rows](), dict[str, Rows]()
    for category, rows, _ in tables(labels):
        known = namesakes.get(category)
        name, certain = (known, True) if known else namesake(category, labels.names)
        if name is None:
            continue
        missing = rows[labels.targets[rows, labels.names.index(name)] == 0]
        share = 1 - len(missing) / len(rows)
        line = f"{category}: {len(missing):,} of {len(rows):,} tiles lack {name!r}"
        if share <= LOST_MAX:
            (gone if certain else likely)[line] = missing
        elif certain and len(missing):
            (slips if share >= RARELY_MISSING else partly)[line] = missing
    title = f"The label their name stands for is lost: {counted(len(gone), 'category', 'categories')}"
    advice = "Their rows are wrong: restore the column from an earlier release, or drop them."
    yield from _finding(labels, "lost-label", "error", gone, title, advice, count_tiles=False)
    title = f"The label their name may stand for is absent: {counted(len(likely), 'category', 'categories')}"
    advice = "Look at a few tiles; where the label is visible, restore the column."
    yield from _finding(labels, "lost-label", "suspect", likely, title, advice, flagged=False, count_tiles=False)
    title = f"Without their category's own label, which over {RARELY_MISSING:.0%} of its tiles have"
    advice = "Look at them; add the label if visible."
    yield from _finding(labels, "missing-namesake", "suspect", slips, title, advice)
    title = "Without their category's own label"
    advice = "Look at a few: either the label is not visible there, or it was lost."
    yield from _finding(labels, "missing-namesake", "notice", partly, title, advice, flagged=False)


def over_maximum(labels: Labels, maximum: int | None) -> Iterator[Finding]:
    """Find rows with more labels than documented, or, undocumented, far more than the others have."""
    counts = labels.targets.sum(1, dtype=np.int64)
    if maximum is None:
        lower, upper = np.percentile(counts, (25, 75))
        rows = np.flatnonzero(counts > float(upper + FENCE_IQR * max(upper - lower, 1.0)))
        title = f"Far more labels than others (up to {counts.max()}; half have {lower:g} to {upper:g})"
        advice = "Look at them; correct or drop the rows."
        yield from _finding(labels, "too-many-labels", "suspect", [rows], title, advice)
    else:
        title = f"More labels than the documented {maximum} (up to {counts.max()})"
        rows = np.flatnonzero(counts > maximum)
        yield from _finding(labels, "too-many-labels", "error", [rows], title, DROP)


def runs(labels: Labels) -> Iterator[Finding]:
    """Find long runs of ones along the table's column order, the trace of a filled range of cells."""
    length, last = longest_runs(labels)
    prevalence = labels.targets.mean(0)
    marked: dict[tuple[str, str, str], list[int]] = {}
    for category, rows, columns in tables(labels):
        logs = np.concatenate(([0.0], np.cumsum(np.log(np.maximum(prevalence[columns], 1e-12)))))
        for row in rows[length[rows] >= RUN_MIN]:
            end = last[row] + 1
            start = end - length[row]
            if len(labels.tiles) * np.exp(logs[end] - logs[start]) < RUN_EXPECTED_MAX:
                key = (category, labels.names[columns[start]], labels.names[columns[last[row]]])
                marked.setdefault(key, []).append(int(row))
    filled: dict[str, Rows] = {}
    for (category, first, final), found in sorted(marked.items(), key=lambda item: (-len(item[1]), item[0])):
        labels_ = f"{length[found[0]]} labels from {first!r} to {final!r}"
        filled[f"{category}: {labels_} on {counted(len(found), 'tile')}"] = np.array(found, dtype=np.intp)
    title = "A range of neighbouring columns filled with ones"
    yield from _finding(labels, "run-of-ones", "error", filled, title, DROP)


def undocumented(labels: Labels, source: str, allowed: Documented, beside: Documented) -> Iterator[Finding]:
    """Find labels that the document `source`, which lists `allowed`, lacks for a category; `beside`: its omissions."""
    strange, usual = dict[str, Rows](), dict[str, Rows]()
    for category, rows, _ in tables(labels):
        for k, name in enumerate(labels.names):
            found = rows[labels.targets[rows, k] == 1]
            if found.size and name not in allowed.get(category, labels.names):
                which = usual if name in beside.get(category, ()) else strange
                which[f"{category}: {name!r} on {counted(len(found), 'tile')}"] = found
    strange, usual = (dict(sorted(d.items(), key=lambda item: -len(item[1]))) for d in (strange, usual))
    misfits = len(_union(strange.values()))
    if misfits > MISFIT_MAX * len(labels.tiles):
        title = f"{source} does not fit these labels: {counted(misfits, 'tile')} have others than it lists"
        yield Finding("undocumented-label", "notice", title, "Check whether it belongs to this data set.")
        strange = {}
    kind, title = "undocumented-label", f"Labels that {source} does not list for their category"
    yield from _finding(labels, kind, "suspect", strange, title, "Correct the rows, or drop them.")
    title = f"Labels that {source} omits and the sound release has"
    advice = "Nothing to do: the document is incomplete."
    yield from _finding(labels, kind, "notice", usual, title, advice, flagged=False)


def unlabelled(labels: Labels) -> Iterator[Finding]:
    """Find tiles without any label."""
    rows = np.flatnonzero(labels.targets.sum(1, dtype=np.int64) == 0)
    yield from _finding(labels, "no-label", "suspect", [rows], "No label at all", "Label them or drop them.")


def unusable(labels: Labels) -> Iterator[Finding]:
    """Find labels that cannot be learnt or scored: never set, always set, rare, or a copy of another."""
    counts = labels.targets.sum(0, dtype=np.int64)
    for kind, which, title in (
        ("unused-label", counts == 0, "On no tile"),
        ("constant-label", counts == len(labels.tiles), "On every tile"),
        ("rare-label", (counts > 0) & (counts < RARE_MIN), f"On fewer than {RARE_MIN} tiles"),
    ):
        if names := tuple(labels.names[k] for k in np.flatnonzero(which)):
            advice = "No meaningful AP: leave the label out or find tiles."
            yield Finding(kind, "notice", f"{title}: {counted(len(names), 'label')}", advice, details=names)
    same: dict[bytes, list[str]] = {}
    for k in np.flatnonzero((counts > 0) & (counts < len(labels.tiles))):
        same.setdefault(labels.targets[:, k].tobytes(), []).append(labels.names[k])
    if sets := tuple(" = ".join(names) for names in same.values() if len(names) > 1):
        title = f"Labels that always coincide: {counted(len(sets), 'set')}"
        advice = "They count twice in every mean: keep one, or check how the table was made."
        yield Finding("identical-labels", "notice", title, advice, details=sets)


def repairs(labels: Labels) -> Iterator[Finding]:
    """Report headers that were corrected while reading."""
    if labels.repairs:
        title = f"Read otherwise than written: {counted(len(labels.repairs), 'header')}"
        yield Finding("repaired-header", "notice", title, "Nothing to do.", details=labels.repairs)


def images(labels: Labels, folder: Path) -> Iterator[Finding]:
    """Compare the rows with the images in `<folder>/<category>/`."""
    found = (p for p in folder.glob("*/*") if p.suffix.lower() in SUFFIXES and not p.name.startswith("."))
    files = {(nfc(path.parent.name), nfc(path.name)) for path in found}
    expected = dict.fromkeys(zip(labels.categories, labels.tiles, strict=True))
    absent = np.array([row for row, tile in enumerate(expected) if tile not in files], dtype=np.intp)
    title = f"No image in {folder}: {counted(len(absent), 'row')}"
    advice = "Fetch the images, or delete the rows."
    yield from _finding(labels, "row-without-image", "error", [absent], title, advice, count_tiles=False)
    if extra := sorted(files - expected.keys()):
        title = f"No row for {counted(len(extra), 'image')} in {folder}"
        examples = tuple("/".join(file) for file in extra[:EXAMPLES])
        yield Finding("image-without-row", "error", title, "Label them, or move them away.", examples=examples)


def longest_runs(labels: Labels) -> tuple[Rows, Rows]:
    """Each row's longest run of ones along its own table's columns: (N,) length, (N,) last position."""
    length = np.zeros(len(labels.tiles), dtype=np.intp)
    last = np.zeros_like(length)
    for _, rows, columns in tables(labels):
        current = np.zeros(len(rows), dtype=np.intp)
        for position, column in enumerate(columns):
            current = (current + 1) * labels.targets[rows, column]
            longer = current > length[rows]
            length[rows[longer]] = current[longer]
            last[rows[longer]] = position
    return length, last


def documented(folder: Path, labels: Labels) -> tuple[str, Documented] | None:
    """The data set's own table of the labels that go with each category, and its name; None without one.

    It is in `folder` or the one above. A sheet's categories are in the column that names most of them, their labels to
    the right, in cells or separated by commas. Case, blanks and underscores of a category do not matter, and a name may
    be the beginning of the category that no other name fits.
    """
    keys = {_squash(category): category for category in labels.columns}
    for path in (where / name for where in (folder, folder.parent) for name in DOCUMENTS if (where / name).is_file()):
        found: dict[str, set[str]] = {}
        for sheet in filter(None, sheets(path)):
            columns = [len(keys.keys() & set(map(_squash, c))) for c in zip_longest(*sheet, fillvalue="")]
            at = columns.index(max(columns))
            for row in sheet:
                names = {canonical(name) for cell in row[at + 1 :] for name in re.split(r"[,;、，]", cell)}
                if names := names & set(labels.names):
                    found.setdefault(_squash(row[at]), set()).update(names)
        matched = {keys[key]: names for key, names in found.items() if key in keys}
        for key in sorted(found.keys() - keys.keys() - {""}):
            begun = [c for k, c in keys.items() if k.startswith(key) and c not in matched]
            matched |= {category: found[key] for category in begun if len(begun) == 1}
        if matched:
            return path.name, matched
    return None


def _squash(name: str) -> str:
    """A name without case, blanks, underscores and punctuation."""
    return re.sub(r"[\W_]+", "", canonical(name.replace("_", " ")).casefold())


def namesake(category: str, names: Iterable[str]) -> tuple[str | None, bool]:
    """The label that a category is named after, or None, and whether that is certain.

    Certain when the names are equal but for case, blanks and a plural s; likely when it is the one label whose words
    are among the category's (storage_tank, tanks) or, in a category written as one word, at an end.
    """
    own = _singular(category)
    likely = []
    for key, name in {_singular(name): name for name in names}.items():
        joined = key.replace(" ", "")
        if joined == own.replace(" ", ""):
            return name, True
        at_an_end = " " not in own and (own.startswith(joined) or own.endswith(joined))
        if len(key) >= WORD_MIN and (at_an_end or f" {key} " in f" {own} "):
            likely.append(name)
    return (likely[0] if len(likely) == 1 else None), False


def _singular(name: str) -> str:
    return " ".join(word.removesuffix("s") for word in re.findall(r"[^\W_]+", canonical(name.casefold())))


def tables(labels: Labels) -> Iterator[tuple[str, Rows, list[int]]]:
    """Yield each category, its rows, and its labels' indices in its table's column order."""
    categories = np.asarray(labels.categories)
    for category, columns in labels.columns.items():
        yield category, np.flatnonzero(categories == category), [labels.names.index(name) for name in columns]


def _finding(
    labels: Labels, kind: str, level: str, found: dict[str, Rows] | list[Rows], title: str, advice: str, *,
    flagged: bool = True, count_tiles: bool = True,
) -> Iterator[Finding]:  # fmt: skip
    """The finding about some rows, if any; its details are the keys of `found`, else each category's number of tiles.

    count_tiles: append the number of tiles to the title.
    """
    indices = tuple(_union(found.values() if isinstance(found, dict) else found).tolist())
    if not indices:
        return
    sizes = Counter(labels.categories)
    counts = Counter(labels.categories[row] for row in indices).most_common()
    details = tuple(f"{category}: {n:,} of {sizes[category]:,} tiles" for category, n in counts)
    details = tuple(found) if isinstance(found, dict) else details
    title += f": {counted(len(indices), 'tile')}" if count_tiles else ""
    examples = tuple(labels.tiles[row] for row in indices[:: max(1, len(indices) // EXAMPLES)][:EXAMPLES])
    yield Finding(kind, level, title, advice, indices, flagged, details, examples)


def _union(rows: Iterable[Rows]) -> Rows:
    return np.unique(np.concatenate([np.empty(0, dtype=np.intp), *rows]))
