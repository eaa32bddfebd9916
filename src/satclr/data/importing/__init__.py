"""A downloaded data set, as it comes, becomes data/<name> in the layout that `prepare` reads.

In: MLRSNet's archive or checkout, UC Merced, AID multi-label, BigEarthNet v2, or any images with a multi-hot
table, as a folder or an archive. Out: `Images/<category>/<tile>`, `Labels/<category>.csv`, `split.csv` where
the data set comes with a split, and `import.json`, which lists what was left out.

    satclr import ~/Downloads/UCMerced_LandUse.zip ucmerced

Everything is written beside the target and renamed to it at the end. An import that was interrupted, or found
the disk full, goes on where it stopped; one that was refused leaves nothing.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from filelock import FileLock, Timeout

from satclr.data import labels
from satclr import progress
from satclr.data.importing import archives, bigearthnet, layout
from satclr.data.importing.archives import SourceError

__all__ = ["Report", "SourceError", "run", "staging"]

RESERVE_BYTES: Final = 256 << 20
SHOWN: Final = 5
CHUNK: Final = 1024  # tiles in flight


class DiskFullError(SourceError):
    """An import that stopped for want of space and can go on: exit code 2."""


@dataclass(frozen=True)
class Report:
    """What an import made and what it left out, as it stands in import.json."""

    target: Path
    tiles: int
    categories: int
    labels: int
    split: dict[str, int] | None
    images_without_row: list[str]
    rows_without_image: list[str]
    notes: list[str]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON types."""
        return {**vars(self), "target": self.target.name}

    def __str__(self) -> str:
        lines = [f"{self.target}: {self.tiles:,} tiles, {self.categories} categories, {self.labels} labels"]
        if self.split:
            shares = ", ".join(f"{count:,} {name}" for name, count in self.split.items())
            lines.append(f"its own split: {shares} (set data.split.file: split.csv to use it)")
        for names, what in (
            (self.images_without_row, "images without a row"),
            (self.rows_without_image, "rows without an image"),
        ):
            if names:
                shown = ", ".join(names[:SHOWN])
                lines.append(f"left out, {what}: {len(names):,}, such as {shown} (see import.json)")
        return "\n".join([*lines, *self.notes])


def run(source: Path, target: Path, *, labels_source: Path | None = None) -> Report:
    """Import `source`, a folder or an archive, as the new folder `target`.

    labels_source: where the label tables are, if not in `source`: a folder or an archive, such as a checkout
    of MLRSNet's repository at a sound commit.

    Raises SourceError, and LabelError for a bad table; `target` then does not exist.
    """
    if target.exists():
        raise SourceError(f"{target} exists; delete it or import under another name")
    target.parent.mkdir(parents=True, exist_ok=True)
    folder = staging(target)
    lock = folder.with_suffix(".lock")
    try:
        with FileLock(lock, timeout=0):
            try:
                return _run(source, target, folder, labels_source)
            except (SourceError, labels.LabelError) as error:
                if not isinstance(error, DiskFullError):  # what is refused once is refused again
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            finally:
                lock.unlink(missing_ok=True)
    except Timeout:
        raise SourceError(f"another import of {target.name} is under way") from None
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise DiskFullError(
            f"{target.parent}: the disk is full; free some space and run the same command, which goes on here"
        ) from None


def staging(target: Path) -> Path:
    """Where the import of `target` is under way."""
    return target.with_name(f".{target.name}.importing")


def _run(source: Path, target: Path, folder: Path, labels_source: Path | None) -> Report:
    _begin(folder, [source] if labels_source is None else [source, labels_source])
    made = folder / "made"
    if bigearthnet.recognise(source):
        report = _make(bigearthnet.plan(source), target, made)
    else:
        with archives.Download(source, folder / "unpacked") as images:
            if labels_source is None:
                report = _make(layout.plan(images.members), target, made)
            else:
                with archives.Download(labels_source, folder / "unpacked-labels") as tables:
                    plan = layout.plan(images.members, label_members=tables.members)
                    report = _make(plan, target, made)
    made.rename(target)
    shutil.rmtree(folder)
    return report


def _begin(folder: Path, sources: list[Path]) -> None:
    """Go on with an interrupted import of the same sources; start afresh with others."""
    state = []
    for source in sources:
        if not source.exists():
            raise SourceError(f"{source}: no such file or folder")
        stat = source.stat()
        state.append([str(source.resolve()), stat.st_size, stat.st_mtime_ns])
    note = folder / "source.json"
    if not note.is_file() or note.read_text(encoding="utf-8") != json.dumps(state):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        note.write_text(json.dumps(state), encoding="utf-8")


def _make(plan: layout.Plan, target: Path, made: Path) -> Report:
    shutil.rmtree(made / "Labels", ignore_errors=True)
    _write_tables(plan, made)
    try:
        read = labels.read(made / "Labels")
    except labels.LabelError as error:
        raise labels.LabelError(str(error).replace(str(made), str(target))) from None
    targets = [(tile, made / "Images" / tile.category / tile.name) for tile in plan.tiles]
    _refuse_full_disk(made, sum(tile.size for tile, path in targets if not path.exists()))
    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress.bar(f"import {target.name}", len(targets)) as advance,
    ):
        for start in range(0, len(targets), CHUNK):
            for _ in pool.map(lambda pair: pair[0].write(pair[1]), targets[start : start + CHUNK]):
                advance(1)
    _delete_others(made / "Images", {path for _, path in targets})
    split = plan.split
    report = Report(
        target=target,
        tiles=len(read.tiles),
        categories=len(read.columns),
        labels=len(read.names),
        split={name: list(split.values()).count(name) for name in ("train", "val", "test")}
        if split
        else None,
        images_without_row=plan.images_without_row,
        rows_without_image=plan.rows_without_image,
        notes=plan.notes,
    )
    text = json.dumps(report.to_dict(), indent=1, ensure_ascii=False)
    (made / "import.json").write_text(text + "\n", encoding="utf-8")
    return report


def _write_tables(plan: layout.Plan, made: Path) -> None:
    (made / "Labels").mkdir(parents=True)
    for category, (columns, rows) in plan.tables.items():
        _write_csv(
            made / "Labels" / f"{category}.csv", ["image", *columns], [[n, *cells] for n, cells in rows]
        )
    if plan.split:
        _write_csv(
            made / "split.csv", ["image", "split"], [list(pair) for pair in sorted(plan.split.items())]
        )
    for member in plan.documents:
        (made / member.path.name).unlink(missing_ok=True)
        archives.copy(member, made / member.path.name)


def _write_csv(path: Path, header: list[str], rows: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _refuse_full_disk(made: Path, needed: int) -> None:
    free = shutil.disk_usage(made).free
    if needed + RESERVE_BYTES > free:
        raise DiskFullError(
            f"{made.parent}: {(needed + RESERVE_BYTES) / 1e9:.1f} GB are needed (some of it in reserve) and "
            f"{free / 1e9:.1f} GB are free; "
            "free some space and run the same command again"
        )


def _delete_others(folder: Path, wanted: set[Path]) -> None:
    """Delete what an interrupted run left half written."""
    for path in folder.rglob("*"):
        if path.is_file() and path not in wanted:
            path.unlink()
