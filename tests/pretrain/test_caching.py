"""Gradient caching against the whole batch, in double precision."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from satclr.params import Objective
from satclr.pretrain import caching
from satclr.pretrain.loss import objective

OBJECTIVES: tuple[Objective, ...] = ("nt_xent", "supcon_any", "supcon_all", "jaccard", "mulsupcon")


def net(*, batch_norm: bool) -> nn.Sequential:
    """Rows (b,3,8,8) → z (b,5)."""
    norm = nn.BatchNorm2d(6) if batch_norm else nn.GroupNorm(2, 6)
    return nn.Sequential(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(216, 5)).double()


def cached(model: nn.Module, x: Tensor, y: Tensor, name: Objective, size: int) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients by `caching.backward`; x (2,B,3,8,8)."""

    def encode(part: caching.Part) -> Tensor:
        z: Tensor = model(x[:, part.own].flatten(0, 1)).unflatten(0, (2, -1))
        return z

    model.zero_grad()
    loss_of = partial(objective, name, 0.3, 0.0, y.repeat(2, 1))
    loss = caching.backward(model, encode, caching.cut(x.shape[1], size), loss_of)
    return loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("size", [2, 3, 5, 13])
def test_cached_gradients_are_those_of_the_whole_batch(name: Objective, size: int) -> None:
    model = net(batch_norm=False)
    x, y = torch.randn(2, 13, 3, 8, 8, dtype=torch.float64), torch.rand(13, 4) < 0.4
    loss, gradients = cached(model, x, y, name, size)
    model.zero_grad()
    expected = objective(name, 0.3, 0.0, y.repeat(2, 1), model(x.flatten(0, 1)))
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-12)
    for gradient, parameter in zip(gradients, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-10)


def test_batch_norm_normalises_by_micro_batch_and_its_statistics_move_once() -> None:
    model, twin = net(batch_norm=True), net(batch_norm=True)
    twin.load_state_dict(model.state_dict())
    x, y = torch.randn(2, 12, 3, 8, 8, dtype=torch.float64), torch.rand(12, 4) < 0.4
    _, gradients = cached(model, x, y, "nt_xent", 4)
    chunks = [x[:, start : start + 4].flatten(0, 1) for start in (0, 4, 8)]
    z = torch.cat([twin(chunk).unflatten(0, (2, -1)) for chunk in chunks], 1)
    objective("nt_xent", 0.3, 0.0, y, z.flatten(0, 1)).backward()
    for gradient, parameter in zip(gradients, twin.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=0, atol=1e-10)
    inside = [model[0](chunk) for chunk in chunks]  # (8,6,6,6)
    mean = torch.stack([h.mean((0, 2, 3)) for h in inside]).mean(0)
    var = torch.stack([h.var((0, 2, 3)) for h in inside]).mean(0)
    torch.testing.assert_close(model[1].running_mean, 0.1 * mean)
    torch.testing.assert_close(model[1].running_var, 0.9 + 0.1 * var)
    assert model[1].num_batches_tracked == 1


def test_micro_batches_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [part.tiles for part in caching.cut(50, 8)]
    for count in (2, 3, 5):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        cuts = []
        for rank in range(count):
            monkeypatch.setenv("RANK", str(rank))
            cuts.append(caching.cut(50, 8))
        for i, whole in enumerate(expected):
            assert all(parts[i].tiles == whole for parts in cuts)
            assert [row for parts in cuts for row in range(50)[parts[i].own]] == list(range(50)[whole])
        for parts in cuts:
            own = sum(part.own.stop - part.own.start for part in parts)
            assert [row for part in parts for row in range(50)[part.local]] == list(range(own))
