"""Progress of long work: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

LINE_EVERY_S = 10.0


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(count)`; all goes to standard error, so that output stays clean."""
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(what, total=total)
            yield lambda count: shown.advance(task, count)
        return
    done, started, said = 0, time.monotonic(), time.monotonic()

    def advance(count: int) -> None:
        nonlocal done, said
        done += count
        if time.monotonic() - said >= LINE_EVERY_S:
            said = time.monotonic()
            say(f"{what}: {done:,} of {total:,}")

    yield advance
    say(f"{what}: {done:,} in {time.monotonic() - started:.1f} s")


def show(what: RenderableType) -> None:
    """A table and the like for the person who waits, on standard error."""
    from rich.console import Console

    Console(stderr=True).print(what)


def say(line: str) -> None:
    """One line for the person who waits, on standard error."""
    print(line, file=sys.stderr, flush=True)
