"""The short form of `make faults`: two stages, three kills; and what each table of it would say of a loss."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from . import faults
from .conftest import tiny_params

TARGET = "pretrain@tiny-simclr-0"


def test_a_killed_repro_ends_with_the_bytes_of_an_undisturbed_one(tiny_data: Path, tmp_path: Path) -> None:
    tree = tiny_params()
    tree["profiles"]["tiny"]["pretrain"]["epochs"] = 4
    reference, twin = (
        faults.make(tmp_path / name, tree=tree, data=tiny_data, targets=(TARGET,)) for name in ("a", "b")
    )
    reference.run("dvc", "repro", TARGET)
    order = faults.running(reference)
    assert sorted(order) == ["lineage@tiny", "prepare@tiny", TARGET]
    plan = [
        faults.Moment("store", "prepare@tiny", 0.0, faults.exists("build/*/tiles.npy.part"), ("all",)),
        faults.Moment("checkpoint", TARGET, 0.0, faults.exists(".cache/checkpoints/*/*.part"), ("all",)),
        faults.Moment("after it", TARGET, 0.0, faults.exists(".cache/checkpoints/*/checkpoint.*"), ("dvc",)),
    ]
    tally = faults.Tally()
    for moment in plan:
        faults.kill(twin, moment, order, random.Random(0), tally)
    assert [one.victim for one in tally.kills] == ["all", "all", "dvc"]
    faults.finish(twin, tally)
    found = faults.verdict(reference, twin, tally, None)
    assert found.files > 6  # the store, one lineage an arm, encoder and curve
    assert found.different == []
    assert (found.left_open, found.orphans) == (0, 0)


def figures(**changes: Any) -> dict[str, Any]:
    verdict = {
        "files": 3, "different": [], "left_open": 0, "tracked_alike": True, "orphans": 0,
        "other_checkpoint_untouched": True, "status": "Data and pipelines are up to date.",
    }  # fmt: skip
    return {"verdict": {**verdict, **changes}, "asked_to_leave": [["embed", "SIGTERM", 143, 0.5]]}


def test_whatever_is_lost_is_said() -> None:
    assert faults.lost(figures()) == []
    for change in (
        {"different": ["models/encoder.safetensors"]},
        {"left_open": 1},
        {"orphans": 2},
        {"tracked_alike": False},
        {"other_checkpoint_untouched": False},
        {"status": "pretrain@sample-simclr-0: changed deps"},
    ):
        assert len(faults.lost(figures(**change))) == 1
    slow = figures() | {"asked_to_leave": [["embed", "SIGINT", 130, 5.5], ["probe", "SIGINT", 1, 0.2]]}
    assert len(faults.lost(slow)) == 2
