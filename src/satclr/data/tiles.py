"""Tiles: the one reader of image files, and the tile store that holds every tile decoded.

In: image files (`decode`), or build/<profile>/ as `prepare` wrote it (`open_store`). Out: uint8 arrays, `TileStore`,
and batches of its tiles read ahead (`stream`).
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from satclr import files

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})  # of files that are read as images
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # not Pillow's others, some of which run programs
MAX_PIXELS = 64_000_000  # a larger image is not a tile and may be a decompression bomb
MIN_SIDE_PX = 8
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is checked instead, without a warning first

Tiles = npt.NDArray[np.uint8]
Channels = tuple[float, float, float]  # red, green, blue


class TileError(ValueError):
    """An unreadable tile or store: which, why, and what to do."""


def decode(source: bytes | Path, tile_px: int) -> Tiles:
    """Read one image file as RGB: (tile_px, tile_px, 3) uint8.

    Other sizes are resized (bicubic, antialiased). Raises `TileError` as `picture` does, and for an image that is black
    everywhere: the mark of missing data.
    """
    image = picture(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.getbbox() is None:
        raise TileError("every pixel is black, as in a tile without data")
    if image.size != (tile_px, tile_px):
        image = image.resize((tile_px, tile_px), Image.Resampling.BICUBIC)
    return np.asarray(image)


def picture(source: Path | IO[bytes]) -> Image.Image:
    """Read one image file as Pillow's RGB, turned as its EXIF data say.

    Raises `TileError` with the reason for anything but one complete image of 8 bits per channel, in one of FORMATS and
    of a tile's size, including whatever a damaged or hostile file provokes in its decoder.
    """
    try:
        with Image.open(source, formats=FORMATS) as image:
            _check(image)
            ImageOps.exif_transpose(image, in_place=True)
            return image.convert("RGB")
    except (TileError, FileNotFoundError):
        raise
    except UnidentifiedImageError:
        raise TileError(f"not an image ({', '.join(FORMATS)})") from None
    except Exception as error:  # a decoder raises whatever its parsing raises
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's error, not the image's
        raise TileError(" ".join(str(error).split()) or type(error).__name__) from None


def _check(image: Image.Image) -> None:  # the header, before pixels take memory
    if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE_PX:
        allowed = f"at least {MIN_SIDE_PX} per side and at most {MAX_PIXELS:,} in all"
        raise TileError(f"{image.width}×{image.height} pixels is not a tile's size ({allowed})")
    parts = getattr(image, "tile", ())  # Pillow's decoder arguments: it silently halves 16-bit RGB
    raw = str(parts[0].args) if parts else ""
    if image.mode.startswith("I;16") or image.mode in ("I", "F") or re.search(r";(16|32)[BLNSF]", raw):
        raise TileError(f"mode {image.mode}, more than 8 bits per channel: rescale it to 8 bits first")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise TileError(f"{frames} frames: one image per file is needed")


@dataclass(frozen=True)
class TileStore:
    """One profile's tiles in index order: N tiles of H×H pixels, K labels."""

    folder: Path
    pixels: Tiles  # (N,H,H,3) memory map
    names: list[str]
    categories: list[str]
    splits: npt.NDArray[np.str_]  # (N,)
    groups: list[str]
    labels: list[str]  # K names
    targets: npt.NDArray[np.uint8]  # (N,K)
    stats: dict[str, Any]  # stats.json

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of train, val or test, in index order."""
        return np.flatnonzero(self.splits == split)

    def learning(self, near_duplicates: str) -> TileStore:
        """The store an arm learns from: all of it (`keep`), or (`leave_out`) without the training tiles that are
        near-duplicates of a validation or test tile. Those are then in no split.
        """
        if near_duplicates == "keep":
            return self
        tested = [group for group, split in zip(self.groups, self.splits, strict=True) if split != "train"]
        leaks = np.isin(self.groups, tested) & (self.splits == "train")
        if leaks.sum() == len(self.rows("train")):
            raise TileError("near_duplicates: leave_out leaves no training tile; use `keep`, or split by group")
        return replace(self, splits=np.where(leaks, "", self.splits))

    @cached_property
    def digest(self) -> str:
        """A digest of every pixel, label and split of the store."""
        return str(self.stats["digest"])

    def statistics(self, name: str) -> tuple[Channels, Channels]:
        """Mean and standard deviation per channel (pixels in [0, 1]): train, imagenet or released."""
        entry = self.stats["normalization"][name]
        return tuple(entry["mean"]), tuple(entry["std"])


def open_store(folder: Path) -> TileStore:
    """Open build/<profile>. Raises `TileError` when its files are missing, damaged or do not match."""
    with _reading(f"satclr prepare --profile {folder.name}"):
        stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "tiles.npy", mmap_mode="r", allow_pickle=False)
        index = files.read_csv(folder / "index.csv")
        if len(index) != len(pixels):
            raise ValueError(f"{len(pixels)} tiles but {len(index)} rows in {folder}")
    column = {label: k for k, label in enumerate(stats["labels"])}
    targets = np.zeros((len(index), len(column)), np.uint8)
    for i, row in enumerate(index):
        targets[i, [column[label] for label in row["labels"].split("|") if label]] = 1
    return TileStore(
        folder=folder,
        pixels=pixels,
        names=[row["tile"] for row in index],
        categories=[row["category"] for row in index],
        splits=np.array([row["split"] for row in index]),
        groups=[row["group"] for row in index],
        labels=list(column),
        targets=targets,
        stats=stats,
    )


def load_features(path: Path, store: TileStore) -> npt.NDArray[np.float32]:
    """Features (N,D) that `embed` wrote. Raises `TileError` if they are not this store's."""
    with _reading("satclr embed"):
        features: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(features) != len(store.names):
            raise ValueError(f"{path} has {len(features)} tiles, the store {len(store.names)}")
    return features


@contextmanager
def _reading(command: str) -> Iterator[None]:
    """Raise `TileError` for a missing or damaged file, with the command that writes it."""
    try:
        yield
    except FileNotFoundError as error:
        raise TileError(f"{error.filename} does not exist; run `{command}` first") from None
    except (ValueError, OSError, EOFError) as error:
        raise TileError(f"damaged files ({error}); run `{command}` again") from None


def stream(
    store: TileStore, batches: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """Yield (rows, tiles) for each batch of rows, reading one batch ahead.

    Tiles are uint8 (B,H,H,3) on `device`; they are copied to a GPU from pinned memory while it computes.
    """
    import torch

    def read(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        tiles = torch.from_numpy(store.pixels[rows])
        return tiles.pin_memory() if device.type == "cuda" else tiles

    with ThreadPoolExecutor(1, thread_name_prefix="tiles") as pool:
        ahead = [pool.submit(read, rows) for rows in batches[:1]]
        for rows, following in zip(batches, [*batches[1:], None], strict=True):
            if following is not None:
                ahead.append(pool.submit(read, following))
            yield rows, ahead.pop(0).result().to(device, non_blocking=True)


def split_batches(rows: npt.NDArray[np.int64], size: int, *, smallest: int = 1) -> list[npt.NDArray[np.int64]]:
    """Cut `rows` into batches of `size`; the last may be smaller, but one below `smallest` joins the one before."""
    starts = [start for start in range(0, len(rows), size) if start == 0 or len(rows) - start >= smallest]
    return [rows[a:b] for a, b in zip(starts, [*starts[1:], len(rows)], strict=True)]
