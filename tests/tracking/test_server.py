"""The store on a shared server: minutes, so left out of `make test`."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from satclr.tracking import register
from satclr import tracking
from tests import made_up
from tests.serving import free_port, served

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """Debian's PostgreSQL on loopback, in a folder of its own; it refuses to run as root."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    port = free_port()
    folder = Path(tempfile.gettempdir()) / f"satclr-postgres-{port}"  # tmp_path is closed to PostgreSQL's user
    options: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    tools = POSTGRES[-1]
    subprocess.run(
        [tools / "initdb", "-D", folder, "-A", "trust", "-U", "mlflow"], check=True, capture_output=True, **options
    )
    server = subprocess.Popen(
        [tools / "postgres", "-D", folder, "-p", str(port), "-h", "127.0.0.1", "-k", folder], **options
    )
    try:
        ready = [str(tools / "pg_isready"), "-h", "127.0.0.1", "-p", str(port)]
        while subprocess.run(ready, check=False, capture_output=True).returncode:
            assert server.poll() is None
            time.sleep(0.2)
        subprocess.run(
            [tools / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"], check=True, **options
        )
        yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    finally:
        server.terminate()
        server.wait(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


ARM = """
import sys
from pathlib import Path
from satclr import tracking
from tests import made_up
root, arm = Path(sys.argv[1]), sys.argv[2]
made_up.write(root, arm=arm, skill=float(sys.argv[3]))
with tracking.live(root, profile="sample", arm=arm, seed=0, stage="pretrain", fingerprint=arm, params={}) as run:
    for epoch in range(1, 51):
        run.log(epoch, {"loss": 1 / epoch})
tracking.publish(root, profile="sample", arm=arm, seed=0, params={"arm": arm}, fingerprint=arm)
"""


def test_four_arms_log_at_once_to_a_server_on_postgresql(
    postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("psycopg2")
    url = f"http://127.0.0.1:{free_port()}"
    server = [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", postgres),
        *("--artifacts-destination", (tmp_path / "artifacts").as_uri()),
        *("--host", "127.0.0.1", "--port", url.rpartition(":")[2], "--workers", "2"),
    ]
    quiet = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with served(server, url, cwd=tmp_path, env=quiet):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        arms = {"baseline": "0.5", "simclr": "2", "supcon": "1.5", "mulsupcon": "1"}
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
        roots = {arm: tmp_path / "machines" / arm for arm in arms}
        logging = [
            subprocess.Popen([sys.executable, "-c", ARM, str(roots[arm]), arm, skill], env=here)
            for arm, skill in arms.items()
        ]
        assert [process.wait(timeout=600) for process in logging] == [0] * 4
        store = tracking.open_store(tmp_path, "sample")
        found = store.client.search_runs([store.experiment_id])
        assert sorted(run.info.run_name for run in found) == sorted(
            f"{arm}-s0{stage}" for arm in arms for stage in ("", " pretrain")
        )
        assert {run.info.status for run in found} == {"FINISHED"}
        for run in found:
            if run.info.run_name.endswith("pretrain"):
                assert len(store.client.get_metric_history(run.info.run_id, "pretrain/loss")) == 50
        decision = register.run(roots["simclr"], profile="sample", runs=[("simclr", 0)])
        assert decision.decision == "champion"
        (tmp_path / "tile.jpg").write_bytes(made_up.jpeg(1))
        (tagged,) = register.predict(roots["baseline"], "sample", [tmp_path / "tile.jpg"])
        assert not tagged.error
        assert register.run(roots["supcon"], profile="sample", runs=[("supcon", 0)]).decision == "challenger"
    assert not list((tmp_path / "machines").rglob("mlflow.db")), "everything is on the server"
