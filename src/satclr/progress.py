"""What a person reads: progress on standard error (a bar on a terminal, else a line now and then), and tables."""

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

Log = Callable[[int, Mapping[str, float]], None]  # epoch, metrics

FIRST_LINE_S, LINE_EVERY_S, WINDOW = 2.0, 10.0, 3


@contextmanager
def bar(what: str, total: int, unit: str = "tiles", *, start: int = 0) -> Iterator[Callable[[int], None]]:
    """Yield `advance(count)`; `start` were done before (a resumed run) and do not count as speed."""
    if sys.stderr.isatty() and _speaks():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as shown:
            task = shown.add_task(what, total=total, completed=start)
            yield lambda count: shown.advance(task, count)
        return
    done, began = start, time.monotonic()
    next_line = began + FIRST_LINE_S
    lines = deque([(began, start)], maxlen=WINDOW)  # time and count at the latest lines: speed as it is now

    def advance(count: int) -> None:
        nonlocal done, next_line
        done += count
        now = time.monotonic()
        if now >= next_line and done < total:
            next_line = now + LINE_EVERY_S
            since, before = lines[0]
            say(f"{what}: {_rate(done, total, unit, (now - since) / (done - before))}")
            lines.append((now, done))

    yield advance
    say(f"{what}: {done - start:,} {unit} in {time.monotonic() - began:.1f} s")


def _rate(done: int, total: int, unit: str, each_s: float) -> str:
    """How far, how fast, and how long still."""
    speed = f"{each_s:.1f} s/{unit.removesuffix('s')}" if each_s >= 1 else f"{1 / each_s:,.0f} {unit}/s"
    minutes, seconds = divmod(round((total - done) * each_s), 60)
    hours, minutes = divmod(minutes, 60)
    left = f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
    return f"{done:,}/{total:,} {unit}, {speed}, {left} left"


def show(what: "RenderableType") -> None:
    """Print a rich table and the like."""
    from rich.console import Console

    Console(stderr=True).print(what)


def say(line: str) -> None:
    """Print one line."""
    if _speaks():
        print(line, file=sys.stderr, flush=True)


def _speaks() -> bool:
    """Of several processes that share the work, process 0 does."""
    return os.environ.get("RANK", "0") == "0"


def print_table(rows: Sequence[tuple[str, ...]], *, header: tuple[str, ...], width: int | None = None) -> None:
    """Print rows under `header` on standard output, as wide as the terminal or `width`. Text is folded, never cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: [/] may be in a setting or a file's name
    Console(width=width).print(table)
