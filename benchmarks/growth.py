"""How time and memory of the stages grow with the number of tiles: 10,000, 100,000, 1,000,000 of 64 px.

    python benchmarks/scale.py growth                   all stages and sizes, into docs/runs/scale.json
    python benchmarks/scale.py growth "split by group"  one stage again
    python benchmarks/growth.py "embed 1%" 100000       one stage at one size

The store is made: its tiles.npy is a hole in a file (12 GB at a million tiles, hardly any disk), its index is what
`prepare` writes, with 60 labels. For near-duplicates tiles are noise that is made as it is read. Each stage runs in
a process of its own and prints seconds and its peak of resident memory, in which pages of the store count too.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from common import ROOT, machine, memory_kib
from common import run as run_of

from satclr import files, randomness
from satclr.data import duplicates, splits, tiles

OUT = ROOT / "docs" / "runs" / "scale.json"
LABELS, TILE_PX, BATCH, SHARE = 60, 64, 128, 0.01
COUNTS = [10_000, 100_000, 1_000_000]
NAMES = [f"label {k}" for k in range(LABELS)]
LABELLED = 10_000  # where all further tiles are unlabelled


class Noise:
    """(N,64,64,3) of noise, made as it is read."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: slice | int) -> npt.NDArray[np.uint8]:
        if not isinstance(rows, slice):
            tile: npt.NDArray[np.uint8] = self[rows : rows + 1][0]
            return tile
        drawn = TILE_PX**2 * 3 // 32  # steps of the generator for a tile, of four 64-bit numbers
        generator = np.random.Generator(np.random.Philox(0).advance(int(rows.start) * drawn))
        raw = generator.bytes((min(rows.stop, self.count) - rows.start) * TILE_PX**2 * 3)
        pixels: npt.NDArray[np.uint8] = np.frombuffer(raw, np.uint8).reshape(-1, TILE_PX, TILE_PX, 3)
        return pixels


def targets(count: int) -> npt.NDArray[np.uint8]:
    return np.asarray(np.random.default_rng(0).random((count, LABELS), np.float32) < 0.05, dtype=np.uint8)


def make(folder: Path, count: int, *, labelled: int | None = None) -> Callable[[], object]:
    """Make all of a store but its index; returns the function that writes that, which is a stage."""
    labelled = min(count, labelled or count)
    folder.mkdir(parents=True)
    with (folder / "tiles.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, TILE_PX, TILE_PX, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.truncate(file.tell() + count * TILE_PX**2 * 3)
    sizes = {"train": int(0.7 * labelled), "val": int(0.2 * labelled)}
    sizes["test"] = labelled - sum(sizes.values())
    sizes[tiles.UNLABELLED] = count - labelled
    statistics = {"train": {"mean": [0.4] * 3, "std": [0.2] * 3}}
    stats = {"labels": NAMES, "tile_px": TILE_PX, "tiles": sizes, "normalization": statistics, "digest": str(count)}
    files.write_json(folder / "stats.json", stats)
    names = [f"category_{i % 46:02d}_{i:08d}.jpg" for i in range(count)]
    split = np.repeat(list(sizes), list(sizes.values())).tolist()
    present = ["|".join(NAMES[k] for k in np.flatnonzero(row)) for row in targets(labelled)]
    present += [""] * (count - labelled)
    rows = zip(names, (name[:11] for name in names), split, names, present, strict=True)
    return partial(files.write_csv, folder / "index.csv", tiles.INDEX, rows)


def timed(work: Callable[[], object]) -> dict[str, float]:
    before, started = memory_kib()["VmRSS"], time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    peak = memory_kib()
    sizes = {"MiB": peak["VmHWM"], "MiB_before": before, "MiB_without_files": peak["RssAnon"]}
    return {"s": round(seconds, 3), **{name: round(kib / 1024) for name, kib in sizes.items()}}


def write(folder: Path, count: int) -> dict[str, float]:
    return timed(make(folder / "build" / "bench", count))


def read(folder: Path, count: int) -> dict[str, float]:
    make(folder / "build" / "bench", count)()
    return timed(lambda: tiles.open_store(folder / "build" / "bench"))


def split(_: Path, count: int) -> dict[str, float]:
    names, groups = [f"tile_{i:08d}.jpg" for i in range(count)], [i // 3 for i in range(count)]
    return timed(lambda: splits.split(names, fractions=(0.7, 0.2, 0.1), seed=0, groups=groups))


def stratify(_: Path, count: int) -> dict[str, float]:
    names, y = [f"tile_{i:08d}.jpg" for i in range(count)], targets(count)
    return timed(lambda: splits.split(names, fractions=(0.7, 0.2, 0.1), seed=0, stratify=y))


def search(_: Path, count: int) -> dict[str, float]:
    pixels: Any = Noise(count)
    return timed(lambda: duplicates.connected(duplicates.pairs(pixels), count))


def sample(folder: Path, count: int, *, labelled: int | None = None) -> dict[str, float]:
    """An epoch's order and the batches of a seeded hundredth of it."""
    import torch

    make(folder / "build" / "bench", count, labelled=labelled)()

    def work() -> None:
        store = tiles.open_store(folder / "build" / "bench").learning("leave_out", tiles="both")
        rows = store.rows("train")
        order = rows[randomness.permutation(len(rows), 0, "order", 0).numpy()]
        batches = tiles.split_batches(order, BATCH)
        for _ in tiles.stream(store, batches[: math.ceil(SHARE * len(batches))], torch.device("cpu")):
            pass

    return timed(work)


def embed(folder: Path, count: int) -> dict[str, float]:
    import torch

    from satclr.pretrain import encoder

    make(folder / "build" / "bench", count)()
    model, width = encoder.build("resnet18")
    path = folder / "encoder.safetensors"
    facts: dict[str, Any] = {"mean": [0.4] * 3, "std": [0.2] * 3, "crop_px": TILE_PX, "tile_px": TILE_PX}
    encoder.save(model, path, arch="resnet18", width=width, **facts)

    def work() -> None:
        store, frozen = tiles.open_store(folder / "build" / "bench"), encoder.Frozen(path)
        rows = np.sort(randomness.rng(0, "scale").permutation(count)[: int(SHARE * count)])
        for _, batch in tiles.stream(store, tiles.split_batches(rows, BATCH), torch.device("cpu")):
            frozen(batch)

    return timed(work)


def compare(folder: Path, count: int) -> dict[str, float]:
    """Two arms on a tenth of the tiles: intervals and contrasts, without the figures."""
    from satclr.study import contrasts
    from satclr.study.results import Results

    y, rng = targets(count // 10), np.random.default_rng(1)
    arms = {}
    for name in ("baseline", "simclr"):
        run = run_of(name, {}, folder)
        run.results.mkdir(parents=True)
        found = {f"{s}_targets": y for s in ("val", "test")} | {
            f"{s}_tiles": np.array([f"category_{i:08d}.jpg" for i in range(len(y))]) for s in ("val", "test")
        }
        scores = {f"{s}_scores": rng.random(y.shape, np.float32) + y for s in ("val", "test")}
        arrays: dict[str, Any] = found | scores
        np.savez(run.results / "scores.npz", labels=np.array(NAMES), **arrays)
        files.write_json(
            run.results / "details.json",
            {"test_mAP": 0.5, "val_mAP": 0.5, "test_mAP_bias": 0.0, "label_efficiency": []},
        )
        arms[name] = [Results(run)]

    def work() -> None:
        measures = contrasts.measure(arms, [f"category_{i % 46}" for i in range(len(y))])
        contrasts.by_label(measures["mAP"], tiles=len(y))
        contrasts.numbers(arms, measures)

    return timed(work)


STAGES: dict[str, Callable[[Path, int], dict[str, float]]] = {
    "write the index": write,
    "open the store": read,
    "split by group": split,
    "split, stratified": stratify,
    "near-duplicates": search,
    "sample batches": sample,
    "sample batches, unlabelled": partial(sample, labelled=LABELLED),
    "embed 1%": embed,
    "compare two arms": compare,
}


def measure(stage: str, count: int) -> dict[str, float]:
    command = [sys.executable, __file__, stage, str(count)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main(chosen: Sequence[str]) -> None:
    """Measure the sizes and stages that are chosen, by default all; other stages' rows stay as they were."""
    counts = [int(text) for text in chosen if text.isdecimal()] or COUNTS
    stages = [text for text in chosen if not text.isdecimal()]
    kept = {row["stage"]: row for row in json.loads(OUT.read_text())["rows"]} if stages else {}
    rows = []
    for stage in STAGES:
        if stages and stage not in stages:
            rows.append(kept[stage])
            continue
        sizes = {str(count): measure(stage, count) for count in counts}
        first, last = sizes[str(counts[0])], sizes[str(counts[-1])]
        row: dict[str, Any] = {"stage": stage, "sizes": sizes}
        if len(counts) > 1:
            previous = counts[-2]
            growth = last["s"] / sizes[str(previous)]["s"] / (counts[-1] / previous)
            row |= {"times_linear": round(growth, 2), "MiB_more": last["MiB"] - first["MiB"]}
        rows.append(row)
        print(json.dumps(row), flush=True)
    document = {"machine": machine(), "tile_px": TILE_PX, "labels": LABELS, "rows": rows}
    files.write_json(OUT, document)


def table(found: dict[str, Any]) -> str:
    """The rows as they stand in docs/scale.md."""
    counts = list(found["rows"][0]["sizes"])
    lines = [f"| stage | {' | '.join(f'{int(c):,} tiles' for c in counts)} | × linear | memory, MiB more |"]
    lines.append("| --- |" + " --- |" * (len(counts) + 2))
    for row in found["rows"]:
        each = " | ".join(f"{row['sizes'][c]['s']:,.2f} s" for c in counts)
        lines.append(f"| {row['stage']} | {each} | {row['times_linear']:.2f} | {row['MiB_more']:,} |")
    return "\n".join(lines)


if __name__ == "__main__":
    which, size = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(STAGES[which](Path(name), int(size))))
