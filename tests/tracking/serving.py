"""Servers on loopback for tests."""

from __future__ import annotations

import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TRIES = 3000  # five a second; counted, not timed: a busy machine may stand still for minutes


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(command: list[str], url: str, *, at: str = "/health", **options: Any) -> Iterator[str]:
    """A server that answers at url, ended with the block."""
    process = subprocess.Popen(command, **options)
    try:
        answers(process, f"{url}{at}")
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)


def answers(process: subprocess.Popen[Any], url: str) -> None:
    """Wait until url answers; fail if the server ends before, or does not after many tries."""
    for _ in range(TRIES):
        assert process.poll() is None, f"{process.args!r} ended with {process.returncode}"
        try:
            with urllib.request.urlopen(url, timeout=5):  # noqa: S310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"{url} does not answer")
