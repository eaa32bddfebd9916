"""Tile store and encoder to features: which tiles share a batch, and what that does."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from satclr import files
from satclr.data import tiles
from satclr.evaluation import embed, probe
from satclr.pretrain import encoder
from tests.conftest import make_run

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


def test_an_index_in_another_order_moves_batch_statistics_no_more_than_another_seed(store: tiles.TileStore) -> None:
    long = replace(store, splits=np.resize(["train"], 600))
    by_category = np.repeat(np.arange(3.0), 200) + np.random.default_rng(4).normal(size=600)
    shuffled = np.random.default_rng(5).permutation(by_category)

    def kept(x: npt.NDArray[np.float64], batches: list[embed.Rows]) -> float:
        """How much values still tell of themselves when the mean and the deviation of each batch are taken away."""
        z = x.copy()
        for rows in batches:
            z[rows] = (x[rows] - x[rows].mean()) / x[rows].std()
        return float(np.corrcoef(x, z)[0, 1])

    runs = [make_run(seed=seed, probe=BATCH) for seed in range(6)]
    before, after = ([kept(x, embed.split_batches(long, "train", r)) for r in runs] for x in (by_category, shuffled))
    spread = max(before) - min(before)
    assert min(before) - spread < min(after) <= max(after) < max(before) + spread
    assert (
        kept(by_category, tiles.split_batches(long.rows("train"), 16)) < min(before) - 3 * spread
    )  # one category each
