"""The tile store: every tile decoded once into one uint8 memory map, with its index.

In: build/<profile>/ as `prepare` wrote it. Out: `TileStore`, and batches of tiles ahead of need.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
MAX_PIXELS = 64_000_000  # a larger picture is no tile, and may be a decompression bomb
MIN_SIDE_PX = 8
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF")  # not Pillow's others, some of which run programs
Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the bound, told as an error and not first as a warning

Tiles = npt.NDArray[np.uint8]
Channels = tuple[float, float, float]  # red, green, blue


class TileError(ValueError):
    """A tile or a store that cannot be read: which, why, and what to do."""


def decode(source: bytes | Path, tile_px: int) -> Tiles:
    """One image file as RGB of side `tile_px`: (tile_px, tile_px, 3) uint8.

    Another size is resized (bicubic, antialiased). Raises `TileError` as `picture` does, and for a picture
    that is black everywhere, which is what is left of one without data.
    """
    image = picture(io.BytesIO(source) if isinstance(source, bytes) else source)
    if image.getbbox() is None:
        raise TileError("every pixel is black, as of a tile without data")
    if image.size != (tile_px, tile_px):
        image = image.resize((tile_px, tile_px), Image.Resampling.BICUBIC)
    return np.asarray(image)


def picture(source: Path | IO[bytes]) -> Image.Image:
    """One image file as Pillow's RGB, the way up that its EXIF data say.

    Raises `TileError` with the reason for anything that is not one whole picture of 8 bits a channel, of some
    FORMATS and a tile's size; whatever a damaged or hostile file provokes in its decoder is such a reason.
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
            raise  # the disk's doing, not the picture's
        raise TileError(" ".join(str(error).split()) or type(error).__name__) from None


def _check(image: Image.Image) -> None:
    """Refuse by the header, before pixels take memory."""
    if image.width * image.height > MAX_PIXELS or min(image.size) < MIN_SIDE_PX:
        raise TileError(
            f"{image.width}×{image.height} pixels is no tile ({MIN_SIDE_PX} a side to {MAX_PIXELS:,} in all)"
        )
    parts = getattr(image, "tile", ())  # how Pillow reads it: it halves 16-bit RGB unasked
    raw = str(parts[0].args) if parts else ""
    if image.mode.startswith("I;16") or image.mode in ("I", "F") or re.search(r";(16|32)[BLNSF]", raw):
        raise TileError(f"mode {image.mode}, more than 8 bits a channel: 8 bits are needed; rescale it first")
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise TileError(f"{frames} frames: one picture a file is needed")


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
        """The store as an arm learns from it: all of it (`keep`), or (`leave_out`) without the training tiles
        that show the same as a validation or test tile. These are then in no split; val and test stay.
        """
        if near_duplicates == "keep":
            return self
        held_out = {group for group, split in zip(self.groups, self.splits, strict=True) if split != "train"}
        leaks = np.isin(self.groups, list(held_out)) & (self.splits == "train")
        return replace(self, splits=np.where(leaks, "", self.splits))

    @cached_property
    def digest(self) -> str:
        """Stands for every pixel, label and split of the store."""
        return str(self.stats["digest"])

    def statistics(self, name: str) -> tuple[Channels, Channels]:
        """Mean and standard deviation a channel (pixels in [0,1]): train, imagenet or released."""
        entry = self.stats["normalization"][name]
        return tuple(entry["mean"]), tuple(entry["std"])


def open_store(folder: Path) -> TileStore:
    """Open build/<profile>. Raises `TileError` when prepare has not run or its files do not fit together."""
    try:
        stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "tiles.npy", mmap_mode="r", allow_pickle=False)
        with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
            index = list(csv.DictReader(file))
    except FileNotFoundError as error:
        raise TileError(
            f"{error.filename} does not exist; run `satclr prepare --profile {folder.name}` first"
        ) from None
    except (ValueError, OSError, EOFError) as error:
        raise TileError(f"the store in {folder} is damaged ({error}); run prepare again") from None
    if len(index) != len(pixels):
        raise TileError(
            f"the store in {folder} has {len(pixels)} tiles but {len(index)} rows; run prepare again"
        )
    column = {label: k for k, label in enumerate(stats["labels"])}
    targets = np.zeros((len(index), len(column)), np.uint8)
    for i, row in enumerate(index):
        for label in filter(None, row["labels"].split("|")):
            targets[i, column[label]] = 1
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
    try:
        features: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise TileError(f"{path} does not exist; run `satclr embed` first") from None
    except (ValueError, OSError, EOFError) as error:
        raise TileError(f"{path} is damaged ({error}); run embed again") from None
    if len(features) != len(store.names):
        raise TileError(
            f"{path} has features of {len(features)} tiles, the store has {len(store.names)}; run embed again"
        )
    return features


def stream(
    store: TileStore, batches: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """(rows, tiles) for each batch of rows, read one batch ahead of need.

    Tiles are uint8 (B,H,H,3) on `device`; on a GPU they travel from pinned memory while it works.
    """
    import torch

    def read(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        tiles = torch.from_numpy(store.pixels[rows])
        return tiles.pin_memory() if device.type == "cuda" else tiles

    with ThreadPoolExecutor(1, thread_name_prefix="tiles") as pool:
        ahead = [pool.submit(read, rows) for rows in batches[:1]]
        for i, rows in enumerate(batches):
            if i + 1 < len(batches):
                ahead.append(pool.submit(read, batches[i + 1]))
            yield rows, ahead.pop(0).result().to(device, non_blocking=True)


def split_batches(rows: npt.NDArray[np.int64], size: int) -> list[npt.NDArray[np.int64]]:
    """`rows` cut into batches of `size`; the last may be smaller."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]
