"""How long each stage takes when it has little to compute, against the imports that it cannot do without.

    dvc repro && python benchmarks/starts.py                          a finished sample; writes benchmarks/starts.json
    python benchmarks/starts.py --project OTHER --satclr OTHER/.venv/bin/satclr    the same for another checkout

Stages and imports take turns, so that a change of the machine's speed reaches both. Pretraining finds its finished
encoder, so its row is start alone; `work_s` is what a stage itself computed, by DVC's undisturbed run elsewhere.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import common

ARM = ("--arm", "simclr", "--seed", "0")
STAGES: dict[str, tuple[str, ...]] = {
    "--help": (),
    "arms": (),
    "pretrain": ARM,
    "embed": ARM,
    "probe": ARM,
    "evaluate": ARM,
    "robustness": ARM,
    "maps": ARM,
    "compare": (),
    "report": (),
    "register": (),
    "predict": ("data/sample/Images/river/river_00001.jpg",),
}
IMPORTS = (
    "numpy, scipy",
    "numpy, scipy, sklearn",
    "numpy, scipy, sklearn, mlflow",
    "torch",
    "torch, mlflow",
    "torchvision",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--project", type=Path, default=common.ROOT, help="a project after `dvc repro`")
    parser.add_argument("--satclr", type=Path, default=Path(sys.executable).with_name("satclr"))
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    python = chosen.satclr.with_name("python")
    commands: dict[str, Sequence[str]] = {
        f"import {names}": (str(python), "-W", "ignore", "-c", f"import {names}") for names in IMPORTS
    }
    commands |= {name: (str(chosen.satclr), name, *options) for name, options in STAGES.items()}
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(chosen.rounds + 1):
        for name, command in commands.items():
            began = time.perf_counter()
            subprocess.run(command, cwd=chosen.project, check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    seconds = {name: round(statistics.median(found[1:]), 2) for name, found in times.items()}  # the first warms files
    for name, value in seconds.items():
        ratios = [
            f"{value / seconds[f'import {names}']:5.2f} x {names}" for names in ("numpy, scipy, sklearn", "torch")
        ]
        print(f"{name:36} {value:6.2f} s   {'   '.join(ratios) if name in STAGES else ''}")
    if chosen.project == common.ROOT:
        found = {"machine": common.machine(), "rounds": chosen.rounds, "seconds": seconds}
        (common.ROOT / "benchmarks" / "starts.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
