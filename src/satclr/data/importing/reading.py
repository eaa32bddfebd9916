"""How a table labels images: which column names them, which ones are labels, and what their cells mean.

In: a `Sheet` and the images of a download. Out: a `Reading`: each image's labels and split, and a sentence that says
how the table was read.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import compress
from typing import Final

from satclr.data.importing.archives import SourceError
from satclr.data.importing.plan import Names, is_count, split_of
from satclr.data.importing.tables import Cell, Row, Sheet, UnreadError

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


@dataclass
class Reading:
    """What a table says of the images. columns: one per label, in the table's order, if it has them."""

    sheet: Sheet
    text: str
    columns: tuple[str, ...]
    rows: dict[int, list[str]] = field(default_factory=dict)  # each image's labels
    splits: dict[int, str] = field(default_factory=dict)
    listed: set[int] = field(default_factory=set)
    absent: list[str] = field(default_factory=list)  # names without an image


@dataclass
class _Columns:
    """What a table's columns are. meaning: of the cells of `hot`, case folded; parse: splits the cells of `tagged`."""

    image: int
    split: int | None
    hot: list[int]
    meaning: Mapping[str, bool]
    tagged: int | None
    parse: Parse
    text: str


def read(sheet: Sheet, names: Names) -> Reading:
    """Read which labels and split a table gives to which image.

    0/1 columns may also hold True and False, yes and no, or 1.0; marks and blanks; -1 and 1; or counts, if most columns
    do. Another column may hold tags: lists, or text with separators. `text` says how the table was read.

    Raises `SourceError` for a mistake in a row, and `UnreadError` for a table without labels or split.
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
            raise SourceError(f"{sheet.file}, {where}: {error}; give its folder too") from None
        if at is None:
            result.absent.append(f"{sheet.path.name}: {name}")
            continue
        result.listed.add(at)
        if columns.split is not None:
            if (which := split_of(str(cells[columns.split]))) is None:
                raise _wrong(sheet, where, columns.split, cells, "none of train, val, test")
            result.splits[at] = which
        if columns.tagged is not None:  # one row per image, or one per label
            result.rows.setdefault(at, []).extend(columns.parse(cells[columns.tagged]))
        elif columns.hot:
            if at in lines:
                raise SourceError(f"{sheet.file}, {where}: duplicate row for {name!r} (see {lines[at]}); keep one")
            lines[at] = where
            present = [columns.meaning.get(str(cells[i]).strip().casefold()) for i in columns.hot]
            if None in present:
                raise _wrong(sheet, where, columns.hot[present.index(None)], cells, "neither 0 nor 1")
            result.rows[at] = list(compress(result.columns, present))
    result.text = f"{sheet.file}: {columns.text}; {len(body) - len(result.absent):,} of {len(body):,} rows matched"
    return result


def _wrong(sheet: Sheet, where: str, column: int, cells: Sequence[Cell], problem: str) -> SourceError:
    place = f"{sheet.file}, {where}, column {sheet.shown[column]!r}"
    return SourceError(f"{place}: {cells[column]!r} is {problem}; correct the cell")


def _columns(sheet: Sheet, names: Names) -> tuple[_Columns, list[Row]]:
    header = [re.sub(r"[-_ ]", "", name.strip().casefold()) for name in sheet.header]
    image, body = _image_column(sheet, names)
    if body is not sheet.body:
        header = ["image", "labels"][: len(header)] if image == 0 and len(header) <= 2 else [""] * len(header)
    values = [Counter(str(cells[i]).strip().casefold() for _, cells in body) for i in range(len(header))]
    others = [i for i in range(len(header)) if i != image and (header[i] or set(values[i]) - {""})]
    split = next((i for i in others if header[i] in SPLITS and _share(values[i], split_of) > 0.5), None)
    others = [i for i in others if i != split]
    hot, meaning, kind = _hot(values, others)
    lists = {i for i in others if any(isinstance(cells[i], list) for _, cells in body)}
    text = [i for i in others if i not in hot and _share(values[i], _is_word) > 0.5]
    tags = sorted({i for i in text if header[i] in TAG} | lists, key=lambda i: (i not in lists, header[i] not in TAGS))
    if not tags and not hot:
        tags = [i for i in text if len(text) == 1 or len(values[i]) <= len(body) / 2]
    parse, separated = _parser(header[tags[0]], [cells[tags[0]] for _, cells in body]) if tags else (_literal, "")
    tagged = tags[0] if tags and (separated or len(hot) < 2) else None
    if tagged is not None:
        hot = []
    elif hot and body is not sheet.body:
        raise UnreadError("its first row is not a header; name the columns")
    elif not hot and split is None and len(header) > 1:
        raise UnreadError(f"no column of labels, neither 0/1 nor tags (columns: {', '.join(sheet.header)})")
    shown = sheet.shown
    told = f"images in column {shown[image]!r}"
    if body is not sheet.body:
        told = "no header; the label or labels after the name"
    elif tagged is not None:
        told += f", labels in column {shown[tagged]!r} ({separated or 'one per row'})"
    elif hot:
        told += f", {len(hot)} label columns of {kind}"
    told += f", split in column {shown[split]!r}" if split is not None else ""
    skipped = [shown[i] for i in others if i not in hot and i != tagged]
    told += f"; not labels: {', '.join(skipped)}" if skipped else ""
    return _Columns(image, split, hot, meaning, tagged, parse, told), body


def _image_column(sheet: Sheet, names: Names) -> tuple[int, list[Row]]:
    """The column that names the images, and the rows: without a header, its line too."""
    looked_at = sheet.body[:LOOKED_AT] + sheet.body[-LOOKED_AT:]
    given = [{name, *(str(cells[i]) for _, cells in looked_at)} for i, name in enumerate(sheet.header)]
    named = [bool(IMAGE.fullmatch(name.strip().casefold())) for name in sheet.header]
    hits, _, last = max((names.hits(given[i]), named[i], -i) for i in range(len(given)))
    at = -last
    if not hits and not (named[at] and names.hits(given[at], numbers=True)):
        first = f"{sheet.header[at].strip()!r} such as {min(given[at] - {sheet.header[at]}, default='')!r} is no image"
        raise UnreadError(first if named[at] else NO_IMAGE)
    if names.hits({sheet.header[at]}):
        return at, [("line 1", list(sheet.header)), *sheet.body]
    return at, sheet.body


def _share(cells: Counter[str], test: Callable[[str], object]) -> float:
    return sum(count for cell, count in cells.items() if test(cell)) / max(cells.total(), 1)


def _is_word(cell: str) -> bool:
    return bool(re.search(r"[^\W\d_]", cell)) or cell[:1] in {"[", "{", "("}


def _hot(values: Sequence[Counter[str]], others: Sequence[int]) -> tuple[list[int], Mapping[str, bool], str]:
    """The 0/1 columns, what their cells mean, and the kind of cells.

    A column belongs to them when most of its cells are 0 or 1: the others are mistakes, which `read` names.
    """
    binary = dict.fromkeys(ONES, True) | dict.fromkeys(ZEROS, False)
    base = [i for i in others if _share(values[i], binary.__contains__) > 0.5]
    seen = {cell for i in base for cell in values[i]}
    marked = [i for i in others if set(values[i]) <= MARKS | {""}]
    if not seen & ZEROS and {cell for i in marked for cell in values[i]} > {""}:
        return marked, dict.fromkeys(MARKS, True) | {"": False}, "marks and blanks"
    signed = [i for i in others if set(values[i]) <= {"1", "-1", "1.0", "-1.0"}]
    if not seen & ZEROS and any(cell in values[i] for i in signed for cell in ("-1", "-1.0")):
        return signed, {"1": True, "1.0": True, "-1": False, "-1.0": False}, "1 and -1"
    counted = [i for i in others if all(map(is_count, values[i])) and not _is_enumeration(values[i])]
    if sum(any(int(cell) > 1 for cell in values[i]) for i in counted) > max(len(counted) / 2, 1):
        return counted, {cell: int(cell) > 0 for i in counted for cell in values[i]}, "counts (over 0: present)"
    return base, binary, " and ".join(sorted(seen & binary.keys(), reverse=True))


def _is_enumeration(cells: Counter[str]) -> bool:
    """Whether a column numbers the rows."""
    return max(cells.values()) == 1 and max(map(int, cells)) - min(map(int, cells)) == len(cells) - 1


def _parts(separator: str | None, cell: Cell) -> list[str]:
    """The labels in a cell. separator: None for spaces, empty where the cell is one label."""
    found = cell if isinstance(cell, list) else [cell] if separator == "" else cell.split(separator)
    return [name.strip() for name in found if name.strip()]


def _literal(cell: Cell) -> list[str]:
    """The items of a list as Python, JSON or NumPy write it."""
    text = str(cell).strip()
    if isinstance(cell, list) or text[:1] not in {"[", "(", "{"}:
        return _parts("", cell)
    quoted = re.findall(r"\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'", text)
    if quoted:
        return _parts("", [a or b for a, b in quoted])
    return _parts(None, text.strip("[](){}").replace(",", " "))


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
        parse, kind = partial(_parts, separator), f"separated by {separator}"
    elif shared and (header in TAGS or 2 * len(words) <= len(texts)):
        parse, kind = partial(_parts, None), "separated by spaces"
    else:
        parse, kind = partial(_parts, ""), ""
    found = [parse(cell) for cell in cells]
    values = {name for names in found for name in names}
    if len({len(names) for names in found}) == 1 < len(found[0]) and values <= {"0", "1"}:
        raise UnreadError("lists of 0 and 1, without the labels' names")
    return parse, kind
