import os
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import UnidentifiedImageError
from sqlalchemy.exc import OperationalError

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


@pytest.mark.parametrize(("others_s", "told"), [(4.0, ""), (9.0, "keep 0.9 of 2 cores busy")])
def test_a_busy_machine_is_pointed_out_and_threads_do_not_spin_there(
    others_s: float, told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    times = namedtuple("times", "user idle iowait")  # noqa: PYI024 - as psutil has it
    later = times(1.0 + others_s, 9.0, 3.0)
    spent, clock = iter([times(1.0, 2.0, 3.0), later, later]), iter([0.0, 10.0, 10.0])
    for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # and restore it afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(psutil, "cpu_times", lambda: next(spent))
    monkeypatch.setattr(psutil.Process, "cpu_times", lambda _self: (0.0, 0.0))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    others = runner._Others()
    others.make_room()
    assert os.environ.get("OMP_WAIT_POLICY") == ("passive" if told else None)
    others.point_out("embed")
    printed = capsys.readouterr().err
    assert told in printed
    assert ("OMP_NUM_THREADS=1 may be faster" in printed) == bool(told)


ADVICE = "(raised as a result of Query-invoked autoflush; consider using a session.no_autoflush block)"
FULL = "(sqlite3.OperationalError) database or disk is full"


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (ParamsError("x"), 2, "x"),
        (ProjectError("x"), 2, "x"),
        (runner.StageError("x"), 1, "x"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (UnidentifiedImageError("cannot identify image file"), 1, "cannot identify image file"),
        (MlflowException("No such artifact: 'a'\nmore"), 1, "the MLflow store failed: No such artifact: 'a'"),
        (OperationalError("SELECT 1", {}, Exception("locked")), 1, "the MLflow store failed: "),
        (MlflowException(f"{ADVICE}\n{FULL}\n[SQL: …]"), 1, f"the MLflow store failed: {FULL}; free some space"),
        (torch.OutOfMemoryError("CUDA out of memory.\nTried"), 1, "out of memory; lower the stage's batch_size"),
        (MemoryError(), 1, "out of memory; lower the stage's batch_size"),
        (ValueError("a\nb"), 1, "unexpected ValueError: a b; set SATCLR_TRACEBACK=1 to see where it was raised"),
        (KeyError("test_mAP"), 1, "unexpected KeyError: 'test_mAP'; set SATCLR_TRACEBACK=1"),
    ],
)  # fmt: skip
def test_an_error_is_one_sentence_and_its_exit_code_tells_bad_input_from_failed_runs(
    error: BaseException, code: int, sentence: str
) -> None:
    assert runner.exit_code(error) == code
    assert sentence in runner.sentence(error)
    assert "\n" not in runner.sentence(error)
