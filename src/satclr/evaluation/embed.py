"""One pass of the frozen encoder: the tile store → features of every tile.

In: build/<profile>, models/<profile>/<arm>/encoder.safetensors. Out: features.npy (N,D) float32, in index order.

    satclr embed --profile sample --arm simclr --seed 0
    torchrun --nproc-per-node 2 -m satclr embed --profile sample --arm simclr --seed 0
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt

from satclr import atomic, progress
from satclr.data import tiles
from satclr.params import Settings
from satclr.pretrain import distributed
from satclr.pretrain import encoder as enc


def run(store: tiles.TileStore, *, encoder: Path, out: Path, settings: Settings) -> None:
    """Write the features of all N tiles to `out`.

    With `probe.batch_norm: frozen` a tile's features depend on that tile alone. With `batch` they depend on
    its batch: each split is cut in index order into batches of `probe.batch_size`, as the notebook's
    unshuffled loaders do. Under torchrun each process takes its turn at the batches, into the same file.
    """
    with distributed.group(enc.device().type), enc.deterministic(settings.embed.deterministic):
        _embed(store, encoder, out, settings)


def _embed(store: tiles.TileStore, encoder: Path, out: Path, settings: Settings) -> None:
    frozen = enc.Frozen(encoder, precision=settings.embed.precision, batch_norm=settings.probe.batch_norm)
    size = settings.embed.batch_size if settings.probe.batch_norm == "frozen" else settings.probe.batch_size
    batches = [rows for split in tiles.SPLITS for rows in tiles.split_batches(store.rows(split), size)]
    if distributed.rank() > 0:
        _fill(atomic.part_of(out), store, frozen, batches)
        return
    with atomic.replacing(out) as part:
        features = _fill(part, store, frozen, batches)
        if not all(np.isfinite(features[rows]).all() for rows in batches):
            raise enc.EncoderError(f"{encoder} gives features that are not finite; train or fetch it again")


def _fill(
    part: Path, store: tiles.TileStore, frozen: enc.Frozen, batches: Sequence[npt.NDArray[np.int64]]
) -> npt.NDArray[np.float32]:
    """Write this process's batches into the file that all share; returns it (N,D), full."""
    first = distributed.rank() == 0
    if first:
        shape = (len(store.names), frozen.width)
        np.lib.format.open_memmap(part, "w+", np.float32, shape).flush()
        atomic.reserve(part)
    distributed.agree(True, device=frozen.device)  # the file stands
    features: npt.NDArray[np.float32] = np.load(part, mmap_mode="r+")
    own = batches[distributed.rank() :: distributed.processes()]
    with progress.bar("embed", sum(map(len, own))) if first else nullcontext(lambda _count: None) as advance:
        for rows, batch in tiles.stream(store, own, frozen.device):
            features[rows] = frozen(batch)
            advance(len(rows))
    features.flush()  # type: ignore[attr-defined]
    distributed.agree(True, device=frozen.device)  # the file is full
    return features
