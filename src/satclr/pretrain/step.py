"""One step of contrastive pretraining: views, projections, loss, gradients, update.

In: a global batch's draw and this process's tiles of it. Out: changed weights and the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satclr.pretrain import distributed, views
from satclr import randomness
from satclr.pretrain import encoder as enc
from satclr.pretrain import loss as losses
from satclr.params import Objective, Settings
from satclr.data.tiles import Channels

Encode = Callable[["Part"], Tensor]  # this process's tiles of a micro-batch → z (2,b,D), float32 or better


@dataclass(frozen=True)
class Part:
    """A micro-batch of a global batch of B tiles."""

    tiles: slice  # of 0..B: all processes' together
    own: slice  # of 0..B: this process's
    held: slice  # where those lie among the tiles that this process holds


def cut(count: int, micro_batch_size: int | None) -> list[Part]:
    """A global batch of `count` tiles in micro-batches of at most `micro_batch_size` (null: one).

    The same for any number of processes, which share each micro-batch.
    """
    parts: list[Part] = []
    held = 0
    for tiles in distributed.shares(count, -(-count // (micro_batch_size or count))):
        own = distributed.share(tiles)
        parts.append(Part(tiles, own, slice(held, held + own.stop - own.start)))
        held = parts[-1].held.stop
    return parts


@dataclass(frozen=True)
class Step:
    """What the steps of a run share; called once a step."""

    model: nn.Module  # (rows,3,S,S) → z (rows,D)
    forward: Callable[[Tensor], Tensor]  # the model, perhaps compiled
    optimizer: torch.optim.Optimizer
    settings: Settings
    statistics: tuple[Channels, Channels]  # mean and std of the encoder's input
    seed: int

    def __call__(
        self, tiles: Tensor, targets: Tensor, parts: Sequence[Part], *, epoch: int, step: int, rate: float
    ) -> Tensor:
        """SimCLR's step (arXiv:2002.05709, algorithm 1); returns the loss, detached and on the device.

        tiles: this process's (b,H,H,3) uint8; targets: the global batch's (B,K).
        """
        how = self.settings.pretrain
        mean, std = self.statistics
        source = randomness.generator(self.seed, "views", epoch, step)
        drawn = views.draw(source, 2 * len(targets), self.settings.views, tile_px=tiles.shape[1])
        drawn = drawn.to(tiles.device)

        def render(rows: slice, held: slice) -> Tensor:
            return views.render(
                tiles[held],
                drawn[rows],
                crop_px=self.settings.views.crop_px,
                mean=mean,
                std=std,
                dtype=torch.bfloat16 if how.precision == "bfloat16" else torch.float32,
            )

        def encode(part: Part) -> Tensor:
            if part.own == slice(0, len(targets)):
                x = render(slice(0, 2 * len(targets)), part.held)
            else:
                second = slice(part.own.start + len(targets), part.own.stop + len(targets))
                x = torch.cat([render(part.own, part.held), render(second, part.held)])
            dropout = randomness.derive(self.seed, "dropout", epoch, step, part.own.start)
            with enc.seeded(dropout), enc.autocast(tiles.device, how.precision):
                joint = how.forward == "joint"
                z = self.forward(x) if joint else torch.cat([self.forward(view) for view in x.chunk(2)])
            views_first: Tensor = z.float().unflatten(0, (2, -1))
            return views_first

        def loss_of(z: Tensor) -> Tensor:
            return contrast(
                z.flatten(0, 1), both, how.objective, how.temperature, nt_xent_weight=how.nt_xent_weight
            )

        both = targets.bool().to(tiles.device).repeat(2, 1)  # each view has its tile's labels
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = backward(self.model, encode, parts, loss_of)
        self.optimizer.step()
        return loss


def backward(
    model: nn.Module, encode: Encode, parts: Sequence[Part], loss_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """Put the gradient of loss_of(z), z (2,B,D) of the global batch, into `model`; returns the loss, detached.

    With one part, plainly. With more, by gradient caching (Gao et al. 2021, arXiv:2101.06983): projections
    without a graph, the loss and its gradient by them once, then each part's graph alone; memory is that of a
    part, and the gradient is the whole batch's. `encode` must give a part the same z both times. BatchNorm
    normalises each part by itself, and its running statistics move once: to the mean of where each part alone
    would have moved them.
    """
    if len(parts) == 1:
        loss = loss_of(distributed.gather(encode(parts[0]), parts[0].tiles))
        loss.backward()
    else:
        z = _without_graph(model, encode, parts).requires_grad_()
        loss = loss_of(z)
        loss.backward()
        buffers = list(model.buffers())
        moved = [buffer.clone() for buffer in buffers]
        for part in parts:
            encode(part).backward(z.grad[:, part.own])  # type: ignore[index]
        _put(buffers, moved)
    distributed.sum_gradients(model)
    return loss.detach()


@torch.no_grad()
def _without_graph(model: nn.Module, encode: Encode, parts: Sequence[Part]) -> Tensor:
    """Projections (2,B,D) of all parts; buffers move once."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    totals = [torch.zeros_like(buffer) for buffer in buffers]
    z: list[Tensor] = []
    for part in parts:
        _put(buffers, before)
        z.append(distributed.gather(encode(part), part.tiles))
        for total, buffer in zip(totals, buffers, strict=True):
            total.add_(buffer)
    count = len(parts)
    _put(buffers, [t / count if t.is_floating_point() else t // count for t in totals])
    return torch.cat(z, 1)


@torch.no_grad()
def _put(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)


def contrast(
    z: Tensor, targets: Tensor, objective: Objective, temperature: float, *, nt_xent_weight: float = 0.0
) -> Tensor:
    """The loss that an arm asks for, of z (2B,D) and the labels (2B,K) of its rows; NT-Xent ignores labels."""
    if nt_xent_weight:
        rest = contrast(z, targets, objective, temperature)
        return nt_xent_weight * losses.nt_xent(z, temperature) + (1 - nt_xent_weight) * rest
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
