from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from satclr import stopping

LISTENING = """
import hashlib, time
from satclr import stopping
stopping.DEADLINE_S = 1.0
stopping.listen()
print("ready", flush=True)
"""
SLEEPING = LISTENING + "time.sleep(60)"
DEAF = (
    LISTENING + "hashlib.pbkdf2_hmac('sha256', b'', b'', 2_000_000_000)"
)  # one call, as a tensor operation is


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """A shell lets what it runs in the background ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@contextmanager
def started(code: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that listens, from where it does."""
    plain = {k: v for k, v in os.environ.items() if k not in {"DVC_STAGE", "RANK"}}
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env={**plain, **environment}
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_deferred_signal_shows_at_once_and_acts_on_leaving() -> None:
    seen = []

    def work() -> None:
        with stopping.deferred() as stop:
            seen.append(stop.asked)
            signal.raise_signal(signal.SIGINT)
            seen.append(stop.asked)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [False, True]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_leaving_early_raises_what_the_signal_would_have_raised() -> None:
    reached = []

    def work() -> None:
        with stopping.deferred() as stop:
            signal.raise_signal(signal.SIGINT)
            reached.append("the signal is behind")
            stop.leave()
            reached.append("here nobody comes")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["the signal is behind"]


def test_without_a_signal_nothing_happens() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stopping.deferred() as stop:
        stop.leave()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("code", [SLEEPING, DEAF])
def test_sigterm_ends_a_process_in_time_even_in_the_middle_of_a_long_call(code: str) -> None:
    with started(code) as process:
        begun = time.monotonic()
        process.terminate()
        assert process.wait() == 143
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("environment", [{"DVC_STAGE": "pretrain"}, {}])
def test_a_stage_does_not_outlive_its_dvc_but_any_shell(environment: dict[str, str], tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text(SLEEPING)
    boss = f"import subprocess, sys; subprocess.Popen([sys.executable, {str(script)!r}]).wait()"
    with started(boss, **environment) as process:
        (child,) = psutil.Process(process.pid).children()
        process.kill()
        process.wait()
        patience_s = 10 if environment else 3 * stopping.LOOK_EVERY_S + 0.5
        _gone, alive = psutil.wait_procs([child], timeout=patience_s)
        assert alive == ([] if environment else [child])
        for left in alive:
            left.kill()
