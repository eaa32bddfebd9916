"""MLflow's share of a pretraining epoch: what logging costs while the sample's SimCLR arm trains.

    python benchmarks/tracking.py [--quick]

All in processor time, so that a busy machine tells the same. MLflow's: what the training thread spends in `log`, and
all of the thread that samples the system and writes to a new SQLite store, its last flush included. An epoch is the
process's time over the number of threads it computes with: no longer than it lasts on a quiet machine. To open the
store and the run is once a run, not an epoch's, and has a row of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import common
import torch
from common import Row

from satclr.data import prepare
from satclr.pretrain import train
from satclr.project import Project, Run
from satclr.tracking import live

EPOCHS, QUICK = 12, 2
BOUND = 1.0  # percent of an epoch


def rows(*, quick: bool = False) -> list[Row]:
    epochs = QUICK if quick else EPOCHS
    data = common.ROOT / "data" / "sample"
    if not data.is_dir():
        raise SystemExit("the sample is missing: run `dvc pull data.dvc`")
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        project = Project(Path(name), "sample")
        for file in ("params.yaml", "dvc.yaml"):
            shutil.copy(common.ROOT / file, name)
        (project.root / "data").mkdir()
        project.data.symlink_to(data)
        prepare.run(project)
        cost = measured(common.changed(project.run("simclr"), epochs=epochs))
    epochs_s = cost["training_s"] / torch.get_num_threads()
    share = 100 * (cost["log_s"] + cost["thread_s"]) / epochs_s
    scale = {"theirs": None, "ratio": None, "epochs": epochs}
    return [
        {
            "name": "MLflow's share of a pretraining epoch",
            "ours": round(share, 3),
            "theirs": BOUND,
            "ratio": round(BOUND / share, 2),
            "unit": "% (theirs: the bound)",
            "epochs": epochs,
        },
        {"name": "the sample's pretraining epoch", "ours": round(epochs_s / epochs, 3), "unit": "s", **scale},
        {"name": "opening a new store and a run", "ours": round(cost["open_s"], 2), "unit": "s", **scale},
    ]


def measured(run: Run) -> dict[str, float]:
    """Processor seconds of the training, of the calls that log, of the thread that writes, and of opening."""
    cost = dict.fromkeys(("training_s", "log_s", "thread_s", "open_s"), 0.0)
    work, begin = live._Worker.run, live._Worker._open  # noqa: SLF001

    def timed_work(worker: live._Worker) -> None:
        work(worker)
        cost["thread_s"] = time.thread_time() - cost["open_s"]

    def timed_open(worker: live._Worker) -> str:
        start = time.thread_time()
        run_id = begin(worker)
        cost["open_s"] += time.thread_time() - start
        return run_id

    timed = mock.patch.multiple(live._Worker, run=timed_work, _open=timed_open)  # noqa: SLF001
    with timed, live.live(run, "pretrain", "bench") as shown:

        def log(epoch: int, metrics: Mapping[str, float]) -> None:
            before = time.thread_time()
            shown(epoch, metrics)
            cost["log_s"] += time.thread_time() - before

        start = time.process_time()
        train.run(run, log)
        cost["training_s"] = time.process_time() - start
    return cost


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
