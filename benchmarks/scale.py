"""What sharing a batch among processes costs, and what memory micro-batches save (ResNet-18, 64 px).

    python benchmarks/scale.py

Speed: 2 gloo processes of 1 thread against 1 process of 2, in turns. Memory: resident peak of one step on a
global batch of 1024 tiles (Linux); with a GPU, allocated peak and step time on 2048.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from common import ROOT, Row, arm, rate_row

from satclr import distributed, optimizers
from satclr import encoder as enc
from satclr.pretrain.step import Step, cut

ROUNDS, STEPS = 3, 4


def rows() -> list[Row]:
    one, two = [], []
    for _ in range(ROUNDS):
        two.append(measure(2, 128, None)["tiles_per_s"])
        one.append(measure(1, 128, None)["tiles_per_s"])
    found = [rate_row("2 processes of 1 thread against 1 of 2", two, one, "tiles/s")]
    gpu = torch.cuda.is_available()
    for size in (64, 128, 256):
        got = measure(1, 2048 if gpu else 1024, size)
        name = f"batch {2048 if gpu else 1024}, micro-batch {size}"
        row: Row = {"name": name, "ours": got["peak_MiB"], "theirs": None, "ratio": None, "unit": "MiB"}
        found.append(row | {"step_s": got["step_s"]})
    return found


def measure(processes: int, batch_size: int, micro_batch_size: int | None) -> dict[str, float]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(max(1, 2 // processes)),
        "PYTHONPATH": str(ROOT / "src"),
    }
    arguments = [__file__, "worker", str(batch_size), str(micro_batch_size or 0)]
    done = subprocess.run(command + arguments, env=environment, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def worker(batch_size: int, micro_batch_size: int | None) -> None:
    device = enc.device()
    scale: dict[str, Any] = {
        "views": {"crop_px": 64},
        "pretrain": {"arch": "resnet18", "weights": "none", "batch_size": batch_size},
    }
    settings = arm("simclr", scale).settings
    how = settings.pretrain
    with distributed.group(device.type):
        encoder, width = enc.build(how.arch)
        head = enc.projection_head(width, **how.projection.model_dump())
        model = torch.nn.Sequential(encoder, head).to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        distributed.synchronize_batch_norm(model)
        step = Step(model, model, optimizers.build(model, how), settings, ((0.5,) * 3, (0.25,) * 3), 0)  # type: ignore[arg-type]
        parts = cut(batch_size, micro_batch_size)
        tiles = torch.randint(256, (parts[-1].held.stop, 96, 96, 3), dtype=torch.uint8, device=device)
        targets = torch.zeros(batch_size, 1, dtype=torch.uint8)
        steps = STEPS if micro_batch_size is None else 1
        for number in range(steps + (steps > 1)):
            if number <= 1:  # the first of several only warms up
                start = time.perf_counter()
            step(tiles, targets, parts, epoch=0, step=number, rate=1e-4).item()
        step_s = (time.perf_counter() - start) / steps
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        peak = torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else kib / 1024
        if distributed.rank() == 0:
            print(json.dumps({"step_s": step_s, "tiles_per_s": batch_size / step_s, "peak_MiB": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        worker(int(sys.argv[2]), int(sys.argv[3]) or None)
    else:
        for line in rows():
            print(json.dumps(line))
