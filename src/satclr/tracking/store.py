"""The MLflow store: its address, its first use, logging in batches, runs of dead processes, and a server of it.

In: a project's root and a profile. Out: `Store`, a client and the profile's experiment.

    satclr ui
"""

import logging
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
import warnings
import webbrowser
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from filelock import FileLock

from satclr import files, progress
from satclr.project import Project, home
from satclr.tracking import content

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",  # a dry run of pip needs the network
    "MLFLOW_UV_AUTO_DETECT": "false",  # the model lists its requirements itself
    "MLFLOW_LOG_UV_FILES": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
METRICS, PAIRS, VALUE_LENGTH = (800, 100, 6000)  # per request; MLflow allows 1000 entities, 100 parameters or tags
STARTUP_S = 180.0
HOST = "127.0.0.1"

Point = tuple[str, float, int, int]  # key, value, milliseconds, step


class TrackingError(ValueError):
    """The request does not fit what the store holds: what, and what to do. Exit code 2."""


class StoreError(RuntimeError):
    """The store cannot be opened. Exit code 1."""


@dataclass(frozen=True)
class Store:
    """One experiment of one tracking store."""

    uri: str
    folder: Path  # of its lock files and artifacts
    client: Any  # mlflow.MlflowClient
    experiment_id: str

    def search(self, *conditions: str) -> list[Any]:
        """The experiment's runs that meet all conditions, newest first."""
        return list(self.client.search_runs([self.experiment_id], " and ".join(conditions), max_results=5000))


def tag(key: str, value: object) -> str:
    """The condition that a tag of ours has a value."""
    quoted = str(value).replace("'", "\\'")
    return f"tags.`satclr.{key}` = '{quoted}'"


def tracking_uri(root: Path) -> str:
    """`MLFLOW_TRACKING_URI`, or the project's own SQLite store in `mlruns`, from a temporary copy too."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _sqlite(home(root) / "mlruns" / "mlflow.db")


def open_store(root: Path, profile: str) -> Store:
    """Open the store as MLflow's default, creating it and the experiment on first use. Raises `StoreError`."""
    mlflow, uri = load_mlflow(), tracking_uri(root)
    folder = _database(uri).parent if uri.startswith("sqlite") else home(root) / "mlruns"
    ours = "MLFLOW_TRACKING_URI" not in os.environ
    remote = uri.startswith(("http:", "https:", "databricks"))
    folder.mkdir(parents=True, exist_ok=True)
    # Two processes that create one SQLite database at once break it.
    with FileLock(folder / ".lock"), warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        if ours:
            _set_moved_aside(_database(uri))
        try:
            if uri.startswith("sqlite") and not _database(uri).exists():
                _create(mlflow, _database(uri))
            mlflow.set_tracking_uri(uri)  # the registry looks models up in the default store
            if ours:  # MLflow sets the variable too, which the next project would take for the user's
                os.environ.pop("MLFLOW_TRACKING_URI", None)
            client = mlflow.MlflowClient(uri, uri)
            experiment_id = _experiment(client, profile, None if remote else folder / "artifacts")
        except Exception as error:
            raise StoreError(f"cannot open the MLflow store {uri}: {_reason(error, uri)}") from error
    return Store(uri, folder, client, experiment_id)


def preload() -> None:
    """Import MLflow on a thread, while other work goes on."""
    threading.Thread(target=load_mlflow, name="satclr-mlflow-import", daemon=True).start()


def load_mlflow() -> Any:
    """Import MLflow and what opens a store, without telemetry, hints, progress bars and INFO lines."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings(action="ignore"):
        import mlflow.pyfunc
        import mlflow.store.tracking.sqlalchemy_store
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("mlflow.system_metrics", "mlflow.utils.environment"):  # `live` warns already; pip is not needed
        logging.getLogger(name).setLevel(logging.ERROR)
    return mlflow


def log(
    store: Store, run_id: str, *, params: Mapping[str, str] | None = None, metrics: Sequence[Point] = (),
    tags: Mapping[str, str] | None = None, model_id: str | None = None,
) -> None:  # fmt: skip
    """Log to a run in as few requests as MLflow allows; with `model_id`, metrics are the model's too."""
    from mlflow.entities import Metric, Param, RunTag

    points = [Metric(*point, model_id=model_id) for point in metrics]
    pairs = [Param(key, value[:VALUE_LENGTH]) for key, value in (params or {}).items()]
    labels = [RunTag(key, value[:VALUE_LENGTH]) for key, value in (tags or {}).items()]
    while points or pairs or labels:
        store.client.log_batch(run_id, points[:METRICS], pairs[:PAIRS], labels[:PAIRS])
        points, pairs, labels = points[METRICS:], pairs[PAIRS:], labels[PAIRS:]


def stamped(numbers: Iterable[content.Number]) -> list[Point]:
    """Metrics as of now."""
    now_ms = int(time.time() * 1000)
    return [(key, float(value), now_ms, step) for key, value, step in numbers]


def owner(pid: int | None = None) -> dict[str, str]:
    """Tags that name a process, with its start since ids are reused; none if it does not run."""
    import psutil

    pid = pid or os.getpid()
    with suppress(psutil.NoSuchProcess):
        started = f"{psutil.Process(pid).create_time():.2f}"
        return {"satclr.host": socket.gethostname(), "satclr.pid": str(pid), "satclr.pid_started": started}
    return {}


def mark_killed(store: Store) -> None:
    """Mark KILLED the runs that a dead process of this machine left RUNNING."""
    for run in store.search("attributes.status = 'RUNNING'", tag("host", socket.gethostname())):
        started = owner(int(run.data.tags["satclr.pid"])).get("satclr.pid_started")
        if started != run.data.tags["satclr.pid_started"]:
            store.client.set_terminated(run.info.run_id, "KILLED")


def serve(project: Project, *, port: int, browser: bool) -> int:
    """Serve the store until Ctrl-C and print the profile's page; return the exit code.

    With `MLFLOW_TRACKING_URI` on a server only the page is printed. Raises `TrackingError` if the port is taken or
    the server does not start.
    """
    store = open_store(project.root, project.profile)
    remote = store.uri.startswith(("http:", "https:"))
    base = store.uri.rstrip("/") if remote else f"http://{HOST}:{port}"
    runs = f"{base}/#/experiments/{store.experiment_id}/runs"
    page = f"{runs}?viewStateShareKey={content.ARM_RUNS}&workflowType=machine_learning"
    if remote:
        print(page)
        return 0
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        raise TrackingError(f"port {port} on {HOST} is taken; choose another, such as --port {port + 1}") from None
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store.uri, "--artifacts-destination"]
    command += [(store.folder / "artifacts").as_uri(), "--host", HOST, "--port", str(port), "--workers", "1"]
    command += ["--uvicorn-opts", "--log-level warning"]
    environment = QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"} | os.environ
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:  # a terminal that closes ends the server too
        signal.signal(signal.SIGHUP, signal.default_int_handler)
    # In a session of its own, Ctrl-C reaches this process alone, which ends the server without its traceback.
    with subprocess.Popen(command, env=environment, cwd=store.folder, start_new_session=True) as server:
        try:
            _wait_for(server, base)
            print(page, flush=True)
            if browser:
                webbrowser.open(page)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGTERM)


def _wait_for(server: subprocess.Popen[bytes], base: str) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"the MLflow server exited with code {server.returncode}; see its output above")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):  # noqa: S310 - http  # nosec B310
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server at {base} did not answer within {STARTUP_S:.0f} s")


def _create(mlflow: Any, database: Path) -> None:
    """Create a database completely or not at all: MLflow cannot open one that was killed between two tables."""
    with files.replacing(database) as part:
        part.unlink(missing_ok=True)
        client = mlflow.MlflowClient(_sqlite(part), _sqlite(part))
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()  # noqa: SLF001 - its connections would outlive the name


def _set_moved_aside(database: Path) -> None:
    """Rename a database whose project folder was moved or copied: MLflow stores absolute paths (mlflow#3144)."""
    rows: list[tuple[str, str]] = []
    if database.is_file():
        with closing(sqlite3.connect(database, timeout=20)) as connection, suppress(sqlite3.OperationalError):
            rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
    ours = [location for name, location in rows if location.endswith(f"/artifacts/{quote(name)}")]
    if any(not location.startswith(f"{database.parent.as_uri()}/artifacts/") for location in ours):
        aside = database.with_name(f"{database.name}.moved-{datetime.now().astimezone():%Y%m%d-%H%M%S}")
        database.rename(aside)
        progress.say(
            f"the project folder has moved: starting a new MLflow store, the former one is {aside.name}; "
            "`satclr sync` publishes the results again"
        )


def _experiment(client: Any, profile: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    tags = content.experiment_tags(profile)
    location = None if artifacts is None else f"{artifacts.as_uri()}/{quote(profile)}"
    if client.get_experiment_by_name(profile) is None:
        with suppress(MlflowException):  # another machine creates it at the same moment
            return str(client.create_experiment(profile, artifact_location=location, tags=tags))
    existing = client.get_experiment_by_name(profile)
    if existing.lifecycle_stage == "deleted":
        client.restore_experiment(existing.experiment_id)
    for key in tags.keys() - existing.tags.keys():  # keep what people changed
        client.set_experiment_tag(existing.experiment_id, key, tags[key])
    return str(existing.experiment_id)


def _reason(error: Exception, uri: str) -> str:
    """The first sentence of an error, and what to do."""
    text = " ".join(str(error).split())
    first = re.split(r"(?<=[^.\s]{2})\. (?=[A-Z])", text)[0].removesuffix(".") or type(error).__name__
    if "out-of-date database schema" in text:
        return f"{first}; make a backup, then run `mlflow db upgrade {shlex.quote(uri)}`"
    return f"{first}; check MLFLOW_TRACKING_URI"


def _sqlite(database: Path) -> str:
    """The URI of a database. An encoded path needs the driver's name: without, MLflow makes folders of that name."""
    path = str(database)
    return f"sqlite+pysqlite:///{quote(path)}" if set(path) & set("?#%") else f"sqlite:///{path}"


def _database(uri: str) -> Path:
    return Path(unquote(uri.partition(":///")[2].partition("?")[0])).resolve()
