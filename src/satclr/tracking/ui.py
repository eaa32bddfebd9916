"""The MLflow server on this project's own store, for one person on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable
from pathlib import Path

from satclr.tracking import pages
from satclr.tracking.live import sigterm_raises
from satclr.tracking.store import QUIET, TrackingError, open_store, store_folder, sweep, tracking_uri

STARTUP_S = 180.0
HOST = "127.0.0.1"


def ui(root: Path, profile: str, *, port: int = 5000, browser: bool = False, say: Callable[[str], None] = print) -> int:
    """Serve the store on 127.0.0.1 until Ctrl-C and say the profile's page; return the exit code.

    With `MLFLOW_TRACKING_URI` on a server there is nothing to start: only the page is said.
    Raises `TrackingError` where the port is taken or the server does not start.
    """
    uri = tracking_uri(root)
    store = open_store(root, profile)
    sweep(store)
    if uri.startswith(("http:", "https:")):
        say(pages.runs_page(uri.rstrip("/"), store.experiment_id))
        return 0
    _refuse_taken(port)
    server = subprocess.Popen(_command(root, uri, port), env=_environment(), cwd=store_folder(root, uri))
    base = f"http://{HOST}:{port}"
    try:
        with sigterm_raises():
            _await(server, base)
            say(pages.runs_page(base, store.experiment_id))
            if browser:
                webbrowser.open(pages.runs_page(base, store.experiment_id))
            code = server.wait()
    except KeyboardInterrupt:
        return 0
    else:
        return code
    finally:
        server.terminate()
        server.wait()


def _command(root: Path, uri: str, port: int) -> list[str]:
    artifacts = (store_folder(root, uri) / "artifacts").as_uri()
    return [
        *(sys.executable, "-m", "mlflow", "server", "--backend-store-uri", uri),
        *("--artifacts-destination", artifacts, "--host", HOST, "--port", str(port), "--workers", "1"),
        *("--uvicorn-opts", "--log-level warning"),
    ]


def _environment() -> dict[str, str]:
    return {**QUIET, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", **os.environ}


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise TrackingError(
                f"port {port} on {HOST} is taken; name a free one with --port, such as {port + 1}"
            ) from None


def _await(server: subprocess.Popen[bytes], base: str) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"the MLflow server ended with code {server.returncode}; its lines above say why")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):  # noqa: S310 - http  # nosec B310
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server at {base} did not answer within {STARTUP_S:.0f} s")
