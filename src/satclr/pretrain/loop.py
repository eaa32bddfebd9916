"""The training loop: epochs, steps, checkpoints; on one screen."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from satclr.pretrain import distributed, optimizers
from satclr import progress, randomness, stopping
from satclr.data import tiles
from satclr.pretrain import encoder as enc
from satclr.pretrain.convolution import speed_up_small_maps
from satclr.params import Settings
from satclr.pretrain.stage import checkpoint
from satclr.pretrain.checkpoint import RunError
from satclr.pretrain.step import Step, cut

CHECKPOINT_EVERY_S = 600.0  # of training within an epoch
# Of training, at an epoch's end; and how many times as long as a checkpoint takes must be trained for before the
# next: writing more often would be lost time.
CHECKPOINT_AFTER_S = float(os.environ.get("SATCLR_CHECKPOINT_AFTER_S", "15"))
CHECKPOINT_SHARE = 50 if CHECKPOINT_AFTER_S else 0

Log = Callable[[int, Mapping[str, float]], None]


class Due:
    """When the next checkpoint is worth its time: a clock of what would be lost without it."""

    def __init__(self) -> None:
        self._since = time.monotonic()
        self._cost_s = 0.0  # of the last one

    def after(self, trained_s: float) -> bool:
        """Whether so much has been trained since the last, and enough to outweigh writing the next."""
        return time.monotonic() - self._since > max(trained_s, CHECKPOINT_SHARE * self._cost_s)

    def save(self, folder: Path, step: Step, state: checkpoint.State) -> None:
        """Write a checkpoint, on process 0, and start again."""
        began = time.monotonic()
        if distributed.rank() == 0:
            checkpoint.save(folder, step.model, step.optimizer, state)
        self._since = time.monotonic()
        self._cost_s = self._since - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time inside is not training."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began


def contrast(
    store: tiles.TileStore,
    encoder: nn.Module,
    width: int,
    *,
    settings: Settings,
    seed: int,
    folder: Path,
    log: Log,
) -> checkpoint.State:
    """Train `encoder` (features of `width`) on the training split; it is left in eval mode.

    On a CPU some of its convolutions are replaced by faster ones, which stay: see `speed_up_small_maps`.
    """
    how, device = settings.pretrain, next(encoder.parameters()).device
    train_rows = store.rows("train")
    size = min(how.batch_size, len(train_rows))
    _check_size(size, len(train_rows), how.micro_batch_size)
    steps = len(train_rows) // size
    step, state = _start(encoder, width, store, settings=settings, seed=seed, folder=folder)
    parts = cut(size, how.micro_batch_size)
    due = Due()
    with _bar(steps * how.epochs) as advance, stopping.deferred() as stop:
        advance(state.epoch * steps + state.step)
        for epoch in range(state.epoch, how.epochs):
            started, first = time.monotonic(), state.step
            order = train_rows[randomness.permutation(len(train_rows), seed, "order", epoch).numpy()]
            batches = tiles.split_batches(order, size)[first:steps]
            held = [np.concatenate([rows[part.own] for part in parts]) for rows in batches]
            pending: list[tuple[Tensor, npt.NDArray[np.int64]]] = []
            for rows, (_, batch) in zip(batches, tiles.stream(store, held, device), strict=True):
                rate = optimizers.learning_rate(how, epoch * steps + state.step, steps)
                targets = torch.from_numpy(store.targets[rows])
                loss = step(batch, targets, parts, epoch=epoch, step=state.step, rate=rate)
                state.step += 1
                pending.append((loss, rows))
                if (
                    device.type == "cpu" or len(pending) == 32 or state.step == steps or stop.asked
                ):  # 32: keep a GPU fed
                    _settle(pending, state, store, epoch)
                # None at the last step: what resumes there would find nothing to do in the epoch.
                if due.after(CHECKPOINT_EVERY_S) and not pending and state.step < steps:
                    due.save(folder, step, state)
                advance(1)
                if stop.asked and state.step < steps:
                    _leave(stop, folder, step, state)
            state.curve.append((math.fsum(state.partial) / steps, rate))
            state.epoch, state.step, state.partial = epoch + 1, 0, []
            if due.after(CHECKPOINT_AFTER_S):
                due.save(folder, step, state)
            if distributed.rank() == 0:
                speed = (steps - first) * size / (time.monotonic() - started)
                with due.paused():
                    log(epoch + 1, {"loss": state.curve[-1][0], "learning_rate": rate, "tiles_per_s": speed})
            if stop.asked and state.epoch < how.epochs:
                _leave(stop, folder, step, state)
    checkpoint.require_finite(encoder.state_dict(), state)  # the last step's loss says nothing of its update
    encoder.eval()
    return state


def _start(
    encoder: nn.Module, width: int, store: tiles.TileStore, *, settings: Settings, seed: int, folder: Path
) -> tuple[Step, checkpoint.State]:
    """The step and where to go on with it."""
    how, device = settings.pretrain, next(encoder.parameters()).device
    if how.compile and distributed.processes() > 1:
        raise RunError(f"pretrain.compile goes with one process, not with {distributed.processes()}")
    with enc.seeded(randomness.derive(seed, "projection")):
        head = enc.projection_head(width, **how.projection.model_dump()).to(device)
    model = nn.Sequential(encoder, head).train()
    if how.channels_last:
        model.to(memory_format=torch.channels_last)
        if device.type == "cpu":
            speed_up_small_maps(model)
    distributed.synchronize_batch_norm(model)
    optimizer = optimizers.build(model, how)
    state = checkpoint.resume(folder, model, optimizer)
    if (state.epoch or state.step) and distributed.rank() == 0:
        progress.say(f"going on from the checkpoint after epoch {state.epoch}, step {state.step}")
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if how.compile else model
    return Step(model, forward, optimizer, settings, store.statistics(how.normalization), seed), state


def _check_size(size: int, train_tiles: int, micro_batch_size: int | None) -> None:
    if size < 2:
        raise RunError(f"{train_tiles} training tiles are too few to contrast; 2 are needed")
    smallest = min(part.tiles.stop - part.tiles.start for part in cut(size, micro_batch_size))
    if smallest < distributed.processes():
        raise RunError(
            f"{distributed.processes()} processes cannot share {smallest} tiles (batches of {size}, "
            f"micro_batch_size {micro_batch_size}); start fewer or raise pretrain.micro_batch_size"
        )


@contextmanager
def _bar(total: int) -> Iterator[Callable[[int], None]]:
    if distributed.rank() > 0:
        yield lambda _count: None
        return
    with progress.bar("pretrain", total) as advance:
        yield advance


def _leave(stop: stopping.Stop, folder: Path, step: Step, state: checkpoint.State) -> None:
    """Save and go, as the signal asked. Others than process 0 wait for it to go: it may need them to end its step."""
    if distributed.rank() == 0:
        checkpoint.save(folder, step.model, step.optimizer, state)
        progress.say(
            f"stopped after epoch {state.epoch}, step {state.step}; the same command goes on from there"
        )
        stop.leave()


def _settle(
    pending: list[tuple[Tensor, npt.NDArray[np.int64]]],
    state: checkpoint.State,
    store: tiles.TileStore,
    epoch: int,
) -> None:
    """Fetch the losses of the latest steps and stop if one is not finite."""
    values = torch.stack([loss for loss, _ in pending]).tolist()
    for i, (value, (_, rows)) in enumerate(zip(values, pending, strict=True)):
        if not math.isfinite(value):
            step = state.step - len(pending) + i + 1
            names = ", ".join(store.names[row] for row in rows[:5])
            raise RunError(
                f"the loss is {value} in epoch {epoch + 1}, step {step}; its {len(rows)} tiles begin with "
                f"{names}. Lower learning_rate or raise temperature; the last checkpoint is kept"
            )
    state.partial += values
    pending.clear()
