from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from satclr import locks

HOLD = """
import sys, time
from pathlib import Path
from satclr import locks
lock = locks.Lock(Path(sys.argv[1]), "runs embed")
lock.wait()
print("held", flush=True)
time.sleep(60)
"""


def test_who_waits_is_told_for_whom_and_a_killed_holder_holds_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "locks" / "embed"
    lock = locks.Lock(path, "runs embed")
    with subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not lock.take()
        said = capsys.readouterr().err
        assert f"waiting for process {holder.pid} (since " in said
        assert "which runs embed" in said
        holder.kill()
    begun = time.monotonic()
    lock.wait()
    assert time.monotonic() - begun < 2
    lock.release()
    assert capsys.readouterr().err == ""
