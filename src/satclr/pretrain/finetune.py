"""Fine-tuning: a pretrained encoder and a linear head trained on labels, end to end; a ceiling for frozen probes.

In: the encoder of the same run without `pretrain.finetune`. Out: encoder.safetensors of the epoch with the lowest
validation loss. The head is discarded: the stages after this one embed tiles and fit probes as for any other encoder.

    satclr pretrain --profile sample --arm simclr_finetuned --seed 0
"""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the field's name for it

from satclr import machine, progress, randomness
from satclr.data import tiles
from satclr.pretrain import encoder as encoders
from satclr.pretrain import views
from satclr.pretrain.checkpoint import RunError
from satclr.pretrain.convolution import speed_up_small_maps
from satclr.pretrain.encoder import Input
from satclr.project import Run

# Large crops and flips: what is labelled must stay in sight, in the colours and sharpness of evaluation.
MILD = {"scale": (0.5, 1.0), "jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": 0.0}
VALIDATION_BATCH = 256


def run(run: Run, source: Path, target: Path, log: progress.Log) -> None:
    """Fine-tune the encoder `source` on augmented training tiles and write it to `target`.

    The folder of `target` is named by the fingerprint. The loss is binary cross-entropy. Stops after `patience` epochs
    without a lower one on validation tiles. Raises `RunError` for a loss that is not finite.
    """
    config, device = run.settings.pretrain.finetune, machine.device()
    store = tiles.open_store(run.store).learning(run.settings.pretrain.near_duplicates)
    inputs, (encoder, width) = Input.of(run, store), encoders.load(source)
    with randomness.seeded(randomness.derive(run.seed, "finetune head")):
        model = nn.Sequential(encoder, nn.Linear(width, len(store.labels)))
    model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if run.settings.pretrain.matmul_convolutions and device.type == "cpu":
        speed_up_small_maps(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.learning_rate, fused=True)
    lowest, best_epoch, best = math.inf, 0, encoder.state_dict()
    with progress.bar("finetune", config.epochs, "epochs") as advance:
        for epoch in range(1, config.epochs + 1):
            train_loss = _train(run, store, model, optimizer, inputs, epoch)
            val_loss = _validate(store, model, inputs)
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
    facts = encoders.load_facts(source)
    facts |= {"fingerprint": target.parent.name, "finetuned": {"epoch": best_epoch, "val_loss": lowest}}
    encoders.save(encoder, target, width=width, **facts)
    progress.say(f"fine-tuned: validation loss {lowest:.4f} in epoch {best_epoch}")


def _train(
    run: Run, store: tiles.TileStore, model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Input, epoch: int
) -> float:
    """One epoch on augmented training tiles; returns the mean loss."""
    rows, size = store.rows("train"), run.settings.pretrain.batch_size
    order = rows[randomness.permutation(len(rows), run.seed, "finetune order", epoch).numpy()]
    batches = tiles.split_batches(order, size, smallest=size // 2 + 1)  # for BatchNorm's sake
    mild = run.settings.views.model_copy(update=MILD)
    losses: list[Tensor] = []
    model.train()
    for step, (batch, pixels) in enumerate(tiles.stream(store, batches, machine.device())):
        source = randomness.generator(run.seed, "finetune views", epoch, step)
        x = inputs.render(pixels, views.draw(source, len(batch), mild, tile_px=pixels.shape[1]))
        optimizer.zero_grad(set_to_none=True)
        with randomness.seeded(randomness.derive(run.seed, "finetune dropout", epoch, step)):
            loss = _loss(model, x, store, batch, inputs)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach() * len(batch))
    return float(torch.stack(losses).sum()) / len(rows)


@torch.no_grad()
def _validate(store: tiles.TileStore, model: nn.Module, inputs: Input) -> float:
    """The mean loss on whole validation tiles, in eval mode."""
    model.eval()
    rows, total = store.rows("val"), 0.0
    for batch, pixels in tiles.stream(store, tiles.split_batches(rows, VALIDATION_BATCH), machine.device()):
        total += float(_loss(model, inputs.whole(pixels), store, batch, inputs)) * len(batch)
    return total / len(rows)


def _loss(model: nn.Module, x: Tensor, store: tiles.TileStore, rows: npt.NDArray[np.int64], inputs: Input) -> Tensor:
    targets = torch.from_numpy(store.targets[rows]).to(x.device).float()
    return F.binary_cross_entropy_with_logits(inputs.encode(model, x), targets)
