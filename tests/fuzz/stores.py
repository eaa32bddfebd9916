"""From folders of tiles and tables to the store and back: whatever tiles, labels and categories are called."""

import shutil
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
from hypothesis import strategies as st
from PIL import Image

from satclr import files
from satclr.data import prepare, splits, tiles

from ..conftest import make_run
from . import ACCEPTED, REFUSED, Outcomes, explore
from .tables import TILE, grids

SIDE = 8
THIRDS = {"split": {"fractions": [0.34, 0.33, 0.33]}}


def run(cases: int, seed: int, folder: Path) -> Outcomes:
    """Each row of the index is a row of the tables, with its pixels and its labels."""
    settings = make_run(data={"tile_px": SIDE, **THIRDS}).settings.data
    categories = st.lists(TILE.filter(lambda t: len(t.encode()) < 200), min_size=3, max_size=3, unique=True)

    def check(case: tuple[Any, list[str]]) -> str:
        (found, truth), names = case
        hypothesis.assume(len(truth) >= 5)
        shutil.rmtree(folder, ignore_errors=True)
        for (_, grid), category in zip(found.items(), names, strict=False):
            _write(folder / "data", category, grid)
        try:
            prepare.write_store(folder / "data", folder / "build", settings)
        except splits.SplitError as error:  # few tiles, most without labels
            assert "has a label" in str(error), error
            return REFUSED
        store = tiles.open_store(folder / "build")
        assert {name.removesuffix(".png") for name in store.names} == set(truth)
        for row, name in enumerate(store.names):
            labels = dict(zip(store.labels, store.targets[row].tolist(), strict=True))
            assert labels == truth[name.removesuffix(".png")]
            np.testing.assert_array_equal(store.pixels[row], _tile(name))
        return ACCEPTED

    return explore(st.tuples(grids(), categories), check, cases=cases, seed=seed)


def _write(data: Path, category: str, grid: list[list[str]]) -> None:
    place = next(i for i, cell in enumerate(grid[0]) if cell.strip().casefold() == "image")
    rows = [[*row[:place], f"{row[place]}.png", *row[place + 1 :]] for row in grid[1:]]
    files.write_csv(data / "Labels" / f"{category}.csv", grid[0], rows)
    (data / "Images" / category).mkdir(parents=True)
    for row in rows:
        Image.fromarray(_tile(row[place])).save(data / "Images" / category / row[place])


def _tile(name: str) -> Any:
    """A tile that is a function of its name."""
    return np.random.default_rng(list(name.encode())).integers(1, 256, (SIDE, SIDE, 3), np.uint8)
