"""Label tables as data sets publish them: one for all tiles or one a category, as text or spreadsheet.

In: a table's bytes and the images there are. Out: which image each row is about, and its labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Final

from satclr.data import labels
from satclr.data.importing.archives import DAMAGE, Member, SourceError, damaged

SUFFIXES: Final = (".csv", ".txt", ".tsv", ".xlsx")
BYTES_MAX: Final = 256 << 20
LOOKED_AT: Final = 100  # rows that tell which column names the images


@dataclass(frozen=True)
class Sheet:
    """A table's cells, and the column that names images."""

    member: Member
    header: list[str]
    body: list[list[str]]
    image: int

    def column(self, name: str) -> int | None:
        """The position of the column of that name."""
        keys = [cell.strip().casefold() for cell in self.header]
        return keys.index(name) if name in keys else None


def read(member: Member, keys: Mapping[str, object]) -> Sheet | None:
    """The table in `member`, or None where no column names images. keys: every name an image goes by."""
    if member.size > BYTES_MAX:
        return None
    try:
        cells = _cells(member)
    except labels.LabelError:
        return None
    if len(cells) < 2:
        return None
    header, *body = cells
    width = len(header)
    body = [row + [""] * (width - len(row)) for row in body]
    looked_at = body[:LOOKED_AT] + body[-LOOKED_AT:]
    # Distinct ones: where images are named 0.jpg and 1.jpg, every label's cells look like names.
    hits = [len(keys.keys() & {key_of(row[i]) for row in looked_at}) for i in range(width)]
    best = max(range(width), key=hits.__getitem__)
    if hits[best] == 0 or width < 2:
        return None
    return Sheet(member, header, body, best)


def key_of(text: str) -> str:
    """What an image is looked up by: its path or name, case folded, with forward slashes."""
    return str(PurePosixPath(text.strip().replace("\\", "/"))).casefold()


def index(paths: Sequence[PurePosixPath]) -> dict[str, int | None]:
    """Every name each image goes by, to its position: path, `folder/name`, name, with and without suffix.

    A name that several images share stands for None.
    """
    found: dict[str, int | None] = {}
    for position, path in enumerate(paths):
        names = {str(path), path.name, "/".join(path.parts[-2:])}
        for name in names | {str(PurePosixPath(name).with_suffix("")) for name in names}:
            key = key_of(name)
            found[key] = None if key in found and found[key] != position else position
    return found


def position(sheet: Sheet, row: Sequence[str], keys: Mapping[str, int | None]) -> int | None:
    """The position of the row's image, or None without one. Raises SourceError where it may be several."""
    key = key_of(row[sheet.image])
    if key in keys and keys[key] is None:
        raise SourceError(
            f"{sheet.member.path}: {row[sheet.image]!r} may be several images; give their folders too"
        )
    return keys.get(key)


def _cells(member: Member) -> list[list[str]]:
    try:
        with member.open() as file:
            raw = file.read()
    except DAMAGE as error:
        raise damaged(member, error) from None
    if member.path.suffix.lower() != ".xlsx":
        return [cells for _, cells in labels.rows(raw, member.path)]
    found = labels.sheets(raw, member.path)
    return found[0] if found else []
