"""Read a folder of label tables into one matrix of targets.

In: `<category>.csv` tables. Out: `Labels`. Columns are matched by name, never by position: published
tables of one data set differ in their column order.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

IMAGE: Final = "image"
VALUES: Final = {"0": 0, "1": 1, "0.0": 0, "1.0": 1}
DELIMITERS: Final = (",", ";", "\t")


class LabelError(ValueError):
    """A label table that cannot be trusted as it stands: bad input, exit code 2."""


@dataclass(frozen=True)
class Labels:
    """The labels of N tiles, rows in the order of the sorted tables.

    tiles: N file names, unique.
    categories: N scene categories, the stem of the table a row stands in.
    names: K canonical label names, sorted.
    targets: (N, K), uint8, 0 or 1.
    columns: each category's labels in its own table's column order.
    repairs: what was read otherwise than written, one sentence each.
    """

    tiles: list[str]
    categories: list[str]
    names: tuple[str, ...]
    targets: npt.NDArray[np.uint8]
    columns: dict[str, tuple[str, ...]]
    repairs: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Table:
    path: Path
    tiles: list[str]
    lines: list[int]
    columns: tuple[str, ...]
    values: npt.NDArray[np.uint8]
    respelled: tuple[tuple[str, str], ...]


def read(folder: Path) -> Labels:
    """Read every `<category>.csv` in `folder`.

    A table has a column `image` and one column a label, in any order, delimited by comma, semicolon or
    tab, in UTF-8, UTF-16 with a byte order mark, or Windows-1252. Cells are 0 or 1 (also 0.0 and 1.0). A
    single blank header is read as the label that only this table lacks. Blank rows, and nameless columns
    without values, are skipped.

    Raises LabelError, naming the file, line, column and value, when the tables are not that.
    """
    if not folder.is_dir():
        raise LabelError(f"{folder}: no such folder; it should hold one <category>.csv table a category")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() == ".csv" and not p.name.startswith("."))
    if not paths:
        raise LabelError(f"{folder}: no label table; it should hold one <category>.csv table a category")
    tables, repairs = _name_blanks([_read_table(path) for path in paths])
    names = _common_names(tables)
    _refuse_duplicates(tables)
    return Labels(
        tiles=[tile for table in tables for tile in table.tiles],
        categories=[table.path.stem for table in tables for _ in table.tiles],
        names=names,
        targets=np.concatenate([table.values[:, _order(table.columns, names)] for table in tables]),
        columns={table.path.stem: table.columns for table in tables},
        repairs=tuple(chain(_respelled(tables), repairs)),
    )


def canonical(name: str) -> str:
    """A label's name with known misspellings put right and white space collapsed."""
    collapsed = " ".join(name.split())
    return _spelling().get(collapsed, collapsed)


@cache
def _spelling() -> dict[str, str]:
    text = files("satclr.data.labels").joinpath("data", "spelling.csv").read_text(encoding="utf-8")
    return {row["found"]: row["canonical"] for row in csv.DictReader(text.splitlines())}


def rows(raw: bytes, where: object) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, cells) of each row of a delimited text that is not blank.

    Delimiter: comma, semicolon or tab, whichever gives the header a cell `image`, else most cells. Encoding:
    UTF-8, UTF-16 with a byte order mark, else Windows-1252. Raises LabelError, naming `where`, for anything that
    is no such text, and for quotes that do not end where their cell does.
    """
    text = _decode(raw, where)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                yield reader.line_num, cells
    except csv.Error as error:
        raise LabelError(f"{where}, line {reader.line_num}: not CSV ({error})") from error


def _delimiter(text: str) -> str:
    def fit(delimiter: str) -> tuple[bool, int]:
        try:
            header = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error:
            return False, 0
        return any(cell.strip().casefold() == IMAGE for cell in header), len(header)

    return max(DELIMITERS, key=fit)


def _decode(raw: bytes, where: object) -> str:
    encoding = "utf-16" if raw.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = _decode_1252(raw, where)
    if "\0" in text:
        raise LabelError(
            f"{where}: holds NUL bytes; it is damaged, or no text file: fetch or export it again"
        )
    return text


def _decode_1252(raw: bytes, where: object) -> str:
    try:
        return raw.decode("cp1252")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise LabelError(
            f"{where}, line {line}: byte 0x{raw[error.start]:02x} is neither UTF-8 "
            "nor Windows-1252; save it as UTF-8"
        ) from None


def _read_table(path: Path) -> _Table:
    try:
        (_, first), *body = list(rows(path.read_bytes(), path)) or [(0, [])]
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror})") from error
    if not body:
        raise LabelError(f"{path}: no rows; it should have a header and one row a tile")
    written = [" ".join(cell.split()) for cell in first]
    header = [canonical(name) for name in written]
    images = [i for i, name in enumerate(header) if name.casefold() == IMAGE]
    if len(images) != 1:
        raise LabelError(
            f"{path}: {len(images)} columns named 'image' in its header; exactly one names the tiles"
        )
    for line, cells in body:
        if len(cells) != len(header):
            raise LabelError(f"{path}, line {line}: {len(cells)} cells where the header has {len(header)}")
    kept = [
        i
        for i, name in enumerate(header)
        if i != images[0] and (name or any(cells[i].strip() for _, cells in body))
    ]
    columns = tuple(header[i] for i in kept)
    if not columns:
        raise LabelError(f"{path}: no label column beside 'image'")
    twice = sorted(name for name, count in Counter(columns).items() if name and count > 1)
    if twice:
        raise LabelError(f"{path}: column {twice[0]!r} stands twice; keep one")
    joined = next((name for name in columns if "|" in name), None)
    if joined is not None:
        raise LabelError(f"{path}: column {joined!r}: | separates labels in the store's index; rename it")
    tiles = [_tile_name(path, line, cells[images[0]]) for line, cells in body]
    values = bytearray()
    for line, cells in body:
        try:
            values += bytes([VALUES[cells[i]] for i in kept])
        except KeyError:
            values += bytes(_value(path, line, header[i] or f"{i + 1} (no name)", cells[i]) for i in kept)
    return _Table(
        path=path,
        tiles=tiles,
        lines=[line for line, _ in body],
        columns=columns,
        values=np.frombuffer(bytes(values), dtype=np.uint8).reshape(len(tiles), len(columns)),
        respelled=tuple((a, b) for a, b in zip(written, header, strict=True) if a != b),
    )


def _tile_name(path: Path, line: int, cell: str) -> str:
    name = cell.strip()
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise LabelError(f"{path}, line {line}, column 'image': {cell!r} is not a tile's file name")
    return name


def _value(path: Path, line: int, column: str, cell: str) -> int:
    try:
        return VALUES[cell.strip()]
    except KeyError:
        message = f"{path}, line {line}, column {column!r}: {cell!r} is neither 0 nor 1; correct the cell"
        raise LabelError(message) from None


def _name_blanks(tables: list[_Table]) -> tuple[list[_Table], list[str]]:
    """Give a table's single blank header the name of the one label that only this table lacks."""
    everything = {name for table in tables for name in table.columns if name}
    named: list[_Table] = []
    repairs: list[str] = []
    for table in tables:
        blanks = table.columns.count("")
        missing = sorted(everything - set(table.columns))
        if blanks and (blanks, len(missing)) != (1, 1):
            lacks = f"it lacks {missing}" if missing else "it lacks no label of the other tables"
            raise LabelError(
                f"{table.path}: {blanks} nameless column(s), and {lacks}; name or delete the column(s)"
            )
        if blanks:
            columns = tuple(name or missing[0] for name in table.columns)
            named.append(replace(table, columns=columns))
            repairs.append(f"{table.path.name}: the nameless column is read as {missing[0]!r}")
        else:
            named.append(table)
    return named, repairs


def _respelled(tables: list[_Table]) -> Iterator[str]:
    found: dict[tuple[str, str], list[str]] = {}
    for table in tables:
        for pair in table.respelled:
            found.setdefault(pair, []).append(table.path.name)
    for (name, right), where in sorted(found.items()):
        tables_named = where[0] if len(where) == 1 else f"{len(where)} tables"
        yield f"{tables_named}: column {name!r} is read as {right!r}"


def _common_names(tables: list[_Table]) -> tuple[str, ...]:
    everything = {name for table in tables for name in table.columns}
    for table in tables:
        missing = sorted(everything - set(table.columns))
        if missing:
            other = next(t.path.name for t in tables if missing[0] in t.columns)
            raise LabelError(
                f"{table.path}: no column {missing[0]!r}, which {other} has"
                f"{f' and {len(missing) - 1} more' if missing[1:] else ''}; tables need the same labels",
            )
    return tuple(sorted(everything))


def _order(columns: tuple[str, ...], names: tuple[str, ...]) -> list[int]:
    """Where each of `names` stands among `columns`."""
    place = {name: i for i, name in enumerate(columns)}
    return [place[name] for name in names]


def _refuse_duplicates(tables: list[_Table]) -> None:
    seen: dict[str, tuple[Path, int]] = {}
    for table in tables:
        for tile, line in zip(table.tiles, table.lines, strict=True):
            if tile in seen:
                path, first = seen[tile]
                raise LabelError(
                    f"{table.path}, line {line}: tile {tile!r} has a row already "
                    f"({path.name}, line {first}); keep one",
                )
            seen[tile] = table.path, line
