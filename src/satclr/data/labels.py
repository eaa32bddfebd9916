"""Label tables: read by column name into one matrix of targets.

In: a folder of `<category>.csv` tables, one row per tile, one 0/1 column per label. Out: `Labels`. Columns are matched
by name, never by position: the published tables of one data set differ in their column order. `sheets` is the one
reader of tables, text or spreadsheet, that the rest of the package uses.
"""

import csv
import io
import unicodedata
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

IMAGE: Final = "image"
DOCUMENTS: Final = ("category_labels.csv", "Categories_names.xlsx")  # they list the labels of each category
VALUES: Final = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
DELIMITERS: Final = (",", ";", "\t")
CELLS_MAX: Final = 20_000_000  # three times as many as MLRSNet's tables have together


class LabelError(ValueError):
    """An invalid label table: bad input, exit code 2."""


@dataclass(frozen=True)
class Labels:
    """The labels of N tiles, rows in the order of the sorted tables."""

    tiles: list[str]  # N unique file names
    categories: list[str]  # N scene categories, each the stem of the row's table
    names: tuple[str, ...]  # K canonical label names, sorted
    targets: npt.NDArray[np.uint8]  # (N,K), 0 or 1
    columns: dict[str, tuple[str, ...]]  # each category's labels in its own table's column order
    repairs: tuple[str, ...] = ()  # headers that were corrected while reading, one sentence each


@dataclass
class _Table:
    path: Path
    tiles: list[str]
    columns: tuple[str, ...]
    values: npt.NDArray[np.uint8]
    respelled: list[tuple[str, str]]


def read(folder: Path) -> Labels:
    """Read every `<category>.csv` in `folder`.

    A table has a column `image` and one column per label, in any order, delimited by comma, semicolon or tab, in UTF-8,
    UTF-16 with a byte order mark, or Windows-1252. Cells are 0 or 1 (also 0.0 and 1.0). A single blank header is read
    as the label that only this table lacks. Blank rows, and nameless columns without values, are skipped. Raises
    `LabelError` naming the file, line, column and value of an invalid table.
    """
    paths = sorted(p for p in folder.glob("*") if p.suffix.lower() == ".csv" and not p.name.startswith("."))
    if not paths:
        problem = "no label table" if folder.is_dir() else "no such folder"
        raise LabelError(f"{folder}: {problem}; it should hold one <category>.csv table per category")
    seen: dict[str, str] = {}
    tables = [_read_table(path, seen) for path in paths]
    repairs = (*_respelled(tables), *_name_blanks(tables))
    return Labels(
        tiles=[tile for table in tables for tile in table.tiles],
        categories=[nfc(table.path.stem) for table in tables for _ in table.tiles],
        names=tuple(sorted(tables[0].columns)),
        targets=np.concatenate([t.values[:, np.argsort(np.array(t.columns, dtype=object))] for t in tables]),
        columns={nfc(table.path.stem): table.columns for table in tables},
        repairs=repairs,
    )


def nfc(text: str) -> str:
    """Composed Unicode; file systems and tables may have a name decomposed."""
    return unicodedata.normalize("NFC", text)


def canonical(name: str) -> str:
    """A label's name, composed, with known misspellings corrected and white space collapsed."""
    collapsed = nfc(" ".join(name.split()))
    return _spelling().get(collapsed, collapsed)


@cache
def _spelling() -> dict[str, str]:
    text = files("satclr.data").joinpath("published", "spelling.csv").read_text(encoding="utf-8")
    return {row["found"]: row["canonical"] for row in csv.DictReader(text.splitlines())}


def sheets(path: Path) -> list[list[list[str]]]:
    """The sheets of a table file (.xlsx or .xlsm; anything else is delimited text, one sheet), as rows of cells.

    Blank rows are left out. Raises `LabelError` for a damaged file, and for a spreadsheet that would fill the memory: a
    few bytes can claim 17 billion cells.
    """
    if path.suffix.lower() not in {".xlsx", ".xlsm"}:
        return [[cells for _, cells in rows(path)]]
    import openpyxl

    try:
        with path.open("rb") as file:
            book = openpyxl.load_workbook(file, read_only=True, data_only=True)
            return [_sheet(sheet, path) for sheet in book.worksheets]
    except LabelError:
        raise
    except Exception as error:  # openpyxl raises whatever its parsers raise
        raise LabelError(f"{path}: not a readable spreadsheet ({error}); download it again") from error


def _sheet(sheet: Any, path: Path) -> list[list[str]]:
    sheet.reset_dimensions()  # or every row would be padded to the size that the file claims
    found: list[list[str]] = []
    seen = 0
    for row in sheet.iter_rows(values_only=True):
        seen += len(row)
        if seen > CELLS_MAX:
            raise LabelError(f"{path}: over {CELLS_MAX:,} cells; save the part you need as CSV")
        if any(cell is not None for cell in row):
            found.append(["" if cell is None else str(cell) for cell in row])
    return found


def rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each non-blank row of a delimited text file.

    Delimiter: the comma, semicolon or tab that gives the header a cell `image`, else the most cells. Encoding: UTF-8,
    UTF-16 with a byte order mark, else Windows-1252. Raises `LabelError` naming the file and the line.
    """
    text = _decode(path)

    def header(delimiter: str) -> tuple[bool, int]:
        with suppress(csv.Error):
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
            return any(cell.strip().casefold() == IMAGE for cell in cells), len(cells)
        return False, 0

    delimiter = max(DELIMITERS, key=header)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        yield from ((reader.line_num, cells) for cells in reader if any(map(str.strip, cells)))
    except csv.Error as error:
        raise LabelError(f"{path}, line {reader.line_num}: not CSV ({error})") from error


def _decode(path: Path) -> str:
    raw = path.read_bytes()
    encodings = ("utf-16",) if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else ("utf-8-sig", "cp1252")
    for encoding in encodings:
        try:
            text = raw.decode(encoding)
        except UnicodeDecodeError as error:
            line, byte = raw.count(b"\n", 0, error.start) + 1, raw[error.start]
            continue
        if "\0" in text:
            raise LabelError(f"{path}: contains NUL bytes; the file is damaged: download or export it again")
        return text
    known = " or ".join(encodings)
    raise LabelError(f"{path}, line {line}: byte 0x{byte:02x} is not valid {known}; save the table as UTF-8")


def _read_table(path: Path, seen: dict[str, str]) -> _Table:
    """Read one table. seen: where each tile's row is; gets this table's."""
    (_, first), *body = list(rows(path)) or [(0, [])]
    if not body:
        raise LabelError(f"{path}: no rows; it should have a header and one row per tile")
    written = [" ".join(cell.split()) for cell in first]
    header = [canonical(name) for name in written]
    images = [i for i, name in enumerate(header) if name.casefold() == IMAGE]
    if len(images) != 1:
        raise LabelError(f"{path}: {len(images)} columns named 'image' in its header; exactly one is needed")
    tiles: list[str] = []
    for line, cells in body:
        where = f"{path}, line {line}"
        if len(cells) != len(header):
            raise LabelError(f"{where}: {len(cells)} cells where the header has {len(header)}")
        tile = nfc(cells[images[0]].strip())
        if not tile or "/" in tile or "\\" in tile or tile.startswith("."):
            raise LabelError(f"{where}, column 'image': {tile!r} is not a tile's file name")
        if tile in seen:
            raise LabelError(f"{where}: duplicate row for tile {tile!r} (see {seen[tile]}); keep one")
        seen[tile] = where
        tiles.append(tile)
    named = [name or any(cells[i].strip() for _, cells in body) for i, name in enumerate(header)]
    kept = [i for i in range(len(header)) if i != images[0] and named[i]]
    values = np.array([[VALUES.get(cells[i].strip(), 2) for i in kept] for _, cells in body], np.uint8)
    if wrong := np.argwhere(values == 2).tolist():
        (line, cells), i = body[wrong[0][0]], kept[wrong[0][1]]
        where = f"{path}, line {line}, column {header[i] or f'{i + 1} (no name)'!r}"
        raise LabelError(f"{where}: {cells[i]!r} is neither 0 nor 1; correct the cell")
    if not kept:
        raise LabelError(f"{path}: no label column beside 'image'")
    columns = tuple(header[i] for i in kept)
    for name, count in Counter(columns).items():
        if name and count > 1:
            raise LabelError(f"{path}: duplicate column {name!r}; keep one")
        if "|" in name:
            raise LabelError(f"{path}: column {name!r}: | separates labels in the store's index; rename it")
    respelled = [(a, b) for a, b in zip(written, header, strict=True) if a != b]
    return _Table(path, tiles, columns, values, respelled)


def _name_blanks(tables: list[_Table]) -> Iterator[str]:
    """Refuse tables of unlike labels; name a single blank header after the one label that its table lacks."""
    everything = {name for table in tables for name in table.columns if name}
    for table in tables:
        blanks = table.columns.count("")
        missing = sorted(everything - set(table.columns))
        if blanks and (blanks, len(missing)) != (1, 1):
            lacks = f"lacks {missing}" if missing else "lacks no label of the other tables"
            raise LabelError(f"{table.path}: has {blanks} nameless column(s) and {lacks}; name or delete them")
        if blanks:
            yield f"{table.path.name}: the nameless column is read as {missing[0]!r}"
            table.columns = tuple(name or missing[0] for name in table.columns)
        elif missing:
            other = next(t.path.name for t in tables if missing[0] in t.columns)
            more = f" and {len(missing) - 1} more" if missing[1:] else ""
            lacks = f"no column {missing[0]!r}{more}, which {other} has"
            raise LabelError(f"{table.path}: {lacks}; all tables need the same labels")


def _respelled(tables: list[_Table]) -> Iterator[str]:
    for name, right in sorted({pair for table in tables for pair in table.respelled}):
        names = [table.path.name for table in tables if (name, right) in table.respelled]
        yield f"{names[0] if len(names) == 1 else f'{len(names)} tables'}: column {name!r} is read as {right!r}"
