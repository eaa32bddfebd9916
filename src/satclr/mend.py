"""What a killed DVC may leave behind that would stop the next one.

    satclr mend

DVC writes `dvc.lock` and `.dvc/tmp/rwlock` in place, so that a kill can cut them short, and tells the dead from
the living by a process id alone, which after a restart may be another process's.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from satclr import atomic

STAGE = re.compile(r"^  \S", re.MULTILINE)  # where a stage begins in dvc.lock


class MendError(RuntimeError):
    """DVC is running: nothing is mended under its hands."""


def run(root: Path) -> list[str]:
    """Mend DVC's files in the project `root`; returns what was done, a sentence each.

    Raises `MendError` while DVC holds its lock.
    """
    temporary = root / ".dvc" / "tmp"
    if not temporary.is_dir():
        return []
    try:
        with FileLock(temporary / "lock", timeout=3), FileLock(temporary / "rwlock.lock", timeout=3):
            done = [_mend_rwlock(temporary / "rwlock"), _mend_lockfile(root / "dvc.lock")]
    except Timeout:
        raise MendError(f"DVC is at work in {root} (it holds a lock in {temporary}); wait for it") from None
    return [line for line in done if line]


def _mend_rwlock(path: Path) -> str | None:
    """Take out the entries of processes that are gone; all of them, if the file is cut short."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        changed_s = path.stat().st_mtime
    except FileNotFoundError:
        return None
    except ValueError:
        path.unlink()
        return f"{path.name} was cut short; removed"
    alive = {
        "write": {name: entry for name, entry in held.get("write", {}).items() if _lives(entry, changed_s)},
        "read": {
            name: left
            for name, entries in held.get("read", {}).items()
            if (left := [entry for entry in entries if _lives(entry, changed_s)])
        },
    }
    if alive == {"write": held.get("write", {}), "read": held.get("read", {})}:
        return None
    atomic.write_json(path, alive, indent=None)
    return f"{path.name} named processes that are gone; taken out"


def _lives(entry: dict[str, Any], changed_s: float) -> bool:
    """Whether the process of an entry still runs: a younger one of the same id is another."""
    try:
        process = psutil.Process(int(entry["pid"]))
        return process.create_time() <= changed_s and _command(entry["cmd"]) in " ".join(process.cmdline())
    except psutil.Error:
        return False


def _command(line: str) -> str:
    words = line.split()
    return Path(words[0]).name.removesuffix("__main__.py") if words else ""


def _mend_lockfile(path: Path) -> str | None:
    """Cut a dvc.lock that does not read back to its whole stages; DVC's run cache knows the others."""
    if not path.is_file():
        return None
    text = whole = path.read_text(encoding="utf-8", errors="replace")
    while whole and not _reads(whole):
        begins = [found.start() for found in STAGE.finditer(whole)]
        whole = whole[: begins[-1]] if begins else ""
    if whole == text:
        return None
    if whole:
        atomic.write_text(path, whole)
    else:
        path.unlink()
    return "dvc.lock was cut short; `dvc repro` restores the rest from its cache"


def _reads(text: str) -> bool:
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.safe_load(text))
    except (yaml.YAMLError, Invalid):
        return False
    return True
