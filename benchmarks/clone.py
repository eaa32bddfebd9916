"""How long a newcomer waits: `make repro` and `make test` in fresh clones of the last commit, installation included.

    python benchmarks/clone.py         both kinds of CPU, some 13 minutes on two quiet cores, into docs/runs/clone.json

A newer CPU is held to AVX2 by the variables that oneDNN and PyTorch read.
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from common import ROOT, machine, seconds

OUT = ROOT / "docs" / "runs" / "clone.json"
AVX2 = {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
COMMANDS = ("make repro", "make test")
OURS = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "VIRTUAL_ENV")  # of this process; a newcomer has none


def main() -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    here = machine()
    kinds: dict[str, dict[str, str]] = {
        f"{here['instructions']}, {here['precision']}": {},
        "held to AVX2, float32": AVX2,
    }
    times = {kind: measured(variables) for kind, variables in kinds.items()}
    found = {"machine": here, "commit": commit.strip(), "seconds": times}
    OUT.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(table(found))


def measured(variables: dict[str, str]) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder, "satclr")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {name: value for name, value in os.environ.items() if name not in OURS} | variables

        def make(command: str) -> None:
            subprocess.run(command.split(), cwd=clone, env=environment, check=True)

        return {command: round(seconds(lambda: make(command))) for command in COMMANDS}  # noqa: B023 - called at once


def table(found: dict[str, Any]) -> str:
    """The times as they stand in the README."""
    lines = [f"| {found['machine']['processor']}, two cores | `make repro` | `make test` |", "| --- | --- | --- |"]
    for kind, times in found["seconds"].items():
        shown = (f"{value // 60} min {value % 60} s" for value in times.values())
        lines.append(f"| {kind} | {' | '.join(shown)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
