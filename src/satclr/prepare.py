"""Decode every tile once: data/<profile> → build/<profile>.

In: `Images/<category>/*.jpg` and `Labels/<category>.csv`. Out: `tiles.npy` (N,H,H,3 uint8), `index.csv`,
`stats.json`, `audit.json`.

    satclr prepare --profile sample
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from satclr import labels, progress, randomness, tiles
from satclr.params import Data

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RELEASED_BATCH = 256  # tiles a batch in the notebook's statistics
CHUNK = 256  # tiles in flight: what bounds memory
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"}
SHOWN = 10

Sums = npt.NDArray[np.int64]  # (N,2,3): sum and sum of squares of a tile's pixel values, a channel


class PrepareError(ValueError):
    """A data set that cannot be used as it is: bad input, exit code 2."""


@dataclass(frozen=True)
class Problem:
    path: str  # relative to the data folder
    reason: str


def run(data: Path, out: Path, settings: Data) -> None:
    """Write the store of `data` into `out`.

    Raises `PrepareError` (with every path and reason in out/audit.json) if tiles and rows do not match or a
    tile is unreadable, unless `settings.on_unreadable` is `drop`; `labels.LabelError` for a bad table.
    """
    if not data.is_dir():
        raise PrepareError(
            f"no data: {data} does not exist; put Images/<category>/*.jpg and Labels/<category>.csv there "
            "(`dvc pull` fetches the sample)"
        )
    table = labels.read(data / "Labels")
    out.mkdir(parents=True, exist_ok=True)
    paths, problems = _match(data, table)
    kept = [row for row in range(len(table.tiles)) if row in paths]
    if settings.on_unreadable == "drop" or not problems:
        kept, sums, digest, unreadable = _pack(
            data, out, [(row, paths[row]) for row in kept], settings.tile_px
        )
        problems += unreadable
    _write_json(out / "audit.json", {"dropped": [vars(p) for p in problems]})
    if problems and settings.on_unreadable == "fail":
        (out / "tiles.npy").unlink(missing_ok=True)
        raise PrepareError(_sentence(data, problems, out))
    if not kept:
        raise PrepareError(f"{data} has no tile that can be read")
    split = _split([table.tiles[row] for row in kept], data, settings)
    index = _index(table, kept, split)
    (out / "index.csv").write_text(index, encoding="utf-8")
    train = np.flatnonzero(np.array(split) == "train")
    _write_json(out / "stats.json", {
        "labels": list(table.names),
        "tile_px": settings.tile_px,
        "tiles": dict(sorted(Counter(split).items())),
        "normalization": {
            "train": train_statistics(sums[train], settings.tile_px),
            "imagenet": IMAGENET,
            "released": released_statistics(sums[train], settings.tile_px),
        },
        "digest": hashlib.sha256(digest + index.encode()).hexdigest(),
    })  # fmt: skip


def train_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Exact mean and population standard deviation a channel, of pixels in [0,1].

    From integer sums, so the result does not depend on the order of the tiles.
    """
    count = len(sums) * tile_px**2
    totals = [[int(v) for v in row] for row in sums.sum(axis=0)]  # Python integers do not overflow
    mean = [s / count / 255 for s in totals[0]]
    variance = [(count * q - s * s) / count**2 for s, q in zip(*totals, strict=True)]
    return {"mean": mean, "std": [max(v, 1e-12) ** 0.5 / 255 for v in variance]}


def released_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Mean and standard deviation as the paper's notebook has them: image means and variances are summed.

    Batches of 256 in order; a batch's "mean" is the sum of its tiles' means, its "variance" the sum of their
    unbiased variances; batches are then merged as if those were means and variances of n tiles
    (lbriody/simple-multilabel-cl, `compute_mean_std`, `agg_batch_stats=False`). Near 90 and 3 on
    MLRSNet, not 0.4 and 0.2.
    """
    pixels = tile_px**2
    means = sums[:, 0] / (255 * pixels)
    variances = (sums[:, 1] / 255**2 - pixels * means**2) / (pixels - 1)
    mean, variance, m = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(sums), RELEASED_BATCH):
        batch = slice(start, start + RELEASED_BATCH)
        n = len(means[batch])
        mean_n, variance_n = means[batch].sum(axis=0), variances[batch].sum(axis=0)
        between = m * n * (mean - mean_n) ** 2 / (m + n) ** 2
        variance = (m * variance + n * variance_n) / (m + n) + between
        mean = (m * mean + n * mean_n) / (m + n)
        m += n
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 1e-24)).tolist()}


def _match(data: Path, table: labels.Labels) -> tuple[dict[int, Path], list[Problem]]:
    """The image file of each row, and what does not match."""
    found: dict[tuple[str, str], Path] = {}
    problems = []
    images = data / "Images"
    if not images.is_dir():
        raise PrepareError(
            f"no data: {images} does not exist; it should hold one folder of images a category"
        )
    for folder in sorted(p for p in images.iterdir() if not p.name.startswith(".")):
        if not folder.is_dir():
            problems.append(Problem(f"Images/{folder.name}", "a file where folders of images are expected"))
            continue
        for path in sorted(p for p in folder.iterdir() if not p.name.startswith(".")):
            if path.suffix.lower() not in SUFFIXES:
                problems.append(Problem(f"Images/{folder.name}/{path.name}", "not named as an image"))
            elif not path.resolve().is_relative_to(data.resolve()):
                problems.append(
                    Problem(f"Images/{folder.name}/{path.name}", "a link that leaves the data folder")
                )
            else:
                found[folder.name, path.name] = path
    paths = {}
    for row, key in enumerate(zip(table.categories, table.tiles, strict=True)):
        if key in found:
            paths[row] = found.pop(key)
        else:
            reason = f"a row of Labels/{key[0]}.csv without a tile"
            problems.append(Problem(f"Images/{key[0]}/{key[1]}", reason))
    for category, name in found:
        problems.append(
            Problem(f"Images/{category}/{name}", f"a tile without a row in Labels/{category}.csv")
        )
    return paths, problems


def _pack(
    data: Path, out: Path, rows: Sequence[tuple[int, Path]], tile_px: int
) -> tuple[list[int], Sums, bytes, list[Problem]]:
    """Decode in parallel, append in order: kept rows, their sums, a digest of the pixels, what failed."""

    def read(path: Path) -> tuple[tiles.Tiles, Any] | str:
        try:
            tile = tiles.decode(path, tile_px)
        except (tiles.TileError, OSError) as error:
            return str(error)
        values = tile.reshape(-1, 3).astype(np.int64)
        return tile, (values.sum(axis=0), (values * values).sum(axis=0))

    kept: list[int] = []
    sums = []
    problems = []
    digest = hashlib.sha256()
    part = out / "tiles.npy.part"
    with (
        part.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(f"decode {data.name}", len(rows)) as advance,
    ):
        _header(file, len(rows), tile_px)
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK]
            for (row, path), result in zip(chunk, pool.map(read, [p for _, p in chunk]), strict=True):
                if isinstance(result, str):
                    problems.append(Problem(str(path.relative_to(data)), result))
                    continue
                kept.append(row)
                sums.append(result[1])
                pixels = result[0].tobytes()
                digest.update(pixels)
                file.write(pixels)
            advance(len(chunk))
        file.seek(0)
        _header(file, len(kept), tile_px)
        file.flush()
        os.fsync(file.fileno())
    part.replace(out / "tiles.npy")
    return kept, np.array(sums, np.int64).reshape(-1, 2, 3), digest.digest(), problems


def _header(file: BinaryIO, count: int, tile_px: int) -> None:
    """Write numpy's own header; it leaves room for the first axis, so a smaller count fits the same bytes."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, tile_px, tile_px, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _split(names: Sequence[str], data: Path, settings: Data) -> list[str]:
    if settings.split.file is None:
        order = randomness.permutation(len(names), settings.split.seed, "split").tolist()
        by_name = sorted(range(len(names)), key=names.__getitem__)
        ends = np.cumsum(np.array(settings.split.fractions) * len(names)).round()
        split = [""] * len(names)
        for place, position in enumerate(order):
            split[by_name[position]] = tiles.SPLITS[int(np.searchsorted(ends, place, side="right"))]
        return split
    path = data / settings.split.file
    if not path.is_file():
        raise PrepareError(f"data.split.file: {path} does not exist")
    with path.open(encoding="utf-8-sig", newline="") as file:
        given = {row.get("image", ""): row.get("split", "") for row in csv.DictReader(file)}
    bad = sorted(name for name in names if given.get(name) not in tiles.SPLITS)
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise PrepareError(f"{path} names no split (train, val, test) for {', '.join(bad[:3])}{more}")
    return [given[name] for name in names]


def _index(table: labels.Labels, kept: Iterable[int], split: Sequence[str]) -> str:
    lines = ["tile,category,split,group,labels"]
    for place, row in enumerate(kept):
        present = "|".join(table.names[k] for k in np.flatnonzero(table.targets[row]))
        cells = (table.tiles[row], table.categories[row], split[place], "", present)
        lines.append(",".join(f'"{c}"' if "," in c else c for c in cells))
    return "\n".join(lines) + "\n"


def _sentence(data: Path, problems: Sequence[Problem], out: Path) -> str:
    shown = [f"  {problem.path}: {problem.reason}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        shown.append(f"  and {len(problems) - SHOWN:,} more, listed in {out / 'audit.json'}")
    tiles_ = "1 tile" if len(problems) == 1 else f"{len(problems):,} tiles"
    return "\n".join([
        f"{data}: {tiles_} cannot be used",
        *shown,
        "Mend them, or set data.on_unreadable: drop in the profile to leave them out.",
    ])  # fmt: skip


def _write_json(path: Path, tree: Any) -> None:
    path.write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
