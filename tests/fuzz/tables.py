"""Label tables: however they were saved, they are read rightly; whatever is wrong with them is named."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st
from rich.console import Console

from satclr.data import audit, importing, labels

from ..data.downloads import folder_of
from . import ACCEPTED, REFUSED, Outcomes, edited, explore

Grid = list[list[str]]  # a header and its rows
Truth = dict[str, dict[str, int]]  # tile → label → 0 or 1

TEXT = (
    st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=10).map(labels.nfc).map(str.strip)
)
LABEL = TEXT.map(lambda t: " ".join(t.split())).filter(
    lambda t: t and "|" not in t and labels.canonical(t).casefold() != "image"
)
TILE = TEXT.filter(lambda t: t and not t.startswith(".") and not set(t) & {"/", "\\"})
ZEROS, ONES = ["0", "0.0", " 0", "0 "], ["1", "1.0", " 1", "1.0 "]


@st.composite
def grids(draw: st.DrawFn) -> tuple[dict[str, Grid], Truth]:
    """One to three tables of the same labels, each in its own column order."""
    names = draw(st.lists(LABEL, min_size=1, max_size=5, unique_by=labels.canonical))
    tiles = draw(st.lists(TILE, min_size=1, max_size=8, unique=True))
    count = draw(st.integers(1, min(3, len(tiles))))
    truth: Truth = {}
    found: dict[str, Grid] = {}
    for k in range(count):
        columns = draw(st.permutations([draw(st.sampled_from(["image", "Image", " IMAGE "])), *names]))
        rows = []
        for tile in tiles[k::count]:
            values = {name: draw(st.integers(0, 1)) for name in names}
            truth[tile] = {labels.canonical(name): value for name, value in values.items()}
            written = {n: draw(st.sampled_from(ONES if v else ZEROS)) for n, v in values.items()}
            rows.append([written.get(name, tile) for name in columns])
        found[f"category{k}"] = [list(columns), *rows]
    return found, truth


@st.composite
def saved(draw: st.DrawFn, grid: Grid) -> bytes:
    """A table's bytes: encoding, delimiter, quotes, line ends, blank rows, empty columns at the right."""
    delimiter = draw(st.sampled_from([",", ";", "\t"]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    empty = draw(st.integers(0, 2))
    text = io.StringIO(newline="")
    quoting: Any = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
    writer = csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting)
    for i, row in enumerate(grid):
        if i and draw(st.integers(0, 5)) == 0:
            writer.writerow([""] * draw(st.integers(0, len(row))))
        writer.writerow([*row, *[""] * empty])
    content = text.getvalue()
    encodings = ["utf-8", "utf-8-sig", "utf-16", *(["cp1252"] if _is_plainly_cp1252(content) else [])]
    return content.encode(draw(st.sampled_from(encodings)))


def files(grids: dict[str, Grid]) -> st.SearchStrategy[dict[str, bytes]]:
    return st.fixed_dictionaries({f"{name}.csv": saved(grid) for name, grid in grids.items()})


def _is_plainly_cp1252(content: str) -> bool:
    """Whether a text in Windows-1252 can be taken for no other encoding."""
    try:
        content.encode("cp1252").decode("utf-8")
    except UnicodeError as error:
        return isinstance(error, UnicodeDecodeError) and not content.startswith(("ÿþ", "þÿ"))  # UTF-16's mark
    return False


def _place(grid: Grid, *, image: bool) -> int:
    """The column of the tiles' names, or the first one of labels."""
    return next(i for i, name in enumerate(grid[0]) if (name.strip().casefold() == "image") == image)


def _put(grid: Grid, row: int, text: str, *, image: bool = True) -> Grid:
    grid[row][_place(grid, image=image)] = text
    return grid


def _widen(grid: Grid, header: str, cell: str) -> Grid:
    return [[*grid[0], header], *([*row, cell] for row in grid[1:])]


VALUE = "the value "
FAULTS: dict[str, Callable[[Grid], Grid]] = {
    **{f"{VALUE}{text!r}": partial(_put, row=-1, text=text, image=False)
       for text in ("True", "yes", "2", "", "nan", "-1", "1e0", "１", "0.5", "[/]", "inf", "1,0")},
    "no image column": lambda grid: _put(grid, 0, "picture"),
    "two image columns": lambda grid: _widen(grid, "image", "x.jpg"),
    "a label twice": lambda grid: _widen(grid, grid[0][_place(grid, image=False)], "0"),
    "a short row": lambda grid: [*grid[:-1], grid[-1][:-1]],
    "a long row": lambda grid: [*grid[:-1], [*grid[-1], "0"]],
    "a tile twice": lambda grid: [*grid, list(grid[-1])],
    "a tile that leaves the folder": lambda grid: _put(grid, -1, "../x.jpg"),
    "a tile without name": lambda grid: _put(grid, -1, " "),
    "a nameless label": lambda grid: _widen(grid, "", "1"),
    "a label with |": lambda grid: _widen(grid, "a|b", "1"),
    "a header only": lambda grid: grid[:1],
}  # fmt: skip


@st.composite
def faulty(draw: st.DrawFn) -> tuple[str, dict[str, bytes]]:
    """A fault, and the files of tables of which one has it."""
    found, _ = draw(grids())
    bad, fault = draw(st.sampled_from(sorted(found))), draw(st.sampled_from(list(FAULTS)))
    found[bad] = FAULTS[fault](found[bad])
    # csv leaves a row of one empty cell out, and then there is no fault
    hypothesis.assume(any(any(map(str.strip, row)) for row in found[bad][1:]) or fault == "a header only")
    return fault, draw(files(found))


def run(cases: int, seed: int, folder: Path) -> Outcomes:
    """Sound tables are read as they were meant, audited and reported without a hitch."""

    def check(case: tuple[dict[str, Grid], Truth, dict[str, bytes]]) -> str:
        meant, truth, raw = case
        found = labels.read(_write(folder, raw))
        rows = zip(found.tiles, found.targets.tolist(), strict=True)
        assert {tile: dict(zip(found.names, row, strict=True)) for tile, row in rows} == truth
        for category, grid in meant.items():
            header = [labels.canonical(name) for name in grid[0] if name.strip().casefold() != "image"]
            assert found.columns[category] == tuple(header)
            assert found.categories.count(category) == len(grid) - 1
        _audit(found, folder)
        return ACCEPTED

    sound = grids().flatmap(lambda case: st.tuples(st.just(case[0]), st.just(case[1]), files(case[0])))
    return explore(sound, check, cases=cases, seed=seed)


def run_faulty(cases: int, seed: int, folder: Path) -> Outcomes:
    """A table with a fault is refused by its path, in one line that says what is wrong."""

    def check(case: tuple[str, dict[str, bytes]]) -> str:
        fault, raw = case
        with pytest.raises(labels.LabelError) as caught:
            labels.read(_write(folder, raw))
        message = str(caught.value)
        assert str(folder) in message and ".csv" in message and "\n" not in message, message
        assert fault.removeprefix(VALUE) in message or not fault.startswith(VALUE), (fault, message)
        return REFUSED

    return explore(faulty(), check, cases=cases, seed=seed)


def run_edited(cases: int, seed: int, folder: Path) -> Outcomes:
    """Tables with damaged bytes are refused, or give labels that hold together."""

    def check(raw: bytes) -> str:
        try:
            found = labels.read(_write(folder, {"damaged.csv": raw}))
        except labels.LabelError as error:
            assert "damaged.csv" in str(error) and "\n" not in str(error), str(error)
            return REFUSED
        assert found.targets.shape == (len(found.tiles), len(found.names))
        assert len(set(found.tiles)) == len(found.tiles) > 0
        assert len(set(found.names)) == len(found.names) > 0
        assert set(found.targets.ravel().tolist()) <= {0, 1}
        _audit(found, folder)
        return ACCEPTED

    sources = grids().flatmap(lambda case: saved(case[0]["category0"]))
    return explore(edited(sources, edits=1, size=1), check, cases=cases, seed=seed)


def run_import(cases: int, seed: int, folder: Path, *, forms: dict[str, bytes], images: dict[str, bytes]) -> Outcomes:
    """Damaged tables among folders of images give labels or are refused by their name; folders never replace them."""

    def check(case: tuple[str, bytes]) -> str:
        name, raw = case
        _write(folder, images | {name: raw})
        try:
            plan = importing.look(folder)
        except (importing.SourceError, labels.LabelError) as error:
            assert "\n" not in str(error), str(error)
            return REFUSED
        assert plan.read or name.endswith(".txt"), plan.notes
        return ACCEPTED

    cases_of = {name: st.tuples(st.just(name), edited(st.just(raw))) for name, raw in forms.items()}
    return explore(st.one_of(*cases_of.values()), check, cases=cases, seed=seed)


def _write(folder: Path, contents: dict[str, bytes]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return folder_of(folder, contents)


def _audit(found: labels.Labels, folder: Path) -> None:
    report = audit.audit(folder)
    tree: Any = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert tree["tiles"] == len(found.tiles)
    Console(file=io.StringIO(), width=100).print(audit.render(report))
