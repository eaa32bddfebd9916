"""Peak memory of each stage, and that `prepare` needs no more for more tiles (Linux).

    python benchmarks/memory.py [--quick]

Each stage is the command that a user types, in a process and a project of its own. Peak is resident memory
at its highest, the memory map's pages included, which the system takes back when it needs them; anonymous is
the part that it cannot take back. Rows about a stage have no rival.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import yaml
from common import Row, memory_kib

POLL_S = 0.01
SCALE: dict[str, Any] = {
    "data": {"tile_px": 96},
    "views": {"crop_px": 64},
    "pretrain": {"arch": "resnet18", "weights": "none", "epochs": 1, "precision": common.PRECISION},
    "probe": {"epochs": 2},
}


def rows(*, quick: bool = False) -> list[Row]:
    few = 64 if quick else 512
    many = 4 * few
    with tempfile.TemporaryDirectory() as name:
        small, large = (project(Path(name) / str(count), count) for count in (few, many))
        prepared = {count: peak(root, "prepare") for count, root in ((few, small), (many, large))}
        found = [
            {
                "name": f"memory of prepare, {many} tiles against {few}",
                "ours": prepared[many][1],
                "theirs": prepared[few][1],
                "ratio": round(prepared[few][1] / prepared[many][1], 3),
                "unit": "MiB anonymous",
            },
            stage("prepare", many, prepared[many]),
        ]
        arm = ["--arm", "simclr", "--seed", "0"]
        found += [
            stage(command, few, peak(small, command, *arm)) for command in ("pretrain", "embed", "probe", "evaluate")
        ]
        found.append(stage("compare", few, peak(small, "compare")))
    return found


def project(root: Path, count: int) -> Path:
    """A project with one profile and one arm."""
    common.subset(root / "data" / "bench", count=count)
    tree = yaml.safe_load((common.ROOT / "params.yaml").read_text())
    sections = {name: SCALE.get(name, {}) for name in tree["profiles"]["sample"]}
    tree |= {"profile": "bench", "profiles": {"bench": sections}, "run": ["simclr"]}
    (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    shutil.copy(common.ROOT / "dvc.yaml", root)
    return root


def stage(command: str, count: int, peaks: tuple[float, float]) -> Row:
    return {
        "name": f"peak memory of {command}, {count} tiles",
        "ours": peaks[0],
        "theirs": None,
        "ratio": None,
        "unit": "MiB",
        "anonymous_MiB": peaks[1],
    }


def peak(root: Path, *command: str) -> tuple[float, float]:
    """MiB at the peak, resident and anonymous, of one command; raises if it fails."""
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    with (root / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "satclr", *command], cwd=root, env=environment, stdout=log, stderr=log
        )
        # Not `ru_maxrss`: that begins with what the process that started it held.
        resident_kib = anonymous_kib = 0
        while process.poll() is None:
            now = memory_kib(process.pid)
            resident_kib = max(resident_kib, now.get("VmHWM", 0))
            anonymous_kib = max(anonymous_kib, now.get("RssAnon", 0))
            time.sleep(POLL_S)
    if process.returncode:
        raise SystemExit(f"satclr {' '.join(command)} failed:\n{(root / 'log').read_text()[-2000:]}")
    return round(resident_kib / 1024, 1), round(anonymous_kib / 1024, 1)


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
