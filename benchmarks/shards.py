"""What a store of JPEG shards would cost against the uint8 map of `prepare`: bytes and tiles/s, on this machine.

    python benchmarks/shards.py                         into docs/runs/shards.json

Shards are tar files of 1,000 JPEG files at quality 90, as WebDataset reads them: whole shards in a random order, tiles
through a shuffle buffer, decoded by one thread or by one a core. The map is read in random batches. `cold` files are
dropped from the page cache before they are read, `warm` ones have just been read.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image

from satclr.data import tiles

OUT = common.ROOT / "docs" / "runs" / "shards.json"
TILES, TILE_PX, SHARD, BATCH, BUFFER, QUALITY, ROUNDS = 6_000, 256, 1_000, 128, 2_000, 90, 3


def main() -> None:
    with tempfile.TemporaryDirectory(dir=common.ROOT) as name:
        folder = Path(name)
        array, shards = write(folder)
        ways: dict[str, Callable[[], Iterable[Any]]] = {
            "uint8 map, random batches": lambda: mapped(array),
            "JPEG shards, one thread": lambda: streamed(shards, threads=1),
            "JPEG shards, a thread a core": lambda: streamed(shards, threads=os.cpu_count() or 1),
        }
        rows = []
        for way, read in ways.items():
            paths = [array] if "map" in way else shards
            speeds: dict[str, list[float]] = {"cold": [], "warm": []}
            for _ in range(ROUNDS):
                drop(paths)
                for each in speeds.values():
                    each.append(TILES / common.seconds(lambda: sum(map(len, read()))))  # noqa: B023
            size = sum(path.stat().st_size for path in paths) / TILES / 1024
            rows.append({"way": way, "KiB_per_tile": round(size, 1), **{s: round(max(v)) for s, v in speeds.items()}})
    found = {"machine": common.machine(), "tiles": TILES, "tile_px": TILE_PX, "data": common.data().name, "rows": rows}
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))


def table(found: dict[str, Any]) -> str:
    """The rows as they stand in docs/scale.md."""
    lines = ["| store | KiB a tile | tiles/s, cold | tiles/s, warm |", "| --- | --- | --- | --- |"]
    lines += [f"| {r['way']} | {r['KiB_per_tile']:,} | {r['cold']:,} | {r['warm']:,} |" for r in found["rows"]]
    return "\n".join(lines)


def write(folder: Path) -> tuple[Path, list[Path]]:
    """The same tiles as one array and as shards."""
    pictures = sorted((common.data() / "Images").rglob("*.*"))
    array, shards = folder / "tiles.npy", [folder / f"{i:05}.tar" for i in range(TILES // SHARD)]
    pixels = np.lib.format.open_memmap(array, "w+", np.uint8, (TILES, TILE_PX, TILE_PX, 3))
    chosen = zip(range(TILES), itertools.cycle(pictures), strict=False)
    for shard in shards:
        with tarfile.open(shard, "w") as tar:
            for row, path in itertools.islice(chosen, SHARD):
                with Image.open(path) as image:
                    tile = image.convert("RGB").resize((TILE_PX, TILE_PX), Image.Resampling.BICUBIC)
                pixels[row] = np.asarray(tile)
                content = io.BytesIO()
                tile.save(content, "JPEG", quality=QUALITY)
                entry = tarfile.TarInfo(f"{row:08}.jpg")
                entry.size = len(content.getvalue())
                tar.addfile(entry, io.BytesIO(content.getvalue()))
    pixels.flush()
    return array, shards


def mapped(array: Path) -> Iterator[Any]:
    """Batches as pretraining reads them."""
    store = common.made_store(np.load(array, mmap_mode="r"))
    batches = tiles.split_batches(np.random.default_rng(0).permutation(TILES), BATCH)
    for _, batch in tiles.stream(store, batches, torch.device("cpu")):
        yield batch


def streamed(shards: list[Path], *, threads: int) -> Iterator[Any]:
    """Batches of decoded tiles: shards in a random order, tiles drawn from a buffer."""
    rng = np.random.default_rng(0)
    with ThreadPoolExecutor(threads) as pool:
        for batch in batched(shuffled(encoded(shards[i] for i in rng.permutation(len(shards))), rng)):
            yield np.stack(list(pool.map(decode, batch)))


def encoded(shards: Iterable[Path]) -> Iterator[bytes]:
    for shard in shards:
        with tarfile.open(shard, "r|") as tar:
            for entry in tar:
                yield (tar.extractfile(entry) or io.BytesIO()).read()


def shuffled(files: Iterable[bytes], rng: np.random.Generator) -> Iterator[bytes]:
    held: list[bytes] = []
    for file in files:
        held.append(file)
        if len(held) > BUFFER:
            place = int(rng.integers(len(held)))
            held[place], held[-1] = held[-1], held[place]
            yield held.pop()
    rng.shuffle(held)
    yield from held


def batched(files: Iterable[bytes]) -> Iterator[list[bytes]]:
    rest = iter(files)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def decode(file: bytes) -> Any:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image)


def drop(paths: Iterable[Path]) -> None:
    """Drop files from the page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


if __name__ == "__main__":
    main()
