"""The embedded sample: the same bytes each time, MLRSNet's layout, labels a person can see, a small size."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tools.sample import CATEGORIES, LABELS, MAX_LABELS, TILES_PER_CATEGORY, render, tile
from tools.sample.canvas import Canvas
from tools.sample.texture import SIDE_PX, TILE_PX
from tools.sample.things import IDS, visible

PER_CATEGORY = 10
SIZE_BUDGET_BYTES = 8_000_000
LABEL_TABLES = (
    Path(os.environ.get("SATCLR_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "mlrsnet-labels"
    / "release-2020-06-30"
)


def read(table: Path) -> dict[str, frozenset[str]]:
    with table.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", *LABELS]
    for row in rows:
        assert len(row) == len(header)
        assert set(row[1:]) <= {"0", "1"}
    return {
        name: frozenset(k for k, v in zip(LABELS, values, strict=True) if v == "1") for name, *values in rows
    }


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sample")
    render(folder, tiles_per_category=PER_CATEGORY)
    return folder


@pytest.fixture(scope="module")
def labels(sample: Path) -> dict[str, frozenset[str]]:
    return {n: k for category in CATEGORIES for n, k in read(sample / "Labels" / f"{category}.csv").items()}


def test_layout_is_mlrsnets(sample: Path) -> None:
    assert {p.name for p in sample.iterdir()} == {"Images", "Labels"}
    assert {p.name for p in (sample / "Images").iterdir()} == set(CATEGORIES)
    assert {p.name for p in (sample / "Labels").iterdir()} == {f"{category}.csv" for category in CATEGORIES}
    for category in CATEGORIES:
        names = [f"{category}_{n:05d}.jpg" for n in range(1, PER_CATEGORY + 1)]
        assert sorted(p.name for p in (sample / "Images" / category).iterdir()) == names
        assert list(read(sample / "Labels" / f"{category}.csv")) == names
        for name in names:
            with Image.open(sample / "Images" / category / name) as image:
                assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (TILE_PX, TILE_PX))


def test_spelling_is_mlrsnets() -> None:
    if not LABEL_TABLES.is_dir():
        pytest.skip(
            "MLRSNet's label tables are absent: set SATCLR_DATA to the folder that holds mlrsnet-labels"
        )
    tables = {path.stem: path for path in LABEL_TABLES.glob("*.csv")}
    assert set(CATEGORIES) <= set(tables)
    with tables["forest"].open(newline="") as file:
        assert set(LABELS) <= {name.strip() for name in next(csv.reader(file))}


def test_scale_of_the_set() -> None:
    assert len(CATEGORIES) >= 12
    assert len(LABELS) >= 20
    assert 1100 <= len(CATEGORIES) * TILES_PER_CATEGORY <= 1300


def test_same_seed_gives_same_bytes(sample: Path, tmp_path: Path) -> None:
    render(tmp_path, tiles_per_category=1)
    for category in CATEGORIES:
        name = f"Images/{category}/{category}_00001.jpg"
        assert (tmp_path / name).read_bytes() == (sample / name).read_bytes()
        again, at = (tmp_path / "Labels" / f"{category}.csv"), (sample / "Labels" / f"{category}.csv")
        assert again.read_bytes().splitlines() == at.read_bytes().splitlines()[:2]


def test_seed_category_and_index_each_matter(sample: Path) -> None:
    tiles = [path.read_bytes() for path in (sample / "Images").rglob("*.jpg")]
    assert len(set(tiles)) == len(tiles) == PER_CATEGORY * len(CATEGORIES)
    assert tile("forest", 1, seed=1)[0] != tile("forest", 1, seed=0)[0]


def test_a_tile_depends_on_nothing_rendered_before_it(sample: Path) -> None:
    jpeg, labels = tile("river", PER_CATEGORY)
    name = f"river_{PER_CATEGORY:05d}.jpg"
    assert jpeg == (sample / "Images" / "river" / name).read_bytes()
    assert labels == read(sample / "Labels" / "river.csv")[name]


def test_labels_a_tile(labels: dict[str, frozenset[str]]) -> None:
    sizes = [len(k) for k in labels.values()]
    assert min(sizes) >= 1
    assert max(sizes) <= MAX_LABELS == 8
    assert 3 <= np.mean(sizes) <= 6


def test_labels_over_the_set(labels: dict[str, frozenset[str]]) -> None:
    scale = TILES_PER_CATEGORY / PER_CATEGORY
    for label in LABELS:
        positives = sum(label in k for k in labels.values())
        assert positives * scale >= 25, label
        assert positives <= 0.7 * len(labels), label
    assert len(set(labels.values())) > len(CATEGORIES) * 4  # not the category under another name


def test_many_labels_occur_in_several_categories(labels: dict[str, frozenset[str]]) -> None:
    homes = {label: {name.rsplit("_", 1)[0] for name, k in labels.items() if label in k} for label in LABELS}
    assert sum(len(home) >= 3 for home in homes.values()) >= len(LABELS) // 2


def test_size_budget(sample: Path) -> None:
    sizes = [path.stat().st_size for path in (sample / "Images").rglob("*.jpg")]
    assert np.mean(sizes) * len(CATEGORIES) * TILES_PER_CATEGORY < 0.95 * SIZE_BUDGET_BYTES


def test_light_varies_within_a_category(sample: Path) -> None:
    for category in CATEGORIES:
        means = []
        for path in (sample / "Images" / category).iterdir():
            with Image.open(path) as image:
                means.append(np.asarray(image, float).mean())
        assert np.std(means) > 8, category


def blank(seed: int = 0) -> Canvas:
    canvas = Canvas(np.random.default_rng(seed), (50, 50))
    canvas.surface("grass", (100, 120, 70))
    return canvas


def test_what_is_covered_loses_its_label() -> None:
    canvas = blank()
    canvas.disc((0, 0), 5, (200, 200, 200), "tank")
    assert visible(canvas.things) == {"grass", "tanks"}
    canvas.disc((0, 0), 5.5, (40, 60, 40), "tree")
    assert visible(canvas.things) == {"grass", "trees"}


def test_a_speck_or_a_thing_outside_the_tile_is_not_named() -> None:
    canvas = blank()
    canvas.disc((0, 0), 0.4, (200, 200, 200), "tank")
    canvas.disc((200, 0), 20, (200, 200, 200), "tank")
    assert visible(canvas.things) == {"grass"}


@pytest.mark.parametrize("seed", range(4))
def test_place_inverts_px(seed: int) -> None:
    canvas = blank(seed)
    u, v = canvas.uniform(-20, 20), canvas.uniform(-14, 14)
    assert canvas.place(*canvas.px(u, v)) == pytest.approx((u, v))
    x, y = (min(SIDE_PX - 1, max(0, round(p))) for p in canvas.px(u, v))
    at = canvas.place(x, y)
    assert math.dist((canvas.u[y, x], canvas.v[y, x]), at) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_a_shadow_falls_away_from_the_sun(seed: int) -> None:
    canvas = blank(seed)
    before = np.asarray(canvas.image, float).mean(axis=2)
    canvas.shadow(discs=[((0, 0), 2, 4)])
    dark = np.argwhere(np.asarray(canvas.image, float).mean(axis=2) < 0.9 * before)
    y, x = dark.mean(axis=0) - SIDE_PX / 2
    assert x * canvas.sun[0] + y * canvas.sun[1] < 0
    assert np.asarray(canvas.things).max() == IDS["grass"]


def test_impossible_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="tiles_per_category at least 1, got 0 and 0"):
        render(tmp_path, tiles_per_category=0)
    with pytest.raises(ValueError, match="got -1 and 2"):
        render(tmp_path, seed=-1, tiles_per_category=2)
