import json
import shutil
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from satclr import files
from satclr.project import Project, ProjectError
from satclr.study import contrasts
from satclr.study.results import Scores, read_json
from satclr.tracking import registry, runs, store
from tests.made_up import write
from tests.tracking.conftest import Make, make_project, stored

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def aliases(project: Project) -> dict[str, str]:
    client = store.open_store(project.root, "tiny").client
    return {name: str(v) for name, v in client.get_registered_model("satclr-tiny").aliases.items()}


def history(project: Project) -> list[tuple[str, str]]:
    return [(row["decision"], row["version"]) for row in files.read_csv(project.reports / "promotions.csv")]


def champion(project: Project) -> dict[str, Any]:
    return read_json(project.reports / "champion.json")


def test_a_better_candidate_becomes_champion_until_a_rollback(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    project = make("baseline")
    write(project.run("baseline"))
    assert registry.run(project).decision == "champion"
    assert capsys.readouterr().out.startswith("satclr-tiny version 1 (baseline-s0, validation mAP 0.")
    project = make_project(project.root, "baseline", "simclr", "baseline_as_released")
    write(project.run("baseline_as_released"), skill=9)  # on batch statistics: cannot be served
    write(project.run("simclr"), skill=3)
    decision = registry.run(project)
    assert (decision.decision, decision.version, decision.against) == ("champion", "2", "1")
    assert aliases(project) == {"champion": "2", "previous": "1"}
    assert champion(project)["champion"]["arm"] == "simclr"
    assert [row["arm"] for row in champion(project)["ranking"]] == ["simclr", "baseline"]

    assert registry.run(project).decision == "kept"
    assert registry.rollback(project).version == "1"
    assert aliases(project) == {"champion": "1"}
    assert registry.run(project).decision == "kept"
    assert str(registry.promote(project, "2")).endswith("is now champion: by hand")
    with pytest.raises(store.TrackingError, match="version 2 is the champion already"):
        registry.promote(project, "2")
    assert aliases(project) == {"champion": "2", "previous": "1"}
    assert history(project) == [("champion", "1"), ("champion", "2"), ("rolled back", "1"), ("promoted", "2")]


@pytest.mark.parametrize("broken", ["record", "_write_champion"])
def test_a_decision_that_was_broken_off_is_completed_as_if_it_had_not_been(
    make: Make, broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    project = make("baseline")
    write(project.run("baseline"))
    registry.run(project)
    project = make_project(project.root, "baseline", "simclr")
    write(project.run("simclr"), skill=3)
    with monkeypatch.context() as patch:
        patch.setattr(registry._Registry if broken == "record" else registry, broken, interrupt)
        with pytest.raises(KeyboardInterrupt):
            registry.run(project)
    for _ in range(2):
        registry.run(project)
        tree = champion(project)
        assert (tree["decision"], tree["champion"]["arm"]) == ("champion", "simclr")
        assert tree["reason"].startswith("better than champion version 1 (baseline-s0)")
        assert history(project) == [("champion", "1"), ("champion", "2")]
        assert aliases(project) == {"champion": "2", "previous": "1"}


def test_a_worse_candidate_becomes_challenger(make: Make) -> None:
    project = make("simclr")
    write(project.run("simclr"), skill=3)
    registry.run(project)
    project = make_project(project.root, "simclr", "baseline")
    metrics = write(project.run("baseline"), skill=2) | {"val_mAP": 0.999}
    (project.run("baseline").results / "details.json").write_text(json.dumps(metrics))
    decision = registry.run(project)
    assert (decision.arm, decision.decision) == ("baseline", "challenger")
    assert decision.delta_val_mAP is not None
    assert -0.2 < decision.delta_val_mAP < -0.05
    assert "short by" in decision.reason
    assert aliases(project) == {"champion": "1", "challenger": "2"}
    assert registry.run(project).decision == "challenger"
    assert history(project) == [("champion", "1"), ("challenger", "2")]


def test_below_the_minimum_nothing_is_registered(make: Make) -> None:
    project = make("baseline", minimum=0.99)
    with pytest.raises(ProjectError, match="does not exist"):
        registry.run(project)
    write(project.run("baseline"))
    assert registry.run(project).decision == "rejected"
    with pytest.raises(store.TrackingError, match="has no versions; run `satclr register`"):
        registry.promote(project, "1")
    with pytest.raises(store.TrackingError, match="no former champion"):
        registry.rollback(project)


def test_other_validation_tiles_are_not_compared(make: Make) -> None:
    project = make("baseline")
    write(project.run("baseline"))
    registry.run(project)
    write(project.run("baseline"), skill=3, split=1)
    decision = registry.run(project)
    assert (decision.decision, decision.delta_val_mAP) == ("challenger", None)
    assert "other tiles" in decision.reason


def test_a_moved_project_starts_a_new_store_and_restores_its_champion_from_the_results(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    project = make("baseline", "simclr")
    write(project.run("baseline"), skill=2)
    write(project.run("simclr"), skill=3)
    registry.run(project)
    moved = Project(project.root.parent / "what? 1#%41 élan")
    shutil.move(project.root, moved.root)
    assert len(runs.publish_all(moved)[0]) == 2
    assert "the project folder has moved" in capsys.readouterr().err
    artifacts = f"{moved.root.as_uri()}/mlruns/artifacts/tiny/"
    assert [run.info.artifact_uri.startswith(artifacts) for run in stored(moved)] == [True, True]
    assert len(list(moved.root.glob("mlruns/mlflow.db.moved-*"))) == 1
    assert [path.name for path in moved.root.parent.iterdir()] == [moved.root.name], "nothing beside the project"
    restored = registry.restore(moved)
    assert restored is not None
    assert (restored.arm, restored.version) == ("simclr", "1")
    assert registry.restore(moved) is None


def test_a_version_shows_its_origin(make: Make) -> None:
    project = make("simclr")
    metrics = write(project.run("simclr"))
    registry.run(project)
    version = store.open_store(project.root, "tiny").client.get_model_version_by_alias("satclr-tiny", "champion")
    assert version.tags["satclr.test_mAP"].startswith(f"{metrics['test_mAP']:.6f} [")
    assert {f"satclr.{key}" for key in ("arm", "seed", "data_md5", "commit", "fingerprint")} < set(version.tags)
    parts = ("Intended use", "Data", "Limits", "Licence", "| parking lot&emsp; | 0.", "unknown quality: never seen")
    assert not [part for part in parts if part not in version.description]
    assert len(version.description) < 5000


def test_arms_compete_by_their_mean_over_seeds_and_test_decides_nothing(make: Make) -> None:
    project = make("simclr", "baseline", seeds=(0, 1))
    skills = {"simclr": (0.1, 2.4), "baseline": (1.5, 1.5)}  # one lucky seed
    val = {arm: [write(project.run(arm, s), skill=skills[arm][s])["val_mAP"] for s in (0, 1)] for arm in skills}
    assert max(val["simclr"]) > max(val["baseline"])
    first = registry.run(project)
    assert (first.decision, first.arm, first.seed) == ("champion", "baseline", int(np.argmax(val["baseline"])))

    project = make_project(project.root, "baseline", "random", seeds=(0, 1))
    for seed in (0, 1):  # better on validation, and on test the worst there is
        values, folder = write(project.run("random", seed), skill=4), project.run("random", seed).results
        (folder / "details.json").write_text(json.dumps(values | {"test_mAP": 0.1}))
        arrays = dict(np.load(folder / "scores.npz"))
        np.savez(folder / "scores.npz", **arrays | {"test_scores": -arrays["test_scores"]})
    decision = registry.run(project)
    assert (decision.decision, decision.arm, decision.test_mAP) == ("champion", "random", 0.1)
    assert "over validation tiles and seeds" in decision.reason
    ranking = champion(project)["ranking"]
    means = [row["val_mAP"] for row in ranking]
    assert means[1] == pytest.approx(np.mean(val["baseline"]))
    assert decision.delta_val_mAP == pytest.approx(means[0] - means[1], abs=1e-6)
    assert [row["model"]["seed"] for row in ranking] == [decision.seed, first.seed]


def test_the_gate_sees_a_true_difference_and_none_in_equal_scores() -> None:
    rng = np.random.default_rng(0)
    targets = (rng.random((300, 6)) < 0.3).astype(np.uint8)
    names = tuple("abcdef"), tuple(f"{number}.jpg" for number in range(300))
    noisy = (skill * targets + rng.normal(size=targets.shape) for skill in (2.0, 2.0, 1.0, 1.0))
    scores = [Scores(one.astype(np.float32), targets, *names) for one in noisy]
    good, weak = scores[:2], scores[2:]
    assert contrasts.gap(good, weak)[1] > 0 > contrasts.gap(weak, good)[1]
    assert contrasts.gap(good[:1], good[:1]) == (0, 0, 0)
    assert contrasts.gap(good, good)[0] == 0
    plain = [np.mean([average_precision_score(targets, one.scores) for one in seeds]) for seeds in (good, weak)]
    assert contrasts.gap(good, weak)[0] == pytest.approx(plain[0] - plain[1], abs=1e-12)
