"""The one reader of image files, for import, prepare and predict: what is in the file → RGB of 8 bits a channel.

    pixels.decode(path, tile_px=256, scale=(0, 3000))

Pillow reads pictures; rasterio reads TIFFs and PNGs of more bits or bands, and those with GDAL's tags. Red, green and
blue are the bands that say so (description, else colour interpretation), else the first three, else a single grey one.
Palettes become colours. Alpha, masks, nodata values and NaN tell which pixels hold data; the others become black.
Pixels of other than 8 bits are scaled: `scale` (low, high) becomes 0 to 255, rounded, and what is beyond it 0 or 255.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from satclr.data.tiles import TileError, Tiles

FORMATS: Final = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # not Pillow's others, some of which run programs
TIFF: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
GDAL_TAGS: Final = (42112, 42113)  # GDAL_METADATA, GDAL_NODATA
MAX_PIXELS: Final = 64_000_000  # a larger image is not a tile and may be a decompression bomb
MIN_SIDE_PX: Final = 8
MINIMUM_VALID: Final = 0.5
PERCENTILES: Final = (2, 98)
MEASURED: Final = (1000, 4096)  # tiles, and pixels of each, at most
COLOURS: Final = ({"red", "b04"}, {"green", "b03"}, {"blue", "b02"})  # descriptions; the others are Sentinel-2's
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead, without a warning first

Scale = tuple[float, float]
Window = tuple[int, int, int, int]  # left, top, width, height


class NoDataError(TileError):
    """A tile of which too few pixels hold data."""


@dataclass(frozen=True)
class Raster:
    """Red, green and blue as the file has them, (H,W,3), and which pixels hold data, (H,W)."""

    values: npt.NDArray[Any]
    valid: npt.NDArray[np.bool_]

    def rgb(self, scale: Scale | None) -> Tiles:
        """The pixels as 8 bits (H,W,3), black without data. Raises `TileError` for deep ones without scale."""
        values = self.values
        if values.dtype != np.uint8:
            if scale is None:
                kind = f"{values.dtype} pixels, not 8 bits per channel"
                raise TileError(f"{kind}: set data.scale, or prepare and train on tiles of this kind")
            low, high = scale
            scaled = (np.nan_to_num(values.astype(np.float64)) - low) * 255 / (high - low)
            values = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
        return values if self.valid.all() else np.where(self.valid[..., None], values, 0).astype(np.uint8)


@contextmanager
def _reasons() -> Iterator[None]:
    """Raise `TileError` with the reason for whatever a decoder raises, but for the disk's own errors."""
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    except Exception as error:  # a decoder raises whatever its parsing raises
        if isinstance(error, TileError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        raise TileError(" ".join(str(error).split()) or type(error).__name__) from None


@contextmanager
def workers() -> Iterator[ThreadPoolExecutor]:
    """Threads that read image files, a core each.

    Warnings are off for all at once: filters belong to the process, and threads that set them restore each other's.
    """
    with warnings.catch_warnings(action="ignore"), ThreadPoolExecutor(os.cpu_count()) as pool:
        yield pool


def decode(
    source: bytes | Path, tile_px: int, *, scale: Scale | None = None, minimum_valid: float = MINIMUM_VALID
) -> Tiles:
    """Read one image file as RGB: (tile_px, tile_px, 3) uint8.

    Other sizes are resized (bicubic, antialiased). Raises `TileError` as `read` does, and `NoDataError` where less than
    `minimum_valid` of the pixels hold data, or all are black: the mark of missing data.
    """
    raster = read(source)
    if (share := raster.valid.mean()) < minimum_valid:
        raise NoDataError(f"no data: {share:.0%} of its pixels are valid (data.minimum_valid: {minimum_valid:g})")
    image = Image.fromarray(raster.rgb(scale))
    if image.getbbox() is None:
        raise NoDataError("every pixel is black, as in a tile without data")
    if image.size != (tile_px, tile_px):
        image = image.resize((tile_px, tile_px), Image.Resampling.BICUBIC)
    return np.asarray(image)


def picture(file: Path) -> Image.Image:
    """Read an image of 8 bits as Pillow's RGB, or RGBA where some pixels hold no data. Raises as `read` does."""
    raster = read(file)
    image = Image.fromarray(raster.rgb(None))
    if not raster.valid.all():
        image.putalpha(Image.fromarray(raster.valid.astype(np.uint8) * 255))
    return image


@_reasons()
def read(source: bytes | Path) -> Raster:
    """Read one image file, turned as its EXIF data say.

    Raises `TileError` with the reason for anything but one complete image in one of FORMATS and of a tile's size,
    including whatever a damaged or hostile file provokes in its decoder.
    """
    if image := _pillow(source):
        with image:
            _check_size(image.width, image.height)
            if not _needs_gdal(image):
                return _from_pillow(image)
    return _from_gdal(source)


@_reasons()
def window(file: Path, place: Window) -> bytes:
    """A part of a TIFF as a TIFF with its depth and a mask, for `decode`."""
    from rasterio import Env
    from rasterio.io import MemoryFile

    raster = _from_gdal(file, place)
    height, width = raster.valid.shape
    facts = {"driver": "GTiff", "width": width, "height": height, "count": 3, "dtype": raster.values.dtype}
    with Env(GDAL_TIFF_INTERNAL_MASK=True), MemoryFile() as memory:
        with memory.open(**facts, photometric="RGB") as made:
            made.write(raster.values.transpose(2, 0, 1))
            if not raster.valid.all():
                made.write_mask(raster.valid)
        return bytes(memory.read())


def is_deep(file: Path) -> bool:
    """Whether a file's pixels are of other than 8 bits per channel; False where it cannot be read."""
    if file.suffix.lower() not in {".tif", ".tiff", ".png"}:
        return False
    with suppress(TileError, OSError), _reasons():
        if image := _pillow(file):
            with image:
                return _is_deep(image)
        with _opened(file) as data:
            return set(data.dtypes) != {"uint8"}
    return False


def _pillow(source: bytes | Path) -> Image.Image | None:
    """The opened image, or None for a TIFF that Pillow does not know. Raises `TileError` for what is no image."""
    try:
        return Image.open(_file(source), formats=FORMATS)
    except Exception as error:
        if _is_tiff(source):
            return None
        if isinstance(error, UnidentifiedImageError):
            raise TileError(f"not an image ({', '.join(FORMATS)})") from None
        raise


def measured(paths: Sequence[Path]) -> Scale | None:
    """The percentiles 2 and 98 of the tiles' valid pixels, all colours together; None without deep ones.

    At most MEASURED tiles are looked at, evenly spaced, and pixels of each. Tiles that cannot be read are left out.
    """
    deep = [path for path in paths if is_deep(path)]
    count, most = MEASURED
    parts = []
    for path in deep[:: -(-len(deep) // count) or 1]:
        with suppress(TileError, OSError):
            raster = read(path)
            values = raster.values[raster.valid].astype(np.float64)
            parts.append(values[:: -(-len(values) // most) or 1].ravel())
    values = np.concatenate([np.empty(0), *parts])
    if not values.size:
        return None
    low, high = (float(value) for value in np.percentile(values, PERCENTILES))
    return (low, high) if low < high else (low, low + 1)


def _file(source: bytes | Path) -> Path | IO[bytes]:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _is_tiff(source: bytes | Path) -> bool:
    if isinstance(source, bytes):
        return source.startswith(TIFF)
    with source.open("rb") as file:
        return file.read(4) in TIFF


def _check_size(width: int, height: int) -> None:  # from the header, before pixels take memory
    if width * height > MAX_PIXELS or min(width, height) < MIN_SIDE_PX:
        allowed = f"at least {MIN_SIDE_PX} per side and at most {MAX_PIXELS:,} in all"
        raise TileError(f"{width}×{height} pixels is not a tile's size ({allowed})")


def _is_deep(image: Image.Image) -> bool:
    parts = getattr(image, "tile", ())  # Pillow's decoder arguments: it silently halves 16-bit RGB
    raw = str(parts[0].args) if parts else ""
    return image.mode.startswith("I;16") or image.mode in ("I", "F") or bool(re.search(r";(16|32)[BLNSF]", raw))


def _needs_gdal(image: Image.Image) -> bool:
    if _is_deep(image) or any(tag in getattr(image, "tag_v2", ()) for tag in GDAL_TAGS):
        return True
    try:
        frames = getattr(image, "n_frames", 1)  # of a TIFF also overviews and masks
    except Exception:  # noqa: BLE001 - a mask that Pillow does not know
        return True
    if frames > 1 and image.format != "TIFF":
        raise TileError(f"{frames} frames: one image per file is needed")
    return frames > 1


def _from_pillow(image: Image.Image) -> Raster:
    ImageOps.exif_transpose(image, in_place=True)
    if not image.has_transparency_data:
        values = np.asarray(image.convert("RGB"))
        return Raster(values, np.ones(values.shape[:2], bool))
    values = np.asarray(image.convert("RGBA"))
    return Raster(values[..., :3], values[..., 3] > 0)


@contextmanager
def _opened(source: bytes | Path) -> Iterator[Any]:
    """An open rasterio data set of one image."""
    import rasterio

    driver = "GTiff" if _is_tiff(source) else "PNG"  # GDAL's others may name further files
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="TRUE"), rasterio.open(_file(source), driver=driver) as data:
        if (frames := len(data.subdatasets)) > 1:
            raise TileError(f"{frames} frames: one image per file is needed")
        yield data


def _from_gdal(source: bytes | Path, place: Window | None = None) -> Raster:
    with _opened(source) as data:
        if place is None:
            place = (0, 0, data.width, data.height)
            _check_size(data.width, data.height)
        (left, top, width, height), names = place, [colour.name for colour in data.colorinterp]
        if "cyan" in names or any(kind.startswith("complex") for kind in data.dtypes):
            raise TileError(f"bands {', '.join(names)} of {data.dtypes[0]}: convert it to RGB first")
        bands, part = _bands(data), ((top, top + height), (left, left + width))
        values = data.read(bands, window=part).transpose(1, 2, 0)
        valid = data.dataset_mask(window=part) > 0
        structure = data.tags(ns="IMAGE_STRUCTURE") | data.tags(bands[0], ns="IMAGE_STRUCTURE")
        colours = data.colormap(bands[0]) if names[bands[0] - 1] == "palette" else {}
    if colours:
        table = np.zeros((max(colours) + 1, 4), np.uint8)
        table[list(colours)] = list(colours.values())
        found = table[values[..., 0]]
        values, valid = found[..., :3], valid & (found[..., 3] > 0)
    elif values.dtype == np.uint8 and (most := 2 ** int(structure.get("NBITS", 8)) - 1) < 255:
        values = (values.astype(np.uint16) * 255 // most).astype(np.uint8)
    if structure.get("MINISWHITE") == "YES":
        values = np.iinfo(values.dtype).max - values
    if values.dtype.kind == "f":
        valid &= np.isfinite(values).all(-1)
    return Raster(np.ascontiguousarray(values if values.shape[-1] == 3 else values.repeat(3, -1)), valid)


def _bands(data: Any) -> list[int]:
    """The bands, from 1, of red, green and blue, or the one of grey."""
    described = [set(re.findall(r"[a-z0-9]+", (text or "").lower())) for text in data.descriptions]
    interpreted = [{colour.name} for colour in data.colorinterp]
    for words in (described, interpreted):
        found = [next((i for i, own in enumerate(words, 1) if own & colour), 0) for colour in COLOURS]
        if all(found):
            return found
    rest = [i for i, own in enumerate(interpreted, 1) if own != {"alpha"}]
    return rest[:3] if len(rest) > 2 else rest[:1]
