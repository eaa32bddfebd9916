"""Tile store and encoder to features: which tiles share a batch, and what that does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satclr import files
from satclr.data import prepare, tiles
from satclr.evaluation import embed, logistic, metrics, probe
from satclr.pretrain import encoder
from tests.conftest import make_run, write_data

from .conftest import MakeRun, log, with_encoder

BATCH = {"batch_norm": "batch", "batch_size": 16}


def test_features_are_the_encoders_and_depend_on_the_batch_only_where_asked(
    run_of: MakeRun, store: tiles.TileStore, capsys: pytest.CaptureFixture[str]
) -> None:
    run = with_encoder(run_of("baseline"))
    embed.run(run, log)
    features = np.load(run.features)
    alone = encoder.Frozen(run.encoder)(torch.from_numpy(store.pixels[[0]]))
    np.testing.assert_allclose(features[:1], alone, rtol=1e-4, atol=1e-5)
    assert "embed: float32 (as set)" in capsys.readouterr().err
    batch = with_encoder(run_of("baseline", probe={"batch_norm": "batch", "batch_size": 8}))
    embed.run(batch, log)
    rows = embed.split_batches(store, "train", batch)[1]
    expected = encoder.Frozen(batch.encoder, batch_norm="batch")(torch.from_numpy(store.pixels[rows]))
    np.testing.assert_allclose(np.load(batch.features)[rows], expected, rtol=1e-4, atol=1e-5)
    assert not np.allclose(np.load(batch.features), features, atol=1e-2)
    probe.run(batch, log)  # encodes each batch anew
    assert batch.probe.is_file()


def test_features_that_are_not_finite_are_refused(run_of: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = with_encoder(run_of("baseline"))
    before = run.features.read_bytes()
    monkeypatch.setattr(encoder.Frozen, "__call__", lambda self, batch: np.full((len(batch), self.width), np.nan))
    with pytest.raises(encoder.EncoderError, match="not finite"):
        embed.run(run, log)
    assert run.features.read_bytes() == before
    assert not files.part_of(run.features).exists()


def test_batches_are_in_index_order_unless_their_tiles_share_statistics(store: tiles.TileStore) -> None:
    long = replace(store, splits=np.resize(["train", "train", "test"], 900))
    frozen = embed.split_batches(long, "train", make_run())
    assert [len(rows) for rows in frozen] == [256, 256, 88]
    assert np.array_equal(np.concatenate(frozen), long.rows("train"))
    seeds = [embed.split_batches(long, "train", make_run(seed=seed, probe=BATCH)) for seed in (0, 0, 1)]
    assert {len(rows) for rows in seeds[0]} == {16, 8}
    orders = [np.concatenate(batches) for batches in seeds]
    assert np.array_equal(orders[0], orders[1])
    assert all(np.array_equal(np.sort(order), long.rows("train")) for order in orders)
    assert not np.array_equal(orders[0], orders[2])
    assert np.abs(np.corrcoef(orders[0], np.arange(600))[0, 1]) < 0.2  # not sorted, not even mostly


class ColourOfTheBatch:
    """A tile's mean colour, normalised by the mean and deviation of its batch, with noise: no probe is perfect."""

    width, device = 3, torch.device("cpu")

    def __call__(self, batch: torch.Tensor) -> Any:
        colour = batch.float().mean((1, 2))
        noise = np.random.default_rng(int(batch.sum(dtype=torch.int64))).normal(size=(len(batch), 3))
        return (((colour - colour.mean(0)) / (colour.std(0) + 1e-6)).numpy() + 0.7 * noise).astype(np.float32)


def test_an_index_in_another_order_moves_batch_statistics_no_more_than_another_seed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(tmp_path / "data", tiles_per_category=64)
    data = {"split": {"fractions": [0.5, 0.1, 0.4]}}
    prepare.write_store(tmp_path / "data", tmp_path / "build" / "tiny", make_run(data=data).settings.data)
    by_category = tiles.open_store(tmp_path / "build" / "tiny")
    assert by_category.categories == sorted(by_category.categories)
    order = np.random.default_rng(5).permutation(len(by_category.names))
    moved = {name: getattr(by_category, name)[order] for name in ("pixels", "targets", "splits")}
    shuffled = replace(by_category, **moved, names=[by_category.names[i] for i in order])
    monkeypatch.setattr(embed, "load_encoder", lambda _run: ColourOfTheBatch())

    def mean_ap(store: tiles.TileStore, seed: int) -> float:
        run = make_run(tmp_path, "baseline", seed, probe=BATCH)
        monkeypatch.setattr(tiles, "open_store", lambda _folder: store)
        embed.run(run, log)
        features = np.load(run.features)
        train, test = (store.rows(split) for split in ("train", "test"))
        x, tested = logistic.standardize(features[train], features[test])
        ((_, weight, bias),) = logistic.fit(x, store.targets[train], strengths=[0.01])
        return metrics.mean_average_precision(tested @ weight.T + bias, store.targets[test])

    before, after = ([mean_ap(store, seed) for seed in range(6)] for store in (by_category, shuffled))
    spread = max(before) - min(before)
    assert min(before) - spread < min(after) <= max(after) < max(before) + spread
    with monkeypatch.context() as patch:
        patch.setattr(embed, "split_batches", lambda s, split, _run: tiles.split_batches(s.rows(split), 16))
        assert mean_ap(by_category, 0) < min(before) - 3 * spread  # one category a batch
