"""One empty MLflow store for all tests, since a database takes seconds to make, and servers on loopback."""

import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from satclr.project import Project
from satclr.tracking import store
from tests.conftest import tiny_params

Make = Callable[..., Project]
TRIES = 3000  # five a second; counted, not timed: a busy machine may stand still for minutes


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    database = tmp_path_factory.mktemp("empty") / "mlflow.db"
    store._create(store.load_mlflow(), database)
    return database


def copy_store(empty: Path, root: Path) -> None:
    (root / "mlruns").mkdir(parents=True)
    shutil.copyfile(empty, root / "mlruns" / "mlflow.db")


def make_project(root: Path, *arms: str, minimum: float = 0.0, seeds: Sequence[int] = (0,)) -> Project:
    """A project of the tiny profile that runs `arms`."""
    tree = tiny_params() | {"run": list(arms), "seeds": list(seeds)}
    tree["profiles"]["tiny"]["register"] = {"minimum_val_mAP": minimum}
    root.mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    return Project(root)


def stored(project: Project, *conditions: str) -> list[Any]:
    """The runs of a project's MLflow store."""
    return store.open_store(project.root, "tiny").search(*conditions)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Make:
    """Makes a project with an empty store."""

    def make(*arms: str, **changes: Any) -> Project:
        root = tmp_path / "a project? 1#%41"
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        copy_store(empty_store, root)
        monkeypatch.chdir(tmp_path)
        return make_project(root, *arms, **changes)

    return make


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(command: list[str], url: str, **options: Any) -> Iterator[None]:
    """A server that answers at url, ended with the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            for _ in range(TRIES):
                assert process.poll() is None, f"{command} ended with {process.returncode}"
                try:
                    urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
                    break
                except OSError:
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()
