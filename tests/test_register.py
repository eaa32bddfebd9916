from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest

from satclr import register, tracking
from tests import made_up

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.empty_store(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(empty_store, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def add(root: Path, arm: str, seed: int = 0, skill: float = 1.0, split: int = 0) -> None:
    made_up.write(root, arm=arm, seed=seed, skill=skill, split=split)
    tracking.publish(root, profile="sample", arm=arm, seed=seed, params={}, fingerprint="f0")


def aliases(root: Path) -> dict[str, str]:
    client = tracking.open_store(root, "sample").client
    return {name: str(v) for name, v in client.get_registered_model("satclr-sample").aliases.items()}


def history(root: Path) -> list[tuple[str, str]]:
    with (root / "reports/sample/promotions.csv").open(encoding="utf-8", newline="") as stream:
        return [(row["decision"], row["version"]) for row in csv.DictReader(stream)]


def test_a_better_candidate_takes_over_and_a_rollback_gives_it_back(root: Path) -> None:
    add(root, "baseline")
    assert register.run(root, profile="sample", runs=[("baseline", 0)]).decision == "champion"
    add(root, "simclr", skill=3)
    both = [("baseline", 0), ("simclr", 0)]
    decision = register.run(root, profile="sample", runs=both)
    assert (decision.decision, decision.version, decision.against) == ("champion", "2", "1")
    assert aliases(root) == {"champion": "2", "previous": "1"}
    assert json.loads((root / "reports/sample/champion.json").read_text())["champion"]["arm"] == "simclr"

    assert register.run(root, profile="sample", runs=both).decision == "kept"
    assert register.rollback(root, "sample").version == "1"
    assert aliases(root) == {"champion": "1"}
    assert register.run(root, profile="sample", runs=both).decision == "kept"
    assert aliases(root) == {"champion": "1"}
    assert register.promote(root, "sample", "2").decision == "promoted"
    assert aliases(root) == {"champion": "2", "previous": "1"}
    assert history(root) == [("champion", "1"), ("champion", "2"), ("rolled back", "1"), ("promoted", "2")]
