"""How a table labels images: which column names them, which ones are labels, and what their cells mean.

In: a `Sheet` and the images of a download. Out: a `Reading`: each image's labels and split, and a sentence that says
how the table was read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from satclr.data.importing.archives import SourceError
from satclr.data.importing.names import Names, split_of
from satclr.data.importing.tables import Cell, Sheet

ONES: Final = frozenset({"1", "1.0", "true", "t", "yes", "y"})
ZEROS: Final = frozenset({"0", "0.0", "false", "f", "no", "n"})
MARKS: Final = ONES | {"x", "✓", "✔"}
TAGS: Final = ("tags", "labels", "classes", "categories", "multilabels", "classnames", "labelnames", "keywords")
TAG: Final = (*TAGS, "tag", "label", "class", "category", "multilabel", "classname", "labelname", "keyword")
SPLITS: Final = frozenset({"split", "set", "subset", "partition", "fold", "phase"})
IMAGE: Final = re.compile(r"(image|img|file|tile|patch)([-_ ]?(name|id|path|file))?|path|name|id|image\\label")
LOOKED_AT: Final = 100  # rows at each end that decide which column names the images
SEPARATORS: Final = ("|", ";", ",")

NO_IMAGE: Final = "names no image"

Parse = Callable[[Cell], list[str]]


class CellError(SourceError):
    """A mistake in one row of a table that labels the images."""


@dataclass
class Reading:
    """What a table says. columns, rows: labels in the table's order, and each image's cells, "0" or "1"."""

    sheet: Sheet
    text: str
    columns: tuple[str, ...] = ()
    rows: dict[int, list[str]] = field(default_factory=dict)
    tags: dict[int, list[str]] = field(default_factory=dict)  # instead of columns and rows
    splits: dict[int, str] = field(default_factory=dict)
    listed: set[int] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)  # names without an image


@dataclass
class _Columns:
    """The meaning of a table's columns. meaning: of the cells of `hot`, case folded; parse: of the cells of `tagged`."""

    image: int
    split: int | None
    hot: list[int]
    meaning: Mapping[str, str]
    tagged: int | None
    parse: Parse
    text: str


def read(sheet: Sheet, names: Names) -> Reading:
    """Read which labels and split a table gives to which image.

    0/1 columns may also hold True and False, yes and no, or 1.0; marks and blanks; -1 and 1; or counts, if most columns
    do. Another column may hold tags: lists, or text with separators. `text` says how the table was read.

    Raises `SourceError` for a cell that is neither 0 nor 1, and for a table without labels or split.
    """
    columns, body = _columns(sheet, names)
    result = Reading(sheet, "", tuple(sheet.header[i].strip() for i in columns.hot))
    last = Counter(str(cells[columns.image]).strip().rpartition("/")[2].casefold() for _, cells in body)
    any_folder = max(last.values()) == 1
    used = {columns.image, columns.tagged, *columns.hot}
    free = [i for i in range(len(sheet.header)) if i not in used]
    lines: dict[int, str] = {}
    for where, cells in body:
        name = str(cells[columns.image]).strip()
        context = [cell for i in free if isinstance(cell := cells[i], str)]
        try:
            at = names.find(name, folder=sheet.path.parent, cells=context, any_folder=any_folder)
        except ValueError as error:
            raise CellError(f"{sheet.file}, {where}: {error}; give its folder too") from None
        if at is None:
            result.absent.append(f"{sheet.path.name}: {name}")
            continue
        result.listed.add(at)
        if columns.split is not None:
            cell = str(cells[columns.split])
            if (which := split_of(cell)) is None:
                place = f"{sheet.file}, {where}, column {sheet.header[columns.split]!r}"
                raise CellError(f"{place}: {cell!r} is none of train, val, test; correct the cell")
            result.splits[at] = which
        if columns.tagged is not None:  # one row per image, or one per label
            result.tags.setdefault(at, []).extend(columns.parse(cells[columns.tagged]))
        elif columns.hot:
            if at in lines:
                raise CellError(f"{sheet.file}, {where}: duplicate row for {name!r} (see {lines[at]}); keep one")
            lines[at] = where
            result.rows[at] = [_hot_cell(sheet, where, i, cells[i], columns.meaning) for i in columns.hot]
    result.text = f"{sheet.file}: {columns.text}; {len(body) - len(result.absent):,} of {len(body):,} rows matched"
    return result


def _hot_cell(sheet: Sheet, where: str, column: int, cell: Cell, meaning: Mapping[str, str]) -> str:
    value = meaning.get(str(cell).strip().casefold())
    if value is None:
        place = f"{sheet.file}, {where}, column {sheet.header[column].strip() or f'{column + 1} (no name)'!r}"
        raise CellError(f"{place}: {cell!r} is neither 0 nor 1; correct the cell")
    return value


def _columns(sheet: Sheet, names: Names) -> tuple[_Columns, Sequence[tuple[str, list[Cell]]]]:
    header = [re.sub(r"[-_ ]", "", name.strip().casefold()) for name in sheet.header]
    image, body = _image_column(sheet, names)
    if body is not sheet.body:
        header = ["image", "labels"][: len(header)] if image == 0 and len(header) <= 2 else [""] * len(header)
    values = [Counter(str(cells[i]) for _, cells in body) for i in range(len(header))]
    values = [_folded(cells) for cells in values]
    others = [i for i in range(len(header)) if i != image and (header[i] or set(values[i]) - {""})]
    split = next((i for i in others if header[i] in SPLITS and _share(values[i], _is_split) > 0.5), None)
    others = [i for i in others if i != split]
    hot, meaning, kind = _hot(values, others)
    lists = {i for i in others if any(isinstance(cells[i], list) for _, cells in body)}
    text = [i for i in others if i not in hot and _share(values[i], _is_word) > 0.5]
    tags = sorted({i for i in text if header[i] in TAG} | lists, key=lambda i: (i not in lists, header[i] not in TAGS))
    if not tags and not hot:
        tags = [i for i in text if len(text) == 1 or len(values[i]) <= len(body) / 2][:1]
    tagged = tags[0] if tags else None
    parse, separated = _parser(header[tags[0]], [cells[tags[0]] for _, cells in body]) if tags else (_whole, "")
    if len(hot) > 1 and not separated:
        tagged = None
    found = f"images in column {sheet.header[image].strip()!r}" if body is sheet.body else "no header"
    if tagged is not None:
        hot = []
        found += f", labels in column {sheet.header[tagged]!r}" if body is sheet.body else ", labels after the name"
        found += f" ({separated or 'one per row'})"
    elif hot:
        if body is not sheet.body:
            raise SourceError("its first row is not a header; name the columns")
        found += f", {len(hot)} label columns of {kind}"
    if split is not None:
        found += f", split in column {sheet.header[split]!r}"
    skipped = [sheet.header[i].strip() or f"{i + 1} (no name)" for i in others if i not in hot and i != tagged]
    if skipped:
        found += f"; not labels: {', '.join(skipped)}"
    if tagged is None and not hot and split is None and len(header) > 1:
        raise SourceError(f"no column of labels, neither 0/1 nor tags (columns: {', '.join(sheet.header)})")
    return _Columns(image, split, hot, meaning, tagged, parse, found), body


def _image_column(sheet: Sheet, names: Names) -> tuple[int, Sequence[tuple[str, list[Cell]]]]:
    """The column that names the images, and the rows: without a header, its line too."""
    looked_at = sheet.body[:LOOKED_AT] + sheet.body[-LOOKED_AT:]
    ranked = []
    for i, name in enumerate(sheet.header):
        hits = names.hits({str(cells[i]) for _, cells in looked_at if i < len(cells)})
        ranked.append((hits, bool(IMAGE.fullmatch(name.strip().casefold())), -i))
    hits, named, at = max(ranked)
    at = -at
    if not hits and not (named and names.numbered({str(cells[at]) for _, cells in looked_at})):
        first = str(looked_at[0][1][at]).strip() if looked_at else ""
        near = f" (nearest: {close})" if named and (close := names.nearest(first)) else ""
        raise SourceError(f"{sheet.header[at].strip()!r} such as {first!r} is no image{near}" if named else NO_IMAGE)
    if names.hits({sheet.header[at]}):
        return at, [("line 1", list(sheet.header)), *sheet.body]
    return at, sheet.body


def _folded(cells: Counter[str]) -> Counter[str]:
    result: Counter[str] = Counter()
    for cell, count in cells.items():
        result[cell.strip().casefold()] += count
    return result


def _share(cells: Counter[str], test: Callable[[str], bool]) -> float:
    return sum(count for cell, count in cells.items() if test(cell)) / max(cells.total(), 1)


def _is_split(cell: str) -> bool:
    return split_of(cell) is not None


def _is_word(cell: str) -> bool:
    return bool(re.search(r"[^\W\d_]", cell)) or cell[:1] in {"[", "{", "("}


def _hot(values: Sequence[Counter[str]], others: Sequence[int]) -> tuple[list[int], Mapping[str, str], str]:
    """The 0/1 columns, what their cells mean, and the kind of cells.

    A column belongs to them when most of its cells are 0 or 1: the others are mistakes, which `read` names.
    """
    binary = dict.fromkeys(ONES, "1") | dict.fromkeys(ZEROS, "0")
    base = [i for i in others if _share(values[i], binary.__contains__) > 0.5]
    seen = {cell for i in base for cell in values[i]}
    marked = [i for i in others if set(values[i]) <= MARKS | {""} and set(values[i]) - {""}]
    if not seen & ZEROS and any("" in values[i] for i in marked):
        return marked, dict.fromkeys(MARKS, "1") | {"": "0"}, "marks and blanks"
    signed = [i for i in others if set(values[i]) <= {"1", "-1", "1.0", "-1.0"}]
    if not seen & ZEROS and any(cell in values[i] for i in signed for cell in ("-1", "-1.0")):
        return signed, {"1": "1", "1.0": "1", "-1": "0", "-1.0": "0"}, "1 and -1"
    counted = [i for i in others if all(cell.isdecimal() for cell in values[i]) and not _is_enumeration(values[i])]
    if sum(any(int(cell) > 1 for cell in values[i]) for i in counted) > max(len(counted) / 2, 1):
        cells = {cell for i in counted for cell in values[i]}
        return counted, {cell: str(int(int(cell) > 0)) for cell in cells}, "counts (over 0: present)"
    kinds = sorted({"True and False" if c in {"true", "false"} else "yes and no" if c in {"yes", "no", "y", "n"} else "0 and 1"
                    for c in seen & binary.keys()})  # fmt: skip
    return base, binary, ", ".join(kinds)


def _is_enumeration(cells: Counter[str]) -> bool:
    """Whether a column numbers the rows."""
    return max(cells.values()) == 1 and max(map(int, cells)) - min(map(int, cells)) == len(cells) - 1


def _whole(cell: Cell) -> list[str]:
    found = cell if isinstance(cell, list) else [cell]
    return [name.strip() for name in found if name.strip()]


def _literal(cell: Cell) -> list[str]:
    """The items of a list as Python, JSON or NumPy write it."""
    text = str(cell).strip()
    if isinstance(cell, list) or text[:1] not in {"[", "(", "{"}:
        return _whole(cell)
    quoted = re.findall(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", text)
    if quoted:
        return _whole([a or b for a, b in quoted])
    return _whole(text.strip("[](){}").replace(",", " ").split())


def _parser(header: str, cells: Sequence[Cell]) -> tuple[Parse, str]:
    """How to take a column's cells apart, and how that reads in a sentence; empty where a cell is one label."""
    texts = {cell.strip() for cell in cells if isinstance(cell, str)} - {""}
    words = Counter(word for text in texts for word in set(text.split()))
    separator = next((s for s in SEPARATORS if any(s in text for text in texts)), None)
    several = [text for text in texts if len(text.split()) > 1]
    shared = any(words[word] > 1 for text in several for word in text.split())
    if header != "tags":  # one label may be several words, as in dense residential
        shared &= len(words) < len(texts) or any(word in texts for text in several for word in text.split())
    parse: Parse
    if not texts or all(text[0] in "[({" for text in texts):
        parse, kind = _literal, "lists"
    elif separator:
        parse, kind = (
            (lambda cell: _whole(str(cell).split(separator)) if isinstance(cell, str) else _whole(cell)),
            f"separated by {separator}",
        )
    elif shared and (header in TAGS or 2 * len(words) <= len(texts)):
        parse, kind = (
            (lambda cell: _whole(cell.split()) if isinstance(cell, str) else _whole(cell)),
            "separated by spaces",
        )
    else:
        parse, kind = _whole, ""
    found = [parse(cell) for cell in cells]
    if len({len(names) for names in found}) == 1 < len(found[0]) and {n for names in found for n in names} <= {
        "0",
        "1",
    }:
        raise SourceError("lists of 0 and 1, without the labels' names")
    return parse, kind
