"""The MLflow server on this project's own store, for one person on this machine.

satclr ui
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
import webbrowser

from satclr.project import Project
from satclr.tracking import runs
from satclr.tracking.store import QUIET, TrackingError, open_store, runs_page, store_folder, tracking_uri

STARTUP_S = 180.0
HOST = "127.0.0.1"


def serve(project: Project, *, port: int = 5000, browser: bool = False) -> int:
    """Publish what the store lacks, serve it until Ctrl-C, print the profile's page; return the exit code.

    With `MLFLOW_TRACKING_URI` on a server only the page is printed. Raises `TrackingError` if the port is taken or
    the server does not start.
    """
    uri = tracking_uri(project.root)
    remote = uri.startswith(("http:", "https:"))
    if not remote:
        _require_free(port)
    runs.publish_all(project)
    base = uri.rstrip("/") if remote else f"http://{HOST}:{port}"
    page = runs_page(base, open_store(project.root, project.profile).experiment_id)
    if remote:
        print(page)
        return 0
    folder = store_folder(project.root)
    environment = QUIET | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"} | os.environ
    with subprocess.Popen(_command(project, port), env=environment, cwd=folder) as server:
        try:
            _wait_for(server, base)
            print(page, flush=True)
            if browser:
                webbrowser.open(page)
            return server.wait()
        except KeyboardInterrupt:
            return 0
        finally:
            server.terminate()


def _command(project: Project, port: int) -> list[str]:
    artifacts = (store_folder(project.root) / "artifacts").as_uri()
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", tracking_uri(project.root)]
    command += ["--artifacts-destination", artifacts, "--host", HOST, "--port", str(port), "--workers", "1"]
    return [*command, "--uvicorn-opts", "--log-level warning"]


def _require_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            raise TrackingError(f"port {port} on {HOST} is taken; choose another, such as --port {port + 1}") from None


def _wait_for(server: subprocess.Popen[bytes], base: str) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise TrackingError(f"the MLflow server exited with code {server.returncode}; see its output above")
        try:
            with urllib.request.urlopen(f"{base}/health", timeout=5):  # noqa: S310 - http  # nosec B310
                return
        except OSError:
            time.sleep(0.2)
    raise TrackingError(f"the MLflow server at {base} did not answer within {STARTUP_S:.0f} s")
