"""What a download contains, however it is packed: which files are tiles, and which tables label them.

In: the members of a download. Out: a `Plan` of `Images/<category>/<tile>`, `Labels/<category>.csv` and, if the data set
has one, its split.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from satclr.data import labels, tiles
from satclr.data.importing import tables
from satclr.data.importing.archives import Member, SourceError, complete, copy

KEPT: Final = frozenset({".jpg", ".jpeg", ".png"})  # other images become PNG, without loss
DOCUMENTS: Final = frozenset({"categories_names.xlsx", "category_labels.csv"})
# Folders that name a split or a kind of file instead of a category.
SPLIT_FOLDERS: Final = {
    "train": "train", "training": "train", "images_tr": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "images_test": "test",
}  # fmt: skip
PLAIN_FOLDERS: Final = {"", "images", "image", "img", "imgs", "data", "tiles", "jpegimages", *SPLIT_FOLDERS}
VAL_EVERY: Final = 8  # of an official training set without validation tiles, one tile in eight

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

    tables: each category's columns and rows. split: of each tile, if the data set has one. notes: for the user.
    """

    tiles: list[Tile]
    tables: dict[str, Table]
    split: dict[str, str] | None = None
    documents: list[Member] = field(default_factory=list)
    images_without_row: list[str] = field(default_factory=list)
    rows_without_image: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Images:
    """The images of a download: members, categories and tile names; keys: every name of each (`tables.index`)."""

    members: list[Member]
    categories: list[str]
    names: list[str]
    keys: Mapping[str, int | None]


def plan(members: Sequence[Member], label_members: Sequence[Member]) -> Plan:
    """Recognise a data set by its images, among `members`, and its tables, among `label_members`.

    Without any table, a tile's only label is its folder. Raises `SourceError` without images, and where neither tables
    nor folders label them.
    """
    found = [member for member in members if member.path.suffix.lower() in tiles.SUFFIXES]
    if not found:
        advice = "import the archive of images and pass the checkout as its labels"
        raise SourceError(f"no image in it; a checkout of MLRSNet's repository has only labels: {advice}")
    paths = [member.path for member in found]
    categories = _categories(paths)
    images = _Images(found, categories, _tile_names(found, categories), tables.index(paths))
    others = [member for member in label_members if member.path.suffix.lower() in tables.SUFFIXES]
    sheets = [sheet for member in others if (sheet := tables.read(member, images.keys))]
    notes: list[str] = []
    labelled, absent = _label(sheets, images, notes)
    if not labelled:
        labelled = _label_by_folder(images)
        notes.append("no label table: each tile's only label is its folder")
    return Plan(
        tiles=[_tile(found[i], categories[i], images.names[i]) for i in sorted(labelled)],
        tables=_tables(labelled, images),
        split=_official(sheets, images, sorted(labelled), notes),
        documents=[member for member in others if member.path.name.lower() in DOCUMENTS],
        images_without_row=[str(path) for i, path in enumerate(paths) if i not in labelled],
        rows_without_image=absent,
        notes=notes,
    )


def _categories(paths: Sequence[PurePosixPath]) -> list[str]:
    """Each image's folder; where that is not a category, its name up to the number, as in airport_12."""
    stems = [re.sub(r"[-_ .]*\d+$", "", path.stem) for path in paths]
    counts = Counter(s for s, path in zip(stems, paths, strict=True) if not _is_category(path.parent.name))
    telling = counts and min(counts.values()) > 1
    return [
        path.parent.name if _is_category(path.parent.name) else stem if telling and stem else "tiles"
        for stem, path in zip(stems, paths, strict=True)
    ]


def _is_category(folder: str) -> bool:
    return folder.lower() not in PLAIN_FOLDERS


def _tile_names(images: Sequence[Member], categories: Sequence[str]) -> list[str]:
    """A unique name for each tile: its file's, with its category in front where file names repeat."""
    paths = [member.path for member in images]
    names = [path.name if path.suffix.lower() in KEPT else f"{path.stem}.png" for path in paths]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{category}_{name}" for category, name in zip(categories, names, strict=True)]
    seen: dict[str, PurePosixPath] = {}
    for name, path in zip(names, paths, strict=True):
        other = seen.setdefault(name.casefold(), path)
        if other is not path:
            raise SourceError(f"{other} and {path} clash: both would become {name}; rename one")
    return names


def _label(sheets: Iterable[tables.Sheet], images: _Images, notes: list[str]) -> tuple[dict[int, Row], list[str]]:
    """Each labelled image's columns and cells, and the rows without an image.

    The same table in several formats counts once; a table with other labels than the first is skipped.
    """
    found: dict[int, Row] = {}
    absent: list[str] = []
    first: set[str] | None = None
    for sheet in sorted(sheets, key=lambda s: (tables.SUFFIXES.index(s.member.path.suffix.lower()), s.member.path)):
        kept = [i for i in range(len(sheet.header)) if i != sheet.image]
        columns = tuple(sheet.header[i] for i in kept)
        if not _is_multi_hot(sheet, kept):
            continue
        own = {labels.canonical(name) for name in columns} - {""}
        first = own if first is None else first
        if max(len(own - first), len(first - own)) > 1:  # one may have a blank header
            notes.append(f"skipped {sheet.member.path}: it has other labels")
            continue
        fresh: dict[int, Row] = {}
        for row in sheet.body:
            i = sheet.position(row, images.keys)
            if i is None:
                absent.append(f"{sheet.member.path.name}: {row[sheet.image].strip()}")
            elif i in fresh:
                raise SourceError(f"{sheet.member.path}: two rows for {images.names[i]}; keep one")
            else:
                fresh[i] = columns, [row[k] for k in kept]
        found = fresh | found
    return found, absent


def _is_multi_hot(sheet: tables.Sheet, columns: Sequence[int]) -> bool:
    """Whether most cells are 0 or 1; `labels.read` refuses the few that are not by name."""
    cells = [row[i].strip() for row in sheet.body[: tables.LOOKED_AT] for i in columns]
    return sum(cell in labels.VALUES for cell in cells) > len(cells) / 2


def _label_by_folder(images: _Images) -> dict[int, Row]:
    columns = tuple(sorted(set(images.categories)))
    if len(columns) < 2 or not all(_is_category(member.path.parent.name) for member in images.members):
        needed = "a column that names them and one 0/1 column per label are needed"
        raise SourceError(f"no table labels these images: {needed}")
    return {i: (columns, [str(int(name == c)) for name in columns]) for i, c in enumerate(images.categories)}


def _official(
    sheets: Iterable[tables.Sheet], images: _Images, labelled: Sequence[int], notes: list[str]
) -> dict[str, str] | None:
    """The split that the data set comes with: a table with a column `split`, or folders named after splits."""
    split: dict[int, str] = {}
    for sheet in sheets:
        column = sheet.column("split")
        for row in sheet.body if column is not None else ():
            i, which = sheet.position(row, images.keys), SPLIT_FOLDERS.get(row[column or 0].strip().lower())
            if i is not None and which:
                split[i] = which
    if not all(i in split for i in labelled):
        for i in labelled:
            folders = [part.lower() for part in images.members[i].path.parts[:-1]]
            named = [SPLIT_FOLDERS[folder] for folder in folders if folder in SPLIT_FOLDERS]
            if not named:
                return None
            split[i] = named[-1]
    result = {images.names[i]: split[i] for i in labelled}
    if set(result.values()) == {"train", "test"}:
        train = sorted(name for name, which in result.items() if which == "train")
        result |= dict.fromkeys(train[VAL_EVERY - 1 :: VAL_EVERY], "val")
        notes.append(f"no official validation tiles: every {VAL_EVERY}th training tile is one now")
    return result


def _tables(labelled: Mapping[int, Row], images: _Images) -> dict[str, Table]:
    """One table per category, with the columns, in that order, of its first tile's source."""
    result: dict[str, Table] = {}
    for category, name, i in sorted((images.categories[i], images.names[i], i) for i in labelled):
        columns, cells = labelled[i]
        own, rows = result.setdefault(category, (columns, []))
        if set(columns) != set(own):
            odd = min(set(columns) ^ set(own))
            raise SourceError(f"only some of {category}'s label tables have the column {odd!r}; correct them")
        given = dict(zip(columns, cells, strict=True))
        rows.append((name, cells if columns == own else [given[column] for column in own]))
    return result


def _tile(member: Member, category: str, name: str) -> Tile:
    if member.path.suffix.lower() in KEPT:
        size = 0 if member.unpacked else member.file.stat().st_size
        return Tile(category, name, size, partial(copy, member))
    return Tile(category, name, member.file.stat().st_size, partial(_to_png, member))


def _to_png(member: Member, target: Path) -> None:
    """Write an image as PNG. `tiles.picture` refuses what PNG would lose: other depths and further frames."""
    with complete(target) as part:
        try:
            tiles.picture(member.file).save(part, "PNG")
        except tiles.TileError as error:
            raise SourceError(f"{member.path}: {error}; fix it, or delete it and its row") from None
