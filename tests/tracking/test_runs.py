import json
import re
import shlex
import shutil
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from satclr import files
from satclr.project import Project, ProjectError
from satclr.tracking import content, registry, runs, store
from tests.made_up import write
from tests.tracking.conftest import Make, stored

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def states(project: Project) -> dict[str, tuple[str, str]]:
    return {run.info.run_id: (run.info.run_name, run.data.tags["satclr.state"]) for run in stored(project)}


def test_an_arm_run_shows_every_number_of_the_results(make: Make) -> None:
    project = make("simclr")
    run = project.run("simclr")
    metrics = write(run)
    (project.root / "dvc.lock").write_text(
        "stages: {prepare@tiny: {deps: [{path: data/tiny, md5: 0123456789abcdef.dir}]}}"
    )
    findings = [{"level": "error", "title": "Lost: 2 categories"}, {"level": "notice", "title": "Rare"}]
    audit = {"tiles": 1200, "findings": findings, "flagged": {"a.jpg": [], "b.jpg": []}}
    audit |= {"near_duplicates": {"groups_across_splits": 1}, "unlabelled": {"tiles": 9}}
    files.write_json(run.store / "audit.json", audit)
    assert content.audit(run) == ({}, ""), "of a `prepare` that did not finish"
    files.write_json(run.store / "audit.json", audit | {"split": {}})
    run_id = runs.publish(run)
    client = store.open_store(project.root, "tiny").client
    shown = client.get_run(run_id)
    assert (shown.info.run_name, shown.info.status) == ("simclr-s0", "FINISHED")
    assert shown.data.params == run.parameters() | {"pretrain.precision_used": "float32"}
    assert shown.data.tags["satclr.fingerprint"] == "made up 0"
    assert shown.data.metrics["test/mAP"] == metrics["test_mAP"]
    assert shown.data.metrics["test/mAP_hi"] == metrics["test_mAP_ci95"][1]
    labels = {key.removeprefix("test_ap/") for key in shown.data.metrics if key.startswith("test_ap/")}
    assert labels == {"airplane", "parking lot", "swimming pool", "ship_boat"}
    losses = sorted((point.step, point.value) for point in client.get_metric_history(run_id, "pretrain/loss"))
    assert losses == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]
    (data,) = shown.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("tiny", "0123456789abcdef.dir")
    assert json.loads(data.dataset.profile)["errors"] == 1
    assert shown.data.metrics["tiles_audit/tiles_flagged"] == 2
    assert shown.data.metrics["tiles_audit/tiles_unlabelled"] == 9
    assert "2 of 1,200 tiles flagged; first finding: Lost: 2 categories" in shown.data.tags["mlflow.note.content"]
    assert [file.path for file in client.list_artifacts(run_id, "data")] == ["data/audit.json"]
    assert not list(project.root.parent.glob("mlruns")), "no store in the working folder"


def test_results_are_published_once_and_changed_ones_supersede(make: Make) -> None:
    project = make("simclr", "baseline")
    run = project.run("simclr")
    write(run)
    first = runs.publish(run)
    published, missing = runs.publish_all(project)
    assert published == [first] == [runs.publish(run)]
    assert [line.split(":")[0] for line in missing] == ["baseline-s0"]
    write(run, skill=2)
    (second,) = runs.publish_all(project)[0]
    assert states(project) == {first: ("simclr-s0 (superseded)", "superseded"), second: ("simclr-s0", "current")}
    write(run)  # dvc checkout of the former files
    assert runs.publish(run) == first
    assert states(project) == {first: ("simclr-s0", "current"), second: ("simclr-s0 (superseded)", "superseded")}
    run.probe.unlink()
    with pytest.raises(ProjectError, match=r"simclr-s0/probe\.safetensors does not exist; run `dvc repro`"):
        runs.publish(run)


def test_an_interrupted_publication_is_repeated(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make("simclr")
    write(project.run("simclr"))
    with monkeypatch.context() as broken:
        broken.setattr(content, "metrics", lambda _: [("test/mAP", "no number", 0)])
        with pytest.raises(ValueError, match="no number"):
            runs.publish(project.run("simclr"))
    assert [run.info.status for run in stored(project)] == ["FAILED"]
    run_id = runs.publish(project.run("simclr"))
    assert [(run.info.run_id, run.info.status) for run in stored(project)] == [(run_id, "FINISHED")]


def test_a_report_is_published_once(make: Make) -> None:
    project = make("simclr")
    contrast = {"arm": "simclr", "against": "baseline", "delta_mAP": 0.2, "ci95": [0.1, 0.3], "p_holm": 0.02}
    prior = {"test_mAP": 0.5, "test_mAP_ci95": [0.4, 0.6], "test_within_category_mAP": 0.2}
    arm = prior | {"val_mAP": 0.5, "seeds": {}, "maps": {"knn": {"a": 1.0}}}
    report = {"profile": "tiny", "arms": {"simclr": arm}, "contrasts": [contrast]}
    report["references"] = {"category_prior": prior}
    files.write_json(project.reports / "compare.json", report)
    files.write_text(project.reports / "figures" / "ladder.png", "a picture")
    run_id = runs.publish_report(project)
    assert runs.publish_report(project) == run_id
    (run,) = stored(project)
    assert run.data.metrics["delta_mAP/simclr - baseline"] == 0.2
    assert run.data.metrics["maps_knn/simclr/a"] == 1
    assert run.data.metrics["test_mAP_hi/category_prior"] == 0.6
    assert run.data.metrics["test_within_category_mAP/category_prior"] == 0.2
    assert "+0.2000&emsp; | +0.1000 to +0.3000" in run.data.tags["mlflow.note.content"]
    client = store.open_store(project.root, "tiny").client
    figures = [file.path for file in client.list_artifacts(run_id, "report/figures")]
    assert figures == ["report/figures/ladder.png"]


def test_publishing_imports_no_torch(make: Make) -> None:
    project = make("simclr")
    write(project.run("simclr"))
    code = """
import sys
from satclr import project
from satclr.tracking import runs, store
assert "mlflow" not in sys.modules
store.preload()
runs.publish(project.find().run("simclr"))
print(*sorted({"torch", "torchvision", "matplotlib"} & sys.modules.keys()), "imported")
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], cwd=project.root, capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.returncode) == ("imported", 0), done.stderr


def test_a_temporary_copy_uses_the_projects_store(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    project = make("simclr")
    temporary = project.root / ".dvc" / "tmp" / "exps" / "standalone" / "tmp1"
    shutil.copytree(project.root, temporary, ignore=shutil.ignore_patterns("mlruns", ".dvc"))
    copy = Project(temporary)
    monkeypatch.chdir(temporary)
    monkeypatch.setenv("DVC_EXP_NAME", "cold")
    write(copy.run("simclr"))
    assert registry.run(copy).decision == "champion"
    shutil.rmtree(temporary / "results")
    write(copy.run("simclr"), skill=3)
    assert registry.run(copy).against == "1", "the gate sees the project's champion"
    assert not (temporary / "mlruns").exists()
    assert sorted(states(project).values()) == [
        ("simclr-s0 (cold)", "current"),
        ("simclr-s0 (cold) (superseded)", "superseded"),
    ]
    write(project.run("simclr"), skill=2)
    runs.publish(project.run("simclr"))
    current = sorted(name for name, state in states(project).values() if state == "current")
    assert current == ["simclr-s0", "simclr-s0 (cold)"], "an experiment supersedes its own runs alone"


def test_an_old_schema_is_one_sentence_with_the_command(make: Make) -> None:
    project = make("simclr")
    with closing(sqlite3.connect(project.root / "mlruns" / "mlflow.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = 'cbc13b556ace'")
    with pytest.raises(store.StoreError) as caught:
        store.open_store(project.root, "tiny")
    sentence, command = str(caught.value).split("; make a backup, then run `mlflow db upgrade ")
    assert re.fullmatch(r"cannot open the MLflow store \S+: Detected out-of-date database schema \(.+\)", sentence)
    assert shlex.split(command.removesuffix("`")) == [store.tracking_uri(project.root)]


def test_two_threads_may_create_one_store_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: store.open_store(tmp_path, "tiny").experiment_id, "ab")
    assert first == second


def test_metric_names_are_distinct() -> None:
    assert content.metric_names(["a/b", "a:b", "."]) == {"a/b": "a_b", "a:b": "a_b_2", ".": "_"}


def test_ui_refuses_a_taken_port(make: Make) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(store.TrackingError, match=f"port {port} on 127.0.0.1 is taken"):
            store.serve(make("simclr"), port=port, browser=False)
