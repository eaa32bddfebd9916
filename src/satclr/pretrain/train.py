"""Contrastive pretraining (SimCLR, arXiv:2002.05709, and objectives that use labels); the loop is `train`.

In: build/<profile>/, the tile store. Out: models/<profile>/<arm>-s<seed>/encoder.safetensors, and the loss of
each epoch in results/<profile>/<arm>-s<seed>/pretrain.csv.

    satclr pretrain --profile sample --arm simclr --seed 0
    torchrun --nproc-per-node 2 -m satclr pretrain --profile sample --arm simclr --seed 0

`objective: none` writes the initial encoder. An interrupted run resumes from its last checkpoint, with any number
of processes, and ends with the weights of an uninterrupted one. Arms that ask for the same pretraining share it, also
where they select different epochs of those that it keeps.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from satclr import files, machine, progress, randomness
from satclr.data import tiles
from satclr.pretrain import architectures, checkpoint, diagnostics, distributed, finetune, objectives, views
from satclr.pretrain import encoder as encoders
from satclr.pretrain import optimizer as optimizers
from satclr.pretrain.checkpoint import RunError
from satclr.pretrain.convolution import speed_up_small_maps
from satclr.pretrain.encoder import Input
from satclr.pretrain.objectives import Forward, Objective
from satclr.progress import Log
from satclr.project import Run, code_digest

EPOCH_FILE = "epochs/{:03}.safetensors"  # the encoder of a kept epoch, in the folder of its pretraining
CURVE = "pretrain.csv"
LOSSES_AT_ONCE = 32  # on a GPU, where reading a loss waits for the device

Save = Callable[..., None]  # of the encoder, to a path
Unread = list[tuple[Tensor, npt.NDArray[np.int64]]]  # losses on the device, and their tiles' rows


def run(run: Run, log: Log) -> None:
    """Write the run's encoder and loss curve; `log(epoch, metrics)` is called at the end of each epoch.

    Under torchrun every process calls this; process 0 logs and writes. Raises `encoder.EncoderError` for weights that
    cannot be loaded, `RunError` when the loss is not finite, `distributed.ProcessError` when another process ended.
    """
    key, tuned = fingerprint(run), run.settings.pretrain.finetune.epochs > 0
    folder = run.root / ".cache" / "checkpoints" / key
    device = machine.device()
    with distributed.group(device.type), machine.deterministic(run.deterministic):
        finished = distributed.agree((folder / "encoder.safetensors").exists(), device=device)
        if not finished:
            (_finetune if tuned else pretrain)(run, folder, log)
        if distributed.rank() == 0:
            if finished:
                progress.say(f"reusing the encoder of an identical pretraining ({key[:12]})")
            checkpoint.copy(folder / run.encoder.name if tuned else _selected(run, folder), run.encoder)
            checkpoint.copy(folder / CURVE, run.results / CURVE)
        distributed.agree(True, device=device)  # barrier: process 0 has written the files


def fingerprint(run: Run, *, finetuned: bool = True) -> str:
    """A digest of all that the encoder depends on: settings, seed, tiles, initial weights, code.

    It does not cover the number of processes, which may change when a run resumes, nor which of the kept epochs is
    selected, unless it is fine-tuned. finetuned: False for the encoder from which fine-tuning starts.
    """
    config = run.settings.pretrain
    start = architectures.named_file(config.arch, config.weights, root=run.root)
    store = tiles.open_store(run.store)
    unused = set[str]() if finetuned and config.finetune.epochs else {"select", "finetune"}
    facts = {
        "views": run.settings.views.model_dump(mode="json"),
        "pretrain": config.model_dump(mode="json", exclude=unused)
        | {"precision": machine.precision(config.precision)[0], "keep_epochs": _kept_epochs(run)},
        "seed": run.seed,
        "store": [store.digest, architectures.input_statistics(run, store)],
        "weights": files.sha256(start) if start else None,
        "code": code_digest(run.root, "pretrain"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def pretrain(run: Run, folder: Path, log: Log) -> None:
    """Train, or resume from the checkpoint in `folder`, and write encoder and loss curve there.

    The folder's name is the fingerprint.
    """
    config = run.settings.pretrain
    store = tiles.open_store(run.store).learning(config.near_duplicates, tiles=config.tiles)
    inputs = Input.of(run, store)
    start = architectures.named_file(config.arch, config.weights, root=run.root)
    seed = randomness.derive(run.seed, "encoder")
    encoder, width = encoders.initial(config.arch, config.weights, seed=seed, root=run.root, crop_px=inputs.crop_px)
    encoder.to(machine.device())
    if config.adapt_batch_norm:
        encoders.adapt_batch_norm(encoder, store, run)
    facts = asdict(inputs) | {"fingerprint": folder.name, "weights_sha256": files.sha256(start) if start else None}
    facts |= {name: store.stats[name] for name in ("tile_px", "scale") if name in store.stats}  # scale: not of 8 bits
    save: Save = partial(encoders.save, encoder, arch=config.arch, width=width, **facts)
    if config.shuffle_labels:
        store = _shuffled(store, run.seed)
    curve: list[dict[str, float]] = []
    heads: dict[str, Tensor] = {}
    if config.objective != "none":
        progress.say("pretraining in {}: {}".format(*machine.precision(config.precision)))
        machine.keep_freed_memory()
        curve, heads = train(store, encoder, width, run=run, folder=folder, log=log, save=save)
    if distributed.rank() > 0:
        return
    columns = list(dict.fromkeys(["loss", "learning_rate", *(name for row in curve for name in row)]))
    rows = [(epoch, *(row.get(name, "") for name in columns)) for epoch, row in enumerate(curve, 1)]
    files.write_csv(folder / CURVE, ["epoch", *columns], rows)
    save(folder / "encoder.safetensors", epoch=len(curve), heads=heads)
    (folder / checkpoint.FILE).unlink(missing_ok=True)


def _finetune(run: Run, folder: Path, log: Log) -> None:
    """Fine-tune the encoder of the same run without fine-tuning, which is pretrained first unless it has been."""
    if distributed.processes() > 1:
        raise RunError(f"pretrain.finetune requires one process, not {distributed.processes()}")
    source = folder.with_name(fingerprint(run, finetuned=False))
    if not (source / run.encoder.name).exists():
        pretrain(run, source, log)
    checkpoint.copy(source / CURVE, folder / CURVE)
    finetune.run(run, _selected(run, source), folder / run.encoder.name, log)


def train(
    store: tiles.TileStore, encoder: nn.Module, width: int, *, run: Run, folder: Path, log: Log,
    save: Save = lambda *_, **__: None,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:  # fmt: skip
    """Train `encoder` (features of `width`); returns each epoch's numbers, and tensors that go into its file.

    Every process takes its share of each batch. `save(path, epoch=)` is called for each epoch to keep. The encoder is
    left in eval mode, on a CPU with faster convolutions in place of some of its own.
    """
    config, device, rows, inputs = run.settings.pretrain, machine.device(), store.rows("train"), Input.of(run, store)
    size = min(config.batch_size, len(rows))  # B
    steps = len(rows) // size  # an epoch; the rest of its random order is left out
    parts, kept = optimizers.cut(size, config.micro_batch_size), _kept_epochs(run)
    model, objective, forward = _model(encoder, width, run, parts, labels=len(store.labels))
    trained = nn.ModuleList([model, objective])
    optimizer = optimizers.build(trained, config)
    state = checkpoint.resume(folder, trained, optimizer)
    checkpoints = checkpoint.Writer(folder, trained, optimizer, state)
    leader, done = distributed.rank() == 0, steps * state.epoch + state.step
    bar = progress.bar("pretrain", steps * config.epochs, "steps", start=done)
    with bar as advance, machine.stop.deferred() as stop:
        for epoch in range(state.epoch, config.epochs):
            began, first = time.monotonic(), state.step
            order = rows[randomness.permutation(len(rows), run.seed, "order", epoch).numpy()]
            batches = tiles.split_batches(order, size)[first:steps]
            own = [np.concatenate([batch[part.own] for part in parts]) for batch in batches]
            unread: Unread = []
            for batch, (_, pixels) in zip(batches, tiles.stream(store, own, device), strict=True):
                at = (epoch, state.step)
                source = randomness.generator(run.seed, "views", *at)
                drawn = views.draw(source, 2 * size, run.settings.views, tile_px=pixels.shape[1])
                targets = torch.from_numpy(store.targets[batch]).bool().to(device).repeat(2, 1)  # (2B,K)
                rate = optimizer.param_groups[0]["lr"] = optimizers.learning_rate(config, done, steps)
                optimizer.zero_grad(set_to_none=True)
                encode = partial(project, forward, inputs, pixels, drawn, (run.seed, "dropout", *at))
                loss = optimizers.backward(model, encode, parts, partial(objective, targets, epoch))
                optimizer.step()
                objective.after_step(model)
                state.step, done = state.step + 1, done + 1
                unread.append((loss, batch))
                last, due = state.step == steps, stop.requested is not None or checkpoints.due()
                if last or due or device.type == "cpu" or len(unread) == LOSSES_AT_ONCE:
                    _read(unread, state, store)
                advance(1)
                if last:
                    seen = diagnostics.after_epoch(model, store, run, inputs, state.curve) if leader else {}
                    state.finish_epoch(learning_rate=rate, **seen)
                    if state.epoch in kept and leader:  # before a checkpoint says that it is
                        checkpoint.require_finite(encoder.state_dict(), state)
                        save(folder / EPOCH_FILE.format(state.epoch), epoch=state.epoch)
                if due:
                    checkpoints.write()
                    if leader and stop.requested is not None:  # the others stay: process 0 may need them for its step
                        progress.say(f"stopped {state}; the same command resumes from there")
                        stop.leave()
            if leader:
                log(state.epoch, state.curve[-1] | {"tiles_per_s": (steps - first) * size / (time.monotonic() - began)})
    checkpoint.require_finite(encoder.state_dict(), state)  # the last loss precedes the last update
    model.eval()
    return state.curve, _label_logits(model, store, run, inputs) if config.objective == "mulcon" else {}


def project(
    forward: Forward, inputs: Input, pixels: Tensor, drawn: views.Parameters, dropout: tuple[Any, ...],
    part: optimizers.Part,
) -> Tensor:  # fmt: skip
    """Render both views of this process's tiles of a micro-batch and encode them: z (2,b,D) in float32.

    pixels (b',H,H,3) uint8 are this process's tiles of the batch, `drawn` the parameters of all its 2B views, `dropout`
    the seed and purpose of random numbers.
    """
    size, own, pixels = len(drawn) // 2, part.own, pixels[part.local]
    if own == slice(0, size):
        x = inputs.render(pixels, drawn)
    else:
        x = torch.cat([inputs.render(pixels, drawn[first + own.start : first + own.stop]) for first in (0, size)])
    with randomness.seeded(randomness.derive(*dropout, own.start)):
        z: Tensor = inputs.encode(forward, x).unflatten(0, (2, -1))
    return z


@torch.no_grad()
def _label_logits(model: nn.Sequential, store: tiles.TileStore, run: Run, inputs: Input) -> dict[str, Tensor]:
    """The logits (N,K) that MulCon's own heads give to validation and test tiles, by their names in the file."""
    found: dict[str, Tensor] = {}
    for split in ("val", "test"):
        batches = tiles.split_batches(store.rows(split), run.settings.pretrain.batch_size)
        streamed = (inputs.whole(pixels) for _, pixels in tiles.stream(store, batches, machine.device()))
        logits = [model[1](inputs.encode(model[0], x))[:, : len(store.labels)] for x in streamed]
        found[f"heads.{split}_logits"] = torch.cat(logits)
    return found


def _kept_epochs(run: Run) -> list[int]:
    """The epochs whose encoders are kept: those that the run asks for, and those that may be selected."""
    config = run.settings.pretrain
    if config.objective == "none":
        return []
    if config.keep_epochs == "all" or config.select in ("best", "arbitrary"):
        return list(range(1, config.epochs + 1))
    return sorted({*config.keep_epochs, config.select} - {"last"})


def _selected(run: Run, folder: Path) -> Path:
    """The encoder of the epoch that the run selects, from a finished pretraining."""
    select, losses = run.settings.pretrain.select, [float(row["loss"]) for row in files.read_csv(folder / CURVE)]
    if not losses or select == "last":
        return folder / run.encoder.name
    epoch = randomness.epoch(select, losses, run.seed, "pretrain")
    progress.say(f"selected epoch {epoch} of {len(losses)} (pretrain.select: {select})")
    return folder / EPOCH_FILE.format(epoch)


def _shuffled(store: tiles.TileStore, seed: int) -> tiles.TileStore:
    """`store` with the labels of its labelled training tiles in a random order."""
    rows, targets = store.rows("train"), store.targets.copy()
    rows = rows[targets[rows].any(1)]
    targets[rows] = targets[rows][randomness.permutation(len(rows), seed, "shuffled labels").numpy()]
    return replace(store, targets=targets)


def _model(
    encoder: nn.Module, width: int, run: Run, parts: list[optimizers.Part], *, labels: int
) -> tuple[nn.Sequential, Objective, Forward]:
    """Encoder and projection head in training mode, what they train for, and how both views are encoded."""
    config, device, processes = run.settings.pretrain, machine.device(), distributed.processes()
    if config.compile and processes > 1:
        raise RunError(f"pretrain.compile requires one process, not {processes}")
    smallest = min(part.tiles.stop - part.tiles.start for part in parts)
    if smallest < processes:
        raise RunError(
            f"{processes} processes cannot share {smallest} tiles (batches of {parts[-1].tiles.stop}, "
            f"micro_batch_size {config.micro_batch_size}); start fewer or raise pretrain.micro_batch_size"
        )
    shape = config.projection
    with randomness.seeded(randomness.derive(run.seed, "projection")):
        if config.objective == "mulcon":
            head: nn.Module = objectives.LabelHead(width, labels, hidden=shape.hidden, out=shape.out)
        else:
            head = encoders.projection_head(width, **shape.model_dump())
    model = nn.Sequential(encoder, head.to(device)).to(memory_format=torch.channels_last)
    if config.matmul_convolutions and device.type == "cpu":
        speed_up_small_maps(model)
    distributed.synchronize_batch_norm(model)
    if isinstance(head, objectives.LabelHead):
        head.attend(encoder, run.settings.views.crop_px)
    model.train()
    with randomness.seeded(randomness.derive(run.seed, "objective")):
        objective = objectives.build(config, model, labels).to(device)
    return model, objective, partial(objective.encode, torch.compile(model) if config.compile else model)


def _read(unread: Unread, state: checkpoint.State, store: tiles.TileStore) -> None:
    """Move the losses of the latest steps to `state`. Raises `RunError` if one is not finite."""
    values = torch.stack([loss for loss, _ in unread]).tolist()
    for step, (value, (_, batch)) in enumerate(zip(values, unread, strict=True), state.step - len(unread) + 1):
        if not math.isfinite(value):
            names = ", ".join(store.names[row] for row in batch[:5])
            where = f"epoch {state.epoch + 1}, step {step}; its {len(batch)} tiles begin with {names}"
            raise RunError(f"the loss is {value} in {where}. {checkpoint.REMEDY}")
    state.losses += values
    unread.clear()
