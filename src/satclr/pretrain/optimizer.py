"""One step of training: the gradient of a batch, in the memory of a micro-batch; optimizers; the learning rate."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from satclr.params import Pretrain
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
    stop = 0
    for tiles in distributed.shares(slice(0, count), -(-count // (micro_batch_size or count))):
        own = distributed.share(tiles)
        start, stop = stop, stop + own.stop - own.start
        parts.append(Part(tiles, own, slice(start, stop)))
    return parts


def backward(model: nn.Module, encode: Encode, parts: Sequence[Part], loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    """Put the gradient of the batch's loss into `model`; returns the loss, detached.

    `encode` must return the same z both times; `loss_of` maps z (2B,D), rows i and i+B views of tile i, to a scalar.

    Several parts are encoded without a graph; the loss and its gradient by z are computed once; then each part is
    encoded again and that gradient sent through it (gradient caching: Gao et al., arXiv:2101.06983). BatchNorm
    normalises each part by itself; its running statistics move once, to the mean of where the parts would move them.
    """
    if len(parts) == 1:
        loss = loss_of(distributed.gather(encode(parts[0]), parts[0].tiles).flatten(0, 1))
        loss.backward()
    else:
        z = _without_graph(model, encode, parts).requires_grad_()
        loss = loss_of(z.flatten(0, 1))
        loss.backward()
        moved = [buffer.clone() for buffer in model.buffers()]
        for part in parts:
            encode(part).backward(z.grad[:, part.own])  # type: ignore[index]
        _set_buffers(model, moved)
    distributed.sum_gradients(model)
    return loss.detach()


@torch.no_grad()
def _without_graph(model: nn.Module, encode: Encode, parts: Sequence[Part]) -> Tensor:
    """Projections (2,B,D) of all parts; BatchNorm's statistics move once."""
    before = [buffer.clone() for buffer in model.buffers()]
    totals = [torch.zeros_like(buffer) for buffer in before]
    z: list[Tensor] = []
    for part in parts:
        _set_buffers(model, before)
        z.append(distributed.gather(encode(part), part.tiles))
        for total, buffer in zip(totals, model.buffers(), strict=True):
            total.add_(buffer)
    _set_buffers(model, [t / len(parts) if t.is_floating_point() else t // len(parts) for t in totals])
    return torch.cat(z, 1)


@torch.no_grad()
def _set_buffers(model: nn.Module, values: Sequence[Tensor]) -> None:
    for buffer, value in zip(model.buffers(), values, strict=True):
        buffer.copy_(value)


def build(model: nn.Module, config: Pretrain) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over all of `model` that learns; fused where torch has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "lars":
        return Lars(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: Pretrain, step: int, steps_per_epoch: int) -> float:
    """The rate of the `step`-th step (from 0): constant, or linear warm-up then cosine to 0."""
    if config.schedule == "constant":
        return config.learning_rate
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


class Lars(torch.optim.Optimizer):
    """SGD with momentum 0.9 whose step is scaled per layer by 0.001·‖w‖/‖g‖ (You et al., arXiv:1708.03888).

    As SimCLR uses it (arXiv:2002.05709, B.6): vectors, that is biases and BatchNorm, get neither the scaling
    nor weight decay.
    """

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        (group,) = self.param_groups
        for w in group["params"]:
            if w.grad is None:
                continue
            step = w.grad
            if w.ndim > 1:
                step = step.add(w, alpha=group["weight_decay"])
                norm_w, norm_step = w.norm(), step.norm()
                some = (norm_w > 0) & (norm_step > 0)
                step = step * torch.where(some, 0.001 * norm_w / norm_step, 1.0)
            if "momentum" not in (state := self.state[w]):
                state["momentum"] = torch.zeros_like(w)
            w.add_(state["momentum"].mul_(0.9).add_(step), alpha=-group["lr"])
