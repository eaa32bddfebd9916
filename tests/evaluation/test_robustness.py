"""Encoder to robustness, with a small random encoder: embed, probe, evaluate, robustness."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
import torch

from satclr import files, params, randomness
from satclr.data import tiles
from satclr.evaluation import corruptions, embed, evaluate, knn, probe, robustness
from satclr.pretrain import encoder
from satclr.project import Run

from .conftest import MakeRun

ARCH = "shufflenet_v2_x0_5"


def log(_step: int, _metrics: object) -> None:
    """The stages here have nothing to log."""


def with_encoder(run: Run) -> Run:
    with randomness.seeded(0):
        module, width = encoder.build(ARCH)
    facts = {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_px": 64, "tile_px": 40}
    encoder.save(module, run.encoder, arch=ARCH, width=width, **facts)
    return run


def test_untouched_tiles_score_as_in_evaluate_and_corrupted_ones_otherwise(
    run_of: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "LABEL_FRACTIONS", ())
    monkeypatch.setattr(knn, "NEIGHBOURS", 3)
    run = with_encoder(run_of("baseline", probe={"epochs": 20}))
    for stage in (embed, probe, evaluate):
        stage.run(run, log)
    out = run.results / "robustness.json"

    def measure() -> bytes:
        robustness.run(run, log)
        return out.read_bytes()

    assert measure() == measure()
    found = json.loads(out.read_text())
    evaluated = json.loads((run.results / "metrics.json").read_text())
    assert found["clean_mAP"] == pytest.approx(evaluated["test_mAP"], abs=1e-6)
    assert list(found["corruptions"]) == ["haze", "rotation"]
    values = [v for each in found["corruptions"].values() for v in each.values()]
    assert len(values) == 4
    assert found["mean_corruption_mAP"] == pytest.approx(sum(values) / 4)
    assert found["relative_drop"] == pytest.approx(1 - sum(values) / 4 / found["clean_mAP"])
    assert any(v != found["clean_mAP"] for v in values)
    assert "under corruption" in capsys.readouterr().out
    run.probe.unlink()
    with pytest.raises(files.FileError, match="run `satclr probe` first"):
        robustness.run(run, log)


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
    rows = store.rows("test")[:8]
    frozen = encoder.Frozen(batch.encoder, batch_norm="batch")
    expected = frozen(torch.from_numpy(store.pixels[rows]))
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


def test_no_corruptions_is_an_empty_file(run_of: MakeRun) -> None:
    run = run_of(robustness={"corruptions": []})
    robustness.run(run, log)
    assert json.loads((run.results / "robustness.json").read_text())["corruptions"] == {}


def test_params_knows_every_corruption() -> None:
    assert get_args(params.Corruption) == tuple(corruptions.CORRUPTIONS)
