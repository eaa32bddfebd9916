"""Which tiles train, validate and test.

In: tile names, and what must be kept together or balanced. Out: train, val or test for each tile, which `prepare`
writes into index.csv; no later stage splits again. Every draw is a function of the seed and the sorted names, so the
order of files and rows does not matter.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from rich.table import Column, Table

from satclr import files, progress, randomness
from satclr.data import labels
from satclr.data.tiles import SPLITS
from satclr.params import Split

GROUPS: Final = "groups.csv"  # image, group: the city, scene or flight line that `split.by: group` keeps together
SUMMARY_LABELS: Final = 8
SUMMARY_WIDTH: Final = 30  # characters

Targets = npt.NDArray[np.uint8]
Rows = npt.NDArray[np.intp]
Fractions = tuple[float, float, float]


class SplitError(ValueError):
    """An impossible or invalid split: bad input, exit code 2."""


def decide(
    data: Path, settings: Split, names: Sequence[str], groups: Sequence[int], targets: Targets,
    left_out: Collection[str], record: dict[str, Any],
) -> list[str]:  # fmt: skip
    """The split that `settings` ask for of the N labelled tiles in the folder `data`, with near-duplicates `groups`.

    Warns of groups that are in more than one split, and adds them to `record`. Raises `SplitError`.
    """
    given = column(data / GROUPS, "group", names, left_out=left_out) if (data / GROUPS).is_file() else None
    together = united(groups, given or groups) if settings.by == "group" else None
    drawn = draw(data, settings, names, targets, left_out, groups=together)
    members = defaultdict[int, list[str]](list)
    for name, group in zip(names, groups, strict=True):
        members[group].append(name)
    several = [group for group in members.values() if len(group) > 1]
    leaks = spanning(drawn, groups)
    record["near_duplicates"] = {"groups": several, "groups_across_splits": leaks}
    if given:
        record["groups_across_splits"] = across = spanning(drawn, given)
        if across:
            progress.say(f"warning: {across:,} of {len(set(given)):,} groups of {GROUPS} are in more than one split")
    if leaks:
        remedy = "data.split.by: group keeps them together"
        if settings.file is not None:
            remedy = f"{settings.file} puts them there; near_duplicates: leave_out measures the effect"
        spread = f"{leaks:,} of {len(several):,} groups of near-duplicates are in more than one split"
        progress.say(f"warning: {spread}; {remedy}")
    return drawn


def draw(
    data: Path, settings: Split, names: Sequence[str], targets: Targets, left_out: Collection[str], *,
    groups: Sequence[Hashable] | None = None,
) -> list[str]:  # fmt: skip
    """Read the split file that `settings` name in the folder `data`, or draw a split that keeps `groups` together."""
    if settings.file is not None:
        return from_file(data / settings.file, names, left_out=left_out)
    stratify = targets if settings.stratify else None
    return split(names, fractions=settings.fractions, seed=settings.seed, groups=groups, stratify=stratify)


def split(
    names: Sequence[str], *, fractions: Fractions, seed: int, groups: Sequence[Hashable] | None = None,
    stratify: Targets | None = None,
) -> list[str]:  # fmt: skip
    """Draw train, val or test for each of N tiles with unique names.

    fractions: of train, val and test, adding up to 1. groups: N keys; tiles with the same key stay together. stratify:
    targets (N,K) whose prevalence every split should share (see `stratified`). The sizes are the rounded fractions of
    N; with groups a split may be off by one group. Raises `SplitError` for an empty split.
    """
    by_name = np.array(sorted(range(len(names)), key=names.__getitem__))
    keys, numbers = names if groups is None else groups, dict[Hashable, int]()
    found = np.fromiter((numbers.setdefault(keys[row], len(numbers)) for row in by_name.tolist()), np.intp)
    order = randomness.permutation(len(numbers), seed, "split").numpy()
    unit = np.argsort(order)[found]  # the place of each row's unit in the order drawn
    sizes = np.bincount(unit)
    if stratify is None:  # cut where the rounded sizes are reached
        ends = np.round(np.cumsum(fractions) * sizes.sum())
        which = np.searchsorted(ends[:-1], np.cumsum(sizes) - sizes, side="right")
    else:
        which = stratified(stratify[by_name[np.argsort(unit, kind="stable")]], sizes, fractions)
    drawn = [SPLITS[i] for i in which[unit][np.argsort(by_name)]]
    _refuse_empty(drawn, f"{len(numbers):,} units at fractions {fractions}")
    return drawn


def stratified(targets: Targets, sizes: Rows, fractions: Fractions) -> Rows:
    """Assign units of tiles so that each split has its share of every label: iterative stratification.

    The label with the fewest units left comes first; each of its units goes to the split that lacks most of that label,
    then to the one that lacks most tiles; remaining ties follow the order of the units. Sechidis, Tsoumakas, Vlahavas
    2011, algorithm 1, doi:10.1007/978-3-642-23808-6_10.

    Returns the index of each unit's split (U,). targets: (N,K), unit by unit; sizes: (U,), the tiles of each.
    """
    counts = np.add.reduceat(targets, np.cumsum(sizes) - sizes, dtype=np.int32)  # (U,K)
    shares = np.array(fractions)
    lacks = shares[:, None] * counts.sum(0)  # (3,K): how much of each label each split still needs
    lacks_tiles = shares * sizes.sum()
    assigned = np.full(len(sizes), -1)
    present = np.ascontiguousarray((counts > 0).T)  # (K,U)
    left = present.sum(1)
    while (left > 0).any():
        label = int(np.argmin(np.where(left > 0, left, left.max() + 1)))
        for unit in np.flatnonzero((assigned < 0) & present[label]):
            assigned[unit] = max(range(len(shares)), key=lambda s: (lacks[s, label], lacks_tiles[s]))
            lacks[assigned[unit]] -= counts[unit]
            lacks_tiles[assigned[unit]] -= sizes[unit]
            left -= counts[unit] > 0
    for unit in np.flatnonzero(assigned < 0):  # without labels
        assigned[unit] = np.argmax(lacks_tiles)
        lacks_tiles[assigned[unit]] -= sizes[unit]
    return assigned


def from_file(path: Path, names: Sequence[str], *, left_out: Collection[str] = ()) -> list[str]:
    """Read the split of each tile from a CSV with the columns `image` and `split`.

    left_out: tiles that the file may name though they are not among `names`. Raises `SplitError` for an unreadable
    file, a missing, unknown or duplicate tile, or an invalid or empty split.
    """
    result = column(path, "split", names, left_out=left_out, allowed=SPLITS)
    _refuse_empty(result, str(path))
    return result


def column(
    path: Path, wanted: str, names: Sequence[str], *, left_out: Collection[str] = (), allowed: Collection[str] = ()
) -> list[str]:
    """Each tile's value in the column `wanted` of a CSV that has a column `image` too. Raises as `from_file`."""
    try:
        (_, header), *body = list(labels.rows(path)) or [(0, [])]
    except OSError as error:
        raise SplitError(f"{path} cannot be read ({error.strerror})") from None
    keys = [cell.strip().casefold() for cell in header]
    if not {"image", wanted} <= set(keys):
        raise SplitError(f"{path} has the columns {keys}; image and {wanted} are needed")
    given: dict[str, str] = {}
    for line, cells in body:
        row = dict(zip(keys, (labels.nfc(cell.strip()) for cell in cells), strict=False))
        image, value = row.get("image", ""), row.get(wanted, "")
        if not value or (allowed and value not in allowed):
            known = f" ({', '.join(allowed)})" if allowed else ""
            raise SplitError(f"{path}, line {line}: {value!r} of {image!r} is no {wanted}{known}")
        if image in given:
            raise SplitError(f"{path}, line {line}: duplicate row for {image!r}; keep one")
        given[image] = value
    if absent := [name for name in names if name not in given]:
        raise SplitError(f"{path} has no {wanted} for {files.some(absent)}")
    if unknown := sorted(set(given) - set(names) - set(left_out)):
        raise SplitError(f"{path} names tiles that the data set lacks: {files.some(unknown)}")
    return [given[name] for name in names]


def united(first: Sequence[Hashable], second: Sequence[Hashable]) -> list[int]:
    """One key per tile: tiles that share a key of either kind, directly or through others, have the same."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = (np.unique([str(key) for key in keys], return_inverse=True)[1] for keys in (first, second))
    b = b + a.max() + 1  # a graph of keys, in which each tile connects two
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(b.max() + 1, b.max() + 1))
    component: list[int] = connected_components(graph, directed=False)[1][a].tolist()
    return component


def spanning(split: Sequence[str], groups: Sequence[Hashable]) -> int:
    """How many groups are in more than one split: leakage."""
    places = Counter(group for group, _ in set(zip(groups, split, strict=True)))
    return sum(count > 1 for count in places.values())


def prevalence(split: Sequence[str], targets: Targets) -> dict[str, npt.NDArray[np.float64]]:
    """The share of each split's tiles that carry each label: split → (K,)."""
    which = np.asarray(split)
    return {s: targets[which == s].mean(0, dtype=np.float64) for s in SPLITS if (which == s).any()}


def summary(split: Sequence[str], targets: Targets, names: Sequence[str], *, unlabelled: int = 0) -> Table:
    """A table to print: the splits' sizes and label prevalences, for the most uneven labels.

    The last column is the greatest difference from the whole data set, in percentage points.
    """
    sizes, shares, whole = Counter(split), prevalence(split, targets), targets.mean(0, dtype=np.float64)
    off = np.max([abs(share - whole) for share in shares.values()], axis=0)
    order = np.argsort(-off, kind="stable")
    besides = f"; {unlabelled:,} unlabelled tiles besides" if unlabelled else ""
    headings = [*(f"{name} ({sizes[name]:,})" for name in shares), f"all ({len(split):,})", "off by"]
    title = f"Label prevalence by split, most uneven first{besides}"
    columns = [Column(heading, justify="right") for heading in headings]
    table = Table(Column("label", no_wrap=True, max_width=SUMMARY_WIDTH), *columns, "", title=title, box=None)
    table.title_justify = table.caption_justify = "left"
    for k in order[:SUMMARY_LABELS]:
        cells = [f"{share[k]:.2%}" for share in (*shares.values(), whole)]
        missing = [name for name, share in shares.items() if share[k] == 0]
        note = f"none in {', '.join(missing)}" if missing else ""
        table.add_row(names[k], *cells, f"{100 * off[k]:.2f}", note)
    if (more := len(order) - SUMMARY_LABELS) > 0:
        table.caption = f"{more} more, off by at most {100 * off[order[SUMMARY_LABELS]]:.2f}"
    return table


def _refuse_empty(split: Sequence[str], source: str) -> None:
    if empty := [name for name in SPLITS if name not in split]:
        raise SplitError(f"{source}: the {empty[0]} split is empty; it needs at least one tile")
