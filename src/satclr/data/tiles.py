"""The tile store, which holds every tile decoded.

In: build/<profile>/ as `prepare` wrote it (`open_store`). Out: `TileStore`, and batches of its tiles read ahead
(`stream`). `pixels` reads image files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from satclr import files

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp"})  # of files that are read as images

Tiles = npt.NDArray[np.uint8]
Channels = tuple[float, float, float]  # red, green, blue


class TileError(ValueError):
    """An unreadable tile or store: which, why, and what to do."""


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
