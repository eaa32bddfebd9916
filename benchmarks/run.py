"""All benchmarks as one table, and benchmarks/results/<instructions>.json, a file for each kind of CPU.

    make bench                                          all of them, some 40 minutes on two quiet cores
    python benchmarks/run.py views pretrain             some of them; the others' rows stay as they were
    python benchmarks/run.py --quick                    tiny sizes, to see that they work; writes nothing

A ratio above 1 says that ours is faster or smaller. benchmarks/gpu.py runs on its own.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import time
from pathlib import Path
from typing import Any

import common
import torch
from common import Row
from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("results")
OUT = RESULTS / f"{torch.backends.cpu.get_cpu_capability().lower()}.json"
KINDS = {"avx512": "AVX512", "avx2": "AVX2"}  # files of results, as the docs' tables name them
MODULES = (
    "views",
    "pretrain",
    "precision",
    "convolution",
    "malloc",
    "busy",
    "ablation",
    "loss_memory",
    "objectives",
    "memory",
    "scale",
    "bootstrap",
    "logistic",
    "tracking",
    "quality",
)
OWN_FILES = {"starts", "before"}  # compare checkouts, and run on their own
BY_NAME_ALONE = {"quality"}  # takes as long as all others together
TARGETS = {
    "views at 224 px against the paper's transform": 3.0,
    "views at 224 px against lightly": 1.2,
    "views at 64 px against lightly": 2.0,
    "pretraining resnet18 64 px against the limit": 0.90,
    "pretraining resnet50 224 px, batch 16 against the limit": 0.95,
    "pretraining resnet50 224 px, batch 48 against the limit": 0.95,
    "pretraining resnet18 64 px against lightly's recipe": 2.0,
    "pretraining resnet50 224 px, batch 16 against the paper's loop": 3.0,
    "pretraining resnet50 224 px, batch 48 against the paper's loop": 3.0,
    "whole ablation, 3 + 10 epochs": 4.0,
    "whole ablation, 10 + 10 epochs": 4.0,
    "MLflow's share of a pretraining epoch": 1.0,
    "the diagnostics' share of a pretraining epoch": 1.0,
    "resnet18 64 px, batch 128, 2 processes of 1 thread against 1 of 2": 0.9,
    "resnet18 64 px, batch 512, 2 processes of 1 thread against 1 of 2": 0.9,
    "resnet50 224 px, batch 16, 2 processes of 1 thread against 1 of 2": 0.9,
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("which", nargs="*", metavar="NAME", help=f"of {', '.join(MODULES)}")
    arguments.add_argument("--quick", action="store_true")
    given = arguments.parse_args()
    unknown = set(given.which) - set(MODULES)
    if unknown:
        arguments.error(f"no benchmark is called {', '.join(sorted(unknown))}; there are {', '.join(MODULES)}")
    which = given.which or [name for name in MODULES if name not in BY_NAME_ALONE]
    rows: list[Row] = []
    for name in which:
        found = measured(name, quick=given.quick)
        rows += found
        if not given.quick:  # each at once: a later one may fail
            everything = sorted(kept(name) + found, key=lambda row: MODULES.index(row["benchmark"]))
            document = {"machine": common.machine(), "tiles": common.data().name, "rows": everything}
            OUT.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    show(rows)


def measured(name: str, *, quick: bool) -> list[Row]:
    """A benchmark's rows with their targets. In a quick run, those that have no quick way are left out."""
    rows = importlib.import_module(name).rows
    has_quick = "quick" in inspect.signature(rows).parameters
    if quick and not has_quick:
        return []
    start = time.monotonic()
    found: list[Row] = rows(quick=quick) if has_quick else rows()
    Console(stderr=True).print(f"{name}: {time.monotonic() - start:.0f} s")
    return [judged({"benchmark": name, **row}) for row in found]


def judged(row: Row) -> Row:
    target = TARGETS.get(row["name"])
    return row if target is None else {**row, "target": target, "met": row["ratio"] >= target}


def kept(measured_now: str) -> list[Row]:
    """Rows of the other benchmarks so far, if they were measured on this kind of machine and these versions."""
    if not OUT.exists():
        return []
    last: dict[str, Any] = json.loads(OUT.read_text(encoding="utf-8"))
    rows = [row for row in last["rows"] if row["benchmark"] != measured_now]
    threads = {"torch_threads": None}  # each benchmark's own affair
    if rows and last["machine"] | threads != common.machine() | threads:
        Console(stderr=True).print(f"{len(rows)} rows of another machine or other versions are dropped")
        return []
    return rows


def markdown(benchmark: str) -> str:
    """A benchmark's rows as the docs show them, the kinds of CPU on which it ran side by side."""
    kinds: dict[str, dict[str, Row]] = {}
    for kind, shown in KINDS.items():
        path = RESULTS / (f"{benchmark}-{kind}.json" if benchmark in OWN_FILES else f"{kind}.json")
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
        if found := {row["name"]: row for row in rows if row["benchmark"] == benchmark}:
            kinds[shown] = found
    header = ["what", "unit", "at least", *(f"{kind}: {key}" for kind in kinds for key in ("ours", "against", "ratio"))]
    table = [header, ["---"] * len(header)]
    for name, row in {name: row for rows in kinds.values() for name, row in rows.items()}.items():
        by_kind = [rows.get(name, {}) for rows in kinds.values()]
        cells = [number(each.get(key)) for each in by_kind for key in ("ours", "theirs", "ratio")]
        units = " / ".join(dict.fromkeys(each["unit"] for each in by_kind if each))
        table.append([name, units, number(row.get("target")), *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in table)


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(rows: list[Row]) -> None:
    table = Table("benchmark", "ours", "theirs", "unit", "ratio", "at least", "met")
    for row in rows:
        numbers = [f"{row[key]:,.4g}" if row[key] is not None else "" for key in ("ours", "theirs")]
        ratio = "" if row["ratio"] is None else f"{row['ratio']:.2f}"
        target = f"{row['target']:.2f}" if "target" in row else ""
        met = {True: "yes", False: "NO", None: ""}[row.get("met")]
        table.add_row(row["name"], *numbers, row["unit"], ratio, target, met)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
