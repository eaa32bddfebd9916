from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from satclr import runner
from satclr.project import ProjectError
from satclr.settings import ParamsError

HOLDER = """
import sys
from pathlib import Path
from satclr import runner
with runner.lock(Path(sys.argv[1]), "sample-embed"):
    print("running", flush=True)
    sys.stdin.readline()
"""


def start(root: Path) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("RANK", "SATCLR_LOCKED")}
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(root)], text=True, env=environment,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_a_concurrent_run_of_a_stage_waits_and_prints_the_pid(tmp_path: Path) -> None:
    with start(tmp_path) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "running\n"
        with start(tmp_path) as second:
            assert second.stderr is not None
            assert second.stderr.readline() == f"waiting for another run of this stage (PID {first.pid})\n"
            first.kill()  # the lock does not outlive its process
            assert second.stdout is not None
            assert second.stdout.readline() == "running\n"
            second.communicate("\n")
        assert second.returncode == 0


def test_exit_codes_tell_bad_input_from_failed_runs_from_bugs() -> None:
    assert runner.exit_code(ParamsError("x")) == runner.exit_code(ProjectError("x")) == 2
    assert runner.exit_code(runner.StageError("x")) == 1
    assert runner.exit_code(OSError(28, "No space left on device")) == 1
    assert runner.exit_code(ValueError("x")) == 1


def test_a_full_disk_under_mlflow_is_reported_as_such() -> None:
    from mlflow.exceptions import MlflowException

    advice = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"
    error = MlflowException(f"{advice}\n(sqlite3.OperationalError) database or disk is full\n[SQL: …]")
    assert runner.sentence(error) == (
        "the MLflow store failed: (sqlite3.OperationalError) database or disk is full; "
        "free some space and run the same command again"
    )
