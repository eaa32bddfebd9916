"""One pass of the frozen encoder: the tile store → features of every tile.

In: build/<profile>, the run's encoder.safetensors. Out: features.npy (N,D) float32, in index order.

    satclr embed --profile sample --arm simclr --seed 0
    torchrun --nproc-per-node 2 -m satclr embed --profile sample --arm simclr --seed 0
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from satclr import files, machine, progress
from satclr.data import tiles
from satclr.evaluation import Log
from satclr.pretrain import distributed
from satclr.pretrain.encoder import EncoderError, Frozen
from satclr.project import Run

BATCH_SIZE = 256


def run(run: Run, _log: Log) -> None:
    """Write the features of all N tiles.

    With `probe.batch_norm: frozen` a tile's features depend on that tile alone. With `batch` they depend on
    its batch: each split is cut in index order into batches of `probe.batch_size`, as the notebook's
    unshuffled loaders do. Under torchrun the processes take turns at the batches and write to the same file.
    """
    computed, reason = machine.precision(run.settings.embed.precision)
    if distributed.rank() == 0:
        progress.say(f"embed: {computed} ({reason})")
    with distributed.group(machine.device().type), machine.deterministic(run.deterministic):
        store, encoder = tiles.open_store(run.store), load_encoder(run)
        batches = [rows for split in tiles.SPLITS for rows in split_batches(store, split, run)]
        if distributed.rank() > 0:
            _fill(files.part_of(run.features), store, encoder, batches)
            return
        with files.replacing(run.features) as part:
            features = _fill(part, store, encoder, batches)
            if not all(np.isfinite(features[rows]).all() for rows in batches):
                raise EncoderError(f"{run.encoder} gives features that are not finite; train it again")


def load_encoder(run: Run) -> Frozen:
    """The run's encoder as `embed` and `probe` set it."""
    settings = run.settings
    return Frozen(run.encoder, precision=settings.embed.precision, batch_norm=settings.probe.batch_norm)


def split_batches(store: tiles.TileStore, split: str, run: Run) -> list[npt.NDArray[np.int64]]:
    """The rows of each batch of a split, in index order. Raises `tiles.TileError` for BatchNorm of one tile."""
    probe, rows = run.settings.probe, store.rows(split)
    if probe.batch_norm == "frozen":
        return tiles.split_batches(rows, BATCH_SIZE)
    if len(rows) == 1:
        raise tiles.TileError(f"the {split} split has one tile; probe.batch_norm: batch requires at least two")
    return tiles.split_batches(rows, probe.batch_size, smallest=2)


def _fill(
    part: Path, store: tiles.TileStore, encoder: Frozen, batches: Sequence[npt.NDArray[np.int64]]
) -> npt.NDArray[np.float32]:
    """Write this process's batches into the file that all share; returns all features (N,D)."""
    first = distributed.rank() == 0
    if first:
        shape = (len(store.names), encoder.width)
        np.lib.format.open_memmap(part, "w+", np.float32, shape).flush()
        files.reserve(part)
    distributed.agree(True, device=encoder.device)  # barrier: rank 0 has made the file
    features: npt.NDArray[np.float32] = np.load(part, mmap_mode="r+")
    own = batches[distributed.rank() :: distributed.processes()]
    with progress.bar("embed", sum(map(len, own))) if first else nullcontext(lambda _count: None) as advance:
        for rows, batch in tiles.stream(store, own, encoder.device):
            features[rows] = encoder(batch)
            advance(len(rows))
    features.flush()  # type: ignore[attr-defined]
    distributed.agree(True, device=encoder.device)  # barrier: every process has written its batches
    return features
