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

from satclr import params, tracking
from satclr.data import prepare, tiles
from satclr.pretrain import stage as pretrain

EPOCHS, QUICK = 12, 2
BOUND = 1.0  # percent of an epoch


def rows(*, quick: bool = False) -> list[Row]:
    arm = params.resolve(params.load(common.ROOT / params.FILE), "sample", "simclr", 0)
    epochs = QUICK if quick else EPOCHS
    changed = arm.settings.pretrain.model_copy(update={"epochs": epochs})
    arm = arm.model_copy(update={"settings": arm.settings.model_copy(update={"pretrain": changed})})
    data = common.ROOT / "data" / "sample"
    if not data.is_dir():
        raise SystemExit("the sample is not here: run `dvc pull data.dvc`")
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ):
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        prepare.run(data, Path(name) / "build", arm.settings.data)
        cost = measured(Path(name), arm)
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
        {
            "name": "the sample's pretraining epoch",
            "ours": round(epochs_s / epochs, 3),
            "unit": "s",
            **scale,
        },
        {"name": "opening a new store and a run", "ours": round(cost["open_s"], 2), "unit": "s", **scale},
    ]


def measured(root: Path, arm: params.Arm) -> dict[str, float]:
    """Processor seconds of the training, of the calls that log, of the thread that writes, and of opening."""
    cost = dict.fromkeys(("training_s", "log_s", "thread_s", "open_s"), 0.0)
    work = tracking.Live._work  # noqa: SLF001

    def timed_work(live: tracking.Live) -> None:
        work(live)
        cost["thread_s"] = time.thread_time()

    with mock.patch.object(tracking.Live, "_work", timed_work):
        start = time.process_time()
        place: dict[str, Any] = {"profile": "sample", "arm": arm.name, "seed": 0, "stage": "pretrain"}
        with tracking.live(root, **place, fingerprint="bench", params=arm.flat()) as run:
            cost["open_s"] = time.process_time() - start

            def log(epoch: int, metrics: Mapping[str, float]) -> None:
                before = time.thread_time()
                run.log(epoch, metrics)
                cost["log_s"] += time.thread_time() - before

            start = time.process_time()
            pretrain.run(
                tiles.open_store(root / "build"),
                settings=arm.settings,
                seed=0,
                root=root,
                out=root / "encoder.safetensors",
                curve=root / "pretrain.csv",
                log=log,
            )
            cost["training_s"] = time.process_time() - start
    return cost


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
