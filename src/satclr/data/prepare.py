"""Decode every tile once: data/<profile> → build/<profile>.

In: `Images/<category>/*.jpg` and `Labels/<category>.csv`. Out: `tiles.npy` (N,H,H,3 uint8), `index.csv`, `stats.json`,
`audit.json`.

    satclr prepare --profile sample
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from satclr import files, progress
from satclr.data import audit, duplicates, labels, pixels, splits, tiles
from satclr.params import Data
from satclr.project import Project

IMAGENET: Final = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
RELEASED_BATCH: Final = 256  # tiles per batch in the notebook's statistics
CHUNK: Final = 256  # tiles decoded at a time, which bounds memory
GROUPS: Final = "groups.csv"  # image, group: the city, scene or flight line that `split.by: group` keeps together
CACHED: Final = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")  # a file of DVC's cache, named by its content
SHOWN: Final = 10

Sums = npt.NDArray[np.int64]  # (N,2,3): sum and sum of squares of a tile's pixel values, per channel
Problems = list[dict[str, str]]  # path, relative to the data folder, and reason


class PrepareError(ValueError):
    """A data set that cannot be used: bad input, exit code 2."""


def run(project: Project) -> None:
    """Write the project's tile store, build/<profile>."""
    write_store(project.data, project.store, project.settings.data)


def write_store(data: Path, out: Path, settings: Data) -> None:
    """Write the tile store of the data set in `data` to `out`. Every finding is in out/audit.json, also on failure.

    Raises `PrepareError` if tiles and rows do not match or a tile is unreadable, unless `settings.on_unreadable` is
    `drop`, and if the audit flags rows where `settings.labels.on_problem` is `fail`; `labels.LabelError` for an invalid
    table, `splits.SplitError` for an impossible split, and for one with train, val or test tiles all without labels.
    """
    if not data.is_dir():
        layout = "put Images/<category>/*.jpg and Labels/<category>.csv there"
        raise PrepareError(f"no data: {data} does not exist; {layout} (`dvc pull` fetches the sample)")
    table = labels.read(data / "Labels")
    found = audit.audit(table, data / "Labels")
    paths, problems = _match(data, table)
    record: dict[str, Any] = {**found.to_dict(), "on_problem": settings.labels.on_problem}
    out.mkdir(parents=True, exist_ok=True)
    try:
        flagged = _check_flagged(data, found, settings.labels.on_problem)
        record["dropped"] = problems
        strict = settings.on_unreadable == "fail"
        if strict:
            _check_problems(data, problems, out)
        rows = [(row, path) for row, path in sorted(paths.items()) if row not in flagged]
        scale = settings.scale or pixels.measured(_training(data, settings, table, rows))
        decode = partial(pixels.decode, tile_px=settings.tile_px, scale=scale, minimum_valid=settings.minimum_valid)
        with _parts(out) as parts:
            kept, sums, digest = _pack(data, parts["tiles.npy"], rows, decode, problems)
            if strict:
                _check_problems(data, problems, out)
            if not kept:
                raise PrepareError(f"{data} has no usable tile")
            record["scale"] = scale
            _finish(data, parts, settings, table, kept, sums, digest, record)
    finally:
        files.write_json(out / "audit.json", record, allow_nan=True)


def _training(data: Path, settings: Data, table: labels.Labels, rows: Sequence[tuple[int, Path]]) -> list[Path]:
    """The files of training tiles, to measure a scale; of all tiles in a split by group, for which pixels decide."""
    split, names, paths = settings.split, [table.tiles[row] for row, _ in rows], [path for _, path in rows]
    if split.by == "group" or not any(map(pixels.is_deep, paths)):
        return paths
    if split.file is not None:
        drawn = splits.from_file(data / split.file, names, left_out=set(table.tiles) - set(names))
    else:
        stratify = table.targets[[row for row, _ in rows]] if split.stratify else None
        drawn = splits.split(names, fractions=split.fractions, seed=split.seed, stratify=stratify)
    return [path for path, which in zip(paths, drawn, strict=True) if which == "train"]


def train_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Exact mean and population standard deviation per channel, of pixels in [0, 1].

    Computed from integer sums, so the result does not depend on the order of the tiles.
    """
    count = len(sums) * tile_px**2
    first, second = sums.sum(axis=0).tolist()  # Python integers do not overflow
    variance = [(count * q - s * s) / count**2 for s, q in zip(first, second, strict=True)]
    return {"mean": [s / count / 255 for s in first], "std": [max(v, 1e-12) ** 0.5 / 255 for v in variance]}


def released_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Mean and standard deviation as in the paper's notebook, which adds up image means and variances.

    In batches of 256, a batch's "mean" is the sum of its tiles' means, its "variance" the sum of their unbiased
    variances; batches are then merged as if those were means and variances of n tiles (lbriody/simple-multilabel-cl,
    `compute_mean_std`, `agg_batch_stats=False`). Near 90 and 3 on MLRSNet, instead of 0.4 and 0.2.
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


def _check_flagged(data: Path, found: audit.Audit, on_problem: str) -> set[int]:
    """Refuse rows that the audit flags, or warn; returns those to drop."""
    flagged = set(audit.flagged_rows(found).tolist())
    count = f"{len(flagged):,} of {len(found.labels.tiles):,} tiles"
    said = f"the audit flags {count}; see `satclr audit {data / 'Labels'}`"
    if flagged and on_problem == "fail":
        raise PrepareError(f"{said}, or set data.labels.on_problem to warn or drop")
    if flagged:
        progress.say(f"warning: {said} (data.labels.on_problem: {on_problem})")
    return flagged if on_problem == "drop" else set()


def _match(data: Path, table: labels.Labels) -> tuple[dict[int, Path], Problems]:
    """The image file of each row, and what does not match."""
    images = data / "Images"
    if not images.is_dir():
        raise PrepareError(f"no data: {images} does not exist; it should hold one folder of images per category")
    found: dict[tuple[str, str], Path] = {}
    reasons = {p.name: "a file where folders of images are expected" for p in _listed(images) if not p.is_dir()}
    for path in (path for folder in _listed(images) if folder.is_dir() for path in _listed(folder)):
        name = path.relative_to(images).as_posix()
        if path.suffix.lower() not in tiles.SUFFIXES:
            reasons[name] = "not named as an image"
        elif not path.is_file():
            reasons[name] = "not a file, or a broken link"
        elif not path.resolve().is_relative_to(data.resolve()) and not CACHED.search(str(path.resolve())):
            reasons[name] = "a link that leaves the data folder, and not for DVC's cache"
        else:
            found[labels.nfc(path.parent.name), labels.nfc(path.name)] = path
    rows = list(zip(table.categories, table.tiles, strict=True))
    paths = {row: found[key] for row, key in enumerate(rows) if key in found}
    for key in rows:
        if found.pop(key, None) is None:
            reasons.setdefault("/".join(key), f"a row of Labels/{key[0]}.csv without a tile")
    reasons |= {f"{c}/{name}": f"a tile without a row in Labels/{c}.csv" for c, name in found}
    return paths, [{"path": f"Images/{name}", "reason": reason} for name, reason in reasons.items()]


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _check_problems(data: Path, problems: Problems, out: Path) -> None:
    lines = [f"  {problem['path']}: {problem['reason']}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN:,} more, listed in {out / 'audit.json'}")
    remedy = "Fix them, or set data.on_unreadable: drop in the profile to skip them."
    if problems:
        count = f"{len(problems):,} tile{'s' if problems[1:] else ''}"
        raise PrepareError("\n".join([f"{data}: {count} cannot be used", *lines, remedy]))


@contextmanager
def _parts(out: Path) -> Iterator[dict[str, Path]]:
    """The files of a store, to be written; they replace the former ones together.

    A store does not open without stats.json, which is deleted first and renamed last: even if the process is killed,
    what opens is a complete store.
    """
    with (
        files.replacing(out / "stats.json") as stats,
        files.replacing(out / "index.csv") as index,
        files.replacing(out / "tiles.npy") as pixels,
    ):
        yield {"stats.json": stats, "index.csv": index, "tiles.npy": pixels}
        (out / "stats.json").unlink(missing_ok=True)


def _pack(
    data: Path, part: Path, rows: Sequence[tuple[int, Path]], decode: partial[tiles.Tiles], problems: Problems
) -> tuple[list[int], Sums, bytes]:
    """Decode in parallel, append in order: the rows kept, their sums, a digest of the pixels."""

    def read(path: Path) -> tuple[bytes, Sums] | str:
        try:
            tile = decode(path)
        except (tiles.TileError, OSError) as error:
            return str(error)
        values = tile.reshape(-1, 3).astype(np.int64)
        return tile.tobytes(), np.stack([values.sum(axis=0), (values * values).sum(axis=0)])

    kept: list[int] = []
    tile_px = decode.keywords["tile_px"]
    sums: list[Sums] = []
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
                    problems.append({"path": str(path.relative_to(data)), "reason": result})
                    continue
                kept.append(row)
                sums.append(result[1])
                digest.update(result[0])
                file.write(result[0])
            advance(len(chunk))
        file.seek(0)
        _header(file, len(kept), tile_px)
    return kept, np.array(sums, np.int64).reshape(-1, 2, 3), digest.digest()


def _header(file: BinaryIO, count: int, tile_px: int) -> None:
    """Write numpy's header; it reserves room for the first axis, so a smaller count has the same length."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, tile_px, tile_px, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _finish(
    data: Path, parts: Mapping[str, Path], settings: Data, table: labels.Labels,
    kept: list[int], sums: Sums, digest: bytes, record: dict[str, Any],
) -> None:  # fmt: skip
    """Group near-duplicates, split, and write index.csv and stats.json of the packed tiles."""
    names = [table.tiles[row] for row in kept]
    targets = table.targets[kept]
    groups = [names[g] for g in duplicates.groups(np.load(parts["tiles.npy"], mmap_mode="r", allow_pickle=False))]
    dropped = set(table.tiles) - set(names)
    given = splits.column(data / GROUPS, "group", names, left_out=dropped) if (data / GROUPS).is_file() else None
    if settings.split.file is None:
        split = splits.split(
            names,
            fractions=settings.split.fractions,
            seed=settings.split.seed,
            groups=splits.united(groups, given or groups) if settings.split.by == "group" else None,
            stratify=targets if settings.split.stratify else None,
        )
    else:
        split = splits.from_file(data / settings.split.file, names, left_out=dropped)
    sizes = dict(sorted(Counter(split).items()))
    shares = {
        s: dict(zip(table.names, share.tolist(), strict=True)) for s, share in splits.prevalence(split, targets).items()
    }
    if empty := [s for s, share in shares.items() if not any(share.values())]:
        remedy = "draw another split (data.split), or label some of them"
        raise splits.SplitError(f"no {empty[0]} tile of {data} has a label ({sizes[empty[0]]} tiles); {remedy}")
    several = [[names[i] for i in rows] for rows in splits.members(groups) if len(rows) > 1]
    leaks = len(splits.spanning(split, groups))
    record["near_duplicates"] = {"groups": several, "groups_across_splits": leaks}
    if given:
        record["groups_across_splits"] = across = len(splits.spanning(split, given))
        if across:
            progress.say(f"warning: {across:,} of {len(set(given)):,} groups of {GROUPS} are in more than one split")
    record["split"] = {"sizes": sizes, "prevalence": shares}
    progress.show(splits.summary(split, targets, table.names))
    if leaks:
        remedy = "data.split.by: group keeps them together"
        if settings.split.file is not None:
            remedy = f"{settings.split.file} puts them there; near_duplicates: leave_out measures the effect"
        spread = f"{leaks:,} of {len(several):,} groups of near-duplicates are in more than one split"
        progress.say(f"warning: {spread}; {remedy}")
    present = ["|".join(table.names[k] for k in np.flatnonzero(row)) for row in targets]
    index = zip(names, (table.categories[row] for row in kept), split, groups, present, strict=True)
    files.write_csv(parts["index.csv"], ["tile", "category", "split", "group", "labels"], index)
    train = sums[np.array(split) == "train"]
    normalization = {
        "train": train_statistics(train, settings.tile_px),
        "imagenet": IMAGENET,
        "released": released_statistics(train, settings.tile_px),
    }
    digest = hashlib.sha256(digest + parts["index.csv"].read_bytes()).digest()
    stats = {"labels": list(table.names), "tile_px": settings.tile_px, "tiles": sizes}
    stats |= {"normalization": normalization, "digest": digest.hex()}
    stats |= {"scale": record["scale"]} if record["scale"] else {}
    files.write_json(parts["stats.json"], stats)
