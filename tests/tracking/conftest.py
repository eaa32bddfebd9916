"""One empty MLflow store for all tests: a database takes seconds to make."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from satclr.project import Project
from satclr.tracking import store
from tests.tracking import outputs


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("empty")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        store.open_store(root, "tiny")
    return root


def copy_store(empty: Path, root: Path) -> None:
    """Copy a store and correct its artifacts' location, as if it had been made there."""
    (root / "mlruns").mkdir(parents=True)
    shutil.copyfile(empty / "mlruns" / "mlflow.db", root / "mlruns" / "mlflow.db")
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as connection, connection:
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE name = 'tiny'",
            ((root.resolve() / "mlruns" / "artifacts" / "tiny").as_uri(),),
        )


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Callable[..., Project]:
    """Makes a project with an empty store, entered."""

    def make_project(*arms: str, seeds: tuple[int, ...] = (0,), minimum: float = 0.0) -> Project:
        root = tmp_path / "a project"
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
        copy_store(empty_store, root)
        monkeypatch.chdir(tmp_path)
        return outputs.make_project(root, *arms, seeds=seeds, minimum=minimum)

    return make_project
