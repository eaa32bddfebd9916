"""Fuzzers: made-up and damaged input, each case with what must become of it.

    make fuzz                          the long run: thousands of cases, and what became of them
    python -m tests.fuzz --seed 7      the same with other cases

A fuzzer is a function (cases, seed, folder) → outcomes, a count of each; a broken promise is an AssertionError
with the smallest case that hypothesis finds. `tests/test_fuzz.py` runs their short forms.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, strategies

Outcomes = Counter[str]
Fuzzer = Callable[[int, int, Path], Outcomes]

ACCEPTED, REFUSED = "accepted", "refused"


def explore(
    strategy: strategies.SearchStrategy[Any], check: Callable[[Any], str], *, cases: int, seed: int
) -> Outcomes:
    """Try `cases` draws of `strategy`, the same ones for the same seed; count what `check` says of each."""
    outcomes: Outcomes = Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(strategy)
    def each(case: Any) -> None:
        outcomes[check(case)] += 1

    each()
    return outcomes


def edited(raw: strategies.SearchStrategy[bytes], *, edits: int = 4, size: int = 8) -> strategies.SearchStrategy[bytes]:
    """Files with up to `edits` places where up to `size` bytes are changed, cut out, put in, or all else is missing."""
    place = strategies.integers(0, 2**31)
    kinds = strategies.sampled_from(["flip", "flip", "cut", "insert", "truncate"])
    change = strategies.tuples(kinds, place, strategies.binary(min_size=1, max_size=size))
    return strategies.tuples(raw, strategies.lists(change, min_size=1, max_size=edits)).map(_edit)


def _edit(case: tuple[bytes, list[tuple[str, int, bytes]]]) -> bytes:
    raw = bytearray(case[0])
    for kind, where, content in case[1]:
        at = where % max(len(raw), 1)
        if kind == "flip":
            raw[at : at + len(content)] = content
        elif kind == "cut":
            del raw[at : at + len(content)]
        elif kind == "insert":
            raw[at:at] = content
        else:
            del raw[at:]
    return bytes(raw)
