"""The arguments of `satclr predict` as tiles: files, folders, globs, and scenes cut into tiles."""

from __future__ import annotations

import glob
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from satclr.data import pixels
from satclr.tracking.store import TrackingError

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
SCENES = {".tif", ".tiff"}
DRIVER = "GTiff"  # by content GDAL would open other formats too, some of which name further files to read
MAX_TILES = 1_000_000
Bounds = tuple[float, float, float, float]  # left, bottom, right, top in the scene's coordinates
Point = tuple[float, float]


@dataclass(frozen=True)
class Source:
    """A tile: its name, a function that reads its bytes, its file, and where it is if that is georeferenced."""

    name: str
    read: Callable[[], bytes]
    bounds: Bounds | None = None
    polygon: list[Point] | None = None  # the closed outline, instead of bounds, in a rotated scene
    file: Path = Path()


def find(paths: Iterable[str | Path], *, scene_tile_px: int = 256) -> list[Source]:
    """The tiles of files, folders (all pictures below), and globs, sorted by name within each.

    A TIFF larger than `scene_tile_px` is a scene: it is cut into squares of that side, and those at its right and
    lower edge are moved inwards to stay whole. Pixels are read when the tile is.
    Raises `TrackingError` for a path that does not exist, a folder without pictures, a scene without rasterio.
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
    try:
        import rasterio  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        with suppress(OSError), Image.open(file) as image:  # a damaged file is reported when the tile is read
            if max(image.size) > side_px:
                raise TrackingError(f"{file} is a scene; cutting it requires rasterio: uv sync --group geo") from None
        yield whole
        return
    try:
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
    for y in _starts(height, h):
        for x in _starts(width, w):
            place = _place(transform, x, y, w, h) if located else {}
            if count == 1:
                yield replace(whole, **place)
            else:
                read = partial(pixels.window, file, (x, y, w, h))
                yield Source(f"{file}#x={x},y={y}", read, file=file, **place)


def _place(transform: Any, x: int, y: int, w: int, h: int) -> dict[str, Any]:
    """The bounds of a tile, or its outline where the scene is rotated."""
    outline = [transform @ corner for corner in ((x, y), (x + w, y), (x + w, y + h), (x, y + h), (x, y))]
    if transform.b or transform.d:
        return {"polygon": outline}
    (left, top), (right, bottom) = outline[0], outline[2]
    return {"bounds": (min(left, right), min(bottom, top), max(left, right), max(bottom, top))}


def _starts(length: int, side: int) -> list[int]:
    return [*range(0, length - side, side), length - side]
