from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from satclr.data import tiles


def test_stream_gives_each_batch_in_order(store: tiles.TileStore) -> None:
    batches = tiles.split_batches(np.random.default_rng(1).permutation(len(store.names)), 7)
    for wanted, (given, batch) in zip(batches, tiles.stream(store, batches, torch.device("cpu")), strict=True):
        np.testing.assert_array_equal(wanted, given)
        np.testing.assert_array_equal(batch.numpy(), store.pixels[wanted])
    part = replace(store, pixels=store.pixels[:9])  # of a memory map
    assert [len(batch) for _, batch in tiles.stream(part, [np.arange(9)], torch.device("cpu"))] == [9]


@pytest.mark.parametrize(("count", "sizes"), [(9, [4, 5]), (8, [4, 4]), (6, [4, 2]), (1, [1])])
def test_a_last_batch_of_one_tile_joins_the_one_before(count: int, sizes: list[int]) -> None:
    batches = tiles.split_batches(np.arange(count), 4, smallest=2)
    assert [len(batch) for batch in batches] == sizes
    assert [row for batch in batches for row in batch] == list(range(count))


def test_a_store_says_what_is_missing_or_damaged(store: tiles.TileStore, tmp_path: Path) -> None:
    with pytest.raises(tiles.TileError, match="satclr prepare"):
        tiles.open_store(tmp_path)
    for name in ("tiles.npy", "index.csv", "stats.json"):
        (tmp_path / name).write_bytes((store.folder / name).read_bytes())
    np.save(tmp_path / "tiles.npy", store.pixels[:5])
    with pytest.raises(tiles.TileError, match=f"5 tiles but {len(store.names)} rows"):
        tiles.open_store(tmp_path)
    (tmp_path / "tiles.npy").write_bytes(b"\x93NUMPY no")
    with pytest.raises(tiles.TileError, match="damaged"):
        tiles.open_store(tmp_path)
    with pytest.raises(tiles.TileError, match="satclr embed"):
        tiles.load_features(tmp_path / "none.npy", store)


@pytest.mark.parametrize("which", tiles.LEARNED)
def test_an_arm_learns_from_the_tiles_it_names_and_may_leave_out_those_it_is_tested_on(
    store: tiles.TileStore, which: str
) -> None:
    train, val, test = (store.rows(split) for split in tiles.SPLITS)
    splits, groups = store.splits.astype("<U10"), np.arange(len(store.names))
    splits[train[6:9]] = tiles.UNLABELLED
    groups[train[0]] = groups[train[6]] = groups[test[0]]
    groups[train[3]] = groups[val[1]]
    groups[train[5]] = groups[train[4]]
    groups[val[2]] = groups[test[2]]
    mixed = replace(store, splits=splits, groups=groups)
    every = {"train": [*train[:6], *train[9:]], "unlabelled": [*train[6:9]], "both": [*train]}[which]
    apart = [row for row in every if row not in train[[0, 3, 6]]]
    for near, expected in (("keep", every), ("leave_out", apart)):
        learned = mixed.learning(near, tiles=which)
        assert [learned.rows(split).tolist() for split in tiles.SPLITS] == [expected, val.tolist(), test.tolist()]
        assert learned.digest == store.digest
    with pytest.raises(tiles.TileError, match=r"no tile to learn from .* put images into data/.*/Unlabelled"):
        replace(mixed, groups=np.zeros_like(groups)).learning("leave_out", tiles=which)
