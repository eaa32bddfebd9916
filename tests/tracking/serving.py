"""Servers on loopback for tests."""

from __future__ import annotations

import socket
import subprocess
import time
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
def served(command: list[str], url: str, **options: Any) -> Iterator[None]:
    """A server that answers at url, ended with the block."""
    with subprocess.Popen(command, **options) as process:
        try:
            for _ in range(TRIES):
                assert process.poll() is None, f"{command} ended with {process.returncode}"
                try:
                    urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
                    break
                except OSError:
                    time.sleep(0.2)
            yield
        finally:
            process.terminate()
