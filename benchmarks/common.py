"""What the benchmarks share: real tiles as a data set, the project's own settings, turns, the machine.

Tiles: UC Merced where the folder SATCLR_DATA has it, else the project's sample (`dvc pull` fetches it).
"""

from __future__ import annotations

import csv
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
import yaml
from PIL import Image

from satclr import machine as hardware
from satclr import settings
from satclr.data.tiles import Tiles, TileStore
from satclr.params import SECTIONS, Params
from satclr.project import Project, Run

ROOT = Path(__file__).parents[1]
PRECISION, _ = hardware.precision("auto")  # as the profiles have it: bfloat16 where the hardware computes in it
PACKAGES = ("satclr", "torch", "torchvision", "numpy", "pillow", "lightly")

Row = dict[str, Any]  # name, ours, theirs, ratio (above 1: ours is better), unit


def data() -> Path:
    """The folder with Images/ and Labels/ to measure on."""
    for folder in (
        Path(os.environ.get("SATCLR_DATA", ROOT.parent / "shared" / "data")) / "ucmerced",
        ROOT / "data" / "sample",
    ):
        if (folder / "Images").is_dir():
            return folder
    raise SystemExit("no tiles: run `dvc pull`, or set SATCLR_DATA to a folder that holds ucmerced/")


def subset(out: Path, *, count: int, tile_px: int | None = None) -> Path:
    """Write `count` tiles, spread evenly over the data set, as a data set of its own.

    With `tile_px` as JPEG files of that side, so that a rival that decodes in each epoch decodes no more
    pixels than it needs. Where the data set is too small, tiles repeat under new names.
    """
    source = data()
    tables = {
        path.stem: list(csv.reader(path.read_text().splitlines())) for path in sorted((source / "Labels").glob("*.csv"))
    }
    listed = [(name, row) for name, table in tables.items() for row in table[1:]]
    chosen: dict[str, list[list[str]]] = {}
    for i in range(count):
        turn, place = divmod(i * max(1, len(listed) // count), len(listed))
        category, row = listed[place]
        tile = f"{Path(row[0]).stem}{f'_{turn}' * (turn > 0)}.jpg"
        chosen.setdefault(category, []).append([tile, *row[1:]])
        target = out / "Images" / category / tile
        target.parent.mkdir(parents=True, exist_ok=True)
        content = source / "Images" / category / row[0]
        if tile_px is None:
            target.write_bytes(content.read_bytes())
        else:
            with Image.open(content) as image:
                size = (tile_px, tile_px)
                image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
    (out / "Labels").mkdir(parents=True)
    for category, rows in chosen.items():
        with (out / "Labels" / f"{category}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([tables[category][0], *rows])
    return out


def project(folder: Path, sections: Mapping[str, Any], *, count: int, tile_px: int | None = None) -> Project:
    """A project with the arms of params.yaml, a profile `bench` of these sections, and `count` tiles (see `subset`)."""
    subset(folder / "data" / "bench", count=count, tile_px=tile_px)
    (folder / "params.yaml").write_text(yaml.safe_dump(_params(sections), sort_keys=False), encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", folder)
    return Project(folder)


def run(arm: str, sections: Mapping[str, Any], root: Path = ROOT) -> Run:
    """An arm of params.yaml at a scale of its own, without files."""
    resolved = settings.resolve(Params.model_validate(_params(sections)), "bench", arm)
    return Run(root, "bench", arm, 0, resolved)


def made_store(pixels: Tiles) -> TileStore:
    """A store of training tiles (N,H,H,3) without labels, made without `prepare`."""
    count, tile_px = pixels.shape[:2]
    statistics = {"mean": [0.5] * 3, "std": [0.25] * 3}
    return TileStore(
        folder=Path(),
        pixels=pixels,
        names=[f"tile{i}" for i in range(count)],
        categories=["tile"] * count,
        splits=np.full(count, "train"),
        groups=np.arange(count),
        labels=[],
        targets=np.zeros((count, 0), np.uint8),
        stats={"tile_px": tile_px, "tiles": {}, "digest": "bench", "normalization": {"train": statistics}},
    )


def changed(run: Run, **pretrain: Any) -> Run:
    """The run with other settings of pretraining."""
    config = run.settings.pretrain.model_copy(update=pretrain)
    return replace(run, settings=run.settings.model_copy(update={"pretrain": config}))


def _params(sections: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    bench = {section: sections.get(section, {}) for section in SECTIONS}
    return tree | {"profile": "bench", "profiles": {"bench": bench}, "run": ["baseline", "simclr"], "seeds": [0]}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def memory_kib(pid: int | str = "self") -> dict[str, int]:
    """A process's memory by the kernel's names, VmHWM (its peak so far) among them; {} once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.endswith(" kB")}


def rate_row(name: str, ours: list[float], theirs: list[float], unit: str) -> Row:
    """A row of speeds taken in turns; the ratio is the median of the rounds' own."""
    ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
    return {
        "name": name,
        "ours": round(statistics.median(ours), 2),
        "theirs": round(statistics.median(theirs), 2),
        "ratio": round(ratio, 3),
        "unit": unit,
        "rounds": len(ours),
    }


def machine() -> dict[str, Any]:
    """The processor, memory, GPU and versions; nothing that names this very machine."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_GiB": round(psutil.virtual_memory().total / 2**30),
        "system": platform.system(),
        "python": platform.python_version(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "precision": PRECISION,
        "torch_threads": torch.get_num_threads(),
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
    }
    if torch.cuda.is_available():
        device = torch.cuda.get_device_properties(0)
        found |= {"gpu": device.name, "gpu_memory_GiB": round(device.total_memory / 2**30)}
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
