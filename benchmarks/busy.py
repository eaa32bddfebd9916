"""What one busy process beside it costs pretraining, by threads and by how they wait for each other.

    python benchmarks/busy.py [--quick]

OpenMP's threads spin while they wait, which on a busy core takes the time that the others need. Where others are busy
as it starts, `satclr` sets OMP_WAIT_POLICY=passive. Each way trains in a process of its own, quiet and beside a process
that computes on one core; all ways take turns, so that a change of the machine's speed reaches each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import common
from common import Row

WAYS = {
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "active, OpenMP's default": {},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
ROUNDS, STEPS = 3, 6
BUSY = "while True: pass"


def rows(*, quick: bool = False) -> list[Row]:
    rounds = 1 if quick else ROUNDS
    speeds: dict[tuple[str, bool], list[float]] = {(way, busy): [] for way in WAYS for busy in (False, True)}
    for _ in range(rounds):
        for (way, busy), each in speeds.items():
            with beside() if busy else nullcontext():
                each.append(measure(WAYS[way]))
    found: list[Row] = []
    for busy in (False, True):
        for way in ("active, OpenMP's default", "one thread"):
            name = f"pretraining {'beside a busy process' if busy else 'quiet'}, passive against {way}"
            found.append(common.rate_row(name, speeds["passive", busy], speeds[way, busy], "images/s"))
    return found


def measure(environment: dict[str, str]) -> float:
    """Images/s of the limit's step (benchmarks/pretrain.py), which computes nothing but the network."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OMP_")}
    command = (sys.executable, __file__, "--measure")
    done = subprocess.run(command, env=inherited | environment, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


@contextmanager
def beside() -> Iterator[None]:
    with subprocess.Popen((sys.executable, "-c", BUSY)) as process:
        yield
        process.kill()


def _measure() -> None:
    import pretrain

    size = pretrain.Size("resnet18", 48, 72, 64, STEPS, 0, 0)
    config = {"arch": size.arch, "weights": "none", "batch_size": size.batch_size, "precision": common.PRECISION}
    step = pretrain.limit(size, common.run("simclr", {"pretrain": config}).settings.pretrain)
    step()
    print(size.batch_size * size.steps / step())


if __name__ == "__main__":
    if "--measure" in sys.argv:
        _measure()
    else:
        print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
