from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from satclr import mend

LOCK: dict[str, Any] = {
    "schema": "2.0",
    "stages": {
        name: {
            "cmd": f"satclr {name}",
            "deps": [{"path": f"data/{name}", "hash": "md5", "md5": "0123456789abcdef" * 2, "size": 123}],
            "params": {"params.yaml": {"defaults.data": {"tile_px": 256}}},
            "outs": [{"path": f"build/{name}", "hash": "md5", "md5": "fedcba9876543210" * 2, "size": 45}],
        }
        for name in ("prepare@a", "pretrain@a-b-0", "embed@a-b-0")
    },
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / ".dvc" / "tmp").mkdir(parents=True)
    return tmp_path


def test_a_lock_file_cut_anywhere_is_cut_back_to_its_whole_stages(root: Path) -> None:
    text = yaml.safe_dump(LOCK, sort_keys=False)
    mended = 0
    for end in range(0, len(text), 7):
        (root / "dvc.lock").write_text(text[:end])
        said = mend.run(root)
        mended += bool(said)
        path = root / "dvc.lock"
        left: dict[str, Any] = (yaml.safe_load(path.read_text()) if path.exists() else None) or {}
        stages = list(left.get("stages") or {})
        assert stages == list(LOCK["stages"])[: len(stages)]
        whole = [name for name in stages if left["stages"][name] == LOCK["stages"][name]]
        assert len(whole) >= len(stages) - 1  # DVC runs a stage again whose last line is cut
        assert mend.run(root) == []
    assert mended > 20


def test_a_whole_lock_file_stays_as_it_is(root: Path) -> None:
    text = yaml.safe_dump(LOCK)
    (root / "dvc.lock").write_text(text)
    assert mend.run(root) == []
    assert (root / "dvc.lock").read_text() == text


def test_processes_that_are_gone_hold_nothing(root: Path) -> None:
    path = root / ".dvc" / "tmp" / "rwlock"
    mine = {"pid": os.getpid(), "cmd": sys.argv[0] or "pytest"}
    other = {"pid": os.getpid(), "cmd": "/somewhere/bin/dvc repro"}  # a process id that another one has now
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    gone = {"pid": dead.pid, "cmd": "/somewhere/bin/dvc repro"}
    path.write_text(
        json.dumps({"write": {"/a": gone, "/b": other, "/c": mine}, "read": {"/d": [gone, mine]}})
    )
    assert mend.run(root) == ["rwlock named processes that are gone; taken out"]
    assert json.loads(path.read_text()) == {"write": {"/c": mine}, "read": {"/d": [mine]}}
    assert mend.run(root) == []


@pytest.mark.parametrize("text", ["", '{"write": {"/a": {"pid": 1'])
def test_a_list_that_was_cut_short_is_removed(text: str, root: Path) -> None:
    (root / ".dvc" / "tmp" / "rwlock").write_text(text)
    assert mend.run(root) == ["rwlock was cut short; removed"]
    assert not (root / ".dvc" / "tmp" / "rwlock").exists()


def test_nothing_is_mended_under_a_dvc_at_work(root: Path) -> None:
    with FileLock(root / ".dvc" / "tmp" / "lock"), pytest.raises(mend.MendError, match="DVC is at work"):
        mend.run(root)
