"""One pass of the frozen encoder: the tile store → features of every labelled tile.

In: build/<profile>, the run's encoder.safetensors. Out: features.npy (N,D) float32, in index order.

    satclr embed --profile sample --arm simclr --seed 0
    torchrun --nproc-per-node 2 -m satclr embed --profile sample --arm simclr --seed 0
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from satclr import files, machine, progress, randomness
from satclr.data import tiles
from satclr.pretrain import distributed
from satclr.pretrain.encoder import EncoderError, Frozen
from satclr.project import Run

BATCH_SIZE = 256

Rows = npt.NDArray[np.int64]


def run(run: Run, _log: object) -> None:
    """Write the features of all N labelled tiles.

    With `probe.batch_norm: frozen` a tile's features depend on that tile alone, with `batch` also on the others of
    its batch (`split_batches`). Under torchrun the processes share the batches; process 0 writes.
    """
    computed, reason = machine.precision(run.settings.embed.precision)
    if distributed.rank() == 0:
        progress.say(f"embed: {computed} ({reason})")
    device = machine.device()
    with distributed.group(device.type), machine.deterministic(run.deterministic):
        distributed.share_file(run.encoder, device=device)
        store, encoder = tiles.open_store(run.store), load_encoder(run)
        batches = [rows for split in tiles.SPLITS for rows in split_batches(store, split, run)]
        if distributed.rank() > 0:
            for _ in _encoded(store, encoder, batches):
                pass
            return
        with files.replacing(run.features) as part, progress.bar("embed", sum(map(len, batches))) as advance:
            features = np.lib.format.open_memmap(part, "w+", np.float32, (store.labelled, encoder.width))
            files.reserve(part)
            for rows, h in _encoded(store, encoder, batches):
                if not np.isfinite(h).all():
                    raise EncoderError(f"{run.encoder} gives features that are not finite; train it again")
                features[rows] = h
                advance(len(rows))
            features.flush()


def load_encoder(run: Run) -> Frozen:
    """The run's encoder as `embed` and `probe` set it."""
    settings = run.settings
    return Frozen(run.encoder, precision=settings.embed.precision, batch_norm=settings.probe.batch_norm)


def split_batches(store: tiles.TileStore, split: str, run: Run) -> list[Rows]:
    """The rows of each batch of a split: in index order, or drawn by the seed where tiles of a batch share statistics.

    The index is sorted by category, the notebook's tables are shuffled: with BatchNorm of the batch its unshuffled
    loaders normalise by random mixtures, the index would by one category. Raises `tiles.TileError` for one tile.
    """
    rows, probe = store.rows(split), run.settings.probe
    if probe.batch_norm == "frozen":
        return tiles.split_batches(rows, BATCH_SIZE)
    if len(rows) == 1:
        raise tiles.TileError(f"the {split} split has one tile; probe.batch_norm: batch requires at least two")
    order = randomness.rng(run.seed, "batch order", split).permutation(rows)
    return tiles.split_batches(order, probe.batch_size, smallest=2)


def _encoded(
    store: tiles.TileStore, encoder: Frozen, batches: Sequence[Rows]
) -> Iterator[tuple[Rows, npt.NDArray[np.float32]]]:
    """Yield each batch's rows and features (B,D) on process 0; the processes encode a batch each at a time."""
    rank, processes, largest = distributed.rank(), distributed.processes(), max(map(len, batches), default=0)
    turns = [batches[i : i + processes] for i in range(0, len(batches), processes)]
    own = tiles.stream(store, [turn[rank] for turn in turns if rank < len(turn)], encoder.device)
    for turn in turns:
        _, batch = next(own, (None, None))
        h = torch.empty(0, encoder.width) if batch is None else torch.from_numpy(encoder(batch))
        for rows, features in zip(turn, distributed.collect(h.to(encoder.device), largest), strict=False):
            yield rows, features.cpu().numpy()
