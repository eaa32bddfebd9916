import numpy as np
import pytest

from satclr import randomness

LOSSES = [4.2, 3.9, 3.1, 3.1, 3.5]


@pytest.mark.parametrize(("select", "expected"), [("best", 3), ("last", 5), (2, 2)])
def test_an_epoch_is_the_best_the_last_or_the_one_named(select: str | int, expected: int) -> None:
    assert randomness.epoch(select, LOSSES, 0, "probe") == expected


def test_an_arbitrary_epoch_is_one_that_shares_the_best_integer_part() -> None:
    drawn = [randomness.epoch("arbitrary", LOSSES, seed, "pretrain") for seed in range(400)]
    assert all(set(drawn[i : i + 4]) == {2, 3, 4, 5} for i in range(0, 400, 4))  # the losses 3.x
    assert len({tuple(drawn[i : i + 4]) for i in range(0, 400, 4)}) > 12  # in many of their 24 orders
    assert drawn == [randomness.epoch("arbitrary", LOSSES, seed, "pretrain") for seed in range(400)]
    assert drawn != [randomness.epoch("arbitrary", LOSSES, seed, "probe") for seed in range(400)]
    mean_aps = [-0.563, -0.624, -0.695]  # the integer part of every mAP is 0
    assert {randomness.epoch("arbitrary", mean_aps, seed, "probe") for seed in range(50)} == {1, 2, 3}


def test_without_a_loss_that_is_a_number_every_epoch_is_as_good() -> None:
    assert randomness.epoch("best", [np.nan] * 3, 0) == 1
    assert {randomness.epoch("arbitrary", [np.nan] * 3, seed) for seed in range(50)} == {1, 2, 3}
