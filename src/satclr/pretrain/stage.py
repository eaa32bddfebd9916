"""The stage around the training loop: fingerprint, lock, initial encoder, outputs."""

from __future__ import annotations

import contextlib
import csv
import ctypes
import hashlib
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import filelock
import torch
from torch import nn

from satclr import atomic, locks, progress, randomness, tensorfile
from satclr.pretrain import distributed, views
from satclr.data import tiles
from satclr.pretrain import encoder as enc
from satclr.params import Settings
from satclr.pretrain.stage import checkpoint
from satclr.pretrain.loop import Log, contrast

CODE = (
    "pretrain",
    "views",
    "convolution.py",
    "distributed.py",
    "encoder.py",
    "loss.py",
    "optimizers.py",
    "tiles.py",
    "randomness.py",
    "tensorfile.py",
)


def run(
    store: tiles.TileStore,
    *,
    settings: Settings,
    seed: int,
    root: Path,
    out: Path,
    curve: Path,
    log: Log,
    start: Path | None = None,
) -> None:
    """Write the pretrained encoder to `out` and its loss an epoch to `curve`.

    `start` is the encoder to go on from, if any (`pretrain.from`). `log(epoch, metrics)` hears of each epoch
    as it ends. Under torchrun every process calls this; process 0 logs and writes.
    Raises `encoder.EncoderError` for weights that are not to be had, `RunError` when the loss is not finite
    and `distributed.ProcessError` when another process is gone.
    """
    key = fingerprint(settings, seed, store.digest, start)
    folder = root / ".cache" / "checkpoints" / key
    folder.mkdir(parents=True, exist_ok=True)
    with distributed.group(enc.device().type), _lock(folder):
        done = distributed.agree((folder / "encoder.safetensors").exists(), device=enc.device())
        if not done:
            with enc.deterministic(settings.pretrain.deterministic):
                train(store, settings=settings, seed=seed, root=root, folder=folder, log=log, start=start)
        if distributed.rank() == 0:
            if done:
                progress.say(f"this pretraining has been run before; its encoder is taken from {key[:12]}")
            for source, target in ((folder / "encoder.safetensors", out), (folder / "pretrain.csv", curve)):
                with atomic.replacing(target) as part:
                    shutil.copyfile(source, part)
        distributed.agree(True, device=enc.device())  # nobody returns before the files stand


def keep_freed_memory() -> None:
    """Tell glibc to keep what tensors free, for the next step, instead of handing it back and faulting it in again.

    A tenth of a ResNet-18's step at 64 px on two cores. Nothing happens where libc is another one.
    """
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(
            ctypes.c_int(-4), ctypes.c_int(0)
        )  # M_MMAP_MAX: no mapping of its own for a large tensor
        libc.mallopt(ctypes.c_int(-1), ctypes.c_int(2**31 - 1))  # M_TRIM_THRESHOLD: nothing given back


def fingerprint(settings: Settings, seed: int, store_digest: str, start: Path | None = None) -> str:
    """Stands for all that the encoder depends on: parameters, tiles, code, and the encoder it goes on from.

    Not for the number of processes, which may change between a run's beginning and its end.
    """
    code = hashlib.sha256()
    for name in CODE:
        path = Path(__file__).parents[1] / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            code.update(file.read_bytes())
    facts = {
        "views": settings.views.model_dump(mode="json"),
        "pretrain": settings.pretrain.model_dump(mode="json", exclude={"processes"}),
        "seed": seed,
        "store": store_digest,
        "code": code.hexdigest(),
        "start": tensorfile.digest(start) if start else None,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train(
    store: tiles.TileStore,
    *,
    settings: Settings,
    seed: int,
    root: Path,
    folder: Path,
    log: Log,
    start: Path | None = None,
) -> None:
    """Train, or go on from the checkpoint in `folder`, and leave encoder and curve there."""
    if enc.device().type == "cpu":
        keep_freed_memory()
    how = settings.pretrain
    mean, std = store.statistics(how.normalization)
    weights = str(start.absolute()) if start else how.weights
    with filelock.FileLock(folder / "weights.lock"):  # one process downloads, the others find the file
        encoder, width = enc.initial(how.arch, weights, seed=randomness.derive(seed, "encoder"), root=root)
    encoder.to(enc.device())
    state = checkpoint.State()
    if how.adapt_batch_norm:
        adapt_batch_norm(encoder, store, settings)
    if how.objective != "none":
        state = contrast(store, encoder, width, settings=settings, seed=seed, folder=folder, log=log)
    if distributed.rank() > 0:
        return
    _write_curve(folder / "pretrain.csv", state.curve)
    facts = {"mean": mean, "std": std, "crop_px": settings.views.crop_px, "tile_px": store.stats["tile_px"]}
    if start:
        facts["start"] = {"sha256": tensorfile.digest(start)}
    enc.save(encoder, folder / "encoder.safetensors", arch=how.arch, width=width, **facts)
    (folder / checkpoint.FILE).unlink(missing_ok=True)


def adapt_batch_norm(encoder: nn.Module, store: tiles.TileStore, settings: Settings) -> None:
    """Re-estimate BatchNorm's running statistics on the training tiles, without a gradient.

    The mean over batches of evaluation views, in index order (Li et al., "Revisiting Batch Normalization For
    Practical Domain Adaptation", arXiv:1603.04779). The encoder is left in eval mode.
    """
    device = next(encoder.parameters()).device
    mean, std = store.statistics(settings.pretrain.normalization)
    norms = enc.batch_norms(encoder)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    batches = tiles.split_batches(store.rows("train"), settings.pretrain.batch_size)
    if len(batches) > 1 and len(batches[-1]) < settings.pretrain.batch_size:
        batches = batches[:-1]  # a small rest would count as much as a whole batch
    with torch.inference_mode():
        for _, batch in tiles.stream(store, batches, device):
            encoder(views.evaluation_view(batch, crop_px=settings.views.crop_px, mean=mean, std=std))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """One run a fingerprint. Process 0 holds the lock, the others wait with it."""
    lock = locks.Lock(folder / "lock", f"runs the same pretraining ({folder.name[:12]})")
    while not distributed.agree(distributed.rank() == 0 and lock.take(), device=enc.device()):
        pass
    try:
        yield
    finally:
        lock.release()


def _write_curve(path: Path, curve: Sequence[tuple[float, float]]) -> None:
    with atomic.replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", "loss", "learning_rate"])
        writer.writerows([epoch, *row] for epoch, row in enumerate(curve, 1))
