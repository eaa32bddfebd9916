"""Random numbers as a function of (seed, purpose), never of a global stream.

So a resumed run, a micro-batch and another process see the draws they would have seen anyway.
"""

import hashlib

import torch


def derive(seed: int, *purpose: str | int) -> int:
    """A 63-bit seed for one purpose, e.g. `derive(0, "views", epoch, step)`."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """A CPU generator of its own for one purpose."""
    return torch.Generator().manual_seed(derive(seed, *purpose))


def permutation(count: int, seed: int, *purpose: str | int) -> torch.Tensor:
    """The order of `count` rows for one purpose: (count,) int64."""
    return torch.randperm(count, generator=generator(seed, *purpose))
