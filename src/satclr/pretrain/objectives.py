"""What an arm trains for: a loss, and what it learns or remembers besides the encoder.

`build` makes the objective that `pretrain.objective` names. The loop hands it both views (`encode`), then the
projections of the whole batch (the call), and tells it when the step is done (`after_step`). Its parameters are trained
with the encoder's, and its state is part of each checkpoint. Every process holds a copy and sees the whole batch, so
all copies stay equal.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from satclr.params import Pretrain
from satclr.pretrain import loss as losses
from satclr.pretrain.architectures import EncoderError

MULCON_HEADS = 4  # of the attention
MULCON_CONTRAST = 0.5  # weight of the contrast in the second phase, as in the authors' code

Forward = Callable[[Tensor], Tensor]  # (rows,3,S,S) → z (rows,D)


def build(config: Pretrain, model: nn.Sequential, labels: int) -> "Objective":
    """The objective that `config` names, for `model` (encoder and head, in training mode) and K labels."""
    kind = {"msc": Prototypes, "msc_reg": Prototypes, "mulsupcon_moco": MomentumQueue}
    return kind.get(config.objective, Objective)(config, model, labels)


class Objective(nn.Module):
    """A loss of the projections and labels of one batch; it learns and remembers nothing."""

    def __init__(self, config: Pretrain, _model: nn.Sequential, _labels: int) -> None:
        super().__init__()
        self.config = config

    def encode(self, forward: Forward, x: Tensor) -> Tensor:
        """Both views of b tiles, x (2b,3,S,S), as z (2b,D)."""
        return forward(x) if self.config.forward == "joint" else torch.cat([forward(view) for view in x.chunk(2)])

    def forward(self, targets: Tensor, epoch: int, z: Tensor) -> Tensor:
        """The batch's loss, a scalar. z: (2B,D), rows i and i+B views of tile i; targets: (2B,K), their labels."""
        own, w = self.loss(targets, epoch, z), self.config.nt_xent_weight
        return w * losses.nt_xent(z, self.config.temperature) + (1 - w) * own if w else own

    def loss(self, targets: Tensor, epoch: int, z: Tensor) -> Tensor:
        """The same without the share of NT-Xent that `nt_xent_weight` mixes in."""
        name, temperature = self.config.objective, self.config.temperature
        match name:
            case "nt_xent":
                return losses.nt_xent(z, temperature)
            case "vicreg":
                return losses.vicreg(z)
            case "mulsupcon":
                return losses.mulsupcon(z, targets, temperature)
            case "mulcon":  # contrast between label embeddings in the second half of the epochs
                labels = targets.shape[1]
                logits, embeddings = z[:, :labels], z[:, labels:].unflatten(1, (labels, -1))
                weight = MULCON_CONTRAST if epoch >= self.config.epochs // 2 else 0.0
                return losses.mulcon(embeddings, logits, targets, temperature, weight)
            case _:
                return losses.supcon(z, targets, temperature, losses.POSITIVES[name])

    def after_step(self, model: nn.Sequential) -> None:
        """Called once the optimizer has moved the weights."""


class Prototypes(Objective):
    """MSC: one prototype a label, learnt with the encoder."""

    def __init__(self, config: Pretrain, model: nn.Sequential, labels: int) -> None:
        super().__init__(config, model, labels)
        self.prototypes = nn.Parameter(torch.empty(labels, config.projection.out))
        nn.init.xavier_uniform_(self.prototypes)

    def loss(self, targets: Tensor, _epoch: int, z: Tensor) -> Tensor:
        attract_only = self.config.objective == "msc_reg"
        return losses.msc(z, targets, self.prototypes, self.config.temperature, attract_only=attract_only)


class MomentumQueue(Objective):
    """MulSupCon with MoCo: second views go through a slow copy of the model, whose latest projections are kept.

    The copy follows the model with the momentum of `pretrain.queue`. The queue is used as far as it is filled.
    """

    past: Tensor  # (length,D) projections
    past_targets: Tensor  # (length,K), 0 or 1
    seen: Tensor  # how many projections have been put into the queue

    def __init__(self, config: Pretrain, model: nn.Sequential, labels: int) -> None:
        super().__init__(config, model, labels)
        self.keys = copy.deepcopy(model).requires_grad_(False)
        length = config.queue.length
        self.register_buffer("past", torch.zeros(length, config.projection.out))
        self.register_buffer("past_targets", torch.zeros(length, labels))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self._latest = (self.past[:0], self.past_targets[:0])

    def encode(self, forward: Forward, x: Tensor) -> Tensor:
        first, second = x.chunk(2)
        with torch.no_grad():
            keys = self.keys(second)
        return torch.cat([forward(first), keys])

    def loss(self, targets: Tensor, _epoch: int, z: Tensor) -> Tensor:
        q, keys = z.chunk(2)
        y = targets[: len(q)].to(self.past.dtype)
        self._latest = (keys.detach(), y)
        filled = min(int(self.seen), len(self.past))
        others = torch.cat([keys.detach(), self.past[:filled].to(z.dtype)]), torch.cat([y, self.past_targets[:filled]])
        return losses.mulsupcon_moco(q, y, *others, self.config.temperature)

    @torch.no_grad()
    def after_step(self, model: nn.Sequential) -> None:
        for key, value in zip(self.keys.parameters(), model.parameters(), strict=True):
            key.lerp_(value, 1 - self.config.queue.momentum)
        length = len(self.past)
        keys, targets = (rows[-length:] for rows in self._latest)
        at = (self.seen + torch.arange(len(keys), device=keys.device)) % length  # the oldest ones
        self.past[at], self.past_targets[at] = keys.to(self.past.dtype), targets
        self.seen += len(keys)


class LabelHead(nn.Module):
    """MulCon's head: K learnt queries attend to the encoder's last feature map, one embedding a label.

    Called with the features h (B,C) of views, it takes the map (B,C,H,W) that the encoder has just averaged to h, and
    returns (B,K+K·P): a logit of each label, then the projection of each label's embedding. `attend` says which
    encoder that is. The authors' code has self-attention before and after the queries as well.
    """

    def __init__(self, width: int, labels: int, *, hidden: int | None, out: int) -> None:
        super().__init__()
        hidden = hidden or width
        if hidden % MULCON_HEADS:
            raise EncoderError(
                f"objective mulcon needs a multiple of {MULCON_HEADS} as the width of its attention, not {hidden}; "
                "set pretrain.projection.hidden"
            )
        self.queries = nn.Parameter(torch.empty(labels, hidden))
        nn.init.xavier_uniform_(self.queries)
        self.attention = nn.MultiheadAttention(hidden, MULCON_HEADS, kdim=width, vdim=width, batch_first=True)
        self.norm, self.last_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.mix = nn.Linear(hidden, hidden)
        self.classify = nn.Linear(hidden, labels)  # row k is label k's
        self.project = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out))
        self._map = torch.empty(0)  # of the encoder's latest views

    @torch.no_grad()
    def attend(self, encoder: nn.Module, crop_px: int) -> None:
        """Take the maps of `encoder`, whose layers are not replaced from now on; leaves it in eval mode.

        Raises `EncoderError` where its features are not the average of a map of more than one cell.
        """
        seen: list[tuple[nn.Module, Tensor]] = []
        hooks = [m.register_forward_hook(lambda m, _, output: seen.append((m, output))) for m in encoder.modules()]
        views = torch.rand(2, 3, crop_px, crop_px, generator=torch.Generator().manual_seed(0))
        h = encoder.eval()(views.to(next(encoder.parameters()).device))
        for hook in hooks:
            hook.remove()
        maps = [(m, x) for m, x in seen if isinstance(x, Tensor) and x.ndim == 4 and x[0, 0].numel() > 1]
        means = [(m, x.mean((2, 3))) for m, x in maps if x.shape[1] == h.shape[1]]
        near = 1e-3 * h.abs().max()  # relative: a random encoder's features may be tiny
        layers = [m for m, mean in means if (mean - h).abs().max() <= near]
        if not layers:
            raise EncoderError(
                "objective mulcon needs an encoder whose features average a map of more than one cell, such as a "
                f"ResNet; or raise views.crop_px, which is {crop_px}"
            )
        layers[-1].register_forward_hook(self._keep)

    def _keep(self, _layer: nn.Module, _inputs: object, output: Tensor) -> None:
        self._map = output

    def forward(self, h: Tensor) -> Tensor:
        tokens, self._map = self._map.flatten(2).transpose(1, 2).to(h.dtype), h.new_empty(0)  # (B,H·W,C)
        queries = self.queries.expand(len(h), -1, -1)
        attended, _ = self.attention(queries, tokens, tokens, need_weights=False)
        e = self.norm(queries + attended)
        e = self.last_norm(e + torch.relu(self.mix(e)))  # (B,K,E)
        logits = torch.einsum("bke,ke->bk", e, self.classify.weight) + self.classify.bias
        return torch.cat([logits, self.project(e).flatten(1)], 1)
