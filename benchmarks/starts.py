"""How long each stage takes on the finished sample, against the imports that it cannot do without.

    dvc repro && python benchmarks/starts.py            writes benchmarks/results/starts-<instructions>.json
    python benchmarks/starts.py --before OTHER          beside another checkout with a .venv, after its `dvc repro`

Stages, imports and checkouts take turns, so that a change of the machine's speed reaches all. Pretraining finds its
finished encoder, so its row is start alone. The sum counts the stages of both arms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import common
import torch
from common import Row

OUT = Path(__file__).with_name("results") / f"starts-{torch.backends.cpu.get_cpu_capability().lower()}.json"
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
ARM_STAGES = {name for name, options in STAGES.items() if options == ARM}
PEOPLE = {"--help", "arms", "predict"}
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
    parser.add_argument("--before", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    projects = {"now": common.ROOT} | ({"before": chosen.before.resolve()} if chosen.before else {})
    times: dict[str, dict[str, list[float]]] = {}
    for _ in range(chosen.rounds + 1):
        for which, project in projects.items():
            for name, command in commands(project).items():
                began = time.perf_counter()
                subprocess.run(command, cwd=project, check=True, capture_output=True)
                times.setdefault(name, {}).setdefault(which, []).append(time.perf_counter() - began)
    seconds = {  # the first round warms files
        name: {which: round(statistics.median(found[1:]), 2) for which, found in each.items()}
        for name, each in times.items()
    }
    stages = {name: 2 if name in ARM_STAGES else 1 for name in STAGES if name not in PEOPLE}
    seconds["sum over both arms' stages, without prepare"] = {
        which: round(sum(count * seconds[name][which] for name, count in stages.items()), 1) for which in projects
    }
    rows = [row(name, each["now"], each.get("before")) for name, each in seconds.items()]
    print(json.dumps(rows, indent=1))
    found = {"machine": common.machine(), "rounds": chosen.rounds, "rows": rows}
    OUT.write_text(json.dumps(found, indent=1) + "\n")


def row(name: str, now: float, before: float | None) -> Row:
    ratio = None if before is None else round(before / now, 2)
    return {"benchmark": "starts", "name": name, "ours": now, "theirs": before, "ratio": ratio, "unit": "s"}


def commands(project: Path) -> dict[str, Sequence[str]]:
    """What is timed in a checkout."""
    bin_ = project / ".venv" / "bin"
    imports = {f"import {names}": (str(bin_ / "python"), "-W", "ignore", "-c", f"import {names}") for names in IMPORTS}
    return imports | {name: (str(bin_ / "satclr"), name, *options) for name, options in STAGES.items()}


if __name__ == "__main__":
    main()
