"""Locks between processes: they die with their holder, and who waits is told for whom.

lock = locks.Lock(path, "runs satclr embed --arm simclr")
lock.wait()
lock.release()
"""

from __future__ import annotations

import contextlib
import os
from datetime import datetime
from pathlib import Path

import filelock

from satclr import progress

PATIENCE_S = 10.0  # between two tries for a lock that somebody holds


class Lock:
    """A lock on the file `path`; `does` says what its holder does, for those who wait."""

    def __init__(self, path: Path, does: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = filelock.FileLock(path)
        self._holder = path.with_name(path.name + ".holder")
        self._does = does
        self._waits = False

    def wait(self) -> None:
        """Take the lock, as soon as nobody else has it."""
        while not self.take():
            pass

    def take(self) -> bool:
        """Take the lock if it is free, the first time at once, then within `PATIENCE_S`; says for whom it waits."""
        try:
            self._lock.acquire(timeout=PATIENCE_S if self._waits else 0)
        except filelock.Timeout:
            if not self._waits:
                progress.say(f"waiting for {self._who()}, which {self._does}")
            self._waits = True
            return False
        with contextlib.suppress(OSError):  # for those who wait; a full disk is no reason to stop here
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            self._holder.write_text(f"process {os.getpid()} (since {now})", encoding="utf-8")
        return True

    def release(self) -> None:
        self._lock.release()

    def _who(self) -> str:
        try:
            return self._holder.read_text(encoding="utf-8") or "another process"
        except OSError:
            return "another process"
