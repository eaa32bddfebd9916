"""Table files of a download as rows of cells: text, spreadsheets, JSON, parquet and MATLAB.

In: a file. Out: its `Sheet`s, or `UnreadError` with the reason why it could not be read.
"""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, Final

from satclr.data import labels
from satclr.data.importing.archives import Member

# In order of preference: the same table may come in several formats.
SUFFIXES: Final = (
    ".csv", ".txt", ".lst", ".tsv", ".xlsx", ".xlsm", ".jsonl", ".ndjson", ".json", ".parquet", ".mat", ".xls", ".ods",
)  # fmt: skip
# Prints the variables of a .mat file as JSON.
LOADMAT: Final = """
import json, sys, scipy.io
found = scipy.io.loadmat(sys.argv[1], squeeze_me=True)
print(json.dumps({n: v.tolist() for n, v in found.items() if n[:2] != "__" and v.ndim}, default=str))
"""

Cell = str | list[str]
Row = tuple[str, list[Cell]]  # where it is (line 3), and its cells
Known = Callable[[Iterable[str]], int]  # how many of some names are images


class UnreadError(ValueError):
    """The reason why a file is no table of labels."""


@dataclass(frozen=True)
class Sheet:
    """A table. file: as the user knows it; path: where it is in the download."""

    file: str
    path: PurePosixPath
    header: list[str]
    body: list[Row]

    @property
    def shown(self) -> list[str]:
        """Its columns as messages name them."""
        return [name.strip() or f"{i} (no name)" for i, name in enumerate(self.header, 1)]


def read(member: Member, known: Known) -> list[Sheet]:
    """The tables in a file. known: counts the images among some names, which tells a JSON file's form.

    Raises `UnreadError` where it holds none.
    """
    try:
        grids = _grids(member.file, member.path.suffix.lower(), known)
    except Exception as error:  # noqa: BLE001 - whatever a damaged file provokes in its reader
        reason = " ".join(str(error).split()).replace(f"{member.file}: ", "").replace(f"{member.file}, ", "")
        raise UnreadError(reason or type(error).__name__) from None
    filled = [grid for grid in grids if grid and grid[0][1]]
    return [Sheet(member.shown, member.path, list(map(str, grid[0][1])), grid[1:]) for grid in filled]


def _grids(path: Path, suffix: str, known: Known) -> list[list[Row]]:
    if suffix in {".xls", ".ods"}:
        raise UnreadError(f"{suffix} is not read; save it as .xlsx or .csv")
    if suffix in {".xlsx", ".xlsm"}:
        return [_numbered(_padded(sheet), "row") for sheet in labels.sheets(path)]
    if suffix == ".parquet":
        return [_records(parquet(path), "row")]
    if suffix == ".mat":
        return [_numbered(_matlab(path, known), "row")]
    if suffix == ".json":
        return [_records(_from_json(json.loads(path.read_text("utf-8-sig")), known), "record")]
    if suffix in {".jsonl", ".ndjson"}:
        lines = filter(str.strip, path.read_text("utf-8-sig").splitlines())
        return [_records([json.loads(line) for line in lines], "line")]
    return [_text(path, known)]


def _padded(sheet: list[list[str]]) -> list[list[str]]:
    """A spreadsheet's rows of one width, without titles above the header."""
    width = max(map(len, sheet), default=0)
    start = next((i for i, row in enumerate(sheet) if sum(map(bool, row)) > 1), 0)
    return [row + [""] * (width - len(row)) for row in sheet[start:]]


def _numbered(rows: Iterable[Sequence[Cell]], unit: str) -> list[Row]:
    return [(f"{unit} {i}", list(row)) for i, row in enumerate(rows, 1)]


def parquet(path: Path) -> list[dict[str, Any]]:
    """The rows of a parquet file, without columns of bytes."""
    from pyarrow.parquet import ParquetFile

    with ParquetFile(path) as file:
        columns = [field.name for field in file.schema_arrow if "binary" not in str(field.type)]
        rows: list[dict[str, Any]] = file.read(columns).to_pylist()
    return rows


def _text(path: Path, known: Known) -> list[Row]:
    """Delimited text. Columns of blanks too; in a table of two columns, the further cells of a row are more labels."""
    found = list(labels.rows(path))
    if all(len(cells) == 1 for _, cells in found):
        found = [(line, cells[0].split()) for line, cells in found]
    (_, first), *body = found or [(0, [])]
    odd = next(((line, cells) for line, cells in body if len(cells) != len(first)), None)
    named = bool(odd and known(first[:1]))  # no header
    if odd and len(first) > 2 and not named:
        raise UnreadError(f"line {odd[0]}: {len(odd[1])} cells where the first line has {len(first)}")
    rows: list[Row] = [
        (f"line {line}", [cells[0], _cell(cells[1:])] if odd else list(cells)) for line, cells in found[not named :]
    ]
    return [("line 1", ["image", "labels"] if odd else list(first)), *rows]


def _records(records: Any, unit: str) -> list[Row]:
    """A header and rows of a list of objects."""
    if not isinstance(records, list) or not records or not all(isinstance(record, dict) for record in records):
        raise UnreadError("neither a list of objects nor an object of images")
    columns = list(dict.fromkeys(name for record in records for name in record))
    cells = ([_cell(record.get(column)) for column in columns] for record in records)
    return [("header", list(map(str, columns))), *_numbered(cells, unit)]


def _cell(value: Any) -> Cell:
    """A JSON value as text or a list of labels: of names, (name, share) pairs, objects, or an object's true keys."""
    if isinstance(value, dict):
        return [str(name) for name, share in value.items() if share]
    if isinstance(value, list | tuple):
        return [name for item in value if (name := _label(item))]
    return "" if value is None else str(value)


def _label(item: Any) -> str:
    if isinstance(item, list | tuple) and len(item) == 2 and isinstance(item[1], int | float):
        return str(item[0]) if item[1] > 0 else ""
    if isinstance(item, dict):
        return str(next((item[key] for key in ("label", "name", "class", "category", "tag") if key in item), item))
    return str(item)


def _from_json(tree: Any, known: Known) -> Any:
    """A JSON file's records, whatever it is: records, columns, COCO, or an object of images."""
    if isinstance(tree, list) and all(isinstance(item, list) and len(item) == 2 for item in tree):
        tree = {str(name): value for name, value in tree}
    if not isinstance(tree, dict) or not tree:
        return tree
    if {"images", "annotations", "categories"} <= tree.keys():
        return _from_coco(tree)
    if not known(map(str, tree)):
        if {"columns", "data"} <= tree.keys():
            return [dict(zip(tree["columns"], row, strict=True)) for row in tree["data"]]
        inner = [value for value in tree.values() if isinstance(value, list) and value and isinstance(value[0], dict)]
        if inner:
            return max(inner, key=len)
        columns = {name: list(v.values()) if isinstance(v, dict) else v for name, v in tree.items()}
        if all(isinstance(v, list) for v in columns.values()) and len({len(v) for v in columns.values()}) == 1:
            return [dict(zip(columns, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
    elif all(isinstance(value, dict) and _is_record(value) for value in tree.values()):
        return [{"image": image, **cells} for image, cells in tree.items()]
    return [{"image": image, "labels": value} for image, value in tree.items()]


def _is_record(value: Mapping[str, Any]) -> bool:
    nested = any(isinstance(cell, list | dict) for cell in value.values())
    return bool(value) and (not nested or "labels" in value or "tags" in value)


def _from_coco(tree: Any) -> list[dict[str, Any]]:
    names = {category["id"]: category["name"] for category in tree["categories"]}
    found: dict[Any, dict[str, None]] = {image["id"]: {} for image in tree["images"]}
    for annotation in tree["annotations"]:
        found[annotation["image_id"]][names[annotation["category_id"]]] = None
    return [{"image": image["file_name"], "labels": list(found[image["id"]])} for image in tree["images"]]


def _matlab(path: Path, known: Known) -> list[Sequence[str]]:
    """A matrix (N,K) or (K,N) of 0 and 1 with the names of its N images and K labels, or the N images' labels."""
    command = [sys.executable, "-c", LOADMAT, str(path)]  # a damaged file can crash SciPy's reader
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "NotImplementedError" in done.stderr:
        raise UnreadError("MATLAB 7.3 is not read; save it with -v7")
    if done.returncode:
        raise UnreadError((done.stderr.strip().splitlines() or ["damaged"])[-1])
    variables: dict[str, list[Any]] = json.loads(done.stdout)
    texts = {n: list(map(str.strip, v)) for n, v in variables.items() if v and all(isinstance(x, str) for x in v)}
    name, images = max(texts.items(), key=lambda item: known(item[1]), default=("", []))
    if not known(images):
        raise UnreadError(f"no variable names these images (variables: {', '.join(variables) or 'none'})")
    others = [values for other, values in texts.items() if other != name]
    matrices = [v for v in variables.values() if v and isinstance(v[0], list)]
    for matrix, columns in product(matrices, others):
        for cells in (matrix, list(zip(*matrix, strict=False))):
            if len(cells) == len(images) and len(cells[0]) == len(columns):
                return [
                    ["image", *columns],
                    *([image, *map(str, row)] for image, row in zip(images, cells, strict=True)),
                ]
    for tags in (values for values in others if len(values) == len(images)):
        return [["image", "labels"], *zip(images, tags, strict=True)]
    raise UnreadError("no variable has the labels' names and the 0/1 matrix of these images")
