"""Convert a downloaded data set to data/<name>, the layout that `prepare` reads.

In: MLRSNet's archive or checkout, UC Merced, AID multi-label, BigEarthNet v2, or any images with a multi-hot table, as
a folder or an archive. Out: `Images/<category>/<tile>`, `Labels/<category>.csv`, `split.csv` where the data set has
one, and `import.json`, which lists what was skipped.

    satclr import ~/Downloads/UCMerced_LandUse.zip ucmerced

Everything is written beside the target and renamed to it at the end. An import that was interrupted or filled the disk
resumes; one with invalid input leaves nothing behind.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from satclr import files, progress
from satclr.data import labels, tiles
from satclr.data.importing import archives, bigearthnet, layout, tables
from satclr.data.importing import plan as plans
from satclr.data.importing.archives import SourceError

__all__ = ["Report", "SourceError", "look", "run", "staging"]

CHUNK: Final = 1024  # tiles in flight
READ_SHOWN: Final = 3
SKIPPED_MAX: Final = 0.01  # a larger share of images and rows without partner is asked about


@dataclass(frozen=True)
class Report:
    """What an import wrote and what it skipped; the content of import.json."""

    target: Path
    tiles: int
    unlabelled: int
    categories: int
    labels: int
    split: dict[str, int] | None
    images_without_row: list[str]
    rows_without_image: list[str]
    notes: list[str]
    read: list[str]

    def __str__(self) -> str:
        lines = [f"{self.target}: {self.tiles:,} tiles, {self.categories} categories, {self.labels} labels"]
        if self.unlabelled:
            lines.append(f"{self.unlabelled:,} images without row in Unlabelled, for pretrain.tiles: both")
        if self.split:
            shares = ", ".join(f"{count:,} {name}" for name, count in self.split.items())
            lines.append(f"official split: {shares} (set data.split.file: split.csv to use it)")
        lines += plans.skipped(self.images_without_row, self.rows_without_image)
        lines += [f"read: {text}" for text in self.read[:READ_SHOWN]]
        more = [f"{len(self.read) - READ_SHOWN} more tables: see import.json"] if self.read[READ_SHOWN:] else []
        return "\n".join([*lines, *more, *self.notes])


def run(
    source: Path, target: Path, *,
    labels_source: Path | None = None, labels_from: str | None = None, unlabelled: bool = False,
    confirm: Callable[[str], bool] | None = None,
) -> Report:  # fmt: skip
    """Import `source`, a folder or an archive, as the new folder `target`.

    labels_source: where the label tables are, if not in `source`: a table, a folder or an archive, such as a checkout
    of MLRSNet's repository at a sound commit. labels_from, unlabelled: see `layout.plan`. confirm: is asked with the
    plan before anything is copied where more than 1% of images and rows would be skipped; without it the plan is
    printed. Raises `SourceError`, or `LabelError` for an invalid table; `files.WriteError` where the disk is full.
    """
    if target.exists():
        raise SourceError(f"{target} exists; delete it or import under another name")
    folder = staging(target)
    made = folder / "made"
    try:
        _begin(folder, [source] if labels_source is None else [source, labels_source], labels_from, unlabelled)
        plan = _plan(source, folder, labels_source, labels_from, unlabelled)
        if plan.skipped > SKIPPED_MAX:
            if confirm and not confirm(str(plan)):
                raise SourceError("stopped; nothing was imported")
            if not confirm:
                progress.say(str(plan))
        report = _write(plan, target, made)
        made.rename(target)
    except (SourceError, labels.LabelError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        raise files.explain(error, target) from error
    shutil.rmtree(folder)
    return report


def look(
    source: Path, *, labels_source: Path | None = None, labels_from: str | None = None, unlabelled: bool = False
) -> plans.Plan:
    """What `run` would import; nothing is left on disk. Raises as `run` does."""
    for path in filter(None, (source, labels_source)):
        if not path.exists():
            raise SourceError(f"{path}: no such file or folder")
    with tempfile.TemporaryDirectory() as folder:
        return _plan(source, Path(folder), labels_source, labels_from, unlabelled)


def _plan(
    source: Path, folder: Path, labels_source: Path | None, labels_from: str | None, unlabelled: bool
) -> plans.Plan:
    if bigearthnet.recognise(source):
        return bigearthnet.plan(source, unlabelled=unlabelled)
    images = archives.members(source, folder / "unpacked")
    others = images
    if labels_source is not None and labels_source.is_file() and labels_source.suffix.lower() in tables.SUFFIXES:
        others = [archives.Member(PurePosixPath(labels_source.name), labels_source, unpacked=False)]
    elif labels_source is not None:
        others = archives.members(labels_source, folder / "unpacked-labels")
    return layout.plan(images, others, labels_from=labels_from, unlabelled=unlabelled)


def staging(target: Path) -> Path:
    """The folder in which the import of `target` is under way."""
    return target.with_name(f".{target.name}.importing")


def _begin(folder: Path, sources: list[Path], labels_from: str | None = None, unlabelled: bool = False) -> None:
    """Resume an interrupted import of the same sources; start afresh with others."""
    state: list[Any] = [labels_from, unlabelled]
    for source in sources:
        if not source.exists():
            raise SourceError(f"{source}: no such file or folder")
        stat = source.stat()
        state.append([str(source.resolve()), stat.st_size, stat.st_mtime_ns])
    note = folder / "source.json"
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != state:
        shutil.rmtree(folder, ignore_errors=True)
        files.write_json(note, state)


def _write(plan: plans.Plan, target: Path, made: Path) -> Report:
    for category, (columns, rows) in plan.tables.items():
        if Path(category).name != category:
            raise SourceError(f"category {category!r} is not a folder's name")
        table = [[name, *cells] for name, cells in rows]
        files.write_csv(made / "Labels" / f"{category}.csv", ["image", *columns], table)
    if plan.split:
        files.write_csv(made / "split.csv", ["image", "split"], sorted(plan.split.items()))
    for member in plan.documents:
        archives.copy(member, made / member.path.name)
    try:
        read = labels.read(made / "Labels")
    except labels.LabelError as error:
        raise labels.LabelError(str(error).replace(str(made), str(target))) from None
    everything = [(tile, made / "Images" / tile.category / tile.name) for tile in plan.tiles]
    everything += [(tile, made / "Unlabelled" / tile.category / tile.name) for tile in plan.unlabelled]
    pending = [(tile, path) for tile, path in everything if not path.exists()]
    archives.require_space(made, sum(tile.size for tile, _ in pending))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(f"import {target.name}", len(everything), start=len(everything) - len(pending)) as advance,
    ):
        for start in range(0, len(pending), CHUNK):
            for _ in pool.map(lambda pair: pair[0].write(pair[1]), pending[start : start + CHUNK]):
                advance(1)
    for leftover in made.rglob("*.part"):  # of an interrupted run
        leftover.unlink()
    split = Counter((plan.split or {}).values())
    report = Report(
        target=target,
        tiles=len(read.tiles),
        unlabelled=len(plan.unlabelled),
        categories=len(read.columns),
        labels=len(read.names),
        split={name: split[name] for name in tiles.SPLITS} if split else None,
        images_without_row=plan.images_without_row,
        rows_without_image=plan.rows_without_image,
        notes=plan.notes,
        read=plan.read,
    )
    files.write_json(made / "import.json", {**vars(report), "target": target.name})
    return report
