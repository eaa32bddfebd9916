"""Gradient caching: the gradient of a whole batch in the memory of a micro-batch (Gao et al., arXiv:2101.06983).

In: a function that encodes a micro-batch, and a loss of all projections. Out: the loss, and gradients in the model.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from satclr.pretrain import distributed


@dataclass(frozen=True)
class Part:
    """A micro-batch of a batch of B tiles."""

    tiles: slice  # of 0..B: the tiles of all processes
    own: slice  # of 0..B: those of this process
    local: slice  # the same among the tiles that this process has read


Encode = Callable[[Part], Tensor]  # z (2,b,D): this process's projections of a part


def cut(count: int, micro_batch_size: int | None) -> list[Part]:
    """Cut a batch of `count` tiles into micro-batches of at most `micro_batch_size` (None: a single one).

    They are the same for any number of processes, which share each of them.
    """
    parts: list[Part] = []
    start = 0
    for tiles in distributed.shares(count, -(-count // (micro_batch_size or count))):
        own = distributed.share(tiles)
        parts.append(Part(tiles, own, slice(start, start + own.stop - own.start)))
        start = parts[-1].local.stop
    return parts


def backward(model: nn.Module, encode: Encode, parts: Sequence[Part], loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Put the gradient of the batch's loss into `model`; returns the loss, detached.

    `encode` must return the same z both times; `loss_of` maps z (2B,D), rows i and i+B views of tile i, to a scalar.

    A single part is encoded and differentiated as usual. Several are encoded without a graph; the loss and its gradient
    by z are computed once; then each part is encoded again and that gradient sent through it. BatchNorm normalises each
    part by itself, and its running statistics move once, to the mean of where each part alone would have moved them.
    """
    if len(parts) == 1:
        loss = loss_of(distributed.gather(encode(parts[0]), parts[0].tiles).flatten(0, 1))
        loss.backward()
    else:
        z = _without_graph(model, encode, parts).requires_grad_()
        loss = loss_of(z.flatten(0, 1))
        loss.backward()
        buffers = list(model.buffers())
        moved = [buffer.clone() for buffer in buffers]
        for part in parts:
            encode(part).backward(z.grad[:, part.own])  # type: ignore[index]
        _assign(buffers, moved)
    distributed.sum_gradients(model)
    return loss.detach()


@torch.no_grad()
def _without_graph(model: nn.Module, encode: Encode, parts: Sequence[Part]) -> Tensor:
    """Projections (2,B,D) of all parts; BatchNorm's statistics move once."""
    buffers = list(model.buffers())
    before = [buffer.clone() for buffer in buffers]
    totals = [torch.zeros_like(buffer) for buffer in buffers]
    z: list[Tensor] = []
    for part in parts:
        _assign(buffers, before)
        z.append(distributed.gather(encode(part), part.tiles))
        for total, buffer in zip(totals, buffers, strict=True):
            total.add_(buffer)
    count = len(parts)
    _assign(buffers, [t / count if t.is_floating_point() else t // count for t in totals])
    return torch.cat(z, 1)


@torch.no_grad()
def _assign(buffers: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for buffer, value in zip(buffers, values, strict=True):
        buffer.copy_(value)
