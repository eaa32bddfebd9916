"""Labels of tiles from the registered champion.

    satclr predict TILE... [--json | --csv]

The table has a line per tile: its labels, those at or above their threshold, most probable first; then others of high
probability in parentheses. Each label has a threshold of its own, tuned on validation tiles.
"""

import csv
import glob
import json
import shutil
import sys
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from satclr import files, progress
from satclr.data import pixels
from satclr.project import Project
from satclr.tracking.champion import champion
from satclr.tracking.store import TrackingError

if TYPE_CHECKING:
    from satclr.tracking.serving import Tagger

BATCH = 64
OWN = ("tile", "error", "labels")  # columns that are no label
SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
SCENES = {".tif", ".tiff"}
MAX_TILES = 1_000_000


@dataclass(frozen=True)
class Source:
    """A tile: its name, a function that reads its bytes, its file, and where it is if that is georeferenced."""

    name: str
    read: Callable[[], bytes]
    bounds: tuple[float, ...] | None = None  # left, bottom, right, top in the scene's coordinates
    polygon: list[tuple[float, float]] | None = None  # the closed outline, instead of bounds, in a rotated scene
    file: Path = Path()


@dataclass(frozen=True)
class Prediction:
    """A tile's probabilities, best first, and its labels; or the reason why it could not be read."""

    source: Source
    probabilities: dict[str, float]
    labels: list[str]
    error: str = ""
    no_data: bool = False


def run(project: Project, tiles: Sequence[str], *, form: str, top: int, scene_tile_px: int) -> int:
    """Print the labels of tiles as a `table`, as `json` or `csv`; return how many tiles could not be read.

    Tiles without data, as at the edges of a scene, get no labels and do not count.

    Raises `TrackingError` for a path that does not exist and without a champion.
    """
    sources = find(tiles, scene_tile_px=scene_tile_px)
    model = champion(project)
    model.minimum_valid = project.settings.data.minimum_valid
    with progress.bar("predict", len(sources)) as advance:
        predictions = list(predict(model, sources, done=advance))
    if form == "csv":
        _print_csv(model.labels, predictions)
    elif form == "json":
        _print_json(predictions, top)
    else:
        _print_table([p for p in predictions if not p.error], top)
    _say_problems(predictions)
    return sum(bool(p.error) and not p.no_data for p in predictions)


def predict(model: "Tagger", sources: Sequence[Source], *, done: Callable[[int], None]) -> Iterator[Prediction]:
    """Tag tiles in batches, in order; a tile that cannot be read has an error and no labels."""
    for start in range(0, len(sources), BATCH):
        batch = sources[start : start + BATCH]
        decoded: dict[int, Any] = {}
        found: dict[int, Prediction] = {}
        for i, source in enumerate(batch):
            try:
                decoded[i] = model.decode(source.read())
            except Exception as error:  # noqa: BLE001 - whatever a broken picture raises
                reason = " ".join(str(error).split()) or type(error).__name__
                found[i] = Prediction(source, {}, [], reason, isinstance(error, pixels.NoDataError))
        for i, row in zip(decoded, model.scores(list(decoded.values())) if decoded else (), strict=True):
            best = sorted(zip(model.labels, map(float, row), strict=True), key=lambda pair: -pair[1])
            found[i] = Prediction(batch[i], dict(best), model.chosen(row))
        yield from (found[i] for i in range(len(batch)))
        done(len(batch))


def _say_problems(predictions: Sequence[Prediction]) -> None:
    """A line for each tile that was not labelled; for a scene one for all its tiles without data, and one a reason."""
    tiles = Counter(prediction.source.file for prediction in predictions)
    found: dict[tuple[Path, str], list[str]] = {}
    for p in predictions:
        if p.error:
            reason = "too few pixels hold data; no labels" if p.no_data else p.error
            found.setdefault((p.source.file, reason), []).append(p.source.name)
    for (file, reason), names in found.items():
        count = f"{file}: {len(names):,} of {tiles[file]:,} tiles"
        progress.say(f"{count if tiles[file] > 1 else names[0]}: {reason}")


def _print_json(predictions: Sequence[Prediction], top: int) -> None:
    """A line per tile, without what it does not have."""
    for p in predictions:
        best = {name: v for i, (name, v) in enumerate(p.probabilities.items()) if i < top or name in p.labels}
        row: dict[str, Any] = {"tile": p.source.name, "probabilities": best, "labels": p.labels}
        row |= {"bounds": p.source.bounds, "polygon": p.source.polygon, "error": p.error}
        print(json.dumps({k: v for k, v in row.items() if v not in ({}, None, "")}, ensure_ascii=False))


def _print_csv(labels: Sequence[str], predictions: Sequence[Prediction]) -> None:
    """One row per tile: labels joined by `|`, then each label's probability, empty where the tile is unreadable."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow([*OWN, *files.columns(sorted(labels), OWN)])
    for p in predictions:
        numbers = [p.probabilities.get(label, "") for label in sorted(labels)]
        writer.writerow([p.source.name, p.error, "|".join(p.labels), *numbers])


def _print_table(predictions: Sequence[Prediction], top: int) -> None:
    """A line per tile; on a terminal within its width, where a long path loses its start."""
    columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    names = [prediction.source.name for prediction in predictions]
    width = min(max(map(len, names), default=0), max(columns // 4, 12))
    for name, prediction in zip(names, predictions, strict=True):
        shown = name if len(name) <= width else "…" + name[-width + 1 :]
        lines = textwrap.wrap(_phrase(prediction, top), columns - width - 2, break_on_hyphens=False) or [""]
        for i, line in enumerate(lines):
            print(f"{shown if i == 0 else '':{width}}  {line}".replace("\xa0", " "))


def _phrase(prediction: Prediction, top: int) -> str:
    """`sea 0.97, ship 0.81 (dock 0.40)`: labels, and others up to `top` in all; lines break after commas only."""
    pairs = prediction.probabilities.items()
    text = {label: f"{label} {value:.2f}".replace(" ", "\xa0") for label, value in pairs}
    chosen = [text[label] for label in text if label in prediction.labels]
    others = [text[label] for label in islice(text, max(top, len(chosen))) if label not in prediction.labels]
    return " ".join(part for part in (", ".join(chosen), f"({', '.join(others)})" if others else "") if part)


def find(paths: Iterable[str | Path], *, scene_tile_px: int = 256) -> list[Source]:
    """The tiles of files, folders (all pictures below), and globs, sorted by name within each.

    A TIFF larger than `scene_tile_px` is a scene: it is cut into squares of that side, and those at its right and
    lower edge are moved inwards to stay whole. Pixels are read when the tile is.
    Raises `TrackingError` for a path that does not exist, a folder without pictures, a scene of too many tiles.
    """
    return [source for path in paths for file in _files(str(path)) for source in _tiles(file, scene_tile_px)]


def _files(path: str) -> list[Path]:
    if Path(path).is_file():
        return [Path(path)]
    if Path(path).is_dir():
        found = [file for file in Path(path).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        problem = f"{path} contains no pictures ({', '.join(sorted(SUFFIXES))})"
    else:
        found = [Path(file) for file in glob.glob(path, recursive=True) if Path(file).is_file()]  # noqa: PTH207
        problem = f"{path} does not exist"
    if not found:
        raise TrackingError(f"{problem}; give tiles, folders or globs")
    return sorted(found)


def _tiles(file: Path, side_px: int) -> Iterator[Source]:
    whole = Source(str(file), file.read_bytes, file=file)
    if file.suffix.lower() not in SCENES:
        yield whole
        return
    import rasterio

    try:  # by content GDAL would open other formats too, some of which name further files to read
        with warnings.catch_warnings(action="ignore"), rasterio.open(file, driver="GTiff") as scene:
            width, height, transform, located = scene.width, scene.height, scene.transform, scene.crs is not None
    except rasterio.errors.RasterioIOError:  # reported when the tile is read
        yield whole
        return
    w, h = min(side_px, width), min(side_px, height)
    count = -(-width // w) * -(-height // h)
    if count > MAX_TILES:  # a few bytes of TIFF can claim any size
        raise TrackingError(
            f"{file} is a scene of {width}×{height} pixels, {count:,} tiles of {side_px}; at most {MAX_TILES:,} are "
            "cut: raise --scene-tile-px or split the scene"
        )
    for y, x in product(_starts(height, h), _starts(width, w)):
        place = _place(transform, x, y, w, h) if located else {}
        if count == 1:
            yield replace(whole, **place)
        else:
            yield Source(f"{file}#x={x},y={y}", partial(pixels.window, file, (x, y, w, h)), file=file, **place)


def _place(transform: Any, x: int, y: int, w: int, h: int) -> dict[str, Any]:
    """The bounds of a tile, or its outline where the scene is rotated."""
    outline = [transform @ corner for corner in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))]
    if transform.b or transform.d:
        return {"polygon": outline}
    (left, top), (right, bottom) = outline[0], outline[2]
    return {"bounds": (min(left, right), min(bottom, top), max(left, right), max(bottom, top))}


def _starts(length: int, side: int) -> list[int]:
    return [*range(0, length - side, side), length - side]
