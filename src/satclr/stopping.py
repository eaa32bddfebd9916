"""Being asked to leave: Ctrl-C, SIGTERM, and a `dvc repro` that is no more.

A command calls `listen` once. It then ends with 130 or 143, in `DEADLINE_S` at the latest, and does not outlive
the DVC or torchrun that waits for it. Training, which must not be left in the middle of a step, asks in between:

with stopping.deferred() as stop:
    for batch in batches:
        ...
        if stop.asked:
            save()
            stop.leave()
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from satclr import progress

SIGNALS = (signal.SIGINT, signal.SIGTERM)
DEADLINE_S = 4.0  # for a checkpoint and the run's end; then the process ends as it stands
LOOK_EVERY_S = 0.25
SHELLS = {"sh", "bash", "dash", "zsh", "fish", "ksh", "busybox"}
ADOPTERS = {"init", "systemd", "launchd"}  # who takes over a process whose parent is gone


def listen() -> None:
    """Take up signals, and watch the process that waits for this one, if DVC or torchrun started it."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    ear, mouth = socket.socketpair()
    mouth.setblocking(False)
    signal.set_wakeup_fd(mouth.fileno(), warn_on_full_buffer=False)
    # A thread hears of a signal at once, while the main thread may be deep in a long tensor operation.
    threading.Thread(target=_leave_in_time, args=(ear, mouth), name="satclr-signals", daemon=True).start()
    if "DVC_STAGE" in os.environ or "RANK" in os.environ:
        threading.Thread(target=_follow, name="satclr-parent", daemon=True).start()


def _leave_in_time(ear: socket.socket, _mouth: socket.socket) -> None:
    while True:
        for number in ear.recv(64):
            if number in SIGNALS:
                time.sleep(DEADLINE_S)
                progress.say(
                    f"stopped by {signal.Signals(number).name}; what was under way is left as it stands"
                )
                os._exit(128 + number)


def _follow() -> None:
    """Ask this process to leave once the one that waits for it is gone: a killed DVC leaves no orphan."""
    import psutil

    boss = None
    with contextlib.suppress(psutil.Error):
        boss = next((p for p in psutil.Process().parents() if p.name() not in SHELLS), None)
    if boss is not None and not _adopted(boss):
        while boss.is_running() and boss.status() != psutil.STATUS_ZOMBIE:
            time.sleep(LOOK_EVERY_S)
    os.kill(os.getpid(), signal.SIGTERM)


def _adopted(boss: Any) -> bool:
    """Whether the process above is the system's, so that the one that started this is gone already."""
    import psutil

    try:
        system = boss.pid == 1 or boss.name() in ADOPTERS
        return system and not any("dvc" in word or "torch" in word for word in boss.cmdline())
    except psutil.Error:
        return True


class Stop:
    """Whether somebody asked this process to leave, and the way out."""

    def __init__(self) -> None:
        self._came: list[int] = []
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            handlers = {number: signal.getsignal(number) for number in SIGNALS}
            self._before = {n: h for n, h in handlers.items() if h not in (signal.SIG_IGN, None)}
        for number in self._before:
            signal.signal(number, self._note)

    @property
    def asked(self) -> bool:
        return bool(self._came)

    def leave(self) -> None:
        """Do what the signal would have done, had it not been deferred."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._came:
            signal.raise_signal(self._came.pop(0))

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._came.append(number)


@contextmanager
def deferred() -> Iterator[Stop]:
    """Inside, Ctrl-C and SIGTERM only show in `asked`; on leaving they do what they would have done."""
    stop = Stop()
    try:
        yield stop
    finally:
        stop.leave()
