"""Convert a downloaded data set to data/<name>, the layout that `prepare` reads.

In: MLRSNet's archive or checkout, UC Merced, AID multi-label, BigEarthNet v2, or any images with a multi-hot table, as
a folder or an archive. Out: `Images/<category>/<tile>`, `Labels/<category>.csv`, `split.csv` where the data set has
one, and `import.json`, which lists what was skipped.

    satclr import ~/Downloads/UCMerced_LandUse.zip ucmerced

Everything is written beside the target and renamed to it at the end. An import that was interrupted or filled the disk
resumes; one with invalid input leaves nothing behind.
"""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from satclr import files, progress
from satclr.data import labels, pixels
from satclr.data.importing import archives, bigearthnet, layout
from satclr.data.importing.archives import SourceError
from satclr.data.importing.plan import Plan

__all__ = ["SourceError", "look", "run"]

KNOWN: Final = (bigearthnet,)  # importers of their own: `recognise(source)` and `plan(source, unlabelled=)`
CHUNK: Final = 1024  # tiles in flight
SKIPPED_MAX: Final = 0.01  # a larger share of images and rows without partner is asked about


def run(
    source: Path, target: Path, *,
    labels_source: Path | None = None, labels_from: str | None = None, unlabelled: bool = False,
    confirm: Callable[[str], bool] | None = None,
) -> Plan:  # fmt: skip
    """Import `source`, a folder or an archive, as the new folder `target`, and return what was imported.

    labels_source, labels_from, unlabelled: see `layout.plan`. confirm: is asked with the plan before anything is copied
    where more than 1% of images and rows would be skipped. Raises `SourceError`, or `LabelError` for an invalid table;
    `files.WriteError` where the disk is full.
    """
    if target.exists():
        raise SourceError(f"{target} exists; delete it or import under another name")
    folder = target.with_name(f".{target.name}.importing")
    made = folder / "made"
    try:
        _resume(folder, [path for path in (source, labels_source) if path], labels_from, unlabelled)
        plan = _plan(source, folder, labels_source, labels_from, unlabelled)
        if confirm and plan.skipped > SKIPPED_MAX and not confirm(str(plan)):
            raise SourceError("stopped; nothing was imported")
        _write(plan, target, made)
        made.rename(target)
    except (SourceError, labels.LabelError):
        shutil.rmtree(folder, ignore_errors=True)
        raise
    except OSError as error:
        raise files.explain(error, target) from error
    shutil.rmtree(folder)
    return plan


def look(
    source: Path, *, labels_source: Path | None = None, labels_from: str | None = None, unlabelled: bool = False
) -> Plan:
    """What `run` would import; nothing is left on disk. Raises as `run` does."""
    with tempfile.TemporaryDirectory() as folder:
        return _plan(source, Path(folder), labels_source, labels_from, unlabelled)


def _plan(source: Path, scratch: Path, labels_source: Path | None, labels_from: str | None, unlabelled: bool) -> Plan:
    for importer in KNOWN:
        if importer.recognise(source):
            if labels_source or labels_from == "folders":
                raise SourceError(f"{source} has labels of its own; leave out --labels and --labels-from")
            plan: Plan = importer.plan(source, unlabelled=unlabelled)
            return plan
    return layout.plan(source, scratch, labels_source=labels_source, labels_from=labels_from, unlabelled=unlabelled)


def _resume(folder: Path, sources: list[Path], labels_from: str | None, unlabelled: bool) -> None:
    """Resume an interrupted import of the same sources; start afresh with others."""
    stats = [(path, path.stat()) for path in sources if path.exists()]
    state = [labels_from, unlabelled, *([str(path.resolve()), s.st_size, s.st_mtime_ns] for path, s in stats)]
    note = folder / "source.json"
    if not note.is_file() or json.loads(note.read_text(encoding="utf-8")) != state:
        shutil.rmtree(folder, ignore_errors=True)
        files.write_json(note, state)


def _write(plan: Plan, target: Path, made: Path) -> None:
    for category, (columns, rows) in plan.tables.items():
        if Path(category).name != category:
            raise SourceError(f"category {category!r} is not a folder's name")
        table = [[name, *(int(column in present) for column in columns)] for name, present in rows]
        files.write_csv(made / "Labels" / f"{category}.csv", ["image", *columns], table)
    if plan.split:
        files.write_csv(made / "split.csv", ["image", "split"], sorted(plan.split.items()))
    for document in plan.documents:
        shutil.copyfile(document, made / document.name)
    try:
        labels.read(made / "Labels")
    except labels.LabelError as error:
        raise labels.LabelError(str(error).replace(str(made), str(target))) from None
    everything = [(tile, made / "Images" / tile.category / tile.name) for tile in plan.tiles]
    everything += [(tile, made / "Unlabelled" / tile.category / tile.name) for tile in plan.unlabelled]
    pending = [(tile, path) for tile, path in everything if not path.exists()]
    archives.require_space(made, sum(tile.size for tile, _ in pending))
    with (
        pixels.workers() as pool,
        progress.bar(f"import {target.name}", len(everything), start=len(everything) - len(pending)) as advance,
    ):
        for start in range(0, len(pending), CHUNK):
            for _ in pool.map(lambda pair: pair[0].write(pair[1]), pending[start : start + CHUNK]):
                advance(1)
    sizes = {"tiles": len(plan.tiles), "unlabelled": len(plan.unlabelled), "categories": len(plan.tables)}
    facts = {"target": target.name, **sizes, "labels": len(plan.names), "split": plan.splits}
    lists = ("images_without_row", "rows_without_image", "notes", "read")
    files.write_json(made / "import.json", facts | {name: getattr(plan, name) for name in lists})
