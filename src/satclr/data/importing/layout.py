"""What a download contains, however it is packed: which files are tiles, and which tables label them.

In: the members of a download. Out: a `Plan` of `Images/<category>/<tile>`, `Labels/<category>.csv` and, if the data set
has one, its split.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

from satclr.data import labels, pixels
from satclr.data.importing import archives, reading, tables
from satclr.data.importing.archives import Member, SourceError
from satclr.data.importing.plan import SHOWN, Names, Plan, Row, Table, Tile, split_of
from satclr.data.tiles import SUFFIXES, TileError
from satclr.files import some

KEPT: Final = frozenset({".jpg", ".jpeg", ".png"})  # other images of 8 bits become PNG, without loss
DOCUMENTS: Final = frozenset(map(str.lower, labels.DOCUMENTS))
PLAIN_FOLDERS: Final = {"", "images", "image", "img", "imgs", "data", "tiles", "jpegimages"}  # not categories
UNLABELLED: Final = re.compile(r"test.*|unlabel+ed.*")  # folders whose images may lack rows
VAL_EVERY: Final = 8  # of an official training set without validation tiles, one tile in eight


def plan(
    source: Path, scratch: Path, *,
    labels_source: Path | None = None, labels_from: str | None = None, unlabelled: bool = False,
) -> Plan:  # fmt: skip
    """Recognise a data set by its images and tables; archives are unpacked into `scratch`.

    labels_source: where the label tables are, if not in `source`: a table, a folder or an archive, such as a checkout
    of MLRSNet's repository at a sound commit. labels_from: `folders` passes the tables over; `tables` accepts that most
    rows or images have no partner. Without either, a tile's only label is its folder where no file could be a table.
    unlabelled: keep images without a row, however many, as unlabelled tiles. Raises `SourceError` without images, and
    where neither tables nor folders label them.
    """
    members = archives.members(source, scratch / "unpacked")
    images = _images([member for member in members if member.path.suffix.lower() in SUFFIXES])
    if labels_source and labels_source.is_file() and labels_source.suffix.lower() in tables.SUFFIXES:
        members = [Member(PurePosixPath(labels_source.name), labels_source, unpacked=False)]
    elif labels_source:
        members = archives.members(labels_source, scratch / "unpacked-labels")
    others = [member for member in members if member.path.suffix.lower() in tables.SUFFIXES]
    documents = [member for member in others if member.path.name.lower() in DOCUMENTS]
    asked = [member for member in others if member not in documents and labels_from != "folders"]
    readings, unread = _read(asked, Names([image.path for image in images]))
    notes = [f"not read: {file}: {reason}" for file, reason in unread.items()]
    labelled, absent = _label(readings, notes)
    if not labelled:
        if labels_from == "tables" or (unread and labels_from is None):
            files = "; ".join(f"{file}: {reason}" for file, reason in list(unread.items())[:SHOWN])
            advice = "correct it, or pass `--labels-from folders` to label each tile by its folder"
            raise SourceError(f"no table labels these images: {files or 'the download has none'}; {advice}")
        labelled = _label_by_folder(images)
        kinds = Counter(member.path.suffix.lower() or member.path.name for member in members)
        rest = [f"{count:,} {kind}" for kind, count in kinds.items() if kind not in (*SUFFIXES, *tables.SUFFIXES)]
        reason = "labels from folders" if labels_from else "no label table"
        found = f" (other files: {some(rest)})" if rest and not labels_from else ""
        notes.append(f"{reason}{found}: each tile's only label is its folder")
    labelled = dict(sorted(labelled.items()))
    without = [image for i, image in enumerate(images) if i not in labelled]
    if labels_from is None:
        rows = sum(len(reading.sheet.body) for reading in readings)
        _require_partners(absent, [] if unlabelled else without, len(images), rows)
    return Plan(
        tiles=[images[i] for i in labelled],
        tables=_tables(labelled, images),
        split=_official(readings, images, labelled, notes),
        documents=[member.file for member in documents],
        images_without_row=[] if unlabelled else [str(image.path) for image in without],
        rows_without_image=absent,
        notes=notes,
        read=[reading.text for reading in readings],
        unlabelled=without if unlabelled else [],
        by=" or ".join(sorted({_named_by(image) for image in images})),
    )


def _images(members: Sequence[Member]) -> list[Tile]:
    """The images as tiles: as they are, or converted to PNG."""
    if not members:
        advice = "import the archive of images and pass the checkout as its labels"
        raise SourceError(f"no image in it; a checkout of MLRSNet's repository has only labels: {advice}")
    paths = [PurePosixPath(labels.nfc(str(member.path))) for member in members]
    kept = [m.path.suffix.lower() in KEPT or pixels.is_deep(m.file) for m in members]
    categories = _categories(paths)
    names = _tile_names(paths, categories, kept)
    found: list[Tile] = []
    for member, path, as_it_is, category, name in zip(members, paths, kept, categories, names, strict=True):
        size = 0 if as_it_is and member.unpacked else member.file.stat().st_size
        write = partial(archives.copy if as_it_is else to_png, member)
        found.append(Tile(category, name, path, size, write))
    return found


def _read(members: Sequence[Member], names: Names) -> tuple[list[reading.Reading], dict[str, str]]:
    """What each table says, in order of preference, and why the other files are not read."""
    found: list[reading.Reading] = []
    unread: dict[str, str] = {}
    for member in sorted(members, key=lambda m: (tables.SUFFIXES.index(m.path.suffix.lower()), m.path)):
        before, reason, sheets = len(found), "empty", []
        try:
            if "sample_submission" in member.path.name.lower():
                raise tables.UnreadError("a form to fill in")
            sheets = tables.read(member, names.hits)
        except tables.UnreadError as error:
            reason = str(error)
        for sheet in sheets:
            try:
                found.append(reading.read(sheet, names))
            except tables.UnreadError as error:
                reason = str(error)
        if len(found) == before and not _is_prose(member, reason, names):
            unread[member.shown] = reason
    return found, unread


def _is_prose(member: Member, reason: str, names: Names) -> bool:
    """Whether a text file that gives no labels is no table, such as a readme."""
    if member.path.suffix.lower() not in {".txt", ".lst"}:
        return False
    lines = [line for line in member.file.read_text("utf-8", "replace").splitlines() if line.strip()]
    named = sum(names.hits({re.split(r"[\s,;|]", line.strip())[0]}) for line in lines)
    return reason == reading.NO_IMAGE or ("is no image" not in reason and named <= len(lines) / 2)


def _categories(paths: Sequence[PurePosixPath]) -> list[str]:
    """Each image's folder; where that is not a category, its name up to the number, as in airport_12."""
    stems = [re.sub(r"[-_ .]*\d+$", "", path.stem) for path in paths]
    counts = Counter(s for s, path in zip(stems, paths, strict=True) if not _is_category(path.parent.name))
    telling = counts and min(counts.values()) > 1 and not any(map(split_of, counts))
    return [
        path.parent.name if _is_category(path.parent.name) else stem if telling and stem else "tiles"
        for stem, path in zip(stems, paths, strict=True)
    ]


def _named_by(image: Tile) -> str:
    """Where the name of an image's category is from."""
    return "folder" if _is_category(image.path.parent.name) else "default" if image.category == "tiles" else "file name"


def _is_category(folder: str) -> bool:
    return folder.lower() not in PLAIN_FOLDERS and split_of(folder) is None


def _tile_names(paths: Sequence[PurePosixPath], categories: Sequence[str], kept: Sequence[bool]) -> list[str]:
    """A unique name for each tile: its file's, with its category, its split or both in front where names repeat."""
    plain = [path.name if own else f"{path.stem}.png" for path, own in zip(paths, kept, strict=True)]
    splits = [_folder_split(path) or "all" for path in paths]
    places: dict[str, list[PurePosixPath]] = {}
    for form in ("{name}", "{category}_{name}", "{split}_{name}", "{split}_{category}_{name}"):
        rows = zip(splits, categories, plain, strict=True)
        names = [form.format(split=split, category=category, name=name) for split, category, name in rows]
        places = {}
        for name, path in zip(names, paths, strict=True):
            places.setdefault(name.casefold(), []).append(path)
        if len(places) == len(paths):
            return names
    name, (one, other, *_) = next(item for item in places.items() if len(item[1]) > 1)
    raise SourceError(f"{one} and {other} clash: both would become {name}; rename one")


def _folder_split(path: PurePosixPath) -> str | None:
    return next(filter(None, map(split_of, reversed(path.parts[:-1]))), None)


def _label(readings: Sequence[reading.Reading], notes: list[str]) -> tuple[dict[int, Row], list[str]]:
    """Each labelled image's row, and the names of rows without an image.

    The same table in several formats counts once; a table with other labels than the first is skipped.
    """
    found: dict[int, Row] = {}
    absent: list[str] = []
    first: set[str] | None = None
    tagged = [names for read in readings if not read.columns for names in read.rows.values()]
    vocabulary = tuple(sorted({name for names in tagged for name in names}))
    for read in readings:
        columns = read.columns or (vocabulary if read.rows else ())
        if not columns:
            continue
        for name, count in Counter(map(labels.canonical, columns)).items():
            if "|" in name or name.casefold() == labels.IMAGE or count > 1:
                problem = f"{count} label(s) {name!r}"
                raise SourceError(f"{read.sheet.file}: {problem}; rename it: labels are unique, without |")
        own = {labels.canonical(name) for name in columns} - {""}
        first = own if first is None else first
        if max(len(own - first), len(first - own)) > 1:  # one may have a blank header
            notes.append(f"not read: {read.sheet.file}: it has other labels than the tables before")
            continue
        rows = {i: (columns, names) for i, names in read.rows.items()}
        if differ := sum(list(map(set, found[i])) != list(map(set, rows[i])) for i in rows.keys() & found.keys()):
            notes.append(f"{read.sheet.file}: {differ:,} of its rows differ from the tables before, which count")
        found = rows | found
        absent += read.absent
    return found, absent


def _require_partners(absent: Sequence[str], without: Sequence[Tile], images: int, rows: int) -> None:
    """Raise `SourceError` where over half of the rows or of the images have no partner."""
    counted = [one for one in without if not any(UNLABELLED.fullmatch(p.lower()) for p in one.path.parts[:-1])]
    if len(absent) <= rows / 2 and len(counted) <= images - len(without):
        return
    names = f"{len(absent):,} of {rows:,} rows name no image" + (f", such as {absent[0]!r}" if absent else "")
    lone = f"{len(without):,} of {images:,} images have no row" + (f", such as {without[0].path}" if without else "")
    tried = "tried: with and without suffix; any letter case and Unicode form; with other folders or leading zeros"
    advice = "correct the names, or pass `--labels-from tables` to import the rest"
    raise SourceError(f"{names}; {lone} ({tried}); {advice}")


def _label_by_folder(images: Sequence[Tile]) -> dict[int, Row]:
    columns = tuple(sorted({image.category for image in images}))
    if len(columns) < 2 or not all(_is_category(image.path.parent.name) for image in images):
        needed = "a column that names them and one 0/1 column per label are needed"
        raise SourceError(f"no table labels these images: {needed}")
    return {i: (columns, [image.category]) for i, image in enumerate(images)}


def _official(
    readings: Sequence[reading.Reading], images: Sequence[Tile], labelled: Collection[int], notes: list[str]
) -> dict[str, str] | None:
    """The split that the data set comes with: of a table's column, or that a table or a folder is named after."""
    given = {i: split for i in labelled if (split := _folder_split(images[i].path))}
    for read in readings:
        if not read.splits and (own := split_of(read.sheet.path.stem)):
            given |= dict.fromkeys(read.listed, own)
    for read in readings:
        given |= read.splits
    result = {images[i].name: given[i] for i in labelled if i in given}
    if len(result) < len(labelled) or not {"train", "test"} <= set(result.values()):
        if result and any(read.splits for read in readings):
            notes.append(f"no official split: it has {len(result):,} of {len(labelled):,} tiles, or no test tiles")
        return None
    if "val" not in result.values():
        train = sorted(name for name, which in result.items() if which == "train")
        result |= dict.fromkeys(train[VAL_EVERY - 1 :: VAL_EVERY], "val")
        notes.append(f"no official validation tiles: every {VAL_EVERY}th training tile is one now")
    return result


def _tables(labelled: Mapping[int, Row], images: Sequence[Tile]) -> dict[str, Table]:
    """One table per category, with the columns, in that order, of its first tile's source."""
    result: dict[str, Table] = {}
    for category, name, i in sorted((images[i].category, images[i].name, i) for i in labelled):
        columns, present = labelled[i]
        own, rows = result.setdefault(category, (columns, []))
        if set(columns) != set(own):
            odd = min(set(columns) ^ set(own))
            raise SourceError(f"only some of {category}'s label tables have the column {odd!r}; correct them")
        rows.append((name, present))
    return result


def to_png(member: Member, target: Path) -> None:
    """Write an image of 8 bits as PNG, without data transparent."""
    with archives.complete(target) as part:
        try:
            pixels.picture(member.file).save(part, "PNG")
        except TileError as error:
            raise SourceError(f"{member.path}: {error}; fix it, or delete it and its row") from None
