"""The MLflow store: where it is, its first use, and its repair after the folder moved."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from filelock import FileLock

from satclr import atomic
from satclr.tracking.pages import experiment_tags

LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
    ("model_versions", "source"),
)
QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_PRINT_MODEL_URLS_ON_CREATION": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_SKIP_PIP_REQUIREMENTS_CHECK": "true",  # a dry run of pip reaches for the network
    "MLFLOW_UV_AUTO_DETECT": "false",  # the model names its requirements itself
    "MLFLOW_LOG_UV_FILES": "false",
    "GIT_PYTHON_REFRESH": "quiet",
}
HEARTBEAT = "system/cpu_utilization_percentage"  # a live run has it every few seconds
SILENCE_S = 3600.0
METRICS, PAIRS, VALUE_LENGTH = 800, 100, 6000  # of one request: 1000 entities in all, 100 of a kind


class TrackingError(ValueError):
    """The store cannot do what was asked: the message names it and what to do."""


@dataclass(frozen=True)
class Store:
    """One experiment of one tracking store."""

    uri: str
    client: Any  # mlflow.MlflowClient
    experiment_id: str


def connect(root: Path, profile: str) -> str:
    """Return the id of the profile's experiment; create the store and the experiment at first use.

    Raises `TrackingError` where the store does not answer.
    """
    return open_store(root, profile).experiment_id


def tracking_uri(root: Path) -> str:
    """Return `MLFLOW_TRACKING_URI`, or the project's own SQLite store under `<root>/mlruns`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{root.resolve() / 'mlruns' / 'mlflow.db'}"


def open_store(root: Path, profile: str) -> Store:
    """Like `connect`, and return the client too. MLflow's global store becomes this one."""
    mlflow = load_mlflow()
    uri = tracking_uri(root)
    home = store_folder(root, uri)
    home.mkdir(parents=True, exist_ok=True)
    # Two processes that create one SQLite database at once break it.
    with FileLock(home / ".lock"):
        relocate(root)
        try:
            if uri.startswith("sqlite:") and not _database(uri).exists():
                _create(mlflow, _database(uri))
            _make_default(mlflow, uri)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # between MLflow and its SQLAlchemy
                client = mlflow.MlflowClient(uri, uri)
            experiment_id = _experiment(client, profile, None if _is_remote(uri) else home / "artifacts")
        except mlflow.MlflowException as error:
            reason = " ".join(str(error).split())[:300]
            raise TrackingError(f"MLflow store {uri} does not work: {reason}; check MLFLOW_TRACKING_URI") from error
    return Store(uri, client, experiment_id)


def _create(mlflow: Any, database: Path) -> None:
    """Make a new database whole or not at all: one that is killed halfway through its tables opens never again."""
    with atomic.replacing(database) as part, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        part.unlink(missing_ok=True)
        client = mlflow.MlflowClient(f"sqlite:///{part}", f"sqlite:///{part}")
        client.search_experiments(max_results=1)
        client._tracking_client.store.engine.dispose()  # noqa: SLF001 - its connections would outlive the name


def _experiment(client: Any, profile: str, artifacts: Path | None) -> str:
    from mlflow.exceptions import MlflowException

    tags = experiment_tags(profile)
    found = client.get_experiment_by_name(profile)
    if found is None:
        location = None if artifacts is None else f"{artifacts.as_uri()}/{quote(profile)}"
        try:
            return str(client.create_experiment(profile, artifact_location=location, tags=tags))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another machine was first
                raise
            found = client.get_experiment_by_name(profile)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    for key in tags.keys() - found.tags.keys():  # what people changed stays
        client.set_experiment_tag(found.experiment_id, key, tags[key])
    return str(found.experiment_id)


def _make_default(mlflow: Any, uri: str) -> None:
    """Let MLflow's global functions use a store, in this process only.

    MLflow writes it to the environment too, where the next project would take it for the user's own.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    if given is None:
        os.environ.pop("MLFLOW_TRACKING_URI", None)


def relocate(root: Path) -> int:
    """Point every artifact and model of a store that was moved or copied to where it is now.

    MLflow keeps absolute locations (mlflow/mlflow#3144); those of a SQLite store's own artifacts folder
    are rewritten to stand beside the database. Returns how many experiments had moved.
    """
    uri = tracking_uri(root)
    if not uri.startswith("sqlite:"):
        return 0
    home = store_folder(root, uri)
    database = _database(uri)
    if not database.is_file():
        return 0
    new = (home / "artifacts").as_uri()
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        try:
            rows = connection.execute("SELECT name, artifact_location FROM experiments").fetchall()
        except sqlite3.OperationalError:  # no tables yet
            return 0
        olds = {
            location.removesuffix(f"/{quote(name)}")
            for name, location in rows
            if location and location.startswith("file:") and location.endswith(f"/artifacts/{quote(name)}")
        } - {new}
        for old in olds:
            for table, column in LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?)"  # noqa: S608 - constants
                    f" WHERE substr({column}, 1, ?) = ?",
                    (new, len(old) + 1, len(old) + 1, old + "/"),
                )
    return len(olds)


def store_folder(root: Path, uri: str) -> Path:
    """Return the folder with the store's lock and artifacts: the database's own where it is SQLite."""
    return _database(uri).parent if uri.startswith("sqlite:") else root.resolve() / "mlruns"


def load_mlflow() -> Any:
    """Import MLflow without its telemetry, hints, progress bars and INFO lines."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)  # an environment without pip
    return mlflow


def log(
    store: Store,
    run_id: str,
    *,
    params: Mapping[str, Any] | None = None,
    metrics: Sequence[tuple[str, float, int, int]] = (),
    tags: Mapping[str, str] | None = None,
    model_id: str | None = None,
) -> None:
    """Log everything of a run in as few requests as MLflow's limits allow: one where it fits.

    Metrics are (key, value, milliseconds, step); with a model's id they are that model's too.
    """
    from mlflow.entities import Metric, Param, RunTag

    points = [Metric(*point, model_id=model_id) for point in metrics]
    pairs = [Param(key, str(value)[:VALUE_LENGTH]) for key, value in (params or {}).items()]
    labels = [RunTag(key, value[:VALUE_LENGTH]) for key, value in (tags or {}).items()]
    while points or pairs or labels:
        store.client.log_batch(run_id, points[:METRICS], pairs[:PAIRS], labels[:PAIRS])
        points, pairs, labels = points[METRICS:], pairs[PAIRS:], labels[PAIRS:]


def tag_value(value: str) -> str:
    """Quote a value for a filter of `search_runs`."""
    return "'" + value.replace("'", "\\'") + "'"


def owner() -> dict[str, str]:
    """Tags that name this process, so that another one can tell whether it still runs."""
    import psutil

    process = psutil.Process()
    return {
        "satclr.host": socket.gethostname(),
        "satclr.pid": str(process.pid),
        "satclr.pid_started": f"{process.create_time():.2f}",
    }


def sweep(store: Store) -> int:
    """Mark KILLED the runs left RUNNING by a process that died; return how many.

    A process of this machine is looked up; one of another machine, on a shared server, counts as dead after an
    hour without a sign of life.
    """
    dead = 0
    filters = "attributes.status = 'RUNNING' and tags.`satclr.pid` != ''"
    for run in store.client.search_runs([store.experiment_id], filters, max_results=1000):
        here = run.data.tags["satclr.host"] == socket.gethostname()
        if not (_process_lives(run.data.tags) if here else _seen_lately(store, run)):
            store.client.set_terminated(run.info.run_id, "KILLED")
            dead += 1
    return dead


def _process_lives(tags: Mapping[str, str]) -> bool:
    import psutil

    try:
        started = psutil.Process(int(tags["satclr.pid"])).create_time()
    except psutil.NoSuchProcess:
        return False
    return f"{started:.2f}" == tags["satclr.pid_started"]


def _seen_lately(store: Store, run: Any) -> bool:
    points = store.client.get_metric_history(run.info.run_id, HEARTBEAT) if HEARTBEAT in run.data.metrics else []
    last_ms = max([run.info.start_time, *(point.timestamp for point in points)])
    return bool(time.time() - last_ms / 1000 < SILENCE_S)


def _database(uri: str) -> Path:
    return Path(uri.removeprefix("sqlite:///").partition("?")[0]).resolve()


def _is_remote(uri: str) -> bool:
    return uri.startswith(("http:", "https:", "databricks"))
