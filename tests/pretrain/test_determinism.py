"""Another number of threads gives nearly the same bits; docs/reliability_input.md states these tolerances."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from satclr.data.tiles import TileStore
from satclr.pretrain import encoder
from tests.conftest import make_run
from tests.pretrain.conftest import losses, make_root, pretrained

# Of one and the same encoder, and of what training makes of that: rounding grows with every step.
FEATURES_ATOL = 1e-5
LOSS_ATOL = 0.1  # of an epoch (2.7)
WEIGHTS_ATOL = 0.005  # learned ones; twice the learning rate times the steps


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_two_threads_train_and_encode_the_same_within_the_stated_tolerances(store: TileStore, tmp_path: Path) -> None:
    runs, states = [], []
    for count in (1, 2):
        runs.append(make_run(make_root(tmp_path / str(count), store)))
        with threads(count):
            states.append(pretrained(runs[-1]))
    one, two = states
    for key in one:
        if "running" not in key and one[key].dtype == np.float32:
            assert np.abs(one[key] - two[key]).max() <= WEIGHTS_ATOL, key
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), atol=LOSS_ATOL)
    frozen, batch = encoder.Frozen(runs[0].encoder), torch.from_numpy(store.pixels[:32].copy())
    features = []
    for count in (1, 2):
        with threads(count):
            features.append(frozen(batch))
    np.testing.assert_allclose(features[0], features[1], atol=FEATURES_ATOL)
