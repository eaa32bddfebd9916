from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from satclr.evaluation import metrics, sweep
from satclr import randomness

CONFIGS = [(1e-3, 0.0), (1e-2, 0.5), (3e-2, 0.0)]


def data(
    rng: np.random.Generator, tiles: int = 90, width: int = 12, labels: int = 4
) -> tuple[Tensor, Tensor]:
    x = torch.from_numpy(rng.normal(size=(tiles, width))).float()
    truth = torch.from_numpy(rng.normal(size=(width, labels))).float()
    return x, (x @ truth + torch.randn(tiles, labels) > 0.5).to(torch.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def alone(x: Tensor, y: Tensor, rate: float, decay: float, *, steps: int, batch_size: int) -> Tensor:
    """One probe of the stack by itself: autograd, PyTorch's AdamW and cosine."""
    layer = torch.nn.Linear(x.shape[1], y.shape[1])
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [
        {"params": [layer.weight], "weight_decay": decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    epochs = math.ceil(steps / math.ceil(len(x) / batch_size))
    orders = [randomness.permutation(len(x), 3, "sweep order", e) for e in range(epochs)]
    for rows in [batch for order in orders for batch in order.split(batch_size)][:steps]:
        loss = F.binary_cross_entropy_with_logits(layer(x[rows]), y[rows].float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return torch.cat([layer.weight, layer.bias[:, None]], 1).detach()


def test_each_probe_of_the_stack_is_what_it_would_be_alone(rng: np.random.Generator) -> None:
    x, y = data(rng)
    weight, bias = sweep.fit(x, y, configs=CONFIGS, steps=17, batch_size=32, seed=3)
    assert (weight.shape, bias.shape) == ((3, 4, 12), (3, 4))
    for c, (rate, decay) in enumerate(CONFIGS):
        expected = alone(x, y, rate, decay, steps=17, batch_size=32)
        found = torch.cat([weight[c], bias[c][:, None]], 1)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


def test_the_best_on_validation_is_chosen_and_scores_as_it_validated(rng: np.random.Generator) -> None:
    x, y = data(rng, tiles=200)
    train, val = (x[:120], y[:120]), (x[120:], y[120:])
    chosen = sweep.best(train, val, configs=CONFIGS, steps=20, batch_size=32, seed=0)
    each = [
        sweep.best(train, val, configs=[config], steps=20, batch_size=32, seed=0).val_mAP
        for config in CONFIGS
    ]
    assert chosen.val_mAP == pytest.approx(max(each), abs=1e-3)
    assert (chosen.learning_rate, chosen.weight_decay) in CONFIGS
    ap = metrics.average_precision(chosen.scores(val[0]), val[1].numpy())
    assert metrics.mean_average_precision(ap) == pytest.approx(chosen.val_mAP, abs=1e-6)


def test_one_tile_and_labels_without_positives_train(rng: np.random.Generator) -> None:
    x, y = data(rng, tiles=20)
    y[:, 1] = 0
    found = sweep.best((x[:1], y[:1]), (x[1:], y[1:]), configs=CONFIGS, steps=5, batch_size=8, seed=0)
    assert np.isfinite(found.scores(x)).all()
    assert np.isfinite(found.val_mAP)


def test_standardize_is_scikit_learns_fitted_on_train_only(rng: np.random.Generator) -> None:
    x = torch.from_numpy(rng.normal(3, rng.uniform(0.1, 9, size=7), size=(60, 7)))
    x[:, 2] = 5.0
    expected = StandardScaler().fit(x[:40].numpy()).transform(x.numpy())
    np.testing.assert_allclose(sweep.standardize(x, x[:40]).numpy(), expected, atol=1e-9)


@pytest.mark.slow
def test_a_sweep_of_ten_costs_less_than_three_probes(rng: np.random.Generator) -> None:
    """UC Merced's size; each run alternates with the other, so that a busy machine disturbs both."""
    x, y = data(rng, tiles=1285, width=512, labels=17)
    val = data(rng, tiles=395, width=512, labels=17)
    configs = [(rate, decay) for rate in np.geomspace(3e-4, 3e-2, 5).tolist() for decay in (0.0, 1.0)]

    def one() -> None:
        layer = torch.nn.Linear(512, 17)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-3, fused=True)
        for _ in range(10):
            for rows in torch.randperm(len(x)).split(128):
                loss = F.binary_cross_entropy_with_logits(layer(x[rows]), y[rows].float())
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss.item()
            metrics.average_precision(layer(val[0]).detach().numpy(), val[1].numpy())

    def many() -> None:
        sweep.best((x, y), val, configs=configs, steps=110, batch_size=128, seed=0)

    elapsed: dict[str, list[float]] = {"one": [], "many": []}
    for _ in range(7):
        for name, run in (("one", one), ("many", many)):
            start = time.perf_counter()
            run()
            elapsed[name].append(time.perf_counter() - start)
    assert min(elapsed["many"]) < 3 * min(elapsed["one"])
