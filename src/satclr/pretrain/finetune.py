"""Fine-tuning: a pretrained encoder and a linear head trained on labels, end to end; a ceiling for frozen probes.

In: the encoder of the same run without `pretrain.finetune`. Out: encoder.safetensors of the epoch with the lowest
validation loss. The head is discarded: the stages after this one embed tiles and fit probes as for any other encoder.

    satclr pretrain --profile sample --arm simclr_finetuned --seed 0
"""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from satclr import machine, progress, randomness
from satclr.data import tiles
from satclr.pretrain import checkpoint, distributed, views
from satclr.pretrain import encoder as encoders
from satclr.pretrain.checkpoint import RunError
from satclr.pretrain.convolution import speed_up_small_maps
from satclr.progress import Log
from satclr.project import Run

# Large crops and flips: what is labelled must stay in sight, in the colours and sharpness of evaluation.
MILD = {"scale": (0.5, 1.0), "jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": 0.0}

Statistics = tuple[tiles.Channels, tiles.Channels, int]  # mean and std of the input, crop_px


def without(run: Run) -> Run:
    """The run whose encoder is fine-tuned. Raises `RunError` under torchrun."""
    if distributed.processes() > 1:
        raise RunError(f"pretrain.finetune requires one process, not {distributed.processes()}")
    settings, config = run.settings, run.settings.pretrain
    off = config.model_copy(update={"finetune": config.finetune.model_copy(update={"epochs": 0})})
    return replace(run, settings=settings.model_copy(update={"pretrain": off}))


def run(run: Run, source: Path, curve: Path, target: Path, log: Log, *, fingerprint: str) -> None:
    """Fine-tune the encoder `source` on augmented training tiles; writes encoder and curve to the folder `target`.

    The loss is binary cross-entropy. Stops after `patience` epochs without a lower one on validation tiles. Raises
    `RunError` for a loss that is not finite.
    """
    config, device = run.settings.pretrain.finetune, machine.device()
    computed, _ = machine.precision(run.settings.pretrain.precision)
    store = tiles.open_store(run.store).learning(run.settings.pretrain.near_duplicates)
    facts = encoders.load_facts(source)
    statistics = encoders.evaluation_facts(facts, source)
    encoder, width = encoders.load(source)
    with randomness.seeded(randomness.derive(run.seed, "finetune head")):
        model = nn.Sequential(encoder, nn.Linear(width, len(store.labels)))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.settings.pretrain.matmul_convolutions and device.type == "cpu":
        speed_up_small_maps(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    lowest, best_epoch, best = math.inf, 0, encoder.state_dict()
    with progress.bar("finetune", config.epochs, "epochs") as advance:
        for epoch in range(1, config.epochs + 1):
            train_loss = _train(run, store, model, optimizer, statistics, computed, epoch)
            val_loss = _validate(store, model, statistics, computed, run.settings.views.interpolation)
            if not math.isfinite(train_loss + val_loss):
                advice = "lower pretrain.finetune.learning_rate"
                raise RunError(f"fine-tuning: the loss is {train_loss} in epoch {epoch}, {val_loss} on val; {advice}")
            log(epoch, {"finetune_loss": train_loss, "finetune_val_loss": val_loss})
            advance(1)
            if val_loss < lowest:
                state = {name: value.detach().clone() for name, value in encoder.state_dict().items()}
                lowest, best_epoch, best = val_loss, epoch, state
            elif epoch - best_epoch >= config.patience:
                break
    encoder.load_state_dict(best)
    facts |= {"fingerprint": fingerprint, "finetuned": {"epoch": best_epoch, "val_loss": lowest}}
    facts["width"] = facts.pop("feature_dim")
    encoders.save(encoder, target / "encoder.safetensors", **facts)
    checkpoint.copy(curve, target / checkpoint.CURVE)  # of the pretraining before
    progress.say(f"fine-tuned: validation loss {lowest:.4f} in epoch {best_epoch}")


def _train(
    run: Run, store: tiles.TileStore, model: nn.Module, optimizer: torch.optim.Optimizer,
    statistics: Statistics, computed: str, epoch: int,
) -> float:  # fmt: skip
    """One epoch on augmented training tiles; returns the mean loss."""
    rows, size, (mean, std, crop_px) = store.rows("train"), run.settings.pretrain.batch_size, statistics
    order = rows[randomness.permutation(len(rows), run.seed, "finetune order", epoch).numpy()]
    batches = tiles.split_batches(order, size, smallest=size // 2 + 1)  # for BatchNorm's sake
    mild = run.settings.views.model_copy(update=MILD)
    dtype = torch.bfloat16 if computed == "bfloat16" else torch.float32
    losses: list[Tensor] = []
    model.train()
    for step, (batch, pixels) in enumerate(tiles.stream(store, batches, machine.device())):
        source = randomness.generator(run.seed, "finetune views", epoch, step)
        drawn = views.draw(source, len(batch), mild, tile_px=pixels.shape[1])
        x = views.render(pixels, drawn, crop_px=crop_px, mean=mean, std=std, dtype=dtype)
        optimizer.zero_grad(set_to_none=True)
        with randomness.seeded(randomness.derive(run.seed, "finetune dropout", epoch, step)):
            loss = _loss(model, x, store, batch, computed)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach() * len(batch))
    return float(torch.stack(losses).sum()) / len(rows)


@torch.no_grad()
def _validate(
    store: tiles.TileStore, model: nn.Module, statistics: Statistics, computed: str, interpolation: str
) -> float:
    """The mean loss on whole validation tiles, in eval mode."""
    model.eval()
    rows, total, (mean, std, crop_px) = store.rows("val"), 0.0, statistics
    for batch, pixels in tiles.stream(store, tiles.split_batches(rows, 256), machine.device()):
        x = views.evaluation_view(pixels, crop_px=crop_px, mean=mean, std=std, interpolation=interpolation)
        total += float(_loss(model, x, store, batch, computed)) * len(batch)
    return total / len(rows)


def _loss(model: nn.Module, x: Tensor, store: tiles.TileStore, rows: npt.NDArray[np.int64], computed: str) -> Tensor:
    with machine.autocast(x.device, computed):
        logits = model(x)
    targets = torch.from_numpy(store.targets[rows]).to(x.device).float()
    return F.binary_cross_entropy_with_logits(logits.float(), targets)
