"""Decode every tile once: data/<profile> → build/<profile>.

In: `Images/<category>/*.jpg`, `Labels/<category>.csv`, and images without labels anywhere below `Unlabelled`. Out:
`tiles.npy` (N,H,H,3 uint8; the labelled tiles first), `index.csv`, `stats.json`, `audit.json`.

    satclr prepare --profile sample
"""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import numpy.typing as npt

from satclr import files, progress
from satclr.data import audit, duplicates, labels, pixels, splits, statistics, tiles
from satclr.params import Data
from satclr.project import Project

CHUNK: Final = 256  # tiles decoded at a time, which bounds memory
UNLABELLED: Final = "Unlabelled"  # images without a table, for pretraining alone
CACHED: Final = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")  # a file of DVC's cache, named by its content
SHOWN: Final = 10

Sums = npt.NDArray[np.int64]  # (N,2,3): sum and sum of squares of a tile's pixel values, per channel
Rows = list[tuple[int, Path | str]]  # of the label tables, then of unlabelled images, and their files
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
    others = _unlabelled(data, problems)
    record: dict[str, Any] = {**found.to_dict(), "on_problem": settings.labels.on_problem}
    out.mkdir(parents=True, exist_ok=True)
    try:
        flagged = _check_flagged(data, found, settings.labels.on_problem)
        record["dropped"] = problems
        strict = settings.on_unreadable == "fail"
        if strict:
            _check_problems(data, problems, out)
        labelled = [(row, path) for row, path in sorted(paths.items()) if row not in flagged]
        scale = settings.scale or pixels.measured(_training(data, settings, table, labelled))
        decode = partial(pixels.decode, tile_px=settings.tile_px, scale=scale, minimum_valid=settings.minimum_valid)
        rows: Rows = [*labelled, *enumerate(others, len(table.tiles))]
        with _parts(out) as parts:
            kept, sums, digest = _pack(data, parts["tiles.npy"], rows, decode, problems)
            if strict:
                _check_problems(data, problems, out)
            if not kept or kept[0] >= len(table.tiles):
                raise PrepareError(f"{data} has no usable tile with labels")
            unlabelled = [others[row - len(table.tiles)] for row in kept if row >= len(table.tiles)]
            names = [os.path.relpath(path, data).encode(errors="backslashreplace").decode() for path in unlabelled]
            record["scale"] = scale
            _finish(data, parts, settings, table, kept[: len(kept) - len(names)], names, sums, digest, record)
    finally:
        files.write_json(out / "audit.json", record, allow_nan=True)


def _training(data: Path, settings: Data, table: labels.Labels, rows: list[tuple[int, Path]]) -> list[Path]:
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
        if reason := _unusable(path, data):
            reasons[path.relative_to(images).as_posix()] = reason
        else:
            found[labels.nfc(path.parent.name), labels.nfc(path.name)] = path
    rows = list(zip(table.categories, table.tiles, strict=True))
    paths = {row: found[key] for row, key in enumerate(rows) if key in found}
    for key in rows:
        if found.pop(key, None) is None:
            reasons.setdefault("/".join(key), f"a row of Labels/{key[0]}.csv without a tile")
    reasons |= {f"{c}/{name}": f"a tile without a row in Labels/{c}.csv" for c, name in found}
    return paths, [{"path": f"Images/{name}", "reason": reason} for name, reason in reasons.items()]


def _unlabelled(data: Path, problems: Problems) -> list[str]:
    """The images below data/Unlabelled, at any depth, as text: there may be millions. Adds to `problems`."""
    found: list[str] = []
    for folder, folders, names in os.walk(data / UNLABELLED):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]  # os.walk does not enter them
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(name for name in [*names, *links] if not name.startswith(".")):
            path = Path(folder) / name
            if reason := _unusable(path, data):
                problems.append({"path": path.relative_to(data).as_posix(), "reason": reason})
            else:
                found.append(str(path))
    return found


def _unusable(path: Path, data: Path) -> str | None:
    """Why a path is no image of the data set."""
    if path.suffix.lower() not in tiles.SUFFIXES:
        return "not named as an image"
    if not path.is_file():
        return "not a file, or a broken link"
    if path.resolve().is_relative_to(data.resolve()) or CACHED.search(str(path.resolve())):
        return None
    return "a link that leaves the data folder, and not for DVC's cache"


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
    data: Path, part: Path, rows: Rows, decode: partial[tiles.Tiles], problems: Problems
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
    sums = np.zeros((len(rows), 2, 3), np.int64)
    digest = hashlib.sha256()
    with (
        part.open("wb") as file,
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(f"decode {data.name}", len(rows)) as advance,
    ):
        _header(file, len(rows), tile_px)
        for start in range(0, len(rows), CHUNK):
            chunk = [(row, Path(path)) for row, path in rows[start : start + CHUNK]]
            for (row, path), result in zip(chunk, pool.map(read, [p for _, p in chunk]), strict=True):
                if isinstance(result, str):
                    problems.append({"path": str(path.relative_to(data)), "reason": result})
                    continue
                sums[len(kept)] = result[1]
                kept.append(row)
                digest.update(result[0])
                file.write(result[0])
            advance(len(chunk))
        file.seek(0)
        _header(file, len(kept), tile_px)
    return kept, sums[: len(kept)], digest.digest()


def _header(file: BinaryIO, count: int, tile_px: int) -> None:
    """Write numpy's header; it reserves room for the first axis, so a smaller count has the same length."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, tile_px, tile_px, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _finish(
    data: Path, parts: Mapping[str, Path], settings: Data, table: labels.Labels,
    kept: list[int], unlabelled: list[str], sums: Sums, digest: bytes, record: dict[str, Any],
) -> None:  # fmt: skip
    """Group near-duplicates, split, and write index.csv and stats.json of the packed tiles.

    kept: the rows of `table` that the first tiles belong to; `unlabelled` names the others. Those take no part in the
    split and the statistics, and the labelled tiles' groups are what they would be without them.
    """
    names = [table.tiles[row] for row in kept]
    targets = table.targets[kept]
    edges = duplicates.pairs(np.load(parts["tiles.npy"], mmap_mode="r", allow_pickle=False))
    group = duplicates.connected(edges, len(names))
    dropped = set(table.tiles) - set(names)
    split = splits.decide(data, settings.split, names, [names[row] for row in group], targets, dropped, record)
    tested = np.flatnonzero(np.array(split) != "train")
    group = duplicates.follow(edges, group, len(names) + len(unlabelled), tested)
    sizes = dict(sorted(Counter(split).items()))
    shares = {
        s: dict(zip(table.names, share.tolist(), strict=True)) for s, share in splits.prevalence(split, targets).items()
    }
    if empty := [s for s, share in shares.items() if not any(share.values())]:
        remedy = "draw another split (data.split), or label some of them"
        raise splits.SplitError(f"no {empty[0]} tile of {data} has a label ({sizes[empty[0]]} tiles); {remedy}")
    if unlabelled:
        sizes[tiles.UNLABELLED] = len(unlabelled)
        near = int(np.isin(group[len(names) :], group[tested]).sum())
        record["unlabelled"] = {"tiles": len(unlabelled), "near_duplicates_of_tested": near}
        remedy = "pretrain.near_duplicates: leave_out leaves those out"
        said = f"{near:,} of {len(unlabelled):,} unlabelled tiles are near-duplicates of validation or test tiles"
        progress.say(f"{said}; {remedy}" if near else said)
    record["split"] = {"sizes": sizes, "prevalence": shares}
    progress.show(splits.summary(split, targets, table.names, unlabelled=len(unlabelled)))
    present = ["|".join(table.names[k] for k in np.flatnonzero(row)) for row in targets]
    categories = [table.categories[row] for row in kept]
    every = [*names, *unlabelled]
    index = zip(
        every,
        [*categories, *("" for _ in unlabelled)],
        [*split, *(tiles.UNLABELLED for _ in unlabelled)],
        (every[row] for row in group),
        [*present, *("" for _ in unlabelled)],
        strict=True,
    )
    files.write_csv(parts["index.csv"], tiles.INDEX, index)
    train = sums[: len(names)][np.array(split) == "train"]
    digest = hashlib.sha256(digest + parts["index.csv"].read_bytes()).digest()
    stats = {"labels": list(table.names), "tile_px": settings.tile_px, "tiles": sizes}
    stats |= {"normalization": statistics.of(train, settings.tile_px), "digest": digest.hex()}
    stats |= {"scale": record["scale"]} if record["scale"] else {}
    files.write_json(parts["stats.json"], stats)
