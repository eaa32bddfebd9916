"""What the commands print: an error, a table."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import typer


def fail(message: str, *, code: int) -> NoReturn:
    """End with one message."""
    rank = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""  # under torchrun
    typer.secho(f"error{rank}: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


def print_table(rows: Sequence[tuple[str, ...]], *, header: tuple[str, ...] = ()) -> None:
    """Print rows under `header`, or under the first of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, rows = (header, rows) if header else (rows[0], rows[1:])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as it stands: [/] in a setting or a file's name is no markup
    Console().print(table)
