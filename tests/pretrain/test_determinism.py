"""Another number of threads gives nearly the same bits; docs/reliability_input.md states these tolerances."""

from pathlib import Path

import numpy as np
import torch

from satclr.data.tiles import TileStore
from satclr.pretrain import encoder
from tests.conftest import make_run
from tests.pretrain.conftest import losses, make_root, pretrained, threads

# Of one and the same encoder, and of what training makes of that: rounding grows with every step.
FEATURES_ATOL = 1e-5
LOSS_ATOL = 0.1  # of an epoch (2.7)
WEIGHTS_ATOL = 0.005  # learned ones; twice the learning rate times the steps


def test_two_threads_train_and_encode_the_same_within_the_stated_tolerances(store: TileStore, tmp_path: Path) -> None:
    runs, states, features = [make_run(make_root(tmp_path / name, store)) for name in ("one", "two")], [], []
    for count, run in enumerate(runs, 1):
        with threads(count):
            states.append(pretrained(run))
            features.append(encoder.Frozen(runs[0].encoder)(torch.from_numpy(store.pixels[:32].copy())))
    one, two = states
    for key in one:
        if "running" not in key and one[key].dtype == np.float32:
            assert np.abs(one[key] - two[key]).max() <= WEIGHTS_ATOL, key
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), atol=LOSS_ATOL)
    np.testing.assert_allclose(features[0], features[1], atol=FEATURES_ATOL)
