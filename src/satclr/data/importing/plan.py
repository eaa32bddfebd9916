"""What an import will write: the tiles, their tables, the split, and what is left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from satclr.data import labels
from satclr.data.importing.archives import Member
from satclr.files import some

SHOWN: Final = 10

Row = tuple[tuple[str, ...], list[str]]  # columns and cells
Table = tuple[tuple[str, ...], list[tuple[str, list[str]]]]  # columns, (tile, cells)


@dataclass(frozen=True)
class Tile:
    """One tile to write. size: bytes it takes on disk, roughly; write: writes it completely or not at all."""

    category: str
    name: str
    size: int
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Plan:
    """A data set in the layout of `prepare`, before it is written.

    tables: each category's columns and rows. split: of each tile, if the data set has one. notes: for the user. read:
    how each table was read. sources: where each tile is in the download. unlabelled: images without a row to keep.
    """

    tiles: list[Tile]
    tables: dict[str, Table]
    split: dict[str, str] | None = None
    documents: list[Member] = field(default_factory=list)
    images_without_row: list[str] = field(default_factory=list)
    rows_without_image: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    unlabelled: list[Tile] = field(default_factory=list)

    @property
    def skipped(self) -> float:
        """The share of images and rows without a partner."""
        skipped = len(self.images_without_row) + len(self.rows_without_image)
        return skipped / (len(self.tiles) + len(self.unlabelled) + skipped)

    def __str__(self) -> str:
        """What a dry run prints."""
        names = sorted({labels.canonical(name) for columns, _ in self.tables.values() for name in columns} - {""})
        rows = [(name, columns, cells) for columns, table in self.tables.values() for name, cells in table]
        matched = []
        for name, columns, cells in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
            present = [column for column, cell in zip(columns, cells, strict=True) if cell == "1"]
            matched.append(f"  {name} ← {self.sources.get(name, name)}: {', '.join(present) or 'no label'}")
        tables = [f"read: {text}" for text in self.read[:SHOWN]]
        if more := self.read[SHOWN:]:
            tables.append(f"and {len(more)} more tables")
        split = Counter((self.split or {}).values())
        sizes = f"{len(self.tiles):,} tiles, {len(self.tables)} categories, {len(names)} labels: {some(names, SHOWN)}"
        tables += [sizes, *(f"official split: {n:,} {name}" for name, n in split.items()), *matched]
        if self.unlabelled:
            tables.append(f"unlabelled: {len(self.unlabelled):,} images without row")
        return "\n".join([*tables, *skipped(self.images_without_row, self.rows_without_image), *self.notes])


def skipped(images: Sequence[str], rows: Sequence[str]) -> list[str]:
    """Lines about images and rows without a partner."""
    return [
        f"skipped {what}: {len(names):,}, such as {some(names)}"
        for what, names in (("images without row", images), ("rows without image", rows))
        if names
    ]
