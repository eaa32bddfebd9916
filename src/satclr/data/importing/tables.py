"""Label tables as data sets publish them: one for all tiles or one per category, as text or spreadsheet.

In: a table and the images of a download. Out: which image each row is about, and its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from satclr.data import labels
from satclr.data.importing.archives import Member, SourceError

SUFFIXES: Final = (".csv", ".txt", ".tsv", ".xlsx")  # in order of preference
LOOKED_AT: Final = 100  # rows at each end that decide which column names the images


@dataclass(frozen=True)
class Sheet:
    """A table's cells, and the column that names images."""

    member: Member
    header: list[str]
    body: list[list[str]]
    image: int

    def column(self, name: str) -> int | None:
        """The position of the column `name`."""
        keys = [cell.strip().casefold() for cell in self.header]
        return keys.index(name) if name in keys else None

    def position(self, row: Sequence[str], keys: Mapping[str, int | None]) -> int | None:
        """The position of the row's image, or None without one. Raises `SourceError` where it is ambiguous."""
        key = key_of(row[self.image])
        if key in keys and keys[key] is None:
            name = row[self.image]
            raise SourceError(f"{self.member.path}: {name!r} may be several images; give their folders too")
        return keys.get(key)


def read(member: Member, keys: Mapping[str, object]) -> Sheet | None:
    """The table in `member`, or None where no column names images. keys: every name of every image."""
    try:
        header, *body = labels.sheets(member.file)[0]
    except (labels.LabelError, ValueError, IndexError):  # not a table, or an empty one
        return None
    width = len(header)
    body = [row + [""] * (width - len(row)) for row in body]
    looked_at = body[:LOOKED_AT] + body[-LOOKED_AT:]
    # Distinct ones: where images are named 0.jpg and 1.jpg, every label's cells look like names.
    hits = [len(keys.keys() & {key_of(row[i]) for row in looked_at}) for i in range(width)]
    best = hits.index(max(hits))
    return Sheet(member, header, body, best) if hits[best] and width > 1 else None


def key_of(text: str) -> str:
    """The key that an image is looked up by: its path or name, case folded, with forward slashes."""
    return str(PurePosixPath(text.strip().replace("\\", "/"))).casefold()


def index(paths: Sequence[PurePosixPath]) -> dict[str, int | None]:
    """Map every name of each image to its position: path, `folder/name`, name, with and without suffix.

    A name that several images share maps to None.
    """
    found: dict[str, int | None] = {}
    for position, path in enumerate(paths):
        names = {str(path), path.name, "/".join(path.parts[-2:])}
        for name in names | {str(PurePosixPath(name).with_suffix("")) for name in names}:
            key = key_of(name)
            found[key] = None if key in found and found[key] != position else position
    return found
