"""What is known about published data sets: their documented labels, their releases, what became of them.

All of it is data: `data/<name>.json`, one file a data set. Nothing here is needed to audit another one.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np

from satclr.data.labels.spreadsheet import sheets
from satclr.data.labels.tables import Labels, canonical, rows

DOCUMENTS = ("category_labels.csv", "Categories_names.xlsx")


@dataclass(frozen=True)
class Release:
    """A published state of the label tables.

    tables: each category's digest. corrupt_rows: each damaged category's number of wrong rows.
    """

    name: str
    advice: str
    tables: Mapping[str, str]
    corrupt_rows: Mapping[str, int]


@dataclass(frozen=True)
class Known:
    """A published data set.

    max_labels: the most labels its authors document for a tile. documented: the labels that go with each
    category. undocumented: those that its sound release has besides. namesakes: the label that a category's
    name stands for, where spelling does not tell.
    """

    name: str
    source: str
    max_labels: int | None
    labels: frozenset[str]
    categories: frozenset[str]
    documented: Mapping[str, frozenset[str]]
    undocumented: Mapping[str, frozenset[str]]
    namesakes: Mapping[str, str]
    releases: tuple[Release, ...]


def recognise(labels: Labels) -> Known | None:
    """The known data set that has exactly these labels and no other category than these."""
    for known in _all():
        if known.labels == set(labels.names) and known.categories >= set(labels.columns):
            return known
    return None


def digests(labels: Labels) -> dict[str, str]:
    """Digest each category's table by what it says: not by encoding, line ends, row or column order."""
    order = np.lexsort((labels.tiles, labels.categories))
    categories = np.asarray(labels.categories)[order]
    starts = np.flatnonzero(np.r_[True, categories[1:] != categories[:-1]])
    result = {}
    for table in np.split(order, starts[1:]):
        digest = hashlib.sha256("\n".join([*labels.names, *(labels.tiles[i] for i in table)]).encode())
        digest.update(np.packbits(labels.targets[table], axis=1).tobytes())
        result[labels.categories[table[0]]] = digest.hexdigest()[:16]
    return result


def documented(folder: Path, labels: Labels) -> tuple[str, dict[str, frozenset[str]]] | None:
    """The data set's own table of the labels that go with each category, and its name; None without one.

    Looked for in `folder` and the one above. Category spellings are matched leniently: case, blanks and
    underscores do not count, and a name may be the beginning of the category that no other name fits.
    """
    for path in (where / name for where in (folder, folder.parent) for name in DOCUMENTS):
        if path.is_file():
            found = _collect([_upright(sheet, labels) for sheet in _sheets(path)], labels)
            if found:
                return path.name, found
    return None


def squash(name: str) -> str:
    """A name without case, blanks, underscores and punctuation."""
    return re.sub(r"[\W_]+", "", canonical(name.replace("_", " ")).casefold())


@cache
def _all() -> tuple[Known, ...]:
    folder = files("satclr.data.labels").joinpath("data")
    return tuple(
        _parse(json.loads(entry.read_text(encoding="utf-8")))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".json")
    )


def _parse(raw: dict[str, Any]) -> Known:
    def sets(key: str) -> dict[str, frozenset[str]]:
        return {category: frozenset(names) for category, names in raw.get(key, {}).items()}

    return Known(
        name=raw["name"],
        source=raw["source"],
        max_labels=raw.get("max_labels"),
        labels=frozenset(raw["labels"]),
        categories=frozenset(raw["categories"]),
        documented=sets("documented"),
        undocumented=sets("undocumented"),
        namesakes=raw.get("namesakes", {}),
        releases=tuple(Release(**release) for release in raw.get("releases", ())),
    )


def _sheets(path: Path) -> list[list[list[str]]]:
    raw = path.read_bytes()
    return [[cells for _, cells in rows(raw, path)]] if path.suffix == ".csv" else sheets(raw, path)


def _upright(sheet: list[list[str]], labels: Labels) -> list[list[str]]:
    """A sheet with a row a category; one whose header names most categories has a column each."""
    keys = {squash(category) for category in labels.columns}
    if sheet and 2 * len(keys & {squash(cell) for cell in sheet[0]}) > len(keys) > 1:
        return [list(column) for column in zip_longest(*sheet, fillvalue="")]
    return sheet


def _collect(sheets: Iterable[list[list[str]]], labels: Labels) -> dict[str, frozenset[str]]:
    """Gather (category, labels) from rows that may be long, wide, comma-separated or merged downwards.

    A sheet's categories stand in the column that names most of them, their labels to its right.
    """
    known = set(labels.names)
    keys = {squash(category) for category in labels.columns}
    gathered: dict[str, set[str]] = {}
    for sheet in sheets:
        columns = [keys & {squash(cell) for cell in column} for column in zip_longest(*sheet, fillvalue="")]
        at = max(range(len(columns)), key=lambda i: len(columns[i]), default=0)
        category = ""
        for row in sheet:
            category = next((cell.strip() for cell in row[at : at + 1] if cell.strip()), category)
            words = [name for cell in row[at + 1 :] for name in re.split(r"[,;、，]", cell)]
            gathered.setdefault(category, set()).update({canonical(word) for word in words} & known)
    return _match({category: names for category, names in gathered.items() if names}, labels.columns)


def _match(gathered: Mapping[str, Iterable[str]], categories: Iterable[str]) -> dict[str, frozenset[str]]:
    keys = {squash(category): category for category in categories}
    matched = {keys[squash(c)]: frozenset(names) for c, names in gathered.items() if squash(c) in keys}
    for found, names in gathered.items():
        begun = [c for key, c in keys.items() if key.startswith(squash(found)) and c not in matched]
        if squash(found) not in keys and len(begun) == 1:
            matched[begun[0]] = frozenset(names)
    return matched
