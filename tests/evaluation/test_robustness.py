"""Encoder to robustness, with a small random encoder: embed, probe, evaluate, robustness."""

import json
from typing import get_args

import pytest

from satclr import params
from satclr.evaluation import corruptions, embed, evaluate, probe, robustness

from .conftest import MakeRun, log, with_encoder


@pytest.mark.parametrize("batch_norm", ["frozen", "batch"])
def test_untouched_tiles_score_as_in_evaluate_and_corrupted_ones_otherwise(
    batch_norm: str, run_of: MakeRun, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(evaluate, "LABEL_FRACTIONS", ())
    monkeypatch.setattr(evaluate, "NEIGHBOURS", 3)
    run = with_encoder(run_of("baseline", probe={"epochs": 20, "batch_size": 4, "batch_norm": batch_norm}))
    for stage in (embed, probe, evaluate):
        stage.run(run, log)
    texts = set()
    for _ in range(2):
        robustness.run(run, log)
        texts.add((run.results / "robustness.json").read_text())
    (found,) = map(json.loads, texts)
    evaluated = json.loads((run.results / "details.json").read_text())
    assert found["clean_mAP"] == pytest.approx(evaluated["test_mAP"], abs=1e-6)
    assert list(found["corruptions"]) == ["haze", "rotation"]
    values = [v for each in found["corruptions"].values() for v in each.values()]
    assert found["mean_corruption_mAP"] == pytest.approx(sum(values) / 4)
    assert found["relative_drop"] == pytest.approx(1 - sum(values) / 4 / found["clean_mAP"])
    assert any(v != found["clean_mAP"] for v in values)
    assert "under corruption" in capsys.readouterr().out


def test_no_corruptions_is_an_empty_file(run_of: MakeRun) -> None:
    run = run_of(robustness={"corruptions": []})
    robustness.run(run, log)
    assert json.loads((run.results / "robustness.json").read_text())["corruptions"] == {}


def test_params_knows_every_corruption() -> None:
    assert get_args(params.Corruption) == tuple(corruptions.CORRUPTIONS)
