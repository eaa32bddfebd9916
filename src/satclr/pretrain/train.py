"""Contrastive pretraining (SimCLR, arXiv:2002.05709, and objectives that use labels); the loop is `train`.

In: build/<profile>/, the tile store. Out: models/<profile>/<arm>-s<seed>/encoder.safetensors, and the loss of
each epoch in results/<profile>/<arm>-s<seed>/pretrain.csv.

    satclr pretrain --profile sample --arm simclr --seed 0
    torchrun --nproc-per-node 2 -m satclr pretrain --profile sample --arm simclr --seed 0

`objective: none` writes the initial encoder. An interrupted run resumes from its last checkpoint, with any number
of processes, and ends with the weights of an uninterrupted one. Arms that ask for the same pretraining share it, also
where they select different epochs of those that it keeps.
"""

import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from satclr import files, machine, progress, randomness
from satclr.data import tiles
from satclr.data.tiles import Statistics
from satclr.pretrain import architectures, checkpoint, diagnostics, distributed, finetune, objectives, views
from satclr.pretrain import encoder as encoders
from satclr.pretrain import optimizer as optimizers
from satclr.pretrain.checkpoint import RunError
from satclr.pretrain.convolution import speed_up_small_maps
from satclr.pretrain.objectives import Forward, Objective
from satclr.progress import Log
from satclr.project import Run, code_digest

LOSSES_AT_ONCE = 32  # on a GPU, where reading a loss waits for the device

Save = Callable[..., None]  # of the encoder, to a path
Unread = list[tuple[Tensor, npt.NDArray[np.int64]]]  # losses on the device, and their tiles' rows


def run(run: Run, log: Log) -> None:
    """Write the run's encoder and loss curve; `log(epoch, metrics)` is called at the end of each epoch.

    Under torchrun every process calls this; process 0 logs and writes. Raises `encoder.EncoderError` for weights that
    cannot be loaded, `RunError` when the loss is not finite, `distributed.ProcessError` when another process ended.
    """
    key = fingerprint(run)
    folder = run.root / ".cache" / "checkpoints" / key
    device = machine.device()
    with distributed.group(device.type), machine.deterministic(run.deterministic):
        finished = distributed.agree((folder / "encoder.safetensors").exists(), device=device)
        if not finished:
            pretrain(run, folder, log, fingerprint=key)
        if distributed.rank() == 0:
            if finished:
                progress.say(f"reusing the encoder of an identical pretraining ({key[:12]})")
            checkpoint.copy(checkpoint.selected(run, folder), run.encoder)
            checkpoint.copy(folder / checkpoint.CURVE, run.results / checkpoint.CURVE)
        distributed.agree(True, device=device)  # barrier: process 0 has written the files


def fingerprint(run: Run) -> str:
    """A digest of all that the encoder depends on: settings, seed, tiles, initial weights, code.

    It does not cover the number of processes, which may change when a run resumes, nor which of the kept epochs is
    selected.
    """
    config = run.settings.pretrain
    start = architectures.named_file(config.arch, config.weights, root=run.root)
    store = tiles.open_store(run.store)
    unused = {"select"} if config.finetune.epochs else {"select", "finetune"}
    facts = {
        "views": run.settings.views.model_dump(mode="json"),
        "pretrain": config.model_dump(mode="json", exclude=unused)
        | {"precision": machine.precision(config.precision)[0], "keep_epochs": checkpoint.kept_epochs(config)},
        "seed": run.seed,
        "store": [store.digest, architectures.input_statistics(config, store, root=run.root)],
        "weights": files.sha256(start) if start else None,
        "code": code_digest(run.root, "pretrain"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def pretrain(run: Run, folder: Path, log: Log, *, fingerprint: str) -> None:
    """Train, or resume from the checkpoint in `folder`, and write encoder and loss curve there."""
    config = run.settings.pretrain
    if config.finetune.epochs:
        _finetune(run, folder, log, key=fingerprint)
        return
    computed, reason = machine.precision(config.precision)
    store = tiles.open_store(run.store).learning(config.near_duplicates, tiles=config.tiles)
    mean, std = statistics = architectures.input_statistics(config, store, root=run.root)
    start, crop_px = architectures.named_file(config.arch, config.weights, root=run.root), run.settings.views.crop_px
    seed = randomness.derive(run.seed, "encoder")
    encoder, width = encoders.initial(config.arch, config.weights, seed=seed, root=run.root, crop_px=crop_px)
    encoder.to(machine.device())
    if config.adapt_batch_norm:
        encoders.adapt_batch_norm(encoder, store, run.settings, statistics, seed=run.seed)
    facts = {"mean": mean, "std": std, "crop_px": crop_px, "tile_px": store.stats["tile_px"]}
    facts |= {"interpolation": run.settings.views.interpolation, "precision": computed, "fingerprint": fingerprint}
    facts |= {"weights_sha256": files.sha256(start) if start else None}
    facts |= {"scale": store.stats["scale"]} if "scale" in store.stats else {}  # of tiles of other than 8 bits
    save: Save = partial(encoders.save, encoder, arch=config.arch, width=width, **facts)
    if config.shuffle_labels:
        store = _shuffled(store, run.seed)
    curve: list[dict[str, float]] = []
    heads: dict[str, Tensor] = {}
    if config.objective != "none":
        if distributed.rank() == 0:
            progress.say(f"pretraining in {computed}: {reason}")
        curve, heads = train(store, encoder, width, statistics=statistics, run=run, folder=folder, log=log, save=save)
    if distributed.rank() > 0:
        return
    columns = list(dict.fromkeys(["loss", "learning_rate", *(name for row in curve for name in row)]))
    rows = [(epoch, *(row.get(name, "") for name in columns)) for epoch, row in enumerate(curve, 1)]
    files.write_csv(folder / checkpoint.CURVE, ["epoch", *columns], rows)
    save(folder / "encoder.safetensors", epoch=len(curve), heads=heads)
    (folder / checkpoint.FILE).unlink(missing_ok=True)


def _finetune(run: Run, folder: Path, log: Log, *, key: str) -> None:
    """Fine-tune the encoder of the same run without fine-tuning, which is pretrained first unless it has been."""
    frozen = finetune.without(run)
    source = folder.with_name(fingerprint(frozen))
    if not (source / "encoder.safetensors").exists():
        pretrain(frozen, source, log, fingerprint=source.name)
    finetune.run(run, checkpoint.selected(frozen, source), source / checkpoint.CURVE, folder, log, fingerprint=key)


def train(
    store: tiles.TileStore, encoder: nn.Module, width: int, *, statistics: Statistics,
    run: Run, folder: Path, log: Log, save: Save = lambda *_, **__: None,
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:  # fmt: skip
    """Train `encoder` (features of `width`); returns each epoch's numbers, and tensors that go into its file.

    `statistics` are the mean and std of its input. Every process takes its share of each batch. `save(path, epoch=)` is
    called for each epoch to keep. The encoder is left in eval mode, on a CPU with faster convolutions in place of some
    of its own.
    """
    config, device, rows = run.settings.pretrain, machine.device(), store.rows("train")
    size = min(config.batch_size, len(rows))  # B
    steps = len(rows) // size  # an epoch; the rest of its random order is left out
    parts, kept = optimizers.cut(size, config.micro_batch_size), checkpoint.kept_epochs(config)
    model, objective, forward = _model(encoder, width, run, parts, labels=len(store.labels))
    trained = nn.ModuleList([model, objective])
    optimizer = optimizers.build(trained, config)
    state = checkpoint.resume(folder, trained, optimizer)
    checkpoints = checkpoint.Writer(folder, trained, optimizer, state)
    total, done = steps * config.epochs, steps * state.epoch + state.step
    leader = distributed.rank() == 0
    bar = progress.bar("pretrain", total, "steps", start=done) if leader else nullcontext(lambda _: None)
    with bar as advance, machine.stop.deferred() as stop:
        for epoch in range(state.epoch, config.epochs):
            started, first = time.monotonic(), state.step
            order = rows[randomness.permutation(len(rows), run.seed, "order", epoch).numpy()]
            batches = tiles.split_batches(order, size)[first:steps]
            own = [np.concatenate([batch[part.own] for part in parts]) for batch in batches]
            unread: Unread = []
            for batch, (_, pixels) in zip(batches, tiles.stream(store, own, device), strict=True):
                at = (epoch, state.step)
                source = randomness.generator(run.seed, "views", *at)
                drawn = views.draw(source, 2 * size, run.settings.views, tile_px=pixels.shape[1])
                targets = torch.from_numpy(store.targets[batch]).bool().to(device).repeat(2, 1)  # (2B,K)
                rate = optimizers.set_learning_rate(optimizer, config, epoch * steps + state.step, steps)
                optimizer.zero_grad(set_to_none=True)
                encode = partial(project, forward, run, statistics, pixels, drawn, at)
                loss = optimizers.backward(model, encode, parts, partial(objective, targets, epoch))
                optimizer.step()
                objective.after_step(model)
                state.step += 1
                unread.append((loss, batch))
                last, due = state.step == steps, checkpoints.due(stop)
                if last or due or device.type == "cpu" or len(unread) == LOSSES_AT_ONCE:
                    _read(unread, state, store)
                advance(1)
                if last:
                    seen = diagnostics.after_epoch(model, store, run, statistics, state.curve) if leader else {}
                    state.finish_epoch(learning_rate=rate, **seen)
                    if state.epoch in kept and leader:  # before a checkpoint says that it is
                        checkpoint.require_finite(encoder.state_dict(), state)
                        save(checkpoint.epoch_file(folder, state.epoch), epoch=state.epoch)
                if due:
                    checkpoints.write(stop)
            speed = (steps - first) * size / (time.monotonic() - started)
            if leader:
                log(state.epoch, state.curve[-1] | {"tiles_per_s": speed})
    checkpoint.require_finite(encoder.state_dict(), state)  # the last loss precedes the last update
    model.eval()
    return state.curve, _label_logits(model, store, run, statistics) if config.objective == "mulcon" else {}


def project(
    forward: Forward, run: Run, statistics: Statistics, pixels: Tensor, drawn: views.Parameters, at: tuple[int, int],
    part: optimizers.Part,
) -> Tensor:  # fmt: skip
    """Render both views of this process's tiles of a micro-batch and encode them: z (2,b,D) in float32.

    pixels (b',H,H,3) uint8 are this process's tiles of the batch, `drawn` the parameters of all its 2B views,
    `statistics` the mean and std of the encoder's input; `at` is (epoch, step).
    """
    config, crop_px, (mean, std) = run.settings.pretrain, run.settings.views.crop_px, statistics
    computed, _ = machine.precision(config.precision)
    dtype = torch.bfloat16 if computed == "bfloat16" else torch.float32
    render = partial(views.render, pixels[part.local], crop_px=crop_px, mean=mean, std=std, dtype=dtype)
    size, own = len(drawn) // 2, part.own
    if own == slice(0, size):
        x = render(drawn)
    else:
        x = torch.cat([render(drawn[own]), render(drawn[size + own.start : size + own.stop])])
    dropout = randomness.derive(run.seed, "dropout", *at, own.start)
    with randomness.seeded(dropout), machine.autocast(pixels.device, computed):
        z = forward(x)
    both: Tensor = z.float().unflatten(0, (2, -1))
    return both


@torch.no_grad()
def _label_logits(model: nn.Sequential, store: tiles.TileStore, run: Run, statistics: Statistics) -> dict[str, Tensor]:
    """The logits (N,K) that MulCon's own heads give to validation and test tiles, by their names in the file."""
    config, device, (mean, std) = run.settings, machine.device(), statistics
    computed, _ = machine.precision(config.pretrain.precision)
    view = partial(views.evaluation_view, crop_px=config.views.crop_px, interpolation=config.views.interpolation)
    found: dict[str, Tensor] = {}
    for split in ("val", "test"):
        logits = []
        for _, pixels in tiles.stream(
            store, tiles.split_batches(store.rows(split), config.pretrain.batch_size), device
        ):
            with machine.autocast(device, computed):
                h = model[0](view(pixels, mean=mean, std=std))
            logits.append(model[1](h.float())[:, : len(store.labels)])
        found[f"heads.{split}_logits"] = torch.cat(logits)
    return found


def _shuffled(store: tiles.TileStore, seed: int) -> tiles.TileStore:
    """`store` with the labels of its labelled training tiles in a random order."""
    rows, targets = store.rows("train"), store.targets.copy()
    rows = rows[targets[rows].any(1)]
    targets[rows] = targets[rows][randomness.permutation(len(rows), seed, "shuffled labels").numpy()]
    return dataclasses.replace(store, targets=targets)


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
    with randomness.seeded(randomness.derive(run.seed, "projection")):
        if config.objective == "mulcon":
            shape = config.projection.model_dump(exclude={"batch_norm"})
            head: nn.Module = objectives.LabelHead(width, labels, **shape)
        else:
            head = encoders.projection_head(width, **config.projection.model_dump())
    model = nn.Sequential(encoder, head.to(device)).train()
    model.to(memory_format=torch.channels_last)
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
    for i, (value, (_, batch)) in enumerate(zip(values, unread, strict=True)):
        if not math.isfinite(value):
            step = state.step - len(unread) + i + 1
            names = ", ".join(store.names[row] for row in batch[:5])
            where = f"epoch {state.epoch + 1}, step {step}; its {len(batch)} tiles begin with {names}"
            raise RunError(f"the loss is {value} in {where}. {checkpoint.REMEDY}")
    state.losses += values
    unread.clear()
