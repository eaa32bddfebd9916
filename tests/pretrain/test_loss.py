"""Every loss against the formula written as a double loop, and against laws it must keep."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from satclr.pretrain import loss as losses
from satclr.pretrain.loss import msc, mulsupcon, mulsupcon_moco, nt_xent, supcon, vicreg


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
                jaccard = len(a & b) / len(a | b)
                near = jaccard if jaccard >= 0.3 else 0.0
                w[j] = {"any": bool(a & b), "all": a == b, "jaccard": jaccard, "multisupcon": near}[positives]
        if any(w.values()):
            total = sum(map(bool, w.values())) if positives == "multisupcon" else sum(w.values())
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


def msc_weights(targets: Tensor) -> list[dict[int, float]]:
    """Of the other rows, by row; prototypes, of one label each, come last."""
    sets = [*label_sets(targets), *({k} for k in range(targets.shape[1]))]
    weights = []
    for i, anchor in enumerate(sets):
        w: dict[int, float] = {}
        for k in anchor:
            having = {j: len(anchor & other) / len(other) for j, other in enumerate(sets) if k in other and j != i}
            for j, share in having.items():
                w[j] = w.get(j, 0.0) + share / sum(having.values()) / len(anchor)
        weights.append(w)
    return weights


def slow_msc(z: Tensor, targets: Tensor, temperature: float) -> float:
    """With the first rows of a fixed matrix as prototypes."""
    z = torch.cat([z, prototypes(z, targets.shape[1])])
    weights = msc_weights(targets)
    loss = -sum(w * log_p(z, temperature, i, j) for i, row in enumerate(weights) for j, w in row.items())
    return loss / sum(map(bool, weights))


def prototypes(z: Tensor, labels: int) -> Tensor:
    draws = torch.randn(20, z.shape[1], generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return draws[:labels].to(torch.promote_types(z.dtype, torch.float32))


Loss = Callable[[Tensor, Tensor, float], Tensor]
LOSSES: dict[str, Loss] = {
    "nt_xent": lambda z, _, t: nt_xent(z, t),
    "mulsupcon": mulsupcon,
    "msc": lambda z, y, t: msc(z, y, prototypes(z, y.shape[1]), t),
    **{name: partial(supcon, positives=positives) for name, positives in losses.POSITIVES.items()},
}
LOOPS: dict[str, Callable[[Tensor, Tensor, float], float]] = {
    "nt_xent": slow_nt_xent,
    "mulsupcon": slow_mulsupcon,
    "msc": slow_msc,
    **{name: partial(slow_supcon, positives=positives) for name, positives in losses.POSITIVES.items()},
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
of_rows_alone = pytest.mark.parametrize("name", [name for name in LOSSES if name != "msc"])  # no prototypes
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


@of_rows_alone
def test_a_label_of_its_own_for_every_tile_gives_nt_xent(name: str) -> None:
    z, _ = draw(8)
    close(LOSSES[name](z, torch.eye(len(z) // 2).repeat(2, 1), 0.3), nt_xent(z, 0.3))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ("nt_xent", "msc")])
def test_unlabelled_tiles_are_negatives_only(name: str) -> None:
    loss, (z, y) = LOSSES[name], draw(9)
    unlabelled = torch.zeros(2, y.shape[1], dtype=y.dtype)
    stranger = torch.randn(2, z.shape[1], dtype=z.dtype, generator=torch.Generator().manual_seed(2))
    assert loss(torch.cat([z, stranger]), torch.cat([y, unlabelled]), 0.5) > loss(z, y, 0.5)
    for without_positives in (torch.zeros_like(y), torch.eye(len(y))):
        assert all((values == 0).all() for values in by_z(loss, z, without_positives, 0.5))


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


@given(st.integers(0, 2**20), st.sampled_from((0.07, 0.5)), st.booleans())
@settings(deadline=None, max_examples=40)
def test_msc_by_autograd_and_attracting_only_cuts_the_pushing_part_of_each_positive_gradient(
    seed: int, temperature: float, attract_only: bool
) -> None:
    z, y = draw(seed)
    p = prototypes(z, y.shape[1])
    rows = torch.cat([z, p]).requires_grad_()
    x = torch.nn.functional.normalize(rows, dim=1)
    W = torch.tensor([[w.get(j, 0.0) for j in range(len(x))] for w in msc_weights(y)], dtype=x.dtype)
    itself = torch.eye(len(x), dtype=torch.bool)
    S = x @ x.T / temperature
    log_p = S.masked_fill(itself, -math.inf).log_softmax(1).masked_fill(itself, 0)
    excess = (log_p.exp().masked_fill(itself, 0) - W).clamp(min=0).detach() * (W > 0) * attract_only
    expected = -(W * log_p + excess * S).sum() / W.any(1).sum()
    (gradient,) = torch.autograd.grad(expected, rows)
    z, p = z.requires_grad_(), p.requires_grad_()
    value = msc(z, y, p, temperature, attract_only=attract_only)
    assert value.item() == pytest.approx(expected.item(), abs=1e-10)
    close(torch.cat(torch.autograd.grad(value, (z, p))), gradient, atol=1e-10)
    assert msc(z, torch.zeros_like(y), p, temperature, attract_only=attract_only) == 0, "nobody attracts anyone"


@given(st.integers(0, 2**20), st.sampled_from((0.07, 0.5)))
@settings(deadline=None, max_examples=20)
def test_mulsupcon_with_keys_equals_its_double_loop(seed: int, temperature: float) -> None:
    (q, y), (keys, others) = draw(seed, views=1), draw(seed + 1)
    sets, theirs, expected = label_sets(y), label_sets(others), 0.0
    for i, anchor in enumerate(sets):
        both = torch.cat([q[i : i + 1], keys])
        scores = torch.tensor([log_p(both, temperature, 0, j + 1) for j in range(len(keys))], dtype=torch.float64)
        for k in anchor:
            if having := [j for j, other in enumerate(theirs) if k in other]:
                expected -= float(scores[having].mean()) / sum(map(len, sets))
    keys.requires_grad_()
    value = mulsupcon_moco(q.requires_grad_(), y, keys, others, temperature)
    assert value.item() == pytest.approx(expected, abs=1e-10)
    assert torch.autograd.gradcheck(lambda v: mulsupcon_moco(v, y, keys, others, 0.3), (q,))
    value.backward()
    assert keys.grad is None
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    close(mulsupcon_moco(q, y, keys[order], others[order], temperature), value)


@given(st.integers(0, 2**20), st.sampled_from((0.0, 0.5)))
@settings(deadline=None, max_examples=20)
def test_mulcon_equals_its_double_loop(seed: int, weight: float) -> None:
    _, y = draw(seed)
    source = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(*y.shape, 5, generator=source, dtype=torch.float64)
    logits = torch.randn(y.shape, generator=source, dtype=torch.float64)
    entropy = 0.0
    for logit, truth in zip(logits.flatten().tolist(), y.flatten().tolist(), strict=True):
        p = 1 / (1 + math.exp(-logit))
        entropy -= math.log(p if truth else 1 - p) / y.numel()
    there = [(i, k) for i, truth in enumerate(label_sets(y)) for k in sorted(truth)]
    x = torch.stack([embeddings[i, k] for i, k in there])
    own = torch.eye(y.shape[1])[[k for _, k in there]]  # an embedding has the label that it is of
    expected = entropy + weight * slow_supcon(x, own, 0.2, "any")
    assert losses.mulcon(embeddings, logits, y, 0.2, weight).item() == pytest.approx(expected, abs=1e-10)
    inputs = embeddings.requires_grad_(), logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda e, s: losses.mulcon(e, s, y, 0.2, 0.5), inputs)
    assert losses.mulcon(*inputs, torch.zeros_like(y), 0.2, 0.5).isfinite()


@given(st.integers(0, 2**20))
@settings(deadline=None, max_examples=20)
def test_vicreg_equals_its_loops(seed: int) -> None:
    z, _ = draw(seed)
    views = [view.tolist() for view in z.chunk(2)]
    tiles, size = len(views[0]), z.shape[1]
    invariance = sum((views[0][i][d] - views[1][i][d]) ** 2 for i in range(tiles) for d in range(size)) / tiles / size
    variance = covariance = 0.0
    for view in views:
        mean = [sum(row[d] for row in view) / tiles for d in range(size)]
        for d in range(size):
            for e in range(size):
                c = sum((row[d] - mean[d]) * (row[e] - mean[e]) for row in view) / (tiles - 1)
                if d == e:
                    variance += max(0.0, 1 - math.sqrt(c + 1e-4)) / size / 2
                else:
                    covariance += c * c / size
    expected = 25 * invariance + 25 * variance + covariance
    assert vicreg(z).item() == pytest.approx(expected, abs=1e-10 * max(1, expected))
    assert torch.autograd.gradcheck(vicreg, (z.requires_grad_(),))
    order = torch.randperm(tiles, generator=torch.Generator().manual_seed(seed))
    close(vicreg(z[torch.cat([order, order + tiles])]), vicreg(z), atol=1e-9)


GOLDEN = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)  # z
GOLDEN_PROTOTYPES = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, -0.8]], dtype=torch.float64)
GOLDEN_LABELS = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]], dtype=torch.float64)
CERTAIN = 1e3 * (2 * GOLDEN_LABELS - 1)  # logits of a certain and right classifier: no cross-entropy


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (supcon(GOLDEN, GOLDEN_LABELS, 0.5, "multisupcon"), 0.3727493732406024),
        (mulsupcon(GOLDEN, GOLDEN_LABELS, 0.5), 0.7886577692134088),
        (mulsupcon_moco(GOLDEN[:2], GOLDEN_LABELS[:2], GOLDEN, GOLDEN_LABELS, 0.5), 1.0825373967651235),
        (msc(GOLDEN, GOLDEN_LABELS, GOLDEN_PROTOTYPES, 0.5), 2.149285834788119),
        (msc(GOLDEN, GOLDEN_LABELS, GOLDEN_PROTOTYPES, 0.5, attract_only=True), 2.0119397058517703),
        (losses.mulcon(GOLDEN[:, None].expand(4, 3, 2), CERTAIN, GOLDEN_LABELS, 0.5, 1.0), 1.8506878019611797),
        (vicreg(GOLDEN), 47.875404069218696),
    ],
    ids=["multisupcon", "mulsupcon", "mulsupcon_moco", "msc", "msc_reg", "mulcon", "vicreg"],
)
def test_published_definitions_give_these_values(value: Tensor, expected: float) -> None:
    """Computed apart, with NumPy, from the definitions in the papers and in their authors' code."""
    assert value.item() == pytest.approx(expected, abs=1e-12)
