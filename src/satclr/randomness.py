"""Random numbers as a function of (seed, purpose), never of a global stream.

A resumed run, a micro-batch and another process therefore draw the same numbers.
"""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "views", epoch, step)`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def rng(seed: int, *purpose: str | int) -> np.random.Generator:
    """A numpy generator for one purpose, for what needs no tensors."""
    return np.random.default_rng(derive(seed, *purpose))


def generator(seed: int, *purpose: str | int) -> "torch.Generator":
    """A CPU generator of torch for one purpose."""
    import torch

    return torch.Generator().manual_seed(derive(seed, *purpose))


def permutation(count: int, seed: int, *purpose: str | int) -> "torch.Tensor":
    """The order of `count` rows for one purpose: (count,) int64."""
    import torch

    return torch.randperm(count, generator=generator(seed, *purpose))


def epoch(select: str | int, losses: Sequence[float], seed: int, *purpose: str | int) -> int:
    """The selected epoch, from 1, given each epoch's loss; the earlier one on a tie.

    `select` is best, last, an epoch, or arbitrary: drawn among the losses that share the lowest integer part, without
    replacement by successive seeds, so that a few seeds do not all have the same.
    """
    if isinstance(select, int):
        return select
    if select == "last":
        return len(losses)
    values = np.nan_to_num(losses)  # nan: no validation tile has a label
    if select == "arbitrary":
        values = np.trunc(values)
        block, place = divmod(seed, len(tied := np.flatnonzero(values == values.min())))
        return 1 + int(rng(block, "epoch", *purpose).permutation(tied)[place])
    return 1 + int(np.argmin(values))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global CPU generator inside; restore it outside."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
