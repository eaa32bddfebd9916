"""What is known about published data sets: their documented labels, their releases and the damage in them.

The knowledge is in `published/<name>.json`, one file per data set; other data sets are audited without it.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Any, Final

import numpy as np

from satclr.data.labels import Labels, canonical, sheets

DOCUMENTS: Final = ("category_labels.csv", "Categories_names.xlsx")
WORD_MIN: Final = 4  # letters from which on a name contained in another one means something


@dataclass(frozen=True)
class Release:
    """A published state of the label tables.

    tables: each category's digest. corrupt_rows: the number of wrong rows of each damaged category.
    """

    name: str
    advice: str
    tables: Mapping[str, str]
    corrupt_rows: Mapping[str, int]


@dataclass(frozen=True)
class Known:
    """A published data set.

    max_labels: the most labels its authors document for a tile. documented: the labels that go with each category.
    undocumented: those that its sound release has besides. namesakes: the label that a category is named after, where
    spelling does not tell.
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
    """Digest each category's table by content, independent of encoding, line ends, row and column order."""
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

    Looked for in `folder` and the one above. Categories are matched leniently: case, blanks and underscores do not
    count, and a name may be the beginning of the category that no other name fits.
    """
    for path in (where / name for where in (folder, folder.parent) for name in DOCUMENTS):
        if path.is_file():
            found = _collect([_upright(sheet, labels) for sheet in sheets(path)], labels)
            if found:
                return path.name, found
    return None


def namesake(category: str, names: Iterable[str], known: Known | None) -> tuple[str | None, bool]:
    """The label that a category is named after, and whether that is certain.

    Certain when the data set says so or the names are equal but for case, blanks and a plural s; likely when it is the
    one label whose words are among the category's (storage_tank, tanks).
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


@cache
def _all() -> tuple[Known, ...]:
    entries = sorted(files("satclr.data").joinpath("published").iterdir(), key=lambda entry: entry.name)
    texts = [e.read_text(encoding="utf-8") for e in entries if e.name.endswith(".json")]
    return tuple(_parse(json.loads(text)) for text in texts)


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


def _squash(name: str) -> str:
    """A name without case, blanks, underscores and punctuation."""
    return re.sub(r"[\W_]+", "", canonical(name.replace("_", " ")).casefold())


def _upright(sheet: list[list[str]], labels: Labels) -> list[list[str]]:
    """A sheet with one row per category; one whose header names most categories has one column each."""
    keys = {_squash(category) for category in labels.columns}
    if sheet and 2 * len(keys & {_squash(cell) for cell in sheet[0]}) > len(keys) > 1:
        return [list(column) for column in zip_longest(*sheet, fillvalue="")]
    return sheet


def _collect(found: Iterable[list[list[str]]], labels: Labels) -> dict[str, frozenset[str]]:
    """Collect (category, labels) from rows that may be long, wide, comma-separated or merged downwards.

    A sheet's categories are in the column that names most of them, their labels to its right.
    """
    keys = {_squash(category): category for category in labels.columns}
    collected: dict[str, set[str]] = {}
    for sheet in found:
        columns = [len(keys.keys() & set(map(_squash, c))) for c in zip_longest(*sheet, fillvalue="")]
        at = columns.index(max(columns)) if columns else 0
        category = ""
        for row in sheet:
            category = next((cell.strip() for cell in row[at : at + 1] if cell.strip()), category)
            words = {canonical(name) for cell in row[at + 1 :] for name in re.split(r"[,;、，]", cell)}
            collected.setdefault(category, set()).update(words & set(labels.names))
    named = {category: frozenset(names) for category, names in collected.items() if names}
    matched = {keys[_squash(c)]: names for c, names in named.items() if _squash(c) in keys}
    for name, names in named.items():
        begun = [c for key, c in keys.items() if key.startswith(_squash(name)) and c not in matched]
        if _squash(name) not in keys and len(begun) == 1:
            matched[begun[0]] = names
    return matched
