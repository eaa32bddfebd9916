"""The store on a shared server: minutes, so left out of `make test`."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from satclr.tracking import champion, predict, registry, store
from tests import made_up
from tests.tracking.conftest import free_port, make_project, served

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture
def postgres() -> Iterator[str]:
    """Debian's PostgreSQL on loopback, in a folder of its own; it refuses to run as root."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    port = str(free_port())
    folder = Path(tempfile.gettempdir()) / f"satclr-postgres-{port}"  # its user cannot enter tmp_path
    user = pwd.getpwnam("postgres").pw_uid if os.geteuid() == 0 else None

    def start(tool: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
        return subprocess.Popen([POSTGRES[-1] / tool, *arguments], cwd="/", user=user, stdout=subprocess.DEVNULL)

    address = ("-h", "127.0.0.1", "-p", port)
    assert start("initdb", "-D", folder, "-A", "trust", "-U", "mlflow").wait() == 0
    server = start("postgres", "-D", folder, "-k", folder, *address)
    try:
        while start("pg_isready", *address).wait():
            assert server.poll() is None
            time.sleep(0.2)
        assert start("createdb", *address, "-U", "mlflow", "mlflow").wait() == 0
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        server.terminate()
        server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


ARM = """
import sys
from pathlib import Path
from satclr.project import Project
from satclr.tracking import live, runs
from tests import made_up
run = Project(Path(sys.argv[1])).run(sys.argv[2])
made_up.write(run, skill=float(sys.argv[3]))
with live.live(run, "pretrain", run.arm) as log:
    for epoch in range(1, 51):
        log(epoch, {"loss": 1 / epoch})
runs.publish(run)
"""


def test_four_arms_log_at_once_to_a_server_on_postgresql(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    url = f"http://127.0.0.1:{free_port()}"
    server = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres, "--workers", "2"]
    server += ["--artifacts-destination", (tmp_path / "artifacts").as_uri()]
    server += ["--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    quiet = {**os.environ, **store.QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with served(server, f"{url}/health", cwd=tmp_path, env=quiet):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]))
        skills = {"baseline": "0.5", "simclr": "2", "supcon_any": "1.5", "mulsupcon": "1"}
        machines = {arm: make_project(tmp_path / "machines" / arm, arm) for arm in skills}
        logging = [
            subprocess.Popen([sys.executable, "-W", "ignore", "-c", ARM, str(machines[arm].root), arm, skill])
            for arm, skill in skills.items()
        ]
        assert [process.wait(timeout=600) for process in logging] == [0] * 4
        opened = store.open_store(tmp_path, "tiny")
        found = {run.info.run_name: run for run in opened.search()}
        assert sorted(found) == sorted(f"{arm}-s0{stage}" for arm in skills for stage in ("", " pretrain"))
        assert {run.info.status for run in found.values()} == {"FINISHED"}
        for arm in skills:
            run_id = found[f"{arm}-s0 pretrain"].info.run_id
            assert len(opened.client.get_metric_history(run_id, "pretrain/loss")) == 50
        assert registry.run(machines["simclr"]).decision == "champion"
        tile = predict.Source("tile.jpg", lambda: made_up.jpeg(1))
        (tagged,) = predict.predict(champion.champion(machines["baseline"]), [tile], done=lambda _: None)
        assert not tagged.error
        assert registry.run(machines["supcon_any"]).decision == "challenger"
    assert not list((tmp_path / "machines").rglob("mlflow.db")), "everything is on the server"
