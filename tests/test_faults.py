"""The short form of `make faults`: one stage, two kills; and what it would say of a loss."""

from pathlib import Path

from . import faults
from .conftest import tiny_params

TARGET = "pretrain@tiny-simclr-0"


def test_a_killed_repro_ends_with_the_bytes_of_an_undisturbed_one(tiny_data: Path, tmp_path: Path) -> None:
    tree = tiny_params()
    tree["profiles"]["tiny"]["pretrain"]["epochs"] = 4
    reference, twin = (
        faults.make(tmp_path / name, tree=tree, data=tiny_data, targets=(TARGET,)) for name in ("a", "b")
    )
    reference.repro()
    order = reference.stages()
    assert order == ["prepare@tiny", TARGET]
    plan = [
        faults.Moment(TARGET, 0.0, "all", ".cache/checkpoints/*/*.part"),
        faults.Moment(TARGET, 0.0, "dvc", ".cache/checkpoints/*/checkpoint.*"),
    ]
    assert [kill.victim for moment in plan if (kill := faults.kill(twin, moment, order))] == ["all", "dvc"]
    twin.repro()
    assert twin.outputs() == reference.outputs()
    assert twin.tracked()["running"] == 0
    assert twin.processes() == []


def test_every_kind_of_loss_is_reported() -> None:
    good = {"different": [], "runs_left_open": 0, "processes_left": 0, "mlflow_equal": True, "up_to_date": True}
    assert faults.losses(good | {"stops": [["embed", "SIGTERM", 143, 0.5]]}) == []
    bad = {"different": ["probe.safetensors"], "runs_left_open": 1, "processes_left": 2, "mlflow_equal": False}
    stops = [["embed", "SIGTERM", 1, 0.5], ["embed", "SIGINT", 130, 9.0]]
    assert len(faults.losses(bad | {"up_to_date": False, "stops": stops})) == 7
