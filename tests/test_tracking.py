from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import made_up
from satclr import tracking

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a project"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    return folder


def runs(root: Path, query: str = "") -> list[Any]:
    store = tracking.open_store(root, "sample")
    return list(store.client.search_runs([store.experiment_id], query))


def publish(root: Path, arm: str = "simclr", **params: Any) -> str:
    return tracking.publish(root, profile="sample", arm=arm, seed=0, params=params, fingerprint="f0")


def test_an_arm_run_holds_every_number_of_the_outputs(root: Path) -> None:
    metrics = made_up.write(root, arm="simclr")
    run_id = publish(root, epochs=3)
    store = tracking.open_store(root, "sample")
    run = store.client.get_run(run_id)
    assert run.info.run_name == "simclr-s0"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "3"}
    assert run.data.metrics["test/mAP"] == metrics["test_mAP"]
    assert {key for key in run.data.metrics if key.startswith("test_ap/")} == {
        "test_ap/airplane",
        "test_ap/parking lot",
        "test_ap/swimming pool",
        "test_ap/ship_boat",
    }
    history = store.client.get_metric_history(run_id, "pretrain/loss")
    assert [(point.step, point.value) for point in history] == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]


def test_publishing_the_same_outputs_again_adds_nothing_and_changed_ones_supersede(root: Path) -> None:
    made_up.write(root, arm="simclr")
    first = publish(root)
    assert publish(root) == first
    made_up.write(root, arm="simclr", skill=2)
    second = publish(root)
    state = {run.info.run_id: run.data.tags["satclr.state"] for run in runs(root)}
    assert state == {first: "superseded", second: "current"}
    made_up.write(root, arm="simclr")
    assert publish(root) == first
    state = {run.info.run_id: run.data.tags["satclr.state"] for run in runs(root)}
    assert state == {first: "current", second: "superseded"}
