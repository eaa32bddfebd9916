"""Optimizers and learning-rate schedules of pretraining."""

import math
from typing import Any

import torch
from torch import nn

from satclr.params import Pretrain


def build(model: nn.Module, config: Pretrain) -> torch.optim.Optimizer:
    """The optimizer that `config` names, over all of `model`; fused where torch has it."""
    if config.optimizer == "lars":
        return Lars(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return kind(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)


def learning_rate(config: Pretrain, step: int, steps_per_epoch: int) -> float:
    """The rate of the `step`-th step (from 0): constant, or linear warm-up then cosine to 0."""
    if config.schedule == "constant":
        return config.learning_rate
    warmup, total = config.warmup_epochs * steps_per_epoch, config.epochs * steps_per_epoch
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) / 2


class Lars(torch.optim.Optimizer):
    """SGD with momentum 0.9 whose step is scaled per layer by ‖w‖/‖g‖ (You et al., arXiv:1708.03888).

    As SimCLR uses it (arXiv:2002.05709, B.6): vectors, that is biases and BatchNorm, get neither the scaling
    nor weight decay.
    """

    def __init__(
        self, params: Any, lr: float, weight_decay: float, momentum: float = 0.9, trust: float = 0.001
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for w in group["params"]:
                if w.grad is None:
                    continue
                step = w.grad
                if w.ndim > 1:
                    step = step.add(w, alpha=group["weight_decay"])
                    norm_w, norm_step = w.norm(), step.norm()
                    some = (norm_w > 0) & (norm_step > 0)
                    step = step * torch.where(some, group["trust"] * norm_w / norm_step, 1.0)
                state = self.state[w]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(w)
                state["momentum"].mul_(group["momentum"]).add_(step)
                w.add_(state["momentum"], alpha=-group["lr"])
