"""The store on a shared server, and its pages in a real browser: minutes, so left out of `make test`."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from satclr import register, tracking
from satclr.tracking import pages
from tests import made_up

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]
POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"))


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(command: list[str], url: str, **options: Any) -> Iterator[str]:
    """A server that answers at url, ended with the block."""
    process = subprocess.Popen(command, **options)
    try:
        for _ in range(400):
            assert process.poll() is None, f"{command[2:4]} ended with {process.returncode}"
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):  # noqa: S310
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


@pytest.fixture
def postgres(tmp_path: Path) -> Iterator[str]:
    """Debian's PostgreSQL on loopback, in a folder of its own; it refuses to run as root."""
    if not POSTGRES:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    port = free_port()
    folder = (
        Path(tempfile.gettempdir()) / f"satclr-postgres-{port}"
    )  # tmp_path is closed to PostgreSQL's user
    options: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        user = pwd.getpwnam("postgres")
        options |= {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    tools = POSTGRES[-1]
    subprocess.run(
        [tools / "initdb", "-D", folder, "-A", "trust", "-U", "mlflow"],
        check=True,
        capture_output=True,
        **options,
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
            [tools / "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", "mlflow", "mlflow"],
            check=True,
            **options,
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
        here = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
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


@pytest.fixture
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    switches = ("headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "no-first-run")
    for switch in (*switches, "window-size=1500,950"):
        options.add_argument(f"--{switch}")
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield window
    finally:
        window.quit()


def test_a_browser_shows_arms_curves_and_champion(tmp_path: Path, browser: Any) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    for arm, skill in (("baseline", 0.5), ("simclr", 2.0)):
        made_up.write(tmp_path, arm=arm, skill=skill)
        tracking.publish(tmp_path, profile="sample", arm=arm, seed=0, params={"arm": arm}, fingerprint=arm)
    metrics = register.run(tmp_path, profile="sample", runs=[("baseline", 0), ("simclr", 0)])
    port = free_port()
    code = f"from satclr import tracking; from pathlib import Path; tracking.ui(Path('.'), 'sample', port={port})"
    shots = Path(os.environ.get("SATCLR_SCREENSHOTS", tmp_path))

    def see(address: str, name: str, *texts: str) -> None:
        browser.get(address)
        try:
            WebDriverWait(browser, 60).until(
                lambda page: all(text in page.find_element(By.TAG_NAME, "body").text for text in texts),
                f"{address} does not show {texts}",
            )
            time.sleep(2)  # for its last fonts and lines
        finally:
            browser.save_screenshot(str(shots / f"mlflow-{name}.png"))

    def drawn(kind: str) -> int:
        return len(browser.find_elements(By.CSS_SELECTOR, kind))

    with served([sys.executable, "-c", code], f"http://127.0.0.1:{port}", cwd=tmp_path) as url:
        browser.get(url)
        browser.execute_script(
            'localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")'
        )
        home = pages.runs_page(url, tracking.connect(tmp_path, "sample"))
        see(home, "runs", "baseline-s0", "simclr-s0", "test/mAP", str(metrics.test_mAP)[:6])
        see(f"{home}&compareRunsMode=CHART", "compare", "pretrain/loss", "simclr-s0 (pretrain/loss)")
        WebDriverWait(browser, 60).until(lambda _: drawn(".js-line") >= 2, "no curve is drawn")
        time.sleep(2)
        browser.save_screenshot(str(shots / "mlflow-compare.png"))
        see(f"{url}/#/models/satclr-sample", "model", "satclr-sample", "@ champion", "Version 1")
