"""A stage's MLflow run while it trains. A thread talks to MLflow, so that training waits for nothing.

with live(run, "pretrain", fingerprint) as log:
    log(epoch, {"loss": 0.5, "tiles_per_s": 900.0})

MLflow's own asynchronous logging is not used: it drops a batch that the server does not accept.
"""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from satclr import progress
from satclr.progress import Log
from satclr.project import Run
from satclr.tracking.store import Point, Store, StoreError, log, mark_killed, open_store, owner, stamped, tag

FLUSH_S = 5.0
KILLED_S = 10.0  # to end the run of an interrupted stage
RETRIES = "2"  # of an HTTP request: what fails is sent again FLUSH_S later


@contextmanager
def live(run: Run, stage: str, fingerprint: str) -> Iterator[Log]:
    """Yield `log(epoch, metrics)`, which shows metrics as `<stage>/<name>` in the run `<arm>-s<seed> <stage>`.

    A run with the same fingerprint is resumed; steps that it has are not logged again. It ends FINISHED, FAILED (on an
    exception) or KILLED (on a signal). Training goes on while the store is away. Raises `StoreError` after the block
    if the store could not be opened at all.
    """
    worker = _Worker(run, stage, fingerprint)
    worker.start()
    try:
        yield worker.log
    except BaseException as error:
        failed = isinstance(error, Exception)
        worker.end("FAILED" if failed else "KILLED", timeout_s=None if failed else KILLED_S)
        raise
    worker.end("FINISHED")
    if not worker.run_id:
        raise StoreError(f"{stage} has written its files but not its MLflow run: {worker.error}")


class _Worker(threading.Thread):
    def __init__(self, run: Run, stage: str, fingerprint: str) -> None:
        super().__init__(name="satclr-mlflow", daemon=True)
        self.run_id = ""
        self.error: Exception | None = None
        self._run, self._stage, self._fingerprint = run, stage, fingerprint
        self._store: Store
        self._monitor: Any = None
        self._logged: dict[str, int] = {}  # metric → its last step
        self._unsent: list[Point] = []
        self._ended = threading.Event()
        self._status = ""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step (an epoch, from 1)."""
        self._unsent += stamped((f"{self._stage}/{key}", value, step) for key, value in metrics.items())

    def end(self, status: str, timeout_s: float | None = None) -> None:
        """Send what is queued and end the run; wait for it."""
        self._status = status
        self._ended.set()
        self.join(timeout_s)

    def run(self) -> None:
        ended = False
        while not ended:
            ended = self._ended.is_set()
            try:
                self._send()
                if ended:
                    self._monitor.finish()
                    self._store.client.set_terminated(self.run_id, self._status)
            except Exception as error:  # noqa: BLE001 - hours of training outweigh a server that is away
                if self.error is None:
                    progress.say(f"MLflow is away ({error}); training goes on, metrics are sent later")
                self.error = error
            self._ended.wait(FLUSH_S)

    def _send(self) -> None:
        self.run_id = self.run_id or self._open()
        points = self._unsent.copy()
        log(self._store, self.run_id, metrics=[p for p in points if p[3] > self._logged.get(p[0], -1)])
        del self._unsent[: len(points)]  # `log` may have added more
        if self._monitor is None or self.error is not None:  # MLflow's monitor stops once the store is away
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            # CPU, memory, disk, network and GPU, every 10 s
            self._monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self._store.uri)
            self._monitor.start()
        self.error = None

    def _open(self) -> str:
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", RETRIES)
        run, stage = self._run, self._stage
        store = self._store = open_store(run.root, run.profile)
        mark_killed(store)
        key = {"kind": "live", "arm": run.arm, "seed": run.seed, "stage": stage, "fingerprint": self._fingerprint}
        facts = key | {"profile": run.profile, "dvc_stage": f"{stage}@{run.profile}-{run.arm}-{run.seed}"}
        tags = {f"satclr.{name}": str(value) for name, value in facts.items()} | owner()
        former = store.search(*(tag(name, value) for name, value in key.items()))
        if former:
            opened = former[0]
            self._logged = {point.key: point.step for point in opened.data._metric_objs}  # noqa: SLF001
            store.client.update_run(opened.info.run_id, status="RUNNING")
        else:
            opened = store.client.create_run(store.experiment_id, run_name=f"{run.key} {stage}", tags=tags)
        log(store, opened.info.run_id, tags=tags, params={} if opened.data.params else run.parameters())
        return str(opened.info.run_id)
