"""What an import will write, and which image a name in a table means.

A `Plan` has the tiles, their tables, the split, and what is left out. `Names` finds an image with or without suffix
and folders, in any letter case and Unicode form.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from satclr.data import labels
from satclr.data.tiles import SPLITS, SUFFIXES
from satclr.files import counted, some

SHOWN: Final = 10
# Folders (also table names and cells) that name a split, perhaps with the kind of file: train, images_tr, test-jpg.
SPLIT = re.compile(
    r"(?:images?[-_ ])?(?:(?P<train>train(?:ing)?|tr)|(?P<val>val(?:id(?:ation)?)?|dev)|(?P<test>test(?:ing)?|te))"
    r"(?:[-_ ]?(?:set|split|images?|imgs?|jpe?g|png|tiff?|list|file(?:name)?s))?"
)

Row = tuple[tuple[str, ...], list[str]]  # a table's labels, and those of an image
Table = tuple[tuple[str, ...], list[tuple[str, list[str]]]]  # its labels, and each tile with its labels


@dataclass(frozen=True)
class Tile:
    """One tile to write. category: a folder's name; name: a file's, unique across categories; path: in the download.

    size: bytes it takes on disk, roughly; write: writes it completely or not at all.
    """

    category: str
    name: str
    path: PurePosixPath
    size: int
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Plan:
    """A data set in the layout of `prepare`, before it is written.

    tables: each category's. split: train, val or test of each tile's name, if the data set has one. documents: files to
    copy. notes: for the user. read: how each table was read. unlabelled: images without a row to keep. by: what tells
    categories apart.
    """

    tiles: list[Tile]
    tables: dict[str, Table]
    split: dict[str, str] | None = None
    documents: list[Path] = field(default_factory=list)
    images_without_row: list[str] = field(default_factory=list)
    rows_without_image: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    read: list[str] = field(default_factory=list)
    unlabelled: list[Tile] = field(default_factory=list)
    by: str = "folder"

    @property
    def skipped(self) -> float:
        """The share of images and rows without a partner."""
        skipped = len(self.images_without_row) + len(self.rows_without_image)
        return skipped / (len(self.tiles) + len(self.unlabelled) + skipped)

    @property
    def names(self) -> list[str]:
        """The labels, sorted."""
        return sorted({labels.canonical(name) for columns, _ in self.tables.values() for name in columns} - {""})

    @property
    def splits(self) -> dict[str, int] | None:
        """The size of each split, if the data set has them."""
        sizes = Counter(self.split.values()) if self.split else {}
        return {name: sizes[name] for name in SPLITS} if sizes else None

    def __str__(self) -> str:
        """A summary, with some tiles to check."""
        lines = [f"read: {text}" for text in self.read[:SHOWN]]
        if more := self.read[SHOWN:]:
            lines.append(f"and {counted(len(more), 'more table')}")
        counts = (counted(len(self.tiles), "tile"), counted(len(self.tables), "category", "categories"))
        labels_ = f"{counted(len(self.names), 'label')}: {some(self.names, SHOWN)}"
        lines.append(f"{', '.join(counts)} (by {self.by}), {labels_}")
        if self.splits:
            sizes = ", ".join(f"{size:,} {name}" for name, size in self.splits.items())
            lines.append(f"official split: {sizes} (set data.split.file: split.csv to use it)")
        rows = [row for _, table in self.tables.values() for row in table]
        sources = {tile.name: tile.path for tile in self.tiles}
        for name, present in rows[:: max(1, len(rows) // SHOWN)][:SHOWN]:
            lines.append(f"  {name} ← {sources[name]}: {', '.join(present) or 'no label'}")
        if self.unlabelled:
            lines.append(f"unlabelled: {counted(len(self.unlabelled), 'image')} without row, for pretrain.tiles: both")
        skipped = {"images without row": self.images_without_row, "rows without image": self.rows_without_image}
        lines += [f"skipped {what}: {len(names):,}, such as {some(names)}" for what, names in skipped.items() if names]
        return "\n".join([*lines, *self.notes])


def split_of(text: str) -> str | None:
    """The split that a folder's name or a cell stands for: train, val, test or None."""
    found = SPLIT.fullmatch(text.strip().lower())
    return found.lastgroup if found else None


def is_count(text: str) -> bool:
    """Whether `text` is a number without sign and point, of a length that Python converts."""
    return text.isdecimal() and len(text) < 300


class Names:
    """The names of a download's images. paths: where each is in the download."""

    def __init__(self, paths: Sequence[PurePosixPath]) -> None:
        self.paths = paths
        self.keys: dict[str, set[int]] = {}
        for position, path in enumerate(paths):
            for start in range(len(path.parts)):
                tail = PurePosixPath(*path.parts[start:])
                for name in (str(tail), str(tail.with_suffix(""))):
                    self.keys.setdefault(_key(name), set()).add(position)
            if is_count(path.stem):  # a spreadsheet drops leading zeros
                self.keys.setdefault(f"#{int(path.stem)}", set()).add(position)

    def hits(self, names: Iterable[str], *, numbers: bool = False) -> int:
        """How many different ones of `names` may be images. numbers: leading zeros may be missing."""
        return sum(bool(self._positions(name, any_folder=True, numbers=numbers)) for name in set(names))

    def _positions(self, name: str, *, any_folder: bool, numbers: bool = False) -> set[int]:
        """The images that a name may mean. any_folder: leading folders that the download lacks do not matter."""
        key = _key(name)
        path = PurePosixPath(key)
        bare = str(path.with_suffix("")) if path.suffix in SUFFIXES else key
        for start in range(len(path.parts) if any_folder else 1):
            for text in (key, bare):
                if found := self.keys.get("/".join(text.split("/")[start:])):
                    return found
        number = bare.removesuffix(".0")
        return self.keys.get(f"#{int(number)}", set()) if numbers and is_count(number) else set()

    def find(self, name: str, *, folder: PurePosixPath, cells: Sequence[str], any_folder: bool) -> int | None:
        """The position of the image that a row means, or None without one.

        Where several have that name, those below the table's own folder come first, then those in the row's split or in
        a folder that another of its `cells` names. Raises `ValueError` where several remain.
        """
        found = self._positions(name, any_folder=any_folder, numbers=True)
        if len(found) > 1:
            exact = self.keys.get(_key(str(folder / _key(name))), set()) & found
            below = exact or {i for i in found if self.paths[i].is_relative_to(folder)} or found
            given = {split_of(cell) or _key(cell) for cell in cells}
            named = {i for i in below if given & {split_of(p) or _key(p) for p in self.paths[i].parts[:-1]}}
            found = named or below
        if len(found) > 1:
            raise ValueError(f"{name!r} may be {' or '.join(sorted(str(self.paths[i]) for i in found)[:2])}")
        return next(iter(found), None)


def _key(text: str) -> str:
    path = labels.nfc(text).strip().replace("\\", "/").casefold().removeprefix("./").lstrip("/")
    return str(PurePosixPath(path)) if path else ""
