"""The renderer of the embedded sample: reproducible bytes, MLRSNet's layout, labels that are visible."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.sample import CATEGORIES, LABELS, MAX_LABELS, render, tile
from tools.sample.canvas import Canvas
from tools.sample.texture import TILE_PX
from tools.sample.things import visible

PER_CATEGORY = 2


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    render(folder, tiles_per_category=PER_CATEGORY)
    return folder


def test_the_layout_is_mlrsnets_and_each_tile_has_some_labels(sample: Path) -> None:
    for category in CATEGORIES:
        with (sample / "Labels" / f"{category}.csv").open(newline="") as file:
            header, *rows = csv.reader(file)
        assert header == ["image", *LABELS]
        assert [row[0] for row in rows] == [f"{category}_{n:05d}.jpg" for n in range(1, PER_CATEGORY + 1)]
        for name, *values in rows:
            assert 1 <= values.count("1") <= MAX_LABELS
            with Image.open(sample / "Images" / category / name) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (TILE_PX, TILE_PX))


def test_a_tile_is_a_function_of_seed_category_and_index(sample: Path) -> None:
    written = [path.read_bytes() for path in (sample / "Images").rglob("*.jpg")]
    assert len(set(written)) == PER_CATEGORY * len(CATEGORIES)
    again = tile("river", 2)[0]
    assert again == (sample / "Images" / "river" / "river_00002.jpg").read_bytes()
    assert again != tile("river", 2, seed=1)[0]


def test_only_what_is_visible_is_labelled() -> None:
    canvas = Canvas(np.random.default_rng(0), (50, 50))
    canvas.surface("grass", (100, 120, 70))
    canvas.disc((200, 0), 20, (200, 200, 200), "tank")  # outside the tile
    assert visible(canvas.things) == {"grass"}
    canvas.disc((0, 0), 5, (200, 200, 200), "tank")
    assert visible(canvas.things) == {"grass", "tanks"}
    canvas.disc((0, 0), 5.5, (40, 60, 40), "tree")  # covers the tank
    assert visible(canvas.things) == {"grass", "trees"}
