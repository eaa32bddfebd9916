"""A stage's run while it trains: metrics batched by a thread, system metrics, and an end that is always told.

with tracking.live(root, profile="sample", arm="simclr", seed=0, stage="pretrain",
                   fingerprint=fingerprint, params={}) as run:
    run.log(epoch, {"loss": 0.5, "tiles_per_s": 900.0})
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import psutil

from satclr.tracking.store import Store, log, open_store, owner, sweep, tag_value

FLUSH_S = 5.0
SAMPLE_S = 10.0
MB = 1e6

logger = logging.getLogger(__name__)


class Live:
    """An open run. `log` only appends to a list; a thread writes it every few seconds."""

    def __init__(self, store: Store, run_id: str, prefix: str) -> None:
        self.run_id = run_id
        self._store = store
        self._prefix = prefix
        self._done = _logged_steps(store, run_id, prefix)
        self._pending: list[tuple[str, float, int, int]] = []  # key, value, ms, step
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="satclr-tracking", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note metrics of one step (an epoch, from 1). A step that the run already has is left as it is."""
        now_ms = int(time.time() * 1000)
        with self._lock:
            for name, value in metrics.items():
                key = f"{self._prefix}/{name}"
                if step not in self._done.get(key, ()):
                    self._pending.append((key, float(value), now_ms, step))

    def close(self) -> None:
        """Write what is left; returns when it is written."""
        self._closing.set()
        self._thread.join()

    def _work(self) -> None:
        started = time.monotonic()
        next_sample = started
        sample = _system()
        while True:
            closing = self._closing.wait(FLUSH_S)
            now = time.monotonic()
            if now >= next_sample or closing:
                self._sample(sample, int(now - started))
                next_sample = now + SAMPLE_S
            self._flush()
            if closing:
                return

    def _sample(self, sample: Callable[[], dict[str, float]], elapsed_s: int) -> None:
        now_ms = int(time.time() * 1000)
        with self._lock:
            for name, value in sample().items():
                self._pending.append((f"system/{name}", value, now_ms, elapsed_s))

    def _flush(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, []
        try:
            log(self._store, self.run_id, metrics=pending)
        except Exception as error:  # noqa: BLE001 - hours of training outweigh a server that is away
            with self._lock:
                self._pending = pending + self._pending
            if not self._warned:
                logger.warning("MLflow does not take metrics (%s); training goes on, they are sent later", error)
                self._warned = True


@contextmanager
def live(
    root: Path,
    *,
    profile: str,
    arm: str,
    seed: int,
    stage: Literal["pretrain", "probe"],
    fingerprint: str,
    params: Mapping[str, Any],
) -> Iterator[Live]:
    """Open the run `<arm>-s<seed> <stage>`; metrics logged to it are named `<stage>/<name>`.

    A run of the same fingerprint is resumed, whatever state a crash left it in. It ends FINISHED, FAILED on an
    exception, KILLED on Ctrl-C and SIGTERM; after SIGKILL the next run marks it KILLED.
    """
    store = open_store(root, profile)
    sweep(store)
    tags = {
        "satclr.kind": "live",
        "satclr.arm": arm,
        "satclr.seed": str(seed),
        "satclr.profile": profile,
        "satclr.stage": stage,
        "satclr.fingerprint": fingerprint,
        "satclr.dvc_stage": f"{stage}@{profile}-{arm}-{seed}",
        **owner(),
    }
    run_id = _resumable(store, tags)
    if run_id is None:
        run = store.client.create_run(store.experiment_id, run_name=f"{arm}-s{seed} {stage}", tags=tags)
        run_id = str(run.info.run_id)
        log(store, run_id, params=params)
    else:
        store.client.update_run(run_id, status="RUNNING")
        log(store, run_id, tags=tags)
    status = "FINISHED"
    run = Live(store, run_id, stage)
    try:
        with sigterm_raises():
            yield run
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        raise
    finally:
        run.close()
        try:
            store.client.set_terminated(run_id, status)
        except Exception as error:  # noqa: BLE001 - as in _flush
            logger.warning("MLflow run %s could not be ended as %s: %s", run_id, status, error)


def _resumable(store: Store, tags: Mapping[str, str]) -> str | None:
    keys = ("satclr.kind", "satclr.arm", "satclr.seed", "satclr.stage", "satclr.fingerprint")
    query = " and ".join(f"tags.`{key}` = {tag_value(tags[key])}" for key in keys)
    found = store.client.search_runs([store.experiment_id], query, max_results=1)
    return str(found[0].info.run_id) if found else None


def _logged_steps(store: Store, run_id: str, prefix: str) -> dict[str, set[int]]:
    metrics = store.client.get_run(run_id).data.metrics
    return {
        key: {point.step for point in store.client.get_metric_history(run_id, key)}
        for key in metrics
        if key.startswith(f"{prefix}/")
    }


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack, so that the run is told its end; leave a handler of the caller's alone."""
    here = threading.current_thread() is threading.main_thread()
    if not here or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _system() -> Callable[[], dict[str, float]]:
    """Return a sampler of CPU, memory and GPU, under the names that MLflow's system view knows."""
    process = psutil.Process(os.getpid())
    psutil.cpu_percent()  # the first call only sets the mark
    gpus = _gpus()

    def sample() -> dict[str, float]:
        memory = psutil.virtual_memory()
        return {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / MB,
            "system_memory_usage_percentage": memory.percent,
            "process_memory_usage_megabytes": process.memory_info().rss / MB,
            **gpus(),
        }

    return sample


def _gpus() -> Callable[[], dict[str, float]]:
    torch = sys.modules.get("torch")  # a stage that did not import torch uses no GPU
    if torch is None or not torch.cuda.is_available():
        return dict
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # noqa: BLE001 - no driver that it can talk to: PyTorch's own count is left
        return lambda: {
            f"gpu_{i}_memory_usage_megabytes": torch.cuda.memory_reserved(i) / MB
            for i in range(torch.cuda.device_count())
        }

    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]

    def sample() -> dict[str, float]:
        values = {}
        for i, handle in enumerate(handles):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            values[f"gpu_{i}_utilization_percentage"] = float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            values[f"gpu_{i}_memory_usage_megabytes"] = memory.used / MB
            values[f"gpu_{i}_power_usage_watts"] = pynvml.nvmlDeviceGetPowerUsage(handle) / 1000
        return values

    return sample
