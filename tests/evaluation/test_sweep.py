from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F  # noqa: N812

from satclr import randomness
from satclr.evaluation import metrics, sweep

CONFIGS = [(1e-3, 0.0), (1e-2, 0.5), (3e-2, 0.0)]
Floats = npt.NDArray[np.float32]
Targets = npt.NDArray[np.uint8]


def data(rng: np.random.Generator, tiles: int = 90, width: int = 12, labels: int = 4) -> tuple[Floats, Targets]:
    x = rng.normal(size=(tiles, width)).astype(np.float32)
    truth = rng.normal(size=(width, labels))
    return x, (x @ truth + rng.normal(size=(tiles, labels)) > 0.5).astype(np.uint8)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def alone(x: Floats, y: Targets, rate: float, decay: float, *, steps: int, batch_size: int) -> Floats:
    """One probe of the stack by itself: autograd, PyTorch's AdamW and cosine."""
    inputs, targets = torch.from_numpy(x), torch.from_numpy(y).float()
    layer = torch.nn.Linear(x.shape[1], y.shape[1])
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    groups = [{"params": [layer.weight], "weight_decay": decay}, {"params": [layer.bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        epoch, place = divmod(step, math.ceil(len(x) / batch_size))
        order = randomness.rng(3, "sweep order", epoch).permutation(len(x))
        rows = torch.from_numpy(order[place * batch_size : (place + 1) * batch_size])
        loss = F.binary_cross_entropy_with_logits(layer(inputs[rows]), targets[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    found: Floats = torch.cat([layer.weight, layer.bias[:, None]], 1).detach().numpy()
    return found


@pytest.mark.parametrize("block", [7, 2**17])
def test_each_probe_of_the_stack_is_what_it_would_be_alone(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    """Within 1 % of a learning rate: Adam divides a gradient by its size, so rounding counts where it is near 0."""
    monkeypatch.setattr(sweep, "BLOCK", block)
    x, y = data(rng)
    weight, bias = sweep.fit(x, y, configs=CONFIGS, steps=17, batch_size=32, seed=3)
    assert (weight.shape, bias.shape) == ((3, 4, 12), (3, 4))
    assert weight.dtype == bias.dtype == np.float32
    for c, (rate, decay) in enumerate(CONFIGS):
        expected = alone(x, y, rate, decay, steps=17, batch_size=32)
        found = np.concatenate([weight[c], bias[c][:, None]], 1)
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.01 * rate)
        one, shift = sweep.fit(x, y, configs=[(rate, decay)], steps=17, batch_size=32, seed=3)
        np.testing.assert_allclose(found, np.concatenate([one[0], shift[0][:, None]], 1), atol=0.01 * rate)


def test_the_best_on_validation_is_chosen_and_scores_as_it_validated(rng: np.random.Generator) -> None:
    x, y = data(rng, tiles=200)
    train, val = (x[:120], y[:120]), (x[120:], y[120:])
    chosen = sweep.best(train, val, configs=CONFIGS, steps=20, batch_size=32, seed=0)
    each = [sweep.best(train, val, configs=[config], steps=20, batch_size=32, seed=0).val_mAP for config in CONFIGS]
    assert chosen.val_mAP == pytest.approx(max(each), abs=1e-3)
    assert (chosen.learning_rate, chosen.weight_decay) in CONFIGS
    ap = metrics.average_precision(chosen.scores(val[0]), val[1])
    assert metrics.mean_average_precision(ap) == pytest.approx(chosen.val_mAP, abs=1e-6)


def test_one_tile_and_labels_without_positives_train(rng: np.random.Generator) -> None:
    x, y = data(rng, tiles=20)
    y[:, 1] = 0
    found = sweep.best((x[:1], y[:1]), (x[1:], y[1:]), configs=CONFIGS, steps=5, batch_size=8, seed=0)
    assert np.isfinite(found.scores(x)).all()
    assert np.isfinite(found.val_mAP)


def test_huge_logits_do_not_overflow(rng: np.random.Generator) -> None:
    x, y = data(rng)
    weight, bias = sweep.fit(1e4 * x, y, configs=[(0.1, 0.0)], steps=9, batch_size=32, seed=0)
    assert np.isfinite(weight).all()
    assert np.isfinite(bias).all()


def test_standardize_is_scikit_learns_fitted_on_train_only(rng: np.random.Generator) -> None:
    x = rng.normal(3, rng.uniform(0.1, 9, size=7), size=(60, 7))
    x[:, 2] = 5.0
    scaler = StandardScaler().fit(x[:40])
    train, rest = sweep.standardize(x[:40], x[40:])
    np.testing.assert_allclose(train, scaler.transform(x[:40]), atol=1e-9)
    np.testing.assert_allclose(rest, scaler.transform(x[40:]), atol=1e-9)


def test_the_grid_is_every_rate_with_every_decay() -> None:
    assert len(set(sweep.GRID)) == len(sweep.LEARNING_RATES) * len(sweep.WEIGHT_DECAYS) == 10
