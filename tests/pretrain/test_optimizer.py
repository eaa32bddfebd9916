from __future__ import annotations

import math

import numpy as np
import torch

from satclr.pretrain import optimizer
from tests.conftest import make_run


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
