"""What it is worth to pretraining that glibc keeps freed memory: `python benchmarks/malloc.py [--quick]`.

Without, each step maps the pages of its tensors anew. Each way trains in a process of its own, in turns.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import common
from common import Row

from satclr import machine
from satclr.data import prepare
from satclr.pretrain import train

ROUNDS, TILES, TILE_PX, CROP_PX = 3, 1280, 96, 64
WAYS = ("kept", "given back")
PRECISIONS = tuple(dict.fromkeys((common.PRECISION, "float32")))


def rows(*, quick: bool = False) -> list[Row]:
    found = []
    for precision in PRECISIONS:
        speeds: dict[str, list[float]] = {way: [] for way in WAYS}
        for _ in range(1 if quick else ROUNDS):
            for way in WAYS:
                command = (sys.executable, __file__, "--measure", way, precision, str(TILES // 8 if quick else TILES))
                done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
                speeds[way].append(float(done.stdout))
        name = f"pretraining resnet18 {CROP_PX} px, {precision}, freed memory kept, against given back"
        found.append(common.rate_row(name, speeds["kept"], speeds["given back"], "tiles/s"))
    return found


def measure(way: str, precision: str, count: int) -> float:
    """Tiles/s of the second epoch."""
    if way != "kept":
        machine.keep_freed_memory = lambda: None
    pretrain = {"arch": "resnet18", "weights": "none", "epochs": 2, "precision": precision}
    sections = {"data": {"tile_px": TILE_PX}, "views": {"crop_px": CROP_PX}, "pretrain": pretrain}
    with tempfile.TemporaryDirectory() as folder:
        project = common.project(Path(folder), sections, count=count, tile_px=TILE_PX)
        prepare.run(project)
        run = project.run("simclr", 0)
        found: list[float] = []
        train.pretrain(run, Path(folder) / "out", lambda _epoch, values: found.append(values["tiles_per_s"]))
    return found[-1]


if __name__ == "__main__":
    if "--measure" in sys.argv:
        way, precision, count = sys.argv[2:]
        print(measure(way, precision, int(count)))
    else:
        print(json.dumps(rows(quick="--quick" in sys.argv), indent=1))
