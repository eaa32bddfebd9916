"""Decode every tile once: data/<profile> → build/<profile>.

In: `Images/<category>/*.jpg` and `Labels/<category>.csv`. Out: `tiles.npy` (N,H,H,3 uint8), `index.csv`,
`stats.json`, `audit.json`.

    satclr prepare --profile sample
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from satclr import atomic, progress
from satclr.data import duplicates, labels, splits, tiles
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

    Raises `PrepareError` if tiles and rows do not match or a tile is unreadable, unless
    `settings.on_unreadable` is `drop`, and if the audit flags rows where `settings.labels.on_problem` is
    `fail`; `labels.LabelError` for a bad table, `splits.SplitError` for a split that cannot be made.
    Every finding stands in out/audit.json, whether the stage stops or not.
    """
    if not data.is_dir():
        raise PrepareError(
            f"no data: {data} does not exist; put Images/<category>/*.jpg and Labels/<category>.csv there "
            "(`dvc pull` fetches the sample)"
        )
    table = labels.read(data / "Labels")
    audit = labels.audit(table, data / "Labels")
    flagged = {int(row) for row in labels.flagged_rows(audit)}
    out.mkdir(parents=True, exist_ok=True)
    paths, problems = _match(data, table)
    report: dict[str, Any] = {**audit.to_dict(), "on_problem": settings.labels.on_problem}
    with _audit_file(out / "audit.json", report):
        if flagged and settings.labels.on_problem == "fail":
            raise PrepareError(
                f"{data / 'Labels'}: the audit flags {len(flagged):,} tiles; see `satclr audit {data / 'Labels'}`, "
                "or set data.labels.on_problem to warn or drop"
            )
        if flagged:
            progress.say(
                f"warning: the audit flags {len(flagged):,} of {len(table.tiles):,} tiles "
                f"({settings.labels.on_problem}); see `satclr audit {data / 'Labels'}`"
            )
        dropped = flagged if settings.labels.on_problem == "drop" else set()
        rows = [(row, path) for row, path in sorted(paths.items()) if row not in dropped]
        with _parts(out) as parts:
            kept: list[int] = []
            sums, digest = np.zeros((0, 2, 3), np.int64), b""
            if settings.on_unreadable == "drop" or not problems:
                kept, sums, digest, unreadable = _pack(data, parts["tiles.npy"], rows, settings.tile_px)
                problems += unreadable
            report["dropped"] = [vars(problem) for problem in problems]
            if problems and settings.on_unreadable == "fail":
                raise PrepareError(_sentence(data, problems, out))
            if not kept:
                raise PrepareError(f"{data} has no tile that can be used")
            _finish(data, parts, settings, table, np.array(kept), sums, digest, report)


@contextmanager
def _parts(out: Path) -> Iterator[dict[str, Path]]:
    """The files of a store, to be written; they take their places together.

    stats.json, without which a store does not open, goes first and comes last: whenever the process ends, what
    opens is a whole store, the former or the new one.
    """
    with (
        atomic.replacing(out / "stats.json") as stats,
        atomic.replacing(out / "index.csv") as index,
        atomic.replacing(out / "tiles.npy") as pixels,
    ):
        yield {"stats.json": stats, "index.csv": index, "tiles.npy": pixels}
        (out / "stats.json").unlink(missing_ok=True)


def _finish(
    data: Path,
    parts: Mapping[str, Path],
    settings: Data,
    table: labels.Labels,
    kept: npt.NDArray[np.int64],
    sums: Sums,
    digest: bytes,
    report: dict[str, Any],
) -> None:
    """Group near-duplicates, split, and write index.csv and stats.json of the packed tiles."""
    names = [table.tiles[row] for row in kept]
    targets = table.targets[kept]
    group = duplicates.groups(np.load(parts["tiles.npy"], mmap_mode="r", allow_pickle=False))
    split = _split(names, targets, group, data, settings, left_out=set(table.tiles) - set(names))
    leaks = splits.spanning(split, group.tolist())
    report["near_duplicates"] = {
        "groups": [[names[i] for i in np.flatnonzero(group == g)] for g in _several(group)],
        "groups_across_splits": len(leaks),
    }
    report["split"] = {
        "sizes": dict(sorted(Counter(split).items())),
        "prevalence": {
            which: dict(zip(table.names, share.tolist(), strict=True))
            for which, share in splits.prevalence(split, targets).items()
        },
    }
    progress.show(splits.summary(split, targets, table.names))
    if leaks:
        mend = "data.split.by: group keeps them together"
        if settings.split.file is not None:
            mend = (
                f"{settings.split.file} says so: arms with near_duplicates: leave_out measure what that does"
            )
        progress.say(
            f"warning: {len(leaks):,} of {len(_several(group)):,} groups of near-duplicates lie in more than "
            f"one split; {mend}"
        )
    index = _index(table, kept.tolist(), split, [names[g] for g in group])
    parts["index.csv"].write_text(index, encoding="utf-8")
    train = np.flatnonzero(np.array(split) == "train")
    stats = {
        "labels": list(table.names),
        "tile_px": settings.tile_px,
        "tiles": report["split"]["sizes"],
        "normalization": {
            "train": train_statistics(sums[train], settings.tile_px),
            "imagenet": IMAGENET,
            "released": released_statistics(sums[train], settings.tile_px),
        },
        "digest": hashlib.sha256(digest + index.encode()).hexdigest(),
    }
    parts["stats.json"].write_text(json.dumps(stats, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _audit_file(path: Path, report: dict[str, Any]) -> Iterator[None]:
    """Write the audit whether the stage goes through or stops."""
    try:
        yield
    finally:
        atomic.write_json(path, report, allow_nan=True)


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
            elif not path.is_file():
                problems.append(Problem(f"Images/{folder.name}/{path.name}", "no file, or a link to none"))
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
    data: Path, part: Path, rows: Sequence[tuple[int, Path]], tile_px: int
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
    return kept, np.array(sums, np.int64).reshape(-1, 2, 3), digest.digest(), problems


def _header(file: BinaryIO, count: int, tile_px: int) -> None:
    """Write numpy's own header; it leaves room for the first axis, so a smaller count fits the same bytes."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, tile_px, tile_px, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _split(
    names: Sequence[str],
    targets: npt.NDArray[np.uint8],
    group: npt.NDArray[np.intp],
    data: Path,
    settings: Data,
    left_out: set[str],
) -> list[str]:
    how = settings.split
    if how.file is not None:
        return splits.from_file(data / how.file, names, left_out=left_out)
    return splits.split(
        names,
        fractions=how.fractions,
        seed=how.seed,
        groups=[names[g] for g in group] if how.by == "group" else None,
        stratify=targets if how.stratify else None,
    )


def _several(group: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """The groups with more than one member."""
    which, count = np.unique(group, return_counts=True)
    return which[count > 1]


def _index(table: labels.Labels, kept: Sequence[int], split: Sequence[str], group: Sequence[str]) -> str:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["tile", "category", "split", "group", "labels"])
    for place, row in enumerate(kept):
        present = "|".join(table.names[k] for k in np.flatnonzero(table.targets[row]))
        writer.writerow([table.tiles[row], table.categories[row], split[place], group[place], present])
    return text.getvalue()


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
