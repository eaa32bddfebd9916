"""What is known about published data sets: their documented labels, their releases and the damage in them.

The knowledge is in `published/<name>.json`, one file per data set; other data sets are audited without it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import Field

from satclr.data.labels import Labels, canonical, sheets
from satclr.params import Model

DOCUMENTS: Final = ("category_labels.csv", "Categories_names.xlsx")
WORD_MIN: Final = 4  # letters from which on a name contained in another one means something


class Release(Model):
    """A published state of the label tables: each category's digest, and how many rows of it are wrong."""

    name: str
    advice: str
    tables: dict[str, str]
    corrupt_rows: dict[str, int]


class Known(Model):
    """A published data set.

    max_labels: the most labels that its authors document for a tile. documented: the labels that go with each category.
    undocumented: those that its sound release has besides. namesakes: the label that a category is named after.
    """

    name: str
    source: str
    max_labels: int | None = None
    labels: frozenset[str]
    categories: frozenset[str]
    documented: dict[str, frozenset[str]] = Field({})
    undocumented: dict[str, frozenset[str]] = Field({})
    namesakes: dict[str, str] = Field({})
    releases: tuple[Release, ...] = ()


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
        matched = {keys[key]: frozenset(names) for key, names in found.items() if key in keys}
        for key in sorted(found.keys() - keys.keys() - {""}):
            begun = [c for k, c in keys.items() if k.startswith(key) and c not in matched]
            matched |= {category: frozenset(found[key]) for category in begun if len(begun) == 1}
        if matched:
            return path.name, matched
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
    joined = label.replace(" ", "")
    at_an_end = category.startswith(joined) or category.endswith(joined)
    return f" {label} " in f" {category} " or (" " not in category and at_an_end)


@cache
def _all() -> list[Known]:
    entries = sorted(files("satclr.data").joinpath("published").iterdir(), key=lambda entry: entry.name)
    return [Known.model_validate_json(e.read_text("utf-8")) for e in entries if e.name.endswith(".json")]


def _squash(name: str) -> str:
    """A name without case, blanks, underscores and punctuation."""
    return re.sub(r"[\W_]+", "", canonical(name.replace("_", " ")).casefold())
