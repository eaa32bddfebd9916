"""A project as people live with it: DVC runs it, MLflow keeps it, folders move, other machines pull it. Minutes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from satclr.tracking import store as tracking
from tests import faults
from tests.conftest import tiny_params
from tests.tracking.conftest import free_port, served

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]
BIN = Path(sys.executable).parent
TILE = "data/tiny/Images/water/water_00001.jpg"


def sh(folder: Path, *command: str) -> str:
    """Run a command in a folder and return what it printed."""
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    env = kept | {"PATH": f"{BIN}:{os.environ['PATH']}", "GIT_CONFIG_GLOBAL": os.devnull}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """A project under git and DVC, small enough for a test, after `dvc repro`."""
    made = faults.make(tmp_path_factory.mktemp("study") / "project", tree=tiny_params(), data=tiny_data)
    sh(made.root, "dvc", "repro", "--quiet")
    sh(made.root, "git", "add", "--all")
    who = ("-c", "user.name=Somebody", "-c", "user.email=somebody@example.org")
    sh(made.root, "git", *who, "commit", "--quiet", "--message", "State")
    return made.root


@pytest.fixture
def project(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished project in another folder, whose MLflow store is filled again."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    copy = Path(shutil.copytree(finished, tmp_path / "project", symlinks=True))
    assert sh(copy, "satclr", "sync").startswith("2 arm runs of tiny in the store\nchampion restored")
    return copy


def arm_runs(folder: Path) -> dict[str, str]:
    """The arm runs of a project's store: id → name."""
    found = tracking.open_store(folder, "tiny").search(tracking.tag("kind", "arm"))
    assert {run.info.status for run in found} <= {"FINISHED"}
    return {run.info.run_id: run.info.run_name for run in found}


def test_a_cached_repro_adds_nothing_and_a_changed_one_supersedes(project: Path) -> None:
    before = arm_runs(project)
    assert sorted(before.values()) == ["baseline-s0", "simclr-s0"]
    sh(project, "dvc", "repro", "--quiet")
    assert arm_runs(project) == before
    tree: dict[str, Any] = yaml.safe_load((project / "params.yaml").read_text())
    tree["arms"]["simclr"]["pretrain"]["temperature"] = 0.1
    (project / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    sh(project, "dvc", "repro", "--quiet")
    after = arm_runs(project)
    assert sorted(after.values()) == ["baseline-s0", "simclr-s0", "simclr-s0 (superseded)"]
    (superseded,) = (run for run, name in after.items() if name == "simclr-s0 (superseded)")
    assert before[superseded] == "simclr-s0"


@pytest.fixture(params=["folder", "s3"])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The settings of a DVC remote: a folder, or a bucket of an S3 server on loopback."""
    if request.param == "folder":
        yield {"url": str(tmp_path / "remote")}
        return
    pytest.importorskip("dvc_s3", reason="uv sync --group test-s3")
    pytest.importorskip("moto", reason="uv sync --group test-s3")
    import boto3

    url = f"http://127.0.0.1:{free_port()}"
    keys = {"access_key_id": "somebody", "secret_access_key": "secret"}
    server = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", url.rpartition(":")[2]]
    with served(server, f"{url}/moto-api/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        given = {f"aws_{key}": value for key, value in keys.items()}
        boto3.client("s3", endpoint_url=url, region_name="us-east-1", **given).create_bucket(Bucket="satclr")
        yield {"url": "s3://satclr/dvc", "endpointurl": url, "region": "us-east-1", **keys}


def test_another_machine_pulls_syncs_and_predicts(project: Path, tmp_path: Path, remote: dict[str, str]) -> None:
    for key, value in remote.items():
        sh(project, "dvc", "remote", "modify", "--local", "storage", key, value)
    sh(project, "dvc", "push", "--quiet")
    sh(tmp_path, "git", "clone", "--quiet", str(project), "elsewhere")
    elsewhere = tmp_path / "elsewhere"
    shutil.copyfile(project / ".dvc/config.local", elsewhere / ".dvc/config.local")  # no part of a clone
    assert not list((elsewhere / "mlruns").glob("*.db"))
    sh(elsewhere, "dvc", "pull", "--quiet")
    first = sh(elsewhere, "satclr", "sync")
    assert first.startswith("2 arm runs of tiny in the store\nchampion restored")
    assert sorted(arm_runs(elsewhere).values()) == ["baseline-s0", "simclr-s0"]
    assert sh(elsewhere, "satclr", "sync") == "2 arm runs of tiny in the store\n"
    tile = str(project / TILE)
    here, there = (sh(folder, "satclr", "predict", "--json", tile) for folder in (project, elsewhere))
    assert json.loads(here)["probabilities"]
    assert here == there
