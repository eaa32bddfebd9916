"""Gradient caching against the whole batch, in double precision; schedules; LARS."""

import math
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from satclr.params import Objective
from satclr.pretrain import objectives, optimizer
from satclr.pretrain.loss import nt_xent
from tests.conftest import make_run

OBJECTIVES: tuple[Objective, ...] = get_args(Objective)[1:]  # after `none`
ARMS = {"nt_xent": "simclr"}  # the other arms are called as their objectives


def net(norm: str) -> nn.Sequential:
    """Rows (b,3,8,8) → z (b,12) in float64, the same at each call; timm's BatchNorm has its ReLU inside."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        maps = BatchNormAct2d(6) if norm == "batch" else nn.Sequential(nn.GroupNorm(2, 6), nn.ReLU())
        rows = nn.BatchNorm1d(7) if norm == "batch" else nn.LayerNorm(7)
        layers = (nn.Conv2d(3, 6, 3), maps, nn.Flatten(), nn.Linear(216, 7), rows, nn.Linear(7, 12))
        return nn.Sequential(*layers).double()


def objective_of(name: Objective, model: nn.Sequential) -> objectives.Objective:
    """For 4 labels, the same at each call; a queue holds 6 random projections."""
    changes = {"epochs": 1, "projection": {"out": 12}, "queue": {"length": 8}}
    run = make_run(arm=ARMS.get(name, name), pretrain=changes)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        objective = objectives.build(run.settings.pretrain, model, 4).double()
        objective.loss((torch.rand(12, 4) < 0.4).double(), 0, torch.randn(12, 12).double())
    objective.after_step(model)
    return objective


def cached(
    model: nn.Sequential, x: Tensor, y: Tensor, name: Objective, size: int | None
) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by `backward`, in micro-batches of `size`; x (2,B,3,8,8)."""
    objective = objective_of(name, model)

    def encode(part: optimizer.Part) -> Tensor:
        z: Tensor = objective.encode(model, x[:, part.own].flatten(0, 1)).unflatten(0, (2, -1))
        return z

    loss_of = partial(objective, y.repeat(2, 1), 0)
    loss = optimizer.backward(model, encode, optimizer.cut(x.shape[1], size), loss_of)
    return loss, [p.grad for m in (model, objective) for p in m.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [2, 3, 5, 13])
def test_cached_gradients_are_those_of_the_whole_batch(name: Objective, size: int) -> None:
    model, twin = net("group"), net("group")
    x, y = torch.randn(2, 13, 3, 8, 8, dtype=torch.float64), torch.rand(13, 4) < 0.4
    loss, gradients = cached(model, x, y, name, size)
    objective = objective_of(name, twin)
    expected = objective(y.repeat(2, 1), 0, objective.encode(twin, x.flatten(0, 1)))
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-11)
    learning = [p for m in (twin, objective) for p in m.parameters() if p.requires_grad]
    for gradient, parameter in zip(gradients, learning, strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-10)


def test_batch_norm_normalises_by_micro_batch_and_its_statistics_move_once() -> None:
    model, twin = net("batch"), net("batch")
    x, y = torch.randn(2, 12, 3, 8, 8, dtype=torch.float64), torch.rand(12, 4) < 0.4
    _, gradients = cached(model, x, y, "nt_xent", 4)
    chunks = [x[:, start : start + 4].flatten(0, 1) for start in (0, 4, 8)]
    z = torch.cat([twin(chunk).unflatten(0, (2, -1)) for chunk in chunks], 1)
    nt_xent(z.flatten(0, 1), 0.5).backward()
    for gradient, parameter in zip(gradients, twin.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-10)
    inside = [model[0](chunk) for chunk in chunks]  # (8,6,6,6)
    mean = torch.stack([h.mean((0, 2, 3)) for h in inside]).mean(0)
    var = torch.stack([h.var((0, 2, 3)) for h in inside]).mean(0)
    torch.testing.assert_close(model[1].running_mean, 0.1 * mean)
    torch.testing.assert_close(model[1].running_var, 0.9 + 0.1 * var)
    assert model[1].num_batches_tracked == 1


def test_micro_batches_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [part.tiles for part in optimizer.cut(50, 8)]
    for count in (2, 3, 5):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        cuts = []
        for rank in range(count):
            monkeypatch.setenv("RANK", str(rank))
            cuts.append(optimizer.cut(50, 8))
        for i, whole in enumerate(expected):
            assert all(parts[i].tiles == whole for parts in cuts)
            assert [row for parts in cuts for row in range(50)[parts[i].own]] == list(range(50)[whole])
        for parts in cuts:
            own = sum(part.own.stop - part.own.start for part in parts)
            assert [row for part in parts for row in range(50)[part.local]] == list(range(own))


def test_schedules() -> None:
    constant = make_run().settings.pretrain
    assert {optimizer.learning_rate(constant, step, 4) for step in range(8)} == {constant.learning_rate}
    changes = {"schedule": "cosine", "warmup_epochs": 2, "epochs": 10, "learning_rate": 1.0}
    cosine = make_run(pretrain=changes).settings.pretrain
    rates = [optimizer.learning_rate(cosine, step, 5) for step in range(50)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], [(1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)])


def test_lars_scales_matrices_by_trust_and_leaves_vectors_alone() -> None:
    w, b = torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    w.grad, b.grad = torch.randn(4, 3), torch.randn(4)
    decayed = w.grad + 0.1 * w.detach()
    expected_w = w.detach() - 0.5 * 0.001 * w.detach().norm() / decayed.norm() * decayed
    expected_b = b.detach() - 0.5 * b.grad
    optimizer.Lars([w, b], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(w.detach(), expected_w)
    torch.testing.assert_close(b.detach(), expected_b)
