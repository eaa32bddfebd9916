"""What `satclr predict` was pointed at, as tiles: files, folders, globs, and scenes cut into tiles."""

from __future__ import annotations

import glob
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from satclr.tracking import TrackingError

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
SCENES = {".tif", ".tiff"}
DRIVER = "GTiff"  # by content GDAL would open others too, some of which name further files to read
TILES_MAX = 1_000_000
Bounds = tuple[float, float, float, float]  # left, bottom, right, top in the scene's coordinates


@dataclass(frozen=True)
class Source:
    """One tile: its name, its bytes when they are needed, and where it lies if its scene says so."""

    name: str
    read: Callable[[], bytes]
    bounds: Bounds | None = None


def find(paths: Iterable[str | Path], *, scene_tile_px: int = 256) -> list[Source]:
    """Return the tiles of files, folders (all pictures below), and globs, in order of name within each.

    A TIFF larger than `scene_tile_px` is a scene: it is cut into squares of that side, those at its right and
    lower edge moved inwards to stay whole; pixels are read when the tile is.
    Raises `TrackingError` for a path that is not there, a folder without pictures, a scene without rasterio.
    """
    return [source for path in paths for file in _files(str(path)) for source in _tiles(file, scene_tile_px)]


def _files(path: str) -> list[Path]:
    if Path(path).is_dir():
        found = [file for file in Path(path).rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file()]
        what = f"{path} holds no picture ({', '.join(sorted(SUFFIXES))})"
    elif Path(path).is_file():
        return [Path(path)]
    else:
        found = [Path(file) for file in glob.glob(path, recursive=True) if Path(file).is_file()]  # noqa: PTH207
        what = f"{path} does not exist"
    if not found:
        raise TrackingError(f"{what}; name tiles, folders or globs")
    return sorted(found)


def _tiles(file: Path, side_px: int) -> Iterator[Source]:
    if file.suffix.lower() not in SCENES:
        yield Source(str(file), file.read_bytes)
        return
    try:
        import rasterio  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        yield from _plain(file, side_px)
        return
    from rasterio.errors import NotGeoreferencedWarning, RasterioIOError  # type: ignore[import-untyped]
    from rasterio.windows import Window  # type: ignore[import-untyped]

    try:
        with _silent(NotGeoreferencedWarning), rasterio.open(file, driver=DRIVER) as scene:
            width, height = scene.width, scene.height
            _refuse_endless(file, width, height, side_px)
            corners = [(x, y) for y in _starts(height, side_px) for x in _starts(width, side_px)]
            located = scene.crs is not None
            boxes = [scene.window_bounds(Window(x, y, min(side_px, width), min(side_px, height))) for x, y in corners]
    except RasterioIOError:  # its own reader says what is wrong with it
        yield Source(str(file), file.read_bytes)
        return
    if len(corners) == 1:
        yield Source(str(file), lambda: _window(file, 0, 0, width, height), boxes[0] if located else None)
        return
    for (x, y), box in zip(corners, boxes, strict=True):
        w, h = min(side_px, width), min(side_px, height)
        yield Source(
            f"{file}#x={x},y={y}",
            lambda x=x, y=y, w=w, h=h: _window(file, x, y, w, h),  # type: ignore[misc]
            box if located else None,
        )


def _refuse_endless(file: Path, width: int, height: int, side_px: int) -> None:
    """A few bytes of TIFF can claim a scene that no machine holds the list of tiles of."""
    count = -(-width // side_px) * -(-height // side_px)
    if count > TILES_MAX:
        raise TrackingError(
            f"{file} is a scene of {width}×{height} pixels, {count:,} tiles of {side_px}; over {TILES_MAX:,} are not "
            "cut: cut it into scenes, or raise --scene-tile-px"
        )


def _plain(file: Path, side_px: int) -> Iterator[Source]:
    from PIL import Image

    try:
        with Image.open(file) as image:
            size = image.size
    except OSError:
        size = (0, 0)
    if max(size) > side_px:
        raise TrackingError(
            f"{file} is a scene of {size[0]}×{size[1]} pixels; cutting it needs rasterio: uv sync --group geo"
        )
    yield Source(str(file), file.read_bytes)


def _starts(length: int, side: int) -> list[int]:
    last = max(length - side, 0)
    return [*range(0, last, side), last]


def _window(file: Path, x: int, y: int, width: int, height: int) -> bytes:
    """Read one window of a scene as PNG; red, green and blue are its first three bands."""
    import numpy as np
    import rasterio
    from PIL import Image
    from rasterio.errors import NotGeoreferencedWarning
    from rasterio.windows import Window

    with _silent(NotGeoreferencedWarning), rasterio.open(file, driver=DRIVER) as scene:
        others = sorted(set(scene.dtypes) - {"uint8"})
        if others:  # floats, which may be NaN, among them
            raise ValueError(f"{others[0]} pixels: 8 bits a channel are needed; rescale the scene first")
        bands = [1, 2, 3] if scene.count >= 3 else [1, 1, 1]
        pixels = scene.read(bands, window=Window(x, y, width, height))
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _silent(category: type[Warning]) -> Any:
    import warnings

    return warnings.catch_warnings(action="ignore", category=category)
