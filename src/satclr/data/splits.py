"""Which tiles train, validate and test.

In: tile names, and what must be kept together or balanced. Out: one of train, val, test a tile, which
`prepare` writes into index.csv; no later stage splits again. Every draw is a function of the seed and the
sorted names, so the order of files and rows does not matter.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Collection, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from rich.table import Table

from satclr import randomness

SPLITS: Final = ("train", "val", "test")
SUMMARY_LABELS: Final = 8
SUMMARY_WIDTH: Final = 30  # characters

Targets = npt.NDArray[np.uint8]
Fractions = tuple[float, float, float]


class SplitError(ValueError):
    """A split that cannot be made or trusted: bad input, exit code 2."""


def split(
    names: Sequence[str],
    *,
    fractions: Fractions,
    seed: int,
    groups: Sequence[Hashable] | None = None,
    stratify: Targets | None = None,
) -> list[str]:
    """Draw train, val or test for each of N tiles.

    fractions: of train, val and test, adding up to 1. groups: N keys; tiles of one key stay together.
    stratify: targets (N,K) whose prevalence every split should share (see `stratified`). A draw of single
    tiles has the sizes that the fractions of N round to; with groups a split may be off by one group.

    Raises SplitError when the fractions are no fractions, a name occurs twice, or a split would be empty.
    """
    if min(fractions) <= 0 or abs(sum(fractions) - 1) > 1e-9:
        raise SplitError(f"split.fractions {fractions}: three positive numbers that add up to 1 are needed")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise SplitError(f"{len(twice)} tiles occur twice, {twice[0]!r} first; each needs a name of its own")
    units = _units(names, groups)
    order = [units[place] for place in randomness.permutation(len(units), seed, "split").tolist()]
    drawn = _cut(order, fractions) if stratify is None else stratified(order, stratify, fractions)
    result = [""] * len(names)
    for unit, which in zip(order, drawn, strict=True):
        for row in unit:
            result[row] = SPLITS[which]
    _refuse_empty(result, f"{len(units):,} units at fractions {fractions}")
    return result


def stratified(units: Sequence[Sequence[int]], targets: Targets, fractions: Fractions) -> list[int]:
    """Deal units of rows out so that each split has its share of every label: iterative stratification.

    The label with the fewest units left is dealt out first, each unit to the split that lacks most of that
    label, then to the one that lacks most tiles; remaining ties go by the order of the units. Sechidis,
    Tsoumakas, Vlahavas 2011, algorithm 1, doi:10.1007/978-3-642-23808-6_10.

    Returns the index of each unit's split. targets: (N,K); a unit counts as many times as it has rows.
    """
    counts = np.array([targets[list(unit)].sum(0, dtype=np.int64) for unit in units])  # (U,K)
    sizes = np.array([len(unit) for unit in units])
    shares = np.array(fractions)
    lacks = shares[:, None] * counts.sum(0)  # (3,K): what each split still wants of each label
    lacks_tiles = shares * sizes.sum()
    dealt = np.full(len(units), -1)
    left = (counts > 0).sum(0)
    while (left > 0).any():
        label = int(np.argmin(np.where(left > 0, left, left.max() + 1)))
        for unit in np.flatnonzero((dealt < 0) & (counts[:, label] > 0)):
            dealt[unit] = max(range(len(shares)), key=lambda s: (lacks[s, label], lacks_tiles[s]))
            lacks[dealt[unit]] -= counts[unit]
            lacks_tiles[dealt[unit]] -= sizes[unit]
            left -= counts[unit] > 0
    for unit in np.flatnonzero(dealt < 0):  # without labels
        dealt[unit] = np.argmax(lacks_tiles)
        lacks_tiles[dealt[unit]] -= sizes[unit]
    return [int(which) for which in dealt]


def from_file(path: Path, names: Sequence[str], *, left_out: Collection[str] = ()) -> list[str]:
    """Read the split of each tile from a CSV with the columns `image` and `split`.

    left_out: tiles that the file may name though they are not among `names`.

    Raises SplitError when the file is unreadable, lacks a tile, names another one, names one twice, or names
    a split that is not train, val or test.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise SplitError(f"split.file: {path} cannot be read ({error})") from None
    reader = csv.DictReader(text.splitlines(), skipinitialspace=True)
    columns = {name.strip().casefold(): name for name in reader.fieldnames or ()}
    if not {"image", "split"} <= set(columns):
        raise SplitError(f"split.file: {path} has the columns {list(columns)}; image and split are needed")
    given: dict[str, str] = {}
    for row in reader:
        image, which = ((row[columns[key]] or "").strip() for key in ("image", "split"))
        if which not in SPLITS:
            raise SplitError(
                f"{path}, line {reader.line_num}: split {which!r} of {image!r} is none of {SPLITS}"
            )
        if image in given:
            raise SplitError(f"{path}, line {reader.line_num}: {image!r} has a split already; keep one row")
        given[image] = which
    _compare(path, given, names, left_out)
    result = [given[name] for name in names]
    _refuse_empty(result, str(path))
    return result


def spanning(split: Sequence[str], groups: Sequence[Hashable]) -> list[list[int]]:
    """The rows of each group that lies in more than one split: leakage."""
    members: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    return [rows for rows in members.values() if len({split[row] for row in rows}) > 1]


def prevalence(split: Sequence[str], targets: Targets) -> dict[str, npt.NDArray[np.float64]]:
    """The share of each split's tiles that carry each label: split → (K,)."""
    which = np.asarray(split)
    return {
        name: targets[which == name].mean(0, dtype=np.float64) for name in SPLITS if (which == name).any()
    }


def summary(
    split: Sequence[str], targets: Targets, labels: Sequence[str], *, most: int = SUMMARY_LABELS
) -> Table:
    """Sizes of the splits and the label prevalences in them, the `most` uneven labels, as a table to print.

    The last column is the greatest difference to the whole data set, in points.
    """
    sizes = Counter(split)
    shares = prevalence(split, targets)
    whole = targets.mean(0, dtype=np.float64)
    off = np.max([abs(share - whole) for share in shares.values()], axis=0)
    order = np.argsort(-off, kind="stable")
    table = Table(title="Label prevalence by split, the least even first", title_justify="left", box=None)
    table.add_column("label", no_wrap=True, max_width=SUMMARY_WIDTH)
    for heading in (*(f"{name} ({sizes[name]:,})" for name in shares), f"all ({len(split):,})", "off by"):
        table.add_column(heading, justify="right")
    table.add_column()
    for k in order[:most]:
        cells = [f"{share[k]:.2%}" for share in (*shares.values(), whole)]
        missing = [name for name, share in shares.items() if share[k] == 0]
        note = f"none in {', '.join(missing)}" if missing else ""
        table.add_row(labels[k], *cells, f"{100 * off[k]:.2f}", note)
    if len(order) > most:
        table.caption = f"{len(order) - most} more, off by at most {100 * off[order[most]]:.2f}"
        table.caption_justify = "left"
    return table


def _units(names: Sequence[str], groups: Sequence[Hashable] | None) -> list[list[int]]:
    """Rows that stay together, ordered by the first of their names."""
    members: dict[Hashable, list[int]] = {}
    for row in sorted(range(len(names)), key=names.__getitem__):
        members.setdefault(row if groups is None else groups[row], []).append(row)
    return list(members.values())


def _cut(units: Sequence[Sequence[int]], fractions: Fractions) -> list[int]:
    """Cut the units in order where the rounded sizes are reached."""
    sizes = np.array([len(unit) for unit in units], dtype=np.int64)
    ends = np.round(np.cumsum(fractions) * sizes.sum())
    return [int(which) for which in np.searchsorted(ends[:-1], np.cumsum(sizes) - sizes, side="right")]


def _compare(path: Path, given: Mapping[str, str], names: Sequence[str], left_out: Collection[str]) -> None:
    absent = [name for name in names if name not in given]
    unknown = sorted(set(given) - set(names) - set(left_out))
    for found, says in (
        (absent, "names no split for"),
        (unknown, "names tiles that are not in the data set:"),
    ):
        if found:
            more = f" and {len(found) - 3:,} more" if len(found) > 3 else ""
            raise SplitError(f"split.file: {path} {says} {', '.join(found[:3])}{more}")


def _refuse_empty(split: Sequence[str], source: str) -> None:
    empty = [name for name in SPLITS if name not in split]
    if empty:
        raise SplitError(f"{source}: the {empty[0]} split is empty; it needs at least one tile")
