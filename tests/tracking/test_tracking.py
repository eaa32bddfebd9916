from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from satclr import tracking
from tests import made_up

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_up.empty_store(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "a project"
    shutil.copytree(empty_store, folder)  # making a database takes seconds
    monkeypatch.chdir(tmp_path)
    return folder


def runs(root: Path, query: str = "") -> list[Any]:
    store = tracking.open_store(root, "sample")
    return list(store.client.search_runs([store.experiment_id], query))


def publish(root: Path, arm: str = "simclr", **params: Any) -> str:
    return tracking.publish(root, profile="sample", arm=arm, seed=0, params=params, fingerprint="f0")


def history(root: Path, run_id: str, key: str) -> list[tuple[int, float]]:
    client = tracking.open_store(root, "sample").client
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, key))


def live(root: Path, **changes: Any) -> Any:
    settings = {"profile": "sample", "arm": "simclr", "seed": 0, "stage": "pretrain", "fingerprint": "f0"}
    return tracking.live(root, **{**settings, "params": {"pretrain.epochs": 3}, **changes})


def start(root: Path, code: str) -> subprocess.Popen[str]:
    """Run code in another process, with `root` and `live` of the sample's pretrain stage at hand."""
    head = f"""
import os, time
from pathlib import Path
from satclr import tracking
root = Path({str(root)!r})
def live(fingerprint="f0"):
    return tracking.live(root, profile="sample", arm="simclr", seed=0, stage="pretrain",
                         fingerprint=fingerprint, params={{}})
"""
    return subprocess.Popen([sys.executable, "-c", head + code], stdout=subprocess.PIPE, text=True)


def test_an_arm_run_holds_every_number_of_the_outputs(root: Path) -> None:
    metrics = made_up.write(root, arm="simclr")
    (root / "dvc.lock").write_text(
        "stages: {prepare@sample: {deps: [{path: data/sample, md5: 0123456789abcdef0123456789abcdef.dir}]}}"
    )
    run_id = publish(root, epochs=3)
    run = tracking.open_store(root, "sample").client.get_run(run_id)
    assert run.info.run_name == "simclr-s0"
    assert run.info.status == "FINISHED"
    assert run.data.params == {"epochs": "3"}
    assert run.data.metrics["test/mAP"] == metrics["test_mAP"]
    assert run.data.metrics["test/mAP_hi"] == metrics["test_mAP_ci95"][1]
    assert {key for key in run.data.metrics if key.startswith("test_ap/")} == {
        "test_ap/airplane",
        "test_ap/parking lot",
        "test_ap/swimming pool",
        "test_ap/ship_boat",
    }
    assert history(root, run_id, "pretrain/loss") == [(1, 4.0), (2, 2.0), (3, 4.0 / 3)]
    (data,) = run.inputs.dataset_inputs
    assert (data.dataset.name, data.dataset.digest) == ("sample", "0123456789abcdef0123456789abcdef.dir")
    assert f"{metrics['test_mAP']:.4f}" in run.data.tags["mlflow.note.content"]
    assert not list(root.parent.glob("mlruns")), "a store must not appear in the working folder"


def test_an_arm_run_shows_the_audit_of_its_data(root: Path) -> None:
    made_up.write(root, arm="simclr")
    audit = {
        "tiles": 1200,
        "findings": [{"level": "error", "title": "Lost: 2 categories"}, {"level": "notice", "title": "Rare"}],
        "flagged": {"a.jpg": ["lost-label"], "b.jpg": ["lost-label"]},
        "near_duplicates": {"groups": [["a.jpg", "c.jpg"]], "groups_across_splits": 1},
    }
    (root / "build" / "sample").mkdir(parents=True)
    (root / "build" / "sample" / "audit.json").write_text(json.dumps(audit))
    run_id = publish(root)
    client = tracking.open_store(root, "sample").client
    run = client.get_run(run_id)
    assert [file.path for file in client.list_artifacts(run_id, "data")] == ["data/audit.json"]
    assert run.data.metrics["tiles_audit/tiles_flagged"] == 2
    assert run.data.metrics["tiles_audit/near_duplicates_across_splits"] == 1
    assert (
        "2 of 1,200 tiles flagged; first finding: Lost: 2 categories" in run.data.tags["mlflow.note.content"]
    )
    (data,) = run.inputs.dataset_inputs
    assert json.loads(data.dataset.profile)["errors"] == 1


def test_publishing_the_same_outputs_again_adds_nothing_and_changed_ones_supersede(root: Path) -> None:
    made_up.write(root, arm="simclr")
    first = publish(root)
    assert publish(root) == first
    made_up.write(root, arm="simclr", skill=2)
    second = publish(root)
    named = {run.info.run_id: (run.info.run_name, run.data.tags["satclr.state"]) for run in runs(root)}
    assert named == {first: ("simclr-s0 (superseded)", "superseded"), second: ("simclr-s0", "current")}
    made_up.write(root, arm="simclr")  # dvc checked the former outputs out again
    assert publish(root) == first
    named = {run.info.run_id: (run.info.run_name, run.data.tags["satclr.state"]) for run in runs(root)}
    assert named == {first: ("simclr-s0", "current"), second: ("simclr-s0 (superseded)", "superseded")}


def test_a_publication_that_was_cut_short_is_made_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_up.write(root, arm="simclr")
    with monkeypatch.context() as broken:
        broken.setattr("satclr.tracking.outputs.points", lambda _: [("test/mAP", "no number", 0)])
        with pytest.raises(Exception, match="no number"):
            publish(root)
    assert [run.info.status for run in runs(root)] == ["FAILED"]
    run_id = publish(root)
    assert [(run.info.run_id, run.info.status) for run in runs(root)] == [(run_id, "FINISHED")]


def test_a_missing_output_is_named(root: Path) -> None:
    made_up.write(root, arm="simclr")
    (root / "models/sample/simclr-s0/probe.safetensors").unlink()
    with pytest.raises(tracking.TrackingError, match=r"simclr-s0/probe\.safetensors does not exist; run dvc"):
        publish(root)


def test_a_live_run_becomes_the_child_of_its_arm_run(root: Path) -> None:
    made_up.write(root, arm="simclr")
    with live(root) as run:
        run.log(1, {"loss": 4.0})
    run_id = publish(root)
    (child,) = runs(root, "tags.`satclr.kind` = 'live'")
    assert child.info.run_name == "simclr-s0 pretrain"
    assert child.data.tags["mlflow.parentRunId"] == run_id
    assert child.data.params == {"pretrain.epochs": "3"}
    assert child.data.metrics["system/system_memory_usage_megabytes"] > 0
    assert 0 <= child.data.metrics["system/cpu_utilization_percentage"] <= 100


def test_a_live_run_that_raises_is_failed_and_the_next_of_its_fingerprint_goes_on(root: Path) -> None:
    def diverge() -> None:
        with live(root) as run:
            run.log(1, {"loss": 4.0})
            run.log(2, {"loss": 3.0})
            raise FloatingPointError

    with pytest.raises(FloatingPointError):
        diverge()
    assert [run.info.status for run in runs(root)] == ["FAILED"]
    with live(root) as run:
        run.log(2, {"loss": 3.0})  # resumed from the checkpoint of epoch 1
        run.log(3, {"loss": 2.0})
    (only,) = runs(root)
    assert only.info.status == "FINISHED"
    assert history(root, only.info.run_id, "pretrain/loss") == [(1, 4.0), (2, 3.0), (3, 2.0)]
    with live(root, fingerprint="f1") as run:
        run.log(1, {"loss": 4.0})
    assert len(runs(root)) == 2


def test_sigterm_ends_a_live_run_as_killed_and_sigkill_is_noticed_by_the_next(root: Path) -> None:
    endless = "\n run.log(1, {'loss': 4.0})\n print('up', flush=True)\n time.sleep(600)"
    signals = (signal.SIGTERM, signal.SIGKILL)
    pair = [start(root, f"\nwith live('{number.name}') as run:{endless}") for number in signals]
    for number, process in zip(signals, pair, strict=True):
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(number)
        process.communicate(timeout=60)
        assert process.returncode in {-number, 128 + number}
    status = {run.data.tags["satclr.fingerprint"]: run.info.status for run in runs(root)}
    assert status == {"SIGTERM": "KILLED", "SIGKILL": "RUNNING"}
    with live(root, fingerprint="next"):
        status = {run.data.tags["satclr.fingerprint"]: run.info.status for run in runs(root)}
        assert status == {"SIGTERM": "KILLED", "SIGKILL": "KILLED", "next": "RUNNING"}


def test_a_run_of_another_machine_is_killed_after_an_hour_of_silence(root: Path) -> None:
    store = tracking.open_store(root, "sample")
    tags = {"satclr.host": "elsewhere", "satclr.pid": "1", "satclr.pid_started": "0.00"}
    hour_ms, now_ms = 3_600_000, int(time.time() * 1000)

    def begun(ago_ms: int) -> str:
        run = store.client.create_run(store.experiment_id, start_time=now_ms - ago_ms, tags=tags)
        return str(run.info.run_id)

    young, silent, alive = begun(hour_ms // 2), begun(2 * hour_ms), begun(2 * hour_ms)
    for run_id, ago_ms in ((silent, 3 * hour_ms // 2), (alive, 1000)):
        store.client.log_metric(run_id, "system/cpu_utilization_percentage", 5.0, now_ms - ago_ms)
    with live(root):
        pass
    status = {run.info.run_id: run.info.status for run in runs(root)}
    assert {status[young], status[alive]} == {"RUNNING"}
    assert status[silent] == "KILLED"


def test_gpus_are_sampled_through_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    import pynvml
    import torch

    from satclr.tracking.live import _gpus

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made_up_driver = {
        "nvmlInit": lambda: None,
        "nvmlDeviceGetCount": lambda: 2,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetMemoryInfo": lambda i: SimpleNamespace(used=(i + 1) * 1e9),
        "nvmlDeviceGetUtilizationRates": lambda i: SimpleNamespace(gpu=90 + i),
        "nvmlDeviceGetPowerUsage": lambda i: 300_000 + i,
    }
    for name, function in made_up_driver.items():
        monkeypatch.setattr(pynvml, name, function)
    sample = _gpus()()
    assert sample["gpu_1_utilization_percentage"] == 91
    assert sample["gpu_0_memory_usage_megabytes"] == 1000
    assert sample["gpu_0_power_usage_watts"] == 300


def test_training_outlives_a_server_that_goes_away(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    with live(root) as run:
        shutil.move(root / "mlruns/mlflow.db", root / "mlruns/away.db")
        (root / "mlruns/mlflow.db").touch()
        run.log(1, {"loss": 4.0})
    assert "training goes on" in caplog.text


def test_two_projects_may_create_one_store_at_the_same_moment(tmp_path: Path) -> None:
    code = """
import mlflow
for number in range(3):
    (root / f"up{number}-{os.getpid()}").touch()
    while len(list(root.glob(f"up{number}-*"))) < 2:
        time.sleep(0.001)
    root = root / str(number)
    root.mkdir(exist_ok=True)
    with live(str(os.getpid())) as run:
        run.log(1, {"loss": 1.0})
    root = root.parent
"""
    pair = [start(tmp_path, code), start(tmp_path, code)]
    for process in pair:
        process.communicate(timeout=300)
    assert [process.returncode for process in pair] == [0, 0]
    for number in range(3):
        found = runs(tmp_path / str(number))
        assert [run.info.status for run in found] == ["FINISHED"] * 2
        losses = [history(tmp_path / str(number), run.info.run_id, "pretrain/loss") for run in found]
        assert losses == [[(1, 1.0)]] * 2


def test_a_moved_or_copied_store_heals_itself(root: Path) -> None:
    made_up.write(root, arm="simclr")
    run_id = publish(root)
    for moved in (root.parent / "a copy", root.parent / "100% élan"):
        if moved.name == "a copy":
            shutil.copytree(root, moved)
        else:
            shutil.move(root, moved)
        client = tracking.open_store(moved, "sample").client
        assert client.get_run(run_id).info.artifact_uri.startswith(moved.as_uri() + "/")
        path = client.download_artifacts(run_id, "results/metrics.json", str(root.parent))
        assert json.loads(Path(path).read_text())["arm"] == "simclr"
        model = client.get_logged_model(client.get_run(run_id).outputs.model_outputs[0].model_id)
        assert model.artifact_location.startswith(moved.as_uri() + "/")
        assert tracking.relocate(moved) == 0


def test_sync_fills_an_empty_store_once(root: Path) -> None:
    for arm in ("baseline", "simclr"):
        made_up.write(root, arm=arm)
    arms: list[dict[str, Any]] = [
        {"profile": "sample", "arm": arm, "seed": seed, "params": {}, "fingerprint": "f"}
        for arm in ("baseline", "simclr")
        for seed in (0, 1)
    ]
    published, missing = tracking.sync(root, arms)
    assert len(set(published)) == 2
    assert [line.split(":")[0] for line in missing] == ["baseline-s1", "simclr-s1"]
    assert tracking.sync(root, arms) == (published, missing)
    assert len(runs(root)) == 2


def test_a_report_is_published_once(root: Path) -> None:
    folder = root / "reports/sample"
    folder.mkdir(parents=True)
    contrast = {"arm": "simclr", "against": "baseline", "delta_mAP": 0.2, "ci95": [0.1, 0.3], "p_value": 0.01}
    arm = {"test_mAP": 0.5, "test_mAP_ci95": [0.4, 0.6], "val_mAP": 0.5, "seeds": {}}
    report = {"profile": "sample", "arms": {"simclr": arm}, "contrasts": [contrast]}
    (folder / "compare.json").write_text(json.dumps(report))
    (folder / "val_mAP.png").write_bytes(b"\x89PNG")
    run_id = tracking.publish_report(root, "sample", folder)
    assert tracking.publish_report(root, "sample", folder) == run_id
    (run,) = runs(root)
    assert run.data.metrics["delta_mAP/simclr - baseline"] == 0.2
    assert "+0.2000 | +0.1000 to +0.3000" in run.data.tags["mlflow.note.content"]


def test_a_server_that_is_away_is_one_clear_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(tracking.TrackingError, match="check MLFLOW_TRACKING_URI"):
        tracking.connect(root, "sample")


def test_ui_refuses_a_taken_port(root: Path) -> None:
    import socket

    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(tracking.TrackingError, match=f"port {port} on 127.0.0.1 is taken"):
            tracking.ui(root, "sample", port=port)


def test_the_door_does_not_import_mlflow() -> None:
    code = "import sys, satclr.tracking, satclr.register; print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
