"""One pass of the frozen encoder: the tile store → features of every tile.

In: build/<profile>, models/<profile>/<arm>/encoder.safetensors. Out: features.npy (N,D) float32, in index order.

    satclr embed --profile sample --arm simclr --seed 0
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from satclr import encoder as enc
from satclr import progress, tiles
from satclr.params import Settings


def run(store: tiles.Store, *, encoder: Path, out: Path, settings: Settings) -> None:
    """Write the features of all N tiles to `out`.

    With `probe.batch_norm: frozen` a tile's features depend on that tile alone. With `batch` they depend on
    its batch: each split is cut in index order into batches of `probe.batch_size`, as the notebook's
    unshuffled loaders do.
    """
    frozen = enc.Frozen(encoder, precision=settings.embed.precision, batch_norm=settings.probe.batch_norm)
    size = settings.embed.batch_size if settings.probe.batch_norm == "frozen" else settings.probe.batch_size
    batches = [rows for split in tiles.SPLITS for rows in tiles.split_batches(store.rows(split), size)]
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    features = np.lib.format.open_memmap(part, "w+", np.float32, (len(store.names), frozen.width))
    with progress.bar("embed", len(store.names)) as advance:
        for rows, batch in tiles.stream(store, batches, frozen.device):
            features[rows] = frozen(batch)
            advance(len(rows))
    if not all(np.isfinite(features[rows]).all() for rows in batches):
        part.unlink()
        raise enc.EncoderError(f"{encoder} gives features that are not finite; train or fetch it again")
    features.flush()
    del features
    part.replace(out)
