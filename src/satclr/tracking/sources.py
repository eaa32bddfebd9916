"""The arguments of `satclr predict` as tiles: files, folders, globs, and scenes cut into tiles."""

from __future__ import annotations

import glob
import io
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from satclr.tracking.store import TrackingError

SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff"}
SCENES = {".tif", ".tiff"}
DRIVER = "GTiff"  # by content GDAL would open other formats too, some of which name further files to read
MAX_TILES = 1_000_000
Bounds = tuple[float, float, float, float]  # left, bottom, right, top in the scene's coordinates


@dataclass(frozen=True)
class Source:
    """A tile: its name, a function that reads its bytes, and its bounds if its scene is georeferenced."""

    name: str
    read: Callable[[], bytes]
    bounds: Bounds | None = None


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
    whole = Source(str(file), file.read_bytes)
    if file.suffix.lower() not in SCENES:
        yield whole
        return
    try:
        import rasterio  # type: ignore[import-untyped]
        from rasterio.windows import Window  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        with suppress(OSError), Image.open(file) as image:  # a damaged file is reported when the tile is read
            if max(image.size) > side_px:
                raise TrackingError(f"{file} is a scene; cutting it requires rasterio: uv sync --group geo") from None
        yield whole
        return
    try:
        with warnings.catch_warnings(action="ignore"), rasterio.open(file, driver=DRIVER) as scene:
            w, h = min(side_px, scene.width), min(side_px, scene.height)
            count = -(-scene.width // w) * -(-scene.height // h)
            if count > MAX_TILES:  # a few bytes of TIFF can claim any size
                raise TrackingError(
                    f"{file} is a scene of {scene.width}×{scene.height} pixels, {count:,} tiles of {side_px}; at most "
                    f"{MAX_TILES:,} are cut: raise --scene-tile-px or split the scene"
                )
            windows = [Window(x, y, w, h) for y in _starts(scene.height, h) for x in _starts(scene.width, w)]
            boxes = [None if scene.crs is None else scene.window_bounds(window) for window in windows]
    except rasterio.errors.RasterioIOError:  # Pillow's error is clearer
        yield whole
        return
    for window, box in zip(windows, boxes, strict=True):
        place = f"#x={window.col_off},y={window.row_off}" if len(windows) > 1 else ""
        yield Source(f"{file}{place}", partial(_pixels, file, window), box)


def _starts(length: int, side: int) -> list[int]:
    return [*range(0, length - side, side), length - side]


def _pixels(file: Path, window: object) -> bytes:
    """A window of a scene as PNG, red, green and blue being its first three bands."""
    import rasterio

    with warnings.catch_warnings(action="ignore"), rasterio.open(file, driver=DRIVER) as scene:
        others = sorted(set(scene.dtypes) - {"uint8"})
        if others:
            raise ValueError(f"{others[0]} pixels; rescale the scene to 8 bits per channel first")
        pixels = scene.read([1, 2, 3] if scene.count >= 3 else [1, 1, 1], window=window)
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0).copy()).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
