from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from satclr.tracking import register
from satclr import tracking
from satclr.tracking.register import gate
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


def test_a_candidate_that_is_worse_never_becomes_champion(root: Path) -> None:
    add(root, "simclr", skill=3)
    register.run(root, profile="sample", runs=[("simclr", 0)])
    results = root / "results/sample/poisoned-s0"
    add_poisoned(root, results)
    decision = register.run(root, profile="sample", runs=[("simclr", 0), ("poisoned", 0)])
    assert decision.arm == "poisoned"
    assert decision.delta_mAP is not None
    assert -0.2 < decision.delta_mAP < -0.05
    assert decision.decision == "challenger"
    assert "short by" in decision.reason
    assert aliases(root) == {"champion": "1", "challenger": "2"}
    assert register.run(root, profile="sample", runs=[("poisoned", 0)]).decision == "challenger"
    assert history(root) == [("champion", "1"), ("challenger", "2")]


def add_poisoned(root: Path, results: Path) -> None:
    """An arm with a better validation mAP than any and the worse test scores."""
    made_up.write(root, arm="poisoned", skill=2)
    metrics = json.loads((results / "metrics.json").read_text())
    (results / "metrics.json").write_text(json.dumps({**metrics, "val_mAP": 0.999}))
    tracking.publish(root, profile="sample", arm="poisoned", seed=0, params={}, fingerprint="f0")


def test_below_the_minimum_nothing_is_registered(root: Path) -> None:
    add(root, "baseline")
    decision = register.run(root, profile="sample", runs=[("baseline", 0)], minimum_val_mAP=0.99)
    assert decision.decision == "rejected"
    with pytest.raises(tracking.TrackingError, match="has no version '1'; it has none"):
        register.promote(root, "sample", "1")
    with pytest.raises(tracking.TrackingError, match="no former champion"):
        register.rollback(root, "sample")


def test_another_test_split_is_not_compared(root: Path) -> None:
    add(root, "baseline")
    register.run(root, profile="sample", runs=[("baseline", 0)])
    add(root, "simclr", skill=3, split=1)
    decision = register.run(root, profile="sample", runs=[("simclr", 0)])
    assert (decision.decision, decision.delta_mAP) == ("challenger", None)
    assert "another split" in decision.reason


def test_outputs_that_were_not_published_are_not_registered(root: Path) -> None:
    made_up.write(root, arm="simclr")
    with pytest.raises(tracking.TrackingError, match="no run of the present simclr-s0; run satclr sync"):
        register.run(root, profile="sample", runs=[("simclr", 0)])


def test_a_clone_elsewhere_gets_its_champion_back_from_the_outputs(root: Path, tmp_path: Path) -> None:
    add(root, "baseline", skill=2)
    add(root, "simclr", skill=3)
    register.run(root, profile="sample", runs=[("baseline", 0), ("simclr", 0)])
    clone = tmp_path / "elsewhere"
    for part in ("models", "results", "reports"):
        shutil.copytree(root / part, clone / part)
    arms: list[dict[str, Any]] = [
        {"profile": "sample", "arm": arm, "seed": 0, "params": {}, "fingerprint": "f0"}
        for arm in ("baseline", "simclr")
    ]
    tracking.sync(clone, arms)
    restored = register.restore(clone, "sample")
    assert restored is not None
    assert (restored.arm, restored.version) == ("simclr", "1")
    assert register.restore(clone, "sample") is None
    (clone / "tile.jpg").write_bytes(made_up.jpeg(0))
    here, there = (next(register.predict(place, "sample", [clone / "tile.jpg"])) for place in (root, clone))
    assert here == there
    shutil.move(clone, tmp_path / "moved")
    assert not next(register.predict(tmp_path / "moved", "sample", [tmp_path / "moved/tile.jpg"])).error


def test_the_version_tells_where_it_comes_from(root: Path) -> None:
    metrics = made_up.write(root, arm="simclr")
    tracking.publish(root, profile="sample", arm="simclr", seed=0, params={}, fingerprint="f0")
    register.run(root, profile="sample", runs=[("simclr", 0)])
    client = tracking.open_store(root, "sample").client
    version = client.get_model_version_by_alias("satclr-sample", "champion")
    assert version.tags["satclr.test_mAP"].startswith(f"{metrics['test_mAP']:.6f} [")
    assert {"satclr.arm", "satclr.seed", "satclr.data_md5", "satclr.commit", "satclr.fingerprint"} < set(
        version.tags
    )
    for part in (
        "Intended use",
        "Data",
        "Limits",
        "Licence",
        "| parking lot | 0.",
        "unknown quality: tennis court",
    ):
        assert part in version.description
    assert len(version.description) < 5000


def test_the_gate_finds_a_true_difference_and_none_in_equal_scores() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 6)) < 0.3).astype(np.uint8)
    noise = rng.normal(size=(2, *targets.shape))
    names = tuple(f"{number}.jpg" for number in range(300)), tuple("abcdef")
    good, weak = (
        gate.Split((skill * targets + noise[i]).astype(np.float32), targets, names[1], names[0])
        for i, skill in enumerate((2.0, 1.0))
    )
    assert gate.contrast(good, weak).better
    assert not gate.contrast(weak, good).better
    same = gate.contrast(good, good)
    assert (same.delta_mAP, same.low, same.high) == (0, 0, 0)
    plain = [
        np.mean([average_precision_score(t, s) for t, s in zip(targets.T, x.scores.T, strict=True)])
        for x in (good, weak)
    ]
    assert gate.contrast(good, weak).delta_mAP == pytest.approx(plain[0] - plain[1], abs=1e-12)
