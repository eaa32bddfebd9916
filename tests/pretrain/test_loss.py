"""Every loss against the formula written as a double loop, and against laws it must keep."""

import math
from collections.abc import Callable
from functools import partial
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from satclr.params import Objective
from satclr.pretrain.loss import POSITIVES, mulsupcon, nt_xent, objective, supcon


def draw(seed: int, *, tiles: int = 6, labels: int = 4, features: int = 5, views: int = 2) -> tuple[Tensor, Tensor]:
    """Random z, and targets that include an unlabelled tile, a label of one tile only, two equal tiles."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(views * tiles, features, generator=g, dtype=torch.float64) * 3
    y = (torch.rand(tiles, labels, generator=g) < 0.4).double()
    y[0] = 0
    y[:, -1] = 0
    y[1, -1] = 1
    y[-1] = y[-2]
    if views == 2:
        z[1] = z[2]  # two tiles that look the same
    return z, y.repeat(views, 1)


def log_p(z: Tensor, temperature: float, i: int, j: int) -> float:
    """Log-probability that anchor i picks row j among the others, in plain Python."""
    x = [[v / math.sqrt(sum(w * w for w in row)) for v in row] for row in z.tolist()]
    s: list[float] = [sum(a * b for a, b in zip(x[i], other, strict=True)) / temperature for other in x]
    top = max(v for m, v in enumerate(s) if m != i)
    return s[j] - top - math.log(sum(math.exp(v - top) for m, v in enumerate(s) if m != i))


def slow_nt_xent(z: Tensor, _: Tensor, temperature: float) -> float:
    rows = len(z)
    return -sum(log_p(z, temperature, i, (i + rows // 2) % rows) for i in range(rows)) / rows


def label_sets(targets: Tensor) -> list[set[int]]:
    return [{k for k, v in enumerate(row) if v} for row in targets.tolist()]


def slow_supcon(z: Tensor, targets: Tensor, temperature: float, positives: str) -> float:
    sets, losses = label_sets(targets), []
    for i, a in enumerate(sets):
        w = dict.fromkeys(range(len(sets)), 0.0)
        for j, b in enumerate(sets):
            if a and b and j != i:
                w[j] = {"any": float(bool(a & b)), "all": float(a == b), "jaccard": len(a & b) / len(a | b)}[positives]
        if total := sum(w.values()):
            losses.append(-sum(w[j] / total * log_p(z, temperature, i, j) for j in w if w[j]))
    return sum(losses) / len(losses) if losses else 0.0


def slow_mulsupcon(z: Tensor, targets: Tensor, temperature: float) -> float:
    sets, loss = label_sets(targets), 0.0
    for i, anchor in enumerate(sets):
        for k in anchor:
            others = [j for j, other in enumerate(sets) if k in other and j != i]
            if others:
                loss -= sum(log_p(z, temperature, i, j) for j in others) / len(others)
    return loss / max(1, sum(len(s) for s in sets))


Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda z, _, t: nt_xent(z, t),
    "mulsupcon": mulsupcon,
    "supcon_any": partial(supcon, positives="any"),
    "supcon_all": partial(supcon, positives="all"),
    "jaccard": partial(supcon, positives="jaccard"),
}
LOOPS: dict[str, Callable[[Tensor, Tensor, float], float]] = {"nt_xent": slow_nt_xent, "mulsupcon": slow_mulsupcon}
LOOPS |= {name: partial(slow_supcon, positives=positives) for name, positives in POSITIVES.items()}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
close = partial(torch.testing.assert_close, rtol=0, atol=1e-12)


def by_z(loss: Loss, z: Tensor, y: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss and its gradient."""
    z = z.detach().requires_grad_()
    value = loss(z, y, temperature)
    (gradient,) = torch.autograd.grad(value, z)
    return value.detach(), gradient


@pytest.mark.parametrize("name", LOSSES)
@given(st.integers(0, 2**20), st.integers(3, 8), st.integers(1, 2), st.sampled_from((0.05, 0.5, 1.0)))
@settings(deadline=None, max_examples=30)
def test_losses_equal_their_double_loops(name: str, seed: int, tiles: int, views: int, temperature: float) -> None:
    z, y = draw(seed, tiles=tiles, views=2 if name == "nt_xent" else views)
    expected = LOOPS[name](z, y, temperature)
    assert LOSSES[name](z, y, temperature).item() == pytest.approx(expected, abs=1e-10)


def test_nt_xent_of_orthogonal_tiles_with_equal_views_has_its_closed_form() -> None:
    tiles, temperature = 5, 0.5
    z = torch.eye(tiles, dtype=torch.float64).repeat(2, 1) * 7
    expected = math.log(math.exp(1 / temperature) + 2 * tiles - 2) - 1 / temperature
    assert nt_xent(z, temperature).item() == pytest.approx(expected, abs=1e-12)


@each_loss
def test_gradient_is_the_numerical_one(loss: Loss) -> None:
    for seed in range(3):
        z, y = draw(seed)
        assert torch.autograd.gradcheck(lambda v, y=y: loss(v, y, 0.3), (z.requires_grad_(),))


@each_loss
def test_blocks_of_rows_change_neither_value_nor_gradient(loss: Loss, monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = draw(4, tiles=9)
    whole = by_z(loss, z, y, 0.2)
    for rows in (1, 4, 7):
        monkeypatch.setattr("satclr.pretrain.loss._BLOCK_ELEMENTS", rows * len(z))
        close(by_z(loss, z, y, 0.2), whole)


@each_loss
def test_neither_the_order_of_tiles_nor_the_length_of_z_matters(loss: Loss) -> None:
    z, y = draw(5)
    lengths = torch.rand(len(z), 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    close(loss(z * lengths, y, 0.3), loss(z, y, 0.3))
    order = torch.randperm(len(z) // 2, generator=torch.Generator().manual_seed(0))
    order = torch.cat([order, order + len(order)])
    close(loss(z[order], y[order], 0.3), loss(z, y, 0.3))


@each_loss
def test_a_label_of_its_own_for_every_tile_gives_nt_xent(loss: Loss) -> None:
    z, _ = draw(8)
    close(loss(z, torch.eye(len(z) // 2).repeat(2, 1), 0.3), nt_xent(z, 0.3))


@pytest.mark.parametrize("loss", list(LOSSES.values())[1:], ids=list(LOSSES)[1:])
def test_unlabelled_tiles_are_negatives_only(loss: Loss) -> None:
    z, y = draw(9)
    unlabelled = torch.zeros(2, y.shape[1], dtype=y.dtype)
    stranger = torch.randn(2, z.shape[1], dtype=z.dtype, generator=torch.Generator().manual_seed(2))
    assert loss(torch.cat([z, stranger]), torch.cat([y, unlabelled]), 0.5) > loss(z, y, 0.5)
    for without_positives in (torch.zeros_like(y), torch.eye(len(y))):
        nothing, gradient = by_z(loss, z, without_positives, 0.5)
        assert nothing == 0
        assert (gradient == 0).all()


@each_loss
def test_low_temperature_and_large_z_stay_finite(loss: Loss) -> None:
    z, y = draw(11)
    assert all(values.isfinite().all() for values in by_z(loss, (z * 1e4).float(), y, 0.01))


@each_loss
def test_half_precision_and_autocast_work_in_float32(loss: Loss) -> None:
    z, y = draw(12)
    half = z.bfloat16()
    expected, expected_gradient = by_z(loss, half.float(), y, 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        value, gradient = by_z(loss, half, y, 0.1)
        same = loss(half.float(), y, 0.1)
    assert value.dtype == torch.float32
    assert value.item() == expected.item() == same.item()
    torch.testing.assert_close(gradient, expected_gradient.bfloat16())


@pytest.mark.parametrize("name", get_args(Objective)[1:])  # after `none`
def test_an_objective_is_the_loss_of_its_name_mixed_with_nt_xent(name: Objective) -> None:
    z, y = draw(15)
    own = LOSSES[name](z, y, 0.3)
    assert objective(name, 0.3, 0.0, y, z) == own
    if name != "nt_xent":
        torch.testing.assert_close(objective(name, 0.3, 0.2, y, z), 0.2 * nt_xent(z, 0.3) + 0.8 * own)
