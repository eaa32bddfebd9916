"""What a download holds, whoever packed it: which files are tiles, which tables label them.

In: the members of a download. Out: a `Plan` of `Images/<category>/<tile>`, `Labels/<category>.csv` and, where
the data set comes with a split, `split.csv`.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from satclr.data import labels
from satclr.data.importing import tables
from satclr.data.importing.archives import DAMAGE, Member, SourceError, copy, damaged

KEPT: Final = frozenset({".jpg", ".jpeg", ".png"})
CONVERTED: Final = frozenset({".tif", ".tiff", ".bmp", ".webp"})  # to PNG, without loss
DOCUMENTS: Final = frozenset({"categories_names.xlsx", "category_labels.csv"})

# Folders that say what a file is or which split it is in, not what it shows.
SPLIT_FOLDERS: Final = {
    "train": "train", "training": "train", "images_tr": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test", "images_test": "test",
}  # fmt: skip
PLAIN_FOLDERS: Final = frozenset(
    {"images", "image", "img", "imgs", "data", "tiles", "jpegimages", *SPLIT_FOLDERS}
)
VAL_EVERY: Final = 8  # of an official training set without validation tiles, one tile in eight

Table = tuple[tuple[str, ...], list[tuple[str, list[str]]]]  # columns, (tile, cells)


@dataclass(frozen=True)
class Tile:
    """One tile to write. size: about how many bytes that takes; write: writes it, whole or not at all."""

    category: str
    name: str
    size: int
    write: Callable[[Path], None]


@dataclass(frozen=True)
class Plan:
    """A data set in prepare's layout, before it is written.

    tables: each category's columns and rows. split: each tile's, where the data set comes with one.
    left_out: images without a row and rows without an image. notes: what a person should know.
    """

    tiles: list[Tile]
    tables: dict[str, Table]
    split: dict[str, str] | None = None
    documents: list[Member] = field(default_factory=list)
    images_without_row: list[str] = field(default_factory=list)
    rows_without_image: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def plan(members: Sequence[Member], *, label_members: Sequence[Member] | None = None) -> Plan:
    """Recognise a data set. label_members: where its tables are, if not among `members`.

    Without any table, a folder of folders is taken at its word: a tile's only label is its folder.

    Raises SourceError when there are no images, or nothing tells their labels.
    """
    images = [member for member in members if member.path.suffix.lower() in KEPT | CONVERTED]
    if not images:
        raise SourceError(
            "no image in it; a checkout of MLRSNet's repository has only labels: "
            "import the archive of images and give the checkout as its labels"
        )
    categories = _categories([member.path for member in images])
    names = _tile_names(images, categories)
    keys = tables.index([member.path for member in images])
    others = [
        m for m in (members if label_members is None else label_members) if m.path.suffix in tables.SUFFIXES
    ]
    sheets = [sheet for member in others if (sheet := tables.read(member, keys))]
    notes: list[str] = []
    labelled, absent = _label(sheets, names, keys, notes)
    if labelled:
        split = _official(sheets, images, names, keys, labelled, notes)
    elif len(set(categories)) > 1 and all(_shows(member.path.parent.name) for member in images):
        columns = tuple(sorted(set(categories)))
        labelled = {i: (columns, [str(int(name == c)) for name in columns]) for i, c in enumerate(categories)}
        split = _official(sheets, images, names, keys, labelled, notes)
        notes.append("no label table: each tile's only label is the folder it lies in")
    else:
        raise SourceError(
            "no table labels these images: it needs a column that names them and a 0/1 column a label"
        )
    return Plan(
        tiles=[_tile(images[i], categories[i], names[i]) for i in sorted(labelled)],
        tables=_tables(labelled, categories, names),
        split=split,
        documents=[member for member in others if member.path.name.lower() in DOCUMENTS],
        images_without_row=[str(image.path) for i, image in enumerate(images) if i not in labelled],
        rows_without_image=absent,
        notes=notes,
    )


def _categories(paths: Sequence[PurePosixPath]) -> list[str]:
    """Each image's folder; where that says nothing, its name up to the number, as in airport_12."""
    stems = [re.sub(r"[-_ .]*\d+$", "", path.stem) for path in paths]
    counts = Counter(stem for stem, path in zip(stems, paths, strict=True) if not _shows(path.parent.name))
    telling = counts and min(counts.values()) > 1
    return [
        path.parent.name if _shows(path.parent.name) else stem if telling and stem else "tiles"
        for stem, path in zip(stems, paths, strict=True)
    ]


def _shows(folder: str) -> bool:
    return bool(folder) and folder.lower() not in PLAIN_FOLDERS


def _tile_names(images: Sequence[Member], categories: Sequence[str]) -> list[str]:
    """A name of its own for each tile: its file's, after its category where those repeat."""
    names = [
        member.path.name if member.path.suffix.lower() in KEPT else f"{member.path.stem}.png"
        for member in images
    ]
    if len({name.casefold() for name in names}) < len(names):
        names = [f"{category}_{name}" for category, name in zip(categories, names, strict=True)]
    seen: dict[str, PurePosixPath] = {}
    for name, member in zip(names, images, strict=True):
        if name.casefold() in seen:
            raise SourceError(
                f"{seen[name.casefold()]} and {member.path} would both become {name}; rename one"
            )
        seen[name.casefold()] = member.path
    return names


def _label(
    sheets: Iterable[tables.Sheet], names: Sequence[str], keys: Mapping[str, int | None], notes: list[str]
) -> tuple[dict[int, tuple[tuple[str, ...], list[str]]], list[str]]:
    """Each labelled image's columns and cells, and the rows without an image.

    The same table in several formats counts once; a table with other labels than the first is left alone.
    """
    found: dict[int, tuple[tuple[str, ...], list[str]]] = {}
    absent: list[str] = []
    taken: set[str] | None = None
    for sheet in sorted(
        sheets, key=lambda s: (tables.SUFFIXES.index(s.member.path.suffix.lower()), s.member.path)
    ):
        kept = [i for i in range(len(sheet.header)) if i != sheet.image]
        columns = tuple(sheet.header[i] for i in kept)
        if not _is_multi_hot(sheet, kept):
            continue
        own = {labels.canonical(name) for name in columns} - {""}
        if taken is None:
            taken = own
        elif max(len(own - taken), len(taken - own)) > 1:  # one may have a blank header
            notes.append(f"{sheet.member.path} is left alone: it has other labels")
            continue
        fresh: dict[int, list[str]] = {}
        for row in sheet.body:
            i = tables.position(sheet, row, keys)
            if i is None:
                absent.append(f"{sheet.member.path.name}: {row[sheet.image].strip()}")
            elif i in fresh:
                raise SourceError(f"{sheet.member.path}: {names[i]} has two rows; keep one")
            else:
                fresh[i] = [row[k] for k in kept]
        for i in fresh.keys() - found.keys():
            found[i] = (columns, fresh[i])
    return found, absent


def _is_multi_hot(sheet: tables.Sheet, columns: Sequence[int]) -> bool:
    """Whether most cells are 0 or 1; the few that are not are for `labels.read` to refuse by name."""
    cells = [row[i].strip() for row in sheet.body[: tables.LOOKED_AT] for i in columns]
    return sum(cell in {"0", "1", "0.0", "1.0"} for cell in cells) > len(cells) / 2


def _official(
    sheets: Iterable[tables.Sheet],
    images: Sequence[Member],
    names: Sequence[str],
    keys: Mapping[str, int | None],
    labelled: Iterable[int],
    notes: list[str],
) -> dict[str, str] | None:
    """The split the data set comes with: a table with a column `split`, or folders named after splits."""
    split: dict[str, str] = {}
    for sheet in sheets:
        column = sheet.column("split")
        if column is not None:
            for row in sheet.body:
                i = tables.position(sheet, row, keys)
                which = SPLIT_FOLDERS.get(row[column].strip().lower())
                if i is not None and which:
                    split[names[i]] = which
    wanted = sorted(labelled)
    if not all(names[i] in split for i in wanted):
        for i in wanted:
            folders = [part.lower() for part in images[i].path.parts[:-1] if part.lower() in SPLIT_FOLDERS]
            if not folders:
                return None
            split[names[i]] = SPLIT_FOLDERS[folders[-1]]
    split = {names[i]: split[names[i]] for i in wanted}
    if set(split.values()) == {"train", "test"}:
        train = sorted(name for name, which in split.items() if which == "train")
        split |= dict.fromkeys(train[VAL_EVERY - 1 :: VAL_EVERY], "val")
        notes.append(
            f"the official split has no validation tiles: every {VAL_EVERY}th training tile became one"
        )
    return split


def _tables(
    labelled: Mapping[int, tuple[tuple[str, ...], list[str]]], categories: Sequence[str], names: Sequence[str]
) -> dict[str, Table]:
    """One table a category; its columns are those, in that order, of its first tile's source."""
    result: dict[str, Table] = {}
    for i in sorted(labelled, key=lambda i: (categories[i], names[i])):
        columns, cells = labelled[i]
        mine, rows = result.setdefault(categories[i], (columns, []))
        if columns != mine:
            given = dict(zip(columns, cells, strict=True))
            if set(given) != set(mine):
                odd = min(set(given) ^ set(mine))
                raise SourceError(
                    f"the tables that label {categories[i]} differ in the column {odd!r}; make them agree"
                )
            cells = [given[name] for name in mine]
        rows.append((names[i], cells))
    return result


def _tile(member: Member, category: str, name: str) -> Tile:
    convert = member.path.suffix.lower() in CONVERTED
    size = 0 if member.unpacked and not convert else member.size
    return Tile(category, name, size, partial(_to_png if convert else copy, member))


def _to_png(member: Member, target: Path) -> None:
    """Write an image as PNG: 8 bits a channel and one frame only, so that nothing is lost unsaid."""
    if target.exists():
        return
    from satclr.data import tiles

    part = target.with_name(target.name + ".part")
    try:
        with member.open() as file:
            raw = file.read()
        target.parent.mkdir(parents=True, exist_ok=True)
        tiles.picture(io.BytesIO(raw)).save(part, "PNG")
    except DAMAGE as error:
        raise damaged(member, error) from None
    except tiles.TileError as error:
        raise SourceError(f"{member.path}: {error}; mend it, or leave it and its row out") from None
    part.replace(target)
