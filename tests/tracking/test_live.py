import shutil
import time
from collections.abc import Callable

import pytest

from satclr.project import Project
from satclr.tracking import runs, store
from satclr.tracking.live import live
from tests.made_up import write
from tests.tracking.conftest import Make, stored

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CPU = "system/cpu_utilization_percentage"


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("satclr.tracking.live.FLUSH_S", 0.05)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "1")


def losses(project: Project, run_id: str) -> list[tuple[int, float]]:
    client = store.open_store(project.root, "tiny").client
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, "pretrain/loss"))


def test_a_live_run_shows_the_machine_and_becomes_a_child_of_its_arm_run(make: Make) -> None:
    project = make("simclr")
    run = project.run("simclr")
    write(run)
    with live(run, "pretrain", "f0") as log:
        log(1, {"loss": 4.0})
        until(lambda: [run for run in stored(project) if CPU in run.data.metrics])
    run_id = runs.publish(run)
    (child,) = stored(project, store.tag("kind", "live"))
    assert (child.info.run_name, child.info.status) == ("simclr-s0 pretrain", "FINISHED")
    assert child.data.tags["mlflow.parentRunId"] == run_id
    assert child.data.params == run.parameters()
    assert 0 <= child.data.metrics[CPU] <= 100


@pytest.mark.parametrize(("error", "status"), [(FloatingPointError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_a_run_that_ends_early_says_so_and_is_resumed(make: Make, error: type[BaseException], status: str) -> None:
    project = make("simclr")
    run = project.run("simclr")

    def diverge() -> None:
        with live(run, "pretrain", "f0") as log:
            log(1, {"loss": 4.0})
            log(2, {"loss": 3.0})
            raise error

    with pytest.raises(error):
        diverge()
    assert [found.info.status for found in stored(project)] == [status]
    with live(run, "pretrain", "f0") as log:
        log(2, {"loss": 3.5})  # resumed from the checkpoint of epoch 1
        log(3, {"loss": 2.0})
    (only,) = stored(project)
    assert only.info.status == "FINISHED"
    assert losses(project, only.info.run_id) == [(1, 4.0), (2, 3.0), (3, 2.0)]
    with live(run, "pretrain", "f1"):
        pass
    assert len(stored(project)) == 2


def test_runs_of_dead_processes_are_marked_killed(make: Make) -> None:
    project = make("simclr")
    opened = store.open_store(project.root, "tiny")
    ids = [
        opened.client.create_run(opened.experiment_id, tags=store.owner() | changes).info.run_id
        for changes in ({}, {"satclr.pid": "999999999"}, {"satclr.pid_started": "0.00"}, {"satclr.host": "elsewhere"})
    ]
    with live(project.run("simclr"), "pretrain", "f0"):
        pass
    status = {run.info.run_id: run.info.status for run in stored(project)}
    assert [status[run_id] for run_id in ids] == ["RUNNING", "KILLED", "KILLED", "RUNNING"]


def test_metrics_are_sent_once_the_store_is_back(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    project = make("simclr")
    database = project.root / "mlruns" / "mlflow.db"
    with live(project.run("simclr"), "pretrain", "f0") as log:
        log(1, {"loss": 4.0})
        until(lambda: [run for run in stored(project) if run.data.metrics])
        shutil.move(database, database.with_name("away.db"))
        database.touch()
        log(2, {"loss": 3.0})
        until(lambda: "training goes on" in capsys.readouterr().err)
        shutil.move(database.with_name("away.db"), database)
    (run,) = stored(project)
    assert run.info.status == "FINISHED"
    assert losses(project, run.info.run_id) == [(1, 4.0), (2, 3.0)]


def test_a_wrong_address_fails_the_stage_only_when_its_files_are_written(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make("simclr")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(store.StoreError, match="check MLFLOW_TRACKING_URI"), live(project.run("simclr"), "probe", "f"):
        (project.root / "trained").touch()
    assert (project.root / "trained").exists()


def until(condition: Callable[[], object]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError
