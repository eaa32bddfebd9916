"""What sharing a batch among processes costs, what memory micro-batches save, and how the stages grow with tiles.

    python benchmarks/scale.py [--quick]
    python benchmarks/scale.py growth [10000 100000 1000000]            into docs/runs/scale.json (see growth.py)
    python benchmarks/scale.py 2 resnet18 64 128 0      one measurement: processes, encoder, crop, batch, micro-batch

Speed: 2 gloo processes of 1 thread against 1 process of 2 (with GPUs: 2 of nccl against 1), in turns. Memory: the
peak of one step in a process of its own, resident (Linux) or, with a GPU, allocated. Steps are the product's own,
in `precision: auto` as the profiles have it; tiles are noise, whose content changes neither.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import growth
import numpy as np
import torch
from common import PRECISION, ROOT, Row, made_store, memory_kib, rate_row, run

from satclr import machine
from satclr.pretrain import distributed, train
from satclr.pretrain import encoder as enc

ROUNDS, STEPS = 2, 4
GPUS = torch.cuda.device_count()
SPEED = (("resnet18", 64, 128), ("resnet18", 64, 512), ("resnet50", 224, 16))
SPEED_QUICK = (("resnet18", 64, 16),)
# encoder, side of a view, global batch, micro-batches; the last size of each shows whether memory follows the batch
MEMORY = (("resnet18", 64, 1024, (64, 128, 256)), ("resnet50", 224, 64, (8, 16, 32)), ("resnet50", 224, 32, (8,)))
MEMORY_GPU = (("resnet50", 224, 2048, (32, 64, 128)), ("resnet50", 224, 512, (64,)))
MEMORY_QUICK = (("resnet18", 64, 16, (4, 8)),)


def rows(*, quick: bool = False) -> list[Row]:
    found = []
    if GPUS != 1:
        found += [speed(*size, rounds=1 if quick else ROUNDS) for size in (SPEED_QUICK if quick else SPEED)]
    for arch, crop_px, batch_size, sizes in MEMORY_QUICK if quick else MEMORY_GPU if GPUS else MEMORY:
        found += [memory(arch, crop_px, batch_size, size) for size in sizes]
    return found


def speed(arch: str, crop_px: int, batch_size: int, *, rounds: int) -> Row:
    one: list[float] = []
    two: list[float] = []
    for _ in range(rounds):
        for processes, speeds in ((2, two), (1, one)):
            speeds.append(measure(processes, arch, crop_px, batch_size, None)["tiles_per_s"])
    which = "2 processes of nccl against 1" if GPUS else "2 processes of 1 thread against 1 of 2"
    row = rate_row(f"{arch} {crop_px} px, batch {batch_size}, {which}", two, one, "tiles/s")
    return row | {"precision": PRECISION}


def memory(arch: str, crop_px: int, batch_size: int, size: int) -> Row:
    got = measure(1, arch, crop_px, batch_size, size)
    return {
        "name": f"{arch} {crop_px} px, batch {batch_size}, micro-batch {size}",
        "ours": got["peak_MiB"],
        "theirs": None,
        "ratio": None,
        "unit": "MiB at the peak",
        "step_s": got["step_s"],
    }


def measure(processes: int, arch: str, crop_px: int, batch_size: int, micro_batch_size: int | None) -> dict[str, float]:
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    paths = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"OMP_NUM_THREADS": threads, "PYTHONPATH": paths}
    arguments = [__file__, "worker", arch, *map(str, (crop_px, batch_size, micro_batch_size or 0))]
    done = subprocess.run(command + arguments, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def worker(arch: str, crop_px: int, batch_size: int, micro_batch_size: int | None) -> None:
    """Print tiles/s, seconds a step and the peak in MiB, on process 0."""
    steps = STEPS + 1 if micro_batch_size is None else 2  # the first warms up, and makes the optimizer's moments
    pretrain = {"arch": arch, "weights": "none", "batch_size": batch_size, "precision": PRECISION}
    pretrain |= {"micro_batch_size": micro_batch_size, "epochs": steps}
    config = run("simclr", {"views": {"crop_px": crop_px}, "pretrain": pretrain})
    speeds: list[float] = []
    with distributed.group(machine.device().type), tempfile.TemporaryDirectory() as name:
        encoder, width = enc.build(arch, crop_px)
        pixels = np.random.default_rng(0).integers(0, 256, (batch_size, crop_px, crop_px, 3), np.uint8)
        store = made_store(pixels)  # an epoch is one step
        encoder.to(machine.device())
        train.train(
            store, encoder, width, run=config, folder=Path(name),
            log=lambda _, m: speeds.append(m["tiles_per_s"]),
        )  # fmt: skip
        on_gpu = machine.device().type == "cuda"
        peak = (torch.cuda.max_memory_allocated() / 2**10 if on_gpu else memory_kib()["VmHWM"]) / 2**10
        if distributed.rank() == 0:
            # The fastest: processes that wait for one another suffer twice from whatever else the machine does.
            speed = max(speeds[1:])
            print(json.dumps({"tiles_per_s": speed, "step_s": round(batch_size / speed, 3), "peak_MiB": round(peak)}))


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["growth", *chosen]:
            growth.main(chosen)
        case ["worker", arch, *numbers]:
            side, batch, micro = map(int, numbers)
            worker(arch, side, batch, micro or None)
        case [] | ["--quick"] as options:
            for line in rows(quick=bool(options)):
                print(json.dumps(line), flush=True)
        case [count, arch, *numbers]:
            side, batch, micro = map(int, numbers)
            print(json.dumps(measure(int(count), arch, side, batch, micro or None)))
