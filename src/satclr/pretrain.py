"""Contrastive pretraining: the tile store → models/<profile>/<arm>/encoder.safetensors and a loss curve.

    satclr pretrain --profile sample --arm simclr --seed 0

`objective: none` writes the initial encoder. A run that was killed goes on from its last checkpoint and ends
with the weights it would have had anyway. Two arms that ask for the same pretraining share it.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import filelock
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open
from torch import Tensor, nn

from satclr import encoder as enc
from satclr import loss as losses
from satclr import optimizers, progress, randomness, tensorfile, tiles, views
from satclr.params import Objective, Pretrain, Settings

CHECKPOINT_EVERY_S = 600.0  # within an epoch
CHECKPOINT_AFTER_S = 15.0  # at an epoch's end, if so much has passed since the last: more would be lost time
CODE = (
    "pretrain.py",
    "views",
    "encoder.py",
    "loss.py",
    "optimizers.py",
    "tiles.py",
    "randomness.py",
    "tensorfile.py",
)

Log = Callable[[int, Mapping[str, float]], None]


class RunError(RuntimeError):
    """Training cannot go on: exit code 1, the last good checkpoint kept."""


@dataclass
class State:
    """Where a run is: `epoch` finished epochs, `step` finished steps of the next, their losses."""

    epoch: int = 0
    step: int = 0
    partial: list[float] = field(default_factory=list)  # losses of the epoch under way
    curve: list[tuple[float, float]] = field(default_factory=list)  # (mean loss, learning rate) an epoch


def run(
    store: tiles.Store, *, settings: Settings, seed: int, root: Path, out: Path, curve: Path, log: Log
) -> None:
    """Write the pretrained encoder to `out` and its loss an epoch to `curve`.

    `log(epoch, metrics)` hears of each epoch as it ends. Raises `encoder.EncoderError` for weights that are
    not to be had and `RunError` when the loss is not finite.
    """
    key = fingerprint(settings, seed, store.digest)
    folder = root / ".cache" / "checkpoints" / key
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder):
        if not (folder / "encoder.safetensors").exists():
            train(store, settings=settings, seed=seed, root=root, folder=folder, log=log)
        else:
            progress.say(f"this pretraining has been run before; its encoder is taken from {key[:12]}")
        for source, target in ((folder / "encoder.safetensors", out), (folder / "pretrain.csv", curve)):
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(target.name + ".part")
            shutil.copyfile(source, part)
            part.replace(target)


def fingerprint(settings: Settings, seed: int, store_digest: str) -> str:
    """Stands for all that the encoder depends on: parameters, tiles and the code of the stage."""
    code = hashlib.sha256()
    for name in CODE:
        path = Path(__file__).with_name(name)
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            code.update(file.read_bytes())
    facts = {
        "views": settings.views.model_dump(mode="json"),
        "pretrain": settings.pretrain.model_dump(mode="json"),
        "seed": seed,
        "store": store_digest,
        "code": code.hexdigest(),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def train(store: tiles.Store, *, settings: Settings, seed: int, root: Path, folder: Path, log: Log) -> None:
    """Train, or go on from the checkpoint in `folder`, and leave encoder and curve there."""
    how = settings.pretrain
    device = enc.device()
    mean, std = store.statistics(how.normalization)
    encoder, width = enc.initial(how.arch, how.weights, seed=randomness.derive(seed, "encoder"), root=root)
    encoder.to(device)
    state = State()
    if how.adapt_batch_norm:
        adapt_batch_norm(encoder, store, settings)
    if how.objective != "none":
        state = _contrast(store, encoder, width, settings=settings, seed=seed, folder=folder, log=log)
    _write_curve(folder / "pretrain.csv", state.curve)
    facts = {"mean": mean, "std": std, "crop_px": settings.views.crop_px, "tile_px": store.stats["tile_px"]}
    enc.save(encoder, folder / "encoder.safetensors", arch=how.arch, width=width, **facts)
    (folder / "checkpoint.safetensors").unlink(missing_ok=True)


def _contrast(
    store: tiles.Store,
    encoder: nn.Module,
    width: int,
    *,
    settings: Settings,
    seed: int,
    folder: Path,
    log: Log,
) -> State:
    how = settings.pretrain
    device = next(encoder.parameters()).device
    with enc.seeded(randomness.derive(seed, "projection")):
        head = enc.projection_head(width, **how.projection.model_dump()).to(device)
    model = nn.Sequential(encoder, head).train()
    if how.channels_last:
        model.to(memory_format=torch.channels_last)
    optimizer = optimizers.build(model, how)
    state = _resume(folder, model, optimizer)
    forward: Callable[[Tensor], Tensor] = torch.compile(model) if how.compile else model
    train_rows = store.rows("train")
    size = min(how.batch_size, len(train_rows))
    steps = len(train_rows) // size
    if size < 2:
        raise RunError(f"{len(train_rows)} training tiles are too few to contrast; 2 are needed")
    saved = time.monotonic()
    with progress.bar("pretrain", steps * how.epochs) as advance:
        advance(state.epoch * steps + state.step)
        for epoch in range(state.epoch, how.epochs):
            started = time.monotonic()
            order = train_rows[randomness.permutation(len(train_rows), seed, "order", epoch).numpy()]
            batches = tiles.split_batches(order, size)[:steps]
            pending: list[tuple[Tensor, npt.NDArray[np.int64]]] = []
            first = state.step
            for rows, batch in tiles.stream(store, batches[first:], device):
                rate = optimizers.learning_rate(how, epoch * steps + state.step, steps)
                targets = torch.from_numpy(store.targets[rows])
                draw = (seed, epoch, state.step)
                loss = _step(forward, optimizer, rate, batch, targets, store, settings, draw)
                state.step += 1
                pending.append((loss, rows))
                if device.type == "cpu" or len(pending) == 32 or state.step == steps:  # 32: keep a GPU fed
                    _settle(pending, state, store, epoch)
                if time.monotonic() - saved > CHECKPOINT_EVERY_S and not pending:
                    _save(folder, model, optimizer, state)
                    saved = time.monotonic()
                advance(1)
            elapsed_s = time.monotonic() - started
            state.curve.append((math.fsum(state.partial) / steps, rate))
            state.epoch, state.step, state.partial = epoch + 1, 0, []
            if time.monotonic() - saved > CHECKPOINT_AFTER_S:
                _save(folder, model, optimizer, state)
                saved = time.monotonic()
            speed = (steps - first) * size / elapsed_s
            log(epoch + 1, {"loss": state.curve[-1][0], "learning_rate": rate, "tiles_per_s": speed})
    encoder.eval()
    return state


def _step(
    forward: Callable[[Tensor], Tensor],
    optimizer: torch.optim.Optimizer,
    rate: float,
    batch: Tensor,  # (B,H,H,3) uint8
    targets: Tensor,  # (B,K) uint8
    store: tiles.Store,
    settings: Settings,
    draw: tuple[int, int, int],  # seed, epoch, step
) -> Tensor:
    """One step of SimCLR (arXiv:2002.05709, algorithm 1), whatever the objective.

    Returns the loss, detached and on the device.
    """
    how = settings.pretrain
    device = batch.device
    mean, std = store.statistics(how.normalization)
    seed, epoch, step = draw
    drawn = views.draw(
        randomness.generator(seed, "views", epoch, step),
        2 * len(batch),
        settings.views,
        tile_px=batch.shape[1],
    )
    x = views.render(
        batch, drawn.to(device), crop_px=settings.views.crop_px, mean=mean, std=std, dtype=_dtype(how)
    )
    with enc.seeded(randomness.derive(seed, "dropout", epoch, step)), enc.autocast(device, how.precision):
        z = forward(x) if how.forward == "joint" else torch.cat([forward(view) for view in x.chunk(2)])
    both = targets.bool().to(device).repeat(2, 1)  # each view has its tile's labels
    loss = contrast(z.float(), both, how.objective, how.temperature)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    return loss.detach()


def contrast(z: Tensor, targets: Tensor, objective: Objective, temperature: float) -> Tensor:
    """The loss that an arm asks for, of z (2B,D) and the labels (2B,K) of its rows; NT-Xent ignores labels."""
    match objective:
        case "nt_xent":
            return losses.nt_xent(z, temperature)
        case "supcon_any":
            return losses.supcon(z, targets, temperature, "any")
        case "supcon_all":
            return losses.supcon(z, targets, temperature, "all")
        case "jaccard":
            return losses.supcon(z, targets, temperature, "jaccard")
        case "mulsupcon":
            return losses.mulsupcon(z, targets, temperature)
        case "none":
            raise ValueError("objective: none has no loss; there is nothing to train")


def adapt_batch_norm(encoder: nn.Module, store: tiles.Store, settings: Settings) -> None:
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


def _settle(
    pending: list[tuple[Tensor, npt.NDArray[np.int64]]], state: State, store: tiles.Store, epoch: int
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


def _dtype(how: Pretrain) -> torch.dtype:
    return torch.bfloat16 if how.precision == "bfloat16" else torch.float32


def _lock(folder: Path) -> filelock.BaseFileLock:
    """One trainer a fingerprint; the lock dies with its process."""
    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        holder = (folder / "holder").read_text() if (folder / "holder").exists() else "another process"
        progress.say(f"waiting for {holder}, which runs the same pretraining ({folder.name[:12]})")
        lock.acquire()
    (folder / "holder").write_text(f"process {os.getpid()}")
    return lock


def _save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put model, optimizer and place in place of the last checkpoint."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
    tensorfile.save(folder / "checkpoint.safetensors", tensors, state=vars(state))


def _resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    path = folder / "checkpoint.safetensors"
    if not path.exists():
        return State()
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        saved = json.loads(file.metadata()["state"])
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = value
    for i, parameter in enumerate(model.parameters()):
        for name, value in moments.get(i, {}).items():
            if value.shape == parameter.shape:  # in the parameter's memory order, which fused steps rely on
                moments[i][name] = torch.empty_like(parameter).copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    state = State(**{**saved, "curve": [tuple(pair) for pair in saved["curve"]]})
    progress.say(f"going on from the checkpoint after epoch {state.epoch}, step {state.step}")
    return state


def _write_curve(path: Path, curve: Sequence[tuple[float, float]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["epoch", "loss", "learning_rate"])
        writer.writerows([epoch, *row] for epoch, row in enumerate(curve, 1))
