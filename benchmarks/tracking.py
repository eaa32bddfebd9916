"""MLflow's and the diagnostics' share of a pretraining epoch, while the sample's SimCLR arm trains.

    python benchmarks/tracking.py [--quick]

All in processor time, so that a busy machine tells the same. MLflow's: what the training thread spends in `log`, and
all of the thread that samples the system and writes to a new SQLite store, its last flush included. An epoch is the
process's time over the number of threads it computes with: no longer than it lasts on a quiet machine. To open the
store and the run is once a run, not an epoch's, and has a row of its own. The diagnostics are those of every epoch,
without k-NN.
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
from typing import Any
from unittest import mock

import common
import torch
from common import Row

from satclr.data import prepare
from satclr.pretrain import diagnostics, train
from satclr.project import Project, Run
from satclr.tracking import live

EPOCHS, QUICK = 12, 2
BOUND, DIAGNOSTICS_BOUND = 1.0, 3.0  # percent of an epoch


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
    shares = (
        ("MLflow's", 100 * (cost["log_s"] + cost["thread_s"]) / epochs_s, BOUND),
        ("the diagnostics'", 100 * cost["diagnostics_s"] / cost["training_s"], DIAGNOSTICS_BOUND),
    )
    scale = {"theirs": None, "ratio": None, "epochs": epochs}
    return [
        *(
            {
                "name": f"{whose} share of a pretraining epoch",
                "ours": round(share, 3),
                "theirs": bound,
                "ratio": round(bound / share, 2),
                "unit": "% (theirs: the bound)",
                "epochs": epochs,
            }
            for whose, share, bound in shares
        ),
        {"name": "the sample's pretraining epoch", "ours": round(epochs_s / epochs, 3), "unit": "s", **scale},
        {"name": "opening a new store and a run", "ours": round(cost["open_s"], 2), "unit": "s", **scale},
    ]


def measured(run: Run) -> dict[str, float]:
    """Processor seconds of the training, its diagnostics, the calls that log, the thread that writes, and opening."""
    cost = dict.fromkeys(("training_s", "diagnostics_s", "log_s", "thread_s", "open_s"), 0.0)
    work, begin, after_epoch = live._Worker.run, live._Worker._open, diagnostics.after_epoch  # noqa: SLF001

    def timed_work(worker: live._Worker) -> None:
        work(worker)
        cost["thread_s"] = time.thread_time() - cost["open_s"]

    def timed_open(worker: live._Worker) -> str:
        start = time.thread_time()
        run_id = begin(worker)
        cost["open_s"] += time.thread_time() - start
        return run_id

    def timed_diagnostics(*arguments: Any) -> dict[str, float]:
        start = time.process_time()
        values = after_epoch(*arguments)
        cost["diagnostics_s"] += time.process_time() - start
        return values

    timed = mock.patch.multiple(live._Worker, run=timed_work, _open=timed_open)  # noqa: SLF001
    with (
        timed,
        mock.patch.object(diagnostics, "after_epoch", timed_diagnostics),
        live.live(run, "pretrain", "bench") as shown,
    ):

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
