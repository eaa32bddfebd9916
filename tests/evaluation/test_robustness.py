from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import pytest

from satclr.evaluation import corruptions, embed, evaluate, probe, robustness
from satclr import params
from satclr.pretrain import stage as pretrain
from satclr.data import tiles

from .conftest import resolve

QUICK = {"labels": {"fractions": [], "subsets": 1}, "sweep": {"epochs": 1}}


def test_untouched_tiles_score_as_in_evaluate_and_corrupted_ones_otherwise(
    store: tiles.TileStore, tmp_path: Path
) -> None:
    arm = resolve("baseline", evaluate=QUICK, probe={"epochs": 20})
    nothing = lambda *_: None  # noqa: E731
    weights, features, layer = (tmp_path / n for n in ("e.safetensors", "features.npy", "probe.safetensors"))
    pretrain.run(
        store, settings=arm.settings, seed=0, root=tmp_path, out=weights, curve=tmp_path / "pretrain.csv",
        log=nothing,
    )  # fmt: skip
    embed.run(store, encoder=weights, out=features, settings=arm.settings)
    probe.run(
        store, features=features, encoder=weights, out=layer, curve=tmp_path / "probe.csv",
        settings=arm.settings, seed=0, log=nothing,
    )  # fmt: skip
    evaluated = evaluate.run(store, features=features, probe=layer, out=tmp_path, arm=arm)
    out = tmp_path / "robustness.json"

    def measure() -> bytes:
        robustness.run(store, encoder_file=weights, probe=layer, out=out, arm=arm)
        return out.read_bytes()

    assert measure() == measure()
    found = json.loads(out.read_text())
    assert found["clean_mAP"] == pytest.approx(evaluated["test_mAP"], abs=1e-6)
    assert list(found["corruptions"]) == ["haze", "rotation"]
    values = [v for each in found["corruptions"].values() for v in each.values()]
    assert len(values) == 4
    assert found["mean_corruption_mAP"] == pytest.approx(sum(values) / 4)
    assert found["relative_drop"] == pytest.approx(1 - sum(values) / 4 / found["clean_mAP"])
    assert any(v != found["clean_mAP"] for v in values)
    layer.unlink()
    with pytest.raises(tiles.TileError, match="run `satclr probe` first"):
        robustness.run(store, encoder_file=weights, probe=layer, out=out, arm=arm)


def test_no_corruptions_is_a_file_that_says_so(store: tiles.TileStore, tmp_path: Path) -> None:
    arm = resolve(robustness={"corruptions": []})
    out = tmp_path / "robustness.json"
    robustness.run(store, encoder_file=tmp_path / "none", probe=tmp_path / "none", out=out, arm=arm)
    assert json.loads(out.read_text())["corruptions"] == {}


def test_params_knows_every_corruption() -> None:
    assert get_args(params.Corruption) == tuple(corruptions.CORRUPTIONS)
