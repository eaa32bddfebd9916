"""Decode every tile once: data/<profile> → build/<profile>.

In: `Images/<category>/*.jpg`, `Labels/<category>.csv`, and images without labels anywhere below `Unlabelled`. Out:
`tiles.npy` (N,H,H,3 uint8; the labelled tiles first), `index.csv`, `stats.json`, `audit.json`.

    satclr prepare --profile sample
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from satclr import files, machine, progress, randomness
from satclr.data import audit, duplicates, labels, pixels, splits, tiles
from satclr.params import Data
from satclr.project import Project

CHUNK: Final = 256  # tiles decoded at a time, which bounds memory
CACHED: Final = re.compile(r"/[0-9a-f]{2}/[0-9a-f]{30}$")  # a file of DVC's cache, named by its content
SHOWN: Final = 10
RELEASED_BATCH: Final = 256  # tiles per batch in the notebook's statistics

Sums = npt.NDArray[np.int64]  # (N,2,3): sum and sum of squares of a tile's pixel values, per channel
Problems = list[dict[str, str]]  # path, relative to the data folder, and reason


class PrepareError(ValueError):
    """A data set that cannot be used: bad input, exit code 2."""


def run(project: Project) -> None:
    """Write the project's tile store: build/<profile>."""
    write_store(project.data, project.store, project.settings.data)


def write_store(data: Path, out: Path, settings: Data) -> None:
    """Write the tile store of the data set in `data` to `out`. Every finding is in out/audit.json, also on failure.

    stats.json, without which no store opens, is deleted before the other files are replaced, and renamed last: a killed
    process leaves no mixture of two stores.

    Raises `PrepareError` if tiles and rows do not match or a tile is unreadable, unless `settings.on_unreadable` is
    `drop`, and if the audit flags rows where `settings.labels.on_problem` is `fail`; `labels.LabelError` for an invalid
    table, `splits.SplitError` for an impossible split, and for one with train, val or test tiles all without labels.
    """
    if not data.is_dir():
        layout = "put Images/<category>/*.jpg and Labels/<category>.csv there"
        raise PrepareError(f"no data: {data} does not exist; {layout} (`dvc pull` fetches the sample)")
    if settings.split.file is not None and not (data / settings.split.file).is_file():
        advice = "put the split there, or set data.split.file to another file, or to null to draw one"
        raise splits.SplitError(f"{data / settings.split.file} does not exist; {advice}")
    found = audit.audit(data / "Labels")
    table = found.labels
    images, problems = _match(data, table)
    others = _unlabelled(data, problems)
    record: dict[str, Any] = {**found.to_dict(), "on_problem": settings.labels.on_problem}
    try:
        _check_flagged(data, found, settings.labels.on_problem)
        dropped = found.flagged if settings.labels.on_problem == "drop" else {}
        record["dropped"] = problems
        _check_problems(data, problems, out, settings)
        labelled = [(row, path) for row, path in sorted(images.items()) if row not in dropped]
        scale = settings.scale or pixels.measured(_training(data, settings, table, labelled))
        with (
            files.replacing(out / "stats.json") as stats,
            files.replacing(out / "index.csv") as index,
            files.replacing(out / "tiles.npy") as packed,
        ):
            sources: list[Path | str] = [*(path for _, path in labelled), *others]
            kept, sums, digest = _pack(data, packed, sources, settings, scale, problems)
            _check_problems(data, problems, out, settings)
            rows = [labelled[i][0] for i in kept if i < len(labelled)]
            if not rows:
                raise PrepareError(f"{data} has no usable tile with labels")
            record["scale"] = scale
            paths = [os.path.relpath(sources[i], data) for i in kept[len(rows) :]]
            names = [path.encode(errors="backslashreplace").decode() for path in paths]
            split = _write_index(data, packed, index, settings, table, rows, names, record)
            train = sums[: len(rows)][np.array(split) == "train"]
            facts = {"labels": list(table.names), "tile_px": settings.tile_px, "tiles": record["split"]["sizes"]}
            facts["normalization"] = {
                "train": train_statistics(train, settings.tile_px),
                "imagenet": dict(zip(("mean", "std"), tiles.IMAGENET, strict=True)),
                "released": released_statistics(train, settings.tile_px),
            }
            facts["digest"] = hashlib.sha256(digest + index.read_bytes()).hexdigest()
            files.write_json(stats, facts | ({"scale": scale} if scale else {}))
            (out / "stats.json").unlink(missing_ok=True)
    finally:
        if not machine.stop.requested:  # else the former store stays, with its audit
            files.write_json(out / "audit.json", record, allow_nan=True)


def _training(data: Path, settings: Data, table: labels.Labels, labelled: list[tuple[int, Path]]) -> list[Path]:
    """The files of training tiles, to measure a scale; of all tiles in a split by group, for which pixels decide."""
    rows, paths = [row for row, _ in labelled], [path for _, path in labelled]
    if settings.split.by == "group" or not any(map(pixels.is_deep, paths)):
        return paths
    names = [table.tiles[row] for row in rows]
    drawn = splits.draw(data, settings.split, names, table.targets[rows], set(table.tiles) - set(names))
    return [path for path, which in zip(paths, drawn, strict=True) if which == "train"]


def _check_flagged(data: Path, found: audit.Audit, on_problem: str) -> None:
    """Refuse rows that the audit flags, or warn of them."""
    if found.flagged:
        count = f"{len(found.flagged):,} of {len(found.labels.tiles):,} tiles"
        told = f"the audit flags {count}; see `satclr audit {data / 'Labels'}`"
        if on_problem == "fail":
            raise PrepareError(f"{told}, or set data.labels.on_problem to warn or drop")
        progress.say(f"warning: {told} (data.labels.on_problem: {on_problem})")


def _check_problems(data: Path, problems: Problems, out: Path, settings: Data) -> None:
    if not problems or settings.on_unreadable == "drop":
        return
    lines = [f"{data}: {files.counted(len(problems), 'tile')} cannot be used"]
    lines += [f"  {problem['path']}: {problem['reason']}" for problem in problems[:SHOWN]]
    if len(problems) > SHOWN:
        lines.append(f"  and {len(problems) - SHOWN:,} more, listed in {out / 'audit.json'}")
    lines.append("Fix them, or set data.on_unreadable: drop in the profile to skip them.")
    raise PrepareError("\n".join(lines))


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
    paths: dict[int, Path] = {}
    for row, (category, tile) in enumerate(zip(table.categories, table.tiles, strict=True)):
        if image := found.pop((category, tile), None):
            paths[row] = image
        else:
            reasons.setdefault(f"{category}/{tile}", f"a row of Labels/{category}.csv without a tile")
    reasons |= {f"{c}/{name}": f"a tile without a row in Labels/{c}.csv" for c, name in found}
    return paths, [{"path": f"Images/{name}", "reason": reason} for name, reason in reasons.items()]


def _listed(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _unlabelled(data: Path, problems: Problems) -> list[str]:
    """The images below data/Unlabelled, at any depth, as text: there may be millions. Adds to `problems`."""
    found = []
    for folder, folders, names in os.walk(data / "Unlabelled"):
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
    ours = path.resolve().is_relative_to(data.resolve()) or CACHED.search(str(path.resolve()))
    return None if ours else "a link that leaves the data folder, and not for DVC's cache"


def _pack(
    data: Path, packed: Path, sources: Sequence[Path | str], settings: Data, scale: pixels.Scale | None,
    problems: Problems,
) -> tuple[list[int], Sums, bytes]:  # fmt: skip
    """Decode in parallel, append in order: the positions of the tiles kept, their sums, a digest of the pixels."""
    tile_px = settings.tile_px

    def read(path: Path) -> tuple[bytes, Sums] | str:
        try:
            tile = pixels.decode(path, tile_px, scale=scale, minimum_valid=settings.minimum_valid)
        except (tiles.TileError, OSError) as error:
            return str(error)
        values = tile.reshape(-1, 3).astype(np.int64)
        return tile.tobytes(), np.stack([values.sum(axis=0), (values * values).sum(axis=0)])

    kept: list[int] = []
    header = {"descr": "|u1", "fortran_order": False, "shape": (len(sources), tile_px, tile_px, 3)}
    sums = np.zeros((len(sources), 2, 3), np.int64)
    digest = hashlib.sha256()
    with (
        packed.open("wb") as file,
        pixels.workers() as pool,
        progress.bar(f"decode {data.name}", len(sources)) as advance,
    ):
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(sources), CHUNK):
            paths = [Path(source) for source in sources[start : start + CHUNK]]
            for i, result in enumerate(pool.map(read, paths)):
                if isinstance(result, str):
                    problems.append({"path": str(paths[i].relative_to(data)), "reason": result})
                    continue
                sums[len(kept)] = result[1]
                kept.append(start + i)
                digest.update(result[0])
                file.write(result[0])
            advance(len(paths))
        file.seek(0)
        header["shape"] = (len(kept), tile_px, tile_px, 3)  # of the same length: numpy leaves room for the first axis
        np.lib.format.write_array_header_1_0(file, header)
    return kept, sums[: len(kept)], digest.digest()


def _write_index(
    data: Path, packed: Path, index: Path, settings: Data, table: labels.Labels, rows: list[int],
    unlabelled: list[str], record: dict[str, Any],
) -> list[str]:  # fmt: skip
    """Group near-duplicates, split, and write index.csv of the packed tiles; returns the labelled ones' split.

    rows: of the first tiles, in `table`; unlabelled: the other tiles' names, which do not change the labelled ones'.
    """
    names, targets = [table.tiles[row] for row in rows], table.targets[rows]
    edges = duplicates.pairs(np.load(packed, mmap_mode="r", allow_pickle=False))
    group = duplicates.connected(edges, len(names))
    dropped = set(table.tiles) - set(names)
    split = splits.decide(data, settings.split, names, group.tolist(), targets, dropped, record)
    tested = np.flatnonzero(np.array(split) != "train")
    group = duplicates.follow(edges, group, len(names) + len(unlabelled), tested)
    sizes = dict(sorted(Counter(split).items()))
    prevalence = splits.prevalence(split, targets)
    for which, share in prevalence.items():
        if not share.any():
            where = f"no {which} tile of {data} has a label ({sizes[which]} tiles)"
            raise splits.SplitError(f"{where}; draw another split (data.split), or label some of them")
    if unlabelled:
        sizes[tiles.UNLABELLED] = len(unlabelled)
        near = int(np.isin(group[len(names) :], group[tested]).sum())
        record["unlabelled"] = {"tiles": len(unlabelled), "near_duplicates_of_tested": near}
        said = f"{near:,} of {len(unlabelled):,} unlabelled tiles are near-duplicates of validation or test tiles"
        progress.say(f"{said}; pretrain.near_duplicates: leave_out leaves those out" if near else said)
    shares = {s: dict(zip(table.names, share.tolist(), strict=True)) for s, share in prevalence.items()}
    record["split"] = {"sizes": sizes, "prevalence": shares}
    progress.show(splits.summary(split, targets, table.names, unlabelled=len(unlabelled)))
    every = [*names, *unlabelled]
    first = [every[row] for row in group]
    categories = (table.categories[row] for row in rows)
    present = ("|".join(compress(table.names, y)) for y in targets)
    labelled = zip(names, categories, split, first[: len(names)], present, strict=True)
    others = ((tile, "", tiles.UNLABELLED, of, "") for tile, of in zip(unlabelled, first[len(names) :], strict=True))
    files.write_csv(index, tiles.INDEX, chain(labelled, others))
    return split


def train_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Exact mean and population standard deviation per channel, of pixels in [0, 1], whatever the tiles' order."""
    count = len(sums) * tile_px**2
    first, second = sums.sum(axis=0).tolist()  # Python integers do not overflow
    variance = [(count * q - s * s) / count**2 for s, q in zip(first, second, strict=True)]
    return {"mean": [s / count / 255 for s in first], "std": [max(v, 1e-12) ** 0.5 / 255 for v in variance]}


def released_statistics(sums: Sums, tile_px: int) -> dict[str, list[float]]:
    """Mean and standard deviation as in the paper's notebook, which adds up image means and variances.

    In batches of 256, a batch's "mean" is the sum of its tiles' means, its "variance" the sum of their unbiased
    variances; batches are then merged as if those were means and variances of n tiles (lbriody/simple-multilabel-cl,
    `compute_mean_std`, `agg_batch_stats=False`). On MLRSNet they are near 90 and 4 instead of 0.4 and 0.2. As in the
    notebook the tiles come shuffled: batches of one category each would differ more, and with them the deviation.
    """
    area, sums = tile_px**2, randomness.rng(0, "released statistics").permutation(sums)
    means = sums[:, 0] / (255 * area)
    variances = (sums[:, 1] / 255**2 - area * means**2) / (area - 1)
    mean, variance, m = np.zeros(3), np.zeros(3), 0
    for batch in tiles.split_batches(np.arange(len(sums)), RELEASED_BATCH):
        n = len(batch)
        mean_n, variance_n = means[batch].sum(axis=0), variances[batch].sum(axis=0)
        between = m * n * (mean - mean_n) ** 2 / (m + n) ** 2
        variance = (m * variance + n * variance_n) / (m + n) + between
        mean = (m * mean + n * mean_n) / (m + n)
        m += n
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(variance, 1e-24)).tolist()}
