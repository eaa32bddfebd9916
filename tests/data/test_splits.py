"""Splits: sizes, independence of file order, groups kept together, labels balanced."""

import io
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from satclr.data import labels, splits, tiles

PAPER = (0.7, 0.2, 0.1)


def tile_names(count: int) -> list[str]:
    return [f"tile_{i:05}.jpg" for i in range(count)]


def rare_targets(count: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Labels from common to rare, correlated through a scene a tile."""
    rates = np.geomspace(0.5, 0.01, 15)
    scene = rng.uniform(0.2, 1.8, (count, 1))
    return np.asarray((rng.random((count, 15)) < rates * scene).astype(np.uint8))


@given(st.integers(10, 400), st.integers(0, 2**31), st.sampled_from([PAPER, (0.5, 0.25, 0.25), (0.34, 0.33, 0.33)]))
def test_sizes_are_the_rounded_fractions(count: int, seed: int, fractions: splits.Fractions) -> None:
    sizes = Counter(splits.split(tile_names(count), fractions=fractions, seed=seed))
    train = round(fractions[0] * count)
    train_val = round((fractions[0] + fractions[1]) * count)
    assert abs(sizes["train"] - train) <= 1  # the sum of two binary fractions may round to the other side
    assert abs(sizes["train"] + sizes["val"] - train_val) <= 1
    assert sum(sizes.values()) == count


def test_the_papers_sizes() -> None:
    sizes = Counter(splits.split(tile_names(109_161), fractions=PAPER, seed=0))
    assert sizes == {"train": 76_413, "val": 21_832, "test": 10_916}


@pytest.mark.parametrize("how", ["tile", "group", "stratify"])
def test_the_order_of_files_does_not_matter_and_the_seed_does(how: str) -> None:
    rng = np.random.default_rng()
    names, groups, targets = np.array(tile_names(300)), rng.integers(0, 200, 300), rare_targets(300, rng)
    order = rng.permutation(300)

    def draw(rows: npt.NDArray[np.intp], seed: int) -> dict[str, str]:
        options: dict[str, Any] = {"group": {"groups": groups[rows].tolist()}, "stratify": {"stratify": targets[rows]}}
        shuffled = names[rows].tolist()
        drawn = splits.split(shuffled, fractions=PAPER, seed=seed, **options.get(how, {}))
        return dict(zip(shuffled, drawn, strict=True))

    assert draw(np.arange(300), 5) == draw(order, 5)
    assert draw(order, 5) != draw(order, 6)


def test_groups_stay_together() -> None:
    names, groups = tile_names(1000), np.random.default_rng().integers(0, 400, 1000).tolist()
    largest = max(Counter(groups).values())
    together = splits.split(names, fractions=PAPER, seed=1, groups=groups)
    assert splits.spanning(together, groups) == 0
    for name, share in zip(tiles.SPLITS, PAPER, strict=True):
        assert abs(together.count(name) - share * 1000) <= 2 * largest
    assert splits.spanning(splits.split(names, fractions=PAPER, seed=1), groups) > 100
    assert splits.spanning(["train", "test", "test", "val", "val", "test"], [0, 1, 0, 3, 3, 1]) == 1


def worst(drawn: list[str], targets: npt.NDArray[np.uint8]) -> float:
    whole = targets.mean(0)
    return max(float(abs(share / whole - 1).max()) for share in splits.prevalence(drawn, targets).values())


@pytest.mark.parametrize("grouped", [False, True])
def test_stratification_balances_rare_labels(*, grouped: bool) -> None:
    names, targets = tile_names(3000), rare_targets(3000, np.random.default_rng())
    groups = [i // 2 if i < 600 else i for i in range(3000)] if grouped else None
    even = splits.split(names, fractions=PAPER, seed=0, groups=groups, stratify=targets)
    chance = [splits.split(names, fractions=PAPER, seed=seed, groups=groups) for seed in range(10)]
    assert worst(even, targets) < 0.6 * np.mean([worst(drawn, targets) for drawn in chance])
    for name, share in zip(tiles.SPLITS, PAPER, strict=True):
        assert abs(even.count(name) - share * 3000) <= 0.01 * 3000
    if groups:
        assert splits.spanning(even, groups) == 0


def test_stratification_deals_a_label_out_exactly_where_it_can() -> None:
    """One label at a time and no unlabelled tiles: each label's tiles split exactly as the fractions."""
    targets = np.repeat(np.eye(4, dtype=np.uint8), [10, 20, 30, 40], axis=0)
    drawn = splits.split(tile_names(100), fractions=PAPER, seed=8, stratify=targets)
    for name, share in zip(tiles.SPLITS, PAPER, strict=True):
        mine = targets[np.array(drawn) == name].sum(0)
        np.testing.assert_allclose(mine, share * np.array([10, 20, 30, 40]))


def test_mlrsnets_rarest_label_is_balanced_in_seconds(external_data: Path) -> None:
    table = labels.read(external_data / "mlrsnet-labels" / "release-2020-06-30")
    drawn = splits.split(table.tiles, fractions=PAPER, seed=0, stratify=table.targets)
    assert worst(drawn, table.targets) < 0.02


def test_a_split_file_is_read_by_column_name(tmp_path: Path) -> None:
    path = tmp_path / "split.csv"
    path.write_bytes(b"\xef\xbb\xbf Split ,note,image\r\ntest,x,b.jpg\r\ntrain,y,a.jpg\r\nval,z, c.jpg\r\n")
    assert splits.from_file(path, ["a.jpg", "b.jpg", "c.jpg"]) == ["train", "test", "val"]
    assert splits.from_file(path, ["c.jpg", "b.jpg", "a.jpg"], left_out={"d.jpg"}) == ["val", "test", "train"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image,split\na.jpg,train\nb.jpg,test\n", "c.jpg"),
        ("image,split\na.jpg,train\nb.jpg,test\nc.jpg,val\nd.jpg,val\n", "d.jpg"),
        ("image,split\na.jpg,train\nb.jpg,dev\nc.jpg,val\n", "line 3.*'dev'"),
        ("image,split\na.jpg,train\na.jpg,test\n", "line 3.*'a.jpg'"),
        ("tile,split\na.jpg,train\n", "image and split"),
        ("image,split\na.jpg,train\nb.jpg,train\nc.jpg,val\n", "test split is empty"),
        ("", "image and split"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_split_file_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "split.csv").write_text(text)
    with pytest.raises(splits.SplitError, match=said):
        splits.from_file(tmp_path / "split.csv", ["a.jpg", "b.jpg", "c.jpg"])


def test_a_split_that_cannot_be_made_is_refused() -> None:
    with pytest.raises(splits.SplitError, match="val split is empty"):
        splits.split(["a.jpg", "b.jpg"], fractions=(0.5, 0.25, 0.25), seed=0, groups=[0, 0])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=40))
def test_united_groups_are_the_finest_that_keep_both_kinds_together(pairs: list[tuple[int, int]]) -> None:
    first, second = zip(*pairs, strict=True)
    united = splits.united(first, second)
    expected = list(range(len(pairs)))
    for _ in pairs:  # each tile takes the least number of those it shares a key with
        expected = [min(expected[j] for j, pair in enumerate(pairs) if pair[0] == a or pair[1] == b) for a, b in pairs]
    assert len(set(zip(united, expected, strict=True))) == len(set(united)) == len(set(expected))


def test_the_summary_shows_what_is_uneven_first() -> None:
    targets = np.stack([np.arange(100) % 2 == 0, np.arange(100) < 3], axis=1).astype(np.uint8)
    drawn = ["train"] * 70 + ["val"] * 20 + ["test"] * 10
    out = Console(file=io.StringIO(), width=100)
    with out.capture() as captured:
        out.print(splits.summary(drawn, targets, ["balanced", "scarce"]))
    text = captured.get()
    assert text.index("scarce") < text.index("none in val, test") < text.index("balanced")
    assert "train (70)" in text
    np.testing.assert_allclose(splits.prevalence(drawn, targets)["train"], [0.5, 3 / 70])
