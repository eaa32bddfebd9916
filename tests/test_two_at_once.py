"""Two people start the same thing: one waits, or stops and says who is at it; the result is right."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from . import faults
from .conftest import tiny_params

FIRST_USE = """
import sys
from pathlib import Path
from satclr import tracking
print(tracking.open_store(Path(sys.argv[1]), "tiny").experiment_id)
"""


def start(*command: str, root: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "SATCLR_CHECKPOINT_AFTER_S": "0"},
    )  # fmt: skip


def test_two_first_uses_of_a_store_make_one(tmp_path: Path) -> None:
    both = [start("-c", FIRST_USE, str(tmp_path), root=tmp_path) for _ in range(2)]
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert ends[0][0] == ends[1][0]
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as db:
        assert db.execute("SELECT COUNT(*) FROM experiments WHERE name = 'tiny'").fetchone() == (1,)
    assert not list((tmp_path / "mlruns").glob("*.part"))


def test_a_store_whose_first_use_was_cut_short_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db.part")) as db:
        db.execute("CREATE TABLE experiments (name TEXT)")
    process = start("-c", FIRST_USE, str(tmp_path), root=tmp_path)
    said = process.communicate()
    assert process.returncode == 0, said


@pytest.mark.slow
def test_two_pretrainings_of_an_arm_run_one_after_the_other(project: Callable[..., Path]) -> None:
    root = project(lambda tree: tree["profiles"]["tiny"]["pretrain"].update(epochs=20))
    first = start("-m", "satclr", "prepare", root=root)
    said = first.communicate()
    assert first.returncode == 0, said
    command = ("-m", "satclr", "pretrain", "--arm", "simclr")
    both = [start(*command, root=root) for _ in range(2)]
    heard = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], heard
    waited = [text for text in heard if "waiting for process" in text]
    assert len(waited) == 1
    assert "which runs pretrain on the same files" in waited[0]
    assert "this pretraining has been run before" in waited[0]
    with closing(sqlite3.connect(root / "mlruns" / "mlflow.db")) as db:
        assert db.execute("SELECT status FROM runs").fetchall() == [("FINISHED",)]


@pytest.mark.slow
def test_of_two_repros_one_stops_and_says_who_is_at_it(tiny_data: Path, tmp_path: Path) -> None:
    tree = tiny_params()
    tree["profiles"]["tiny"]["pretrain"]["epochs"] = 40
    target = ("pretrain@tiny-simclr-0",)
    alone, shared = (
        faults.make(tmp_path / name, tree=tree, data=tiny_data, targets=target) for name in ("a", "b")
    )
    alone.run("dvc", "repro", *target)
    first = shared.start("dvc", "repro", *target)
    while target[0] not in faults.running(shared):
        assert first.poll() is None
    second = shared.start("dvc", "repro", *target, log=shared.root / "log2")
    assert second.wait() != 0
    said = (shared.root / "log2").read_text()
    assert f"(PID {first.pid}): " in said
    assert first.wait() == 0, (shared.root / "log").read_text()
    assert shared.outputs() == alone.outputs()
    assert "up to date" in shared.run("dvc", "status", *target)
