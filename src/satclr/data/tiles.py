"""The tile store, which holds every tile decoded.

In: build/<profile>/ as `prepare` wrote it (`open_store`). Out: `TileStore`, and batches of its tiles read ahead
(`stream`). `pixels` reads image files.
"""

from __future__ import annotations

import csv
import json
import mmap
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # the split of tiles that only pretraining may see
LEARNED = {"train": ("train",), "unlabelled": (UNLABELLED,), "both": ("train", UNLABELLED)}  # by pretrain.tiles
INDEX = ["tile", "category", "split", "group", "labels"]  # the columns of index.csv
# Of files that are read as images.
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif"})

Tiles = npt.NDArray[np.uint8]
Channels = tuple[float, float, float]  # red, green, blue
Statistics = tuple[Channels, Channels]  # mean and std of pixels in [0, 1]
IMAGENET: Statistics = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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
    groups: npt.NDArray[np.int64]  # (N,), the same number for near-duplicates
    labels: list[str]  # K names
    targets: npt.NDArray[np.uint8]  # (N,K)
    stats: dict[str, Any]  # stats.json

    def rows(self, split: str) -> npt.NDArray[np.int64]:
        """The rows of train, val, test or unlabelled, in index order."""
        return np.flatnonzero(self.splits == split)

    @property
    def labelled(self) -> int:
        """How many tiles are in train, val or test; the unlabelled ones follow them in the index."""
        return len(self.names) - int(self.stats["tiles"].get(UNLABELLED, 0))

    def learning(self, near_duplicates: str, *, tiles: str = "train") -> TileStore:
        """The store an arm learns from: its split `train` has the tiles that `tiles` names (a key of LEARNED).

        With `leave_out`, near-duplicates of validation and test tiles are not among them. Raises `TileError` where
        none is left.
        """
        tested, learned = np.isin(self.splits, SPLITS[1:]), np.isin(self.splits, LEARNED[tiles])
        if near_duplicates == "leave_out":
            learned &= ~np.isin(self.groups, self.groups[tested])
        if not learned.any():
            where = f"put images into data/{self.folder.name}/Unlabelled and run `satclr prepare`, or use tiles: train"
            raise TileError(f"{self.folder} has no tile to learn from (tiles: {tiles}, {near_duplicates}); {where}")
        return replace(self, splits=np.where(learned, "train", np.where(tested, self.splits, "")))

    @property
    def digest(self) -> str:
        """A digest of every pixel, label and split of the store."""
        return str(self.stats["digest"])

    def statistics(self, name: str) -> Statistics:
        """Mean and standard deviation per channel (pixels in [0, 1]): train, imagenet or released."""
        entry = self.stats["normalization"][name]
        return tuple(entry["mean"]), tuple(entry["std"])


def open_store(folder: Path) -> TileStore:
    """Open build/<profile>. Raises `TileError` when its files are missing, damaged or do not match."""
    names, categories, splits = list[str](), list[str](), list[str]()
    groups, sets = dict[str, int](), dict[str, int]()  # of tiles; of labels, far fewer than tiles
    numbers = list[tuple[int, int]]()  # each tile's group and set
    with _reading(f"satclr prepare --profile {folder.name}"):
        stats = json.loads((folder / "stats.json").read_text(encoding="utf-8"))
        pixels = np.load(folder / "tiles.npy", mmap_mode="r", allow_pickle=False)
        with (folder / "index.csv").open(encoding="utf-8", newline="") as file:
            reader = csv.reader(file)
            next(reader)
            for tile, category, split, group, present in reader:
                names.append(tile)
                categories.append(sys.intern(category))
                splits.append(sys.intern(split))
                own = tile if group == tile else group  # one string instead of two
                numbers.append((groups.setdefault(own, len(groups)), sets.setdefault(present, len(sets))))
        if len(names) != len(pixels):
            raise ValueError(f"{len(pixels)} tiles but {len(names)} rows in {folder}")
        column = {label: k for k, label in enumerate(stats["labels"])}
        targets = np.zeros((len(sets), len(column)), np.uint8)
        for i, present in enumerate(sets):
            targets[i, [column[label] for label in present.split("|") if label]] = 1
    group_of, set_of = np.array(numbers, np.int64).reshape(-1, 2).T
    split_of, labels = np.array(splits), list(column)
    return TileStore(folder, pixels, names, categories, split_of, group_of, labels, targets[set_of], stats)


def load_features(path: Path, store: TileStore) -> npt.NDArray[np.float32]:
    """Features (N,D) that `embed` wrote of the labelled tiles. Raises `TileError` if they are not this store's."""
    with _reading("satclr embed"):
        features: npt.NDArray[np.float32] = np.load(path, mmap_mode="r", allow_pickle=False)
        if len(features) != store.labelled:
            raise ValueError(f"{path} has {len(features)} tiles, the store {store.labelled}")
    return features


@contextmanager
def _reading(command: str) -> Iterator[None]:
    """Raise `TileError` for a missing or damaged file, with the command that writes it."""
    try:
        yield
    except FileNotFoundError as error:
        raise TileError(f"{error.filename} does not exist; run `{command}` first") from None
    except (ValueError, LookupError, OSError, EOFError, StopIteration, csv.Error) as error:
        raise TileError(f"damaged files ({error}); run `{command}` again") from None


def stream(
    store: TileStore, batches: Sequence[npt.NDArray[np.int64]], device: torch.device
) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
    """Yield (rows, tiles) for each batch of rows, reading one batch ahead.

    Tiles are uint8 (B,H,H,3) on `device`; they are copied to a GPU from pinned memory while it computes.
    """
    import torch

    def read(rows: npt.NDArray[np.int64]) -> torch.Tensor:
        _prefetch(store.pixels, rows)
        tiles = torch.from_numpy(store.pixels[rows])
        return tiles.pin_memory() if device.type == "cuda" else tiles

    with ThreadPoolExecutor(1, thread_name_prefix="tiles") as pool:
        ahead = [pool.submit(read, rows) for rows in batches[:1]]
        for rows, following in zip(batches, [*batches[1:], None], strict=True):
            if following is not None:
                ahead.append(pool.submit(read, following))
            yield rows, ahead.pop(0).result().to(device, non_blocking=True)


def _prefetch(pixels: Tiles, rows: npt.NDArray[np.int64]) -> None:
    """Have the kernel read these tiles of a memory map, all at once and no others around them."""
    file: Any = pixels.base
    if not isinstance(pixels, np.memmap) or not isinstance(file, mmap.mmap) or not hasattr(mmap, "MADV_WILLNEED"):
        return  # a part of a map too
    file.madvise(mmap.MADV_RANDOM)
    size, first = pixels[0].nbytes, pixels.offset % mmap.ALLOCATIONGRANULARITY
    for start in (rows * size + first).tolist():
        page = start - start % mmap.PAGESIZE
        file.madvise(mmap.MADV_WILLNEED, page, start + size - page)


def split_batches(rows: npt.NDArray[np.int64], size: int, *, smallest: int = 1) -> list[npt.NDArray[np.int64]]:
    """Cut `rows` into batches of `size`; the last may be smaller, but one below `smallest` joins the one before."""
    return np.split(rows, range(size, len(rows) - smallest + 1, size))
