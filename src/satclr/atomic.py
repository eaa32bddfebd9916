"""Files that are written whole or not at all, whatever ends the process.

with atomic.replacing(path) as part:
    part.write_text("...")
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class WriteError(OSError):
    """A file that could not be written; what it held before still stands. Exit code 1."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to: it takes its place when the block ends well, else it goes.

    Only a process that is killed outright leaves it behind; the next writer of `path` writes over it. Raises
    `WriteError`, with the file and what to do, when the disk is full.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise explained(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """Where `path` is written before it takes its place."""
    return path.with_name(path.name + ".part")


def write_text(path: Path, text: str) -> None:
    """Put `text` in place of what `path` held; what is no text in it, as names of files may have, is spelt out."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, tree: Any, *, indent: int | None = 1, allow_nan: bool = False) -> None:
    """Put `tree` in place of what `path` held. Raises `ValueError` for NaN and infinity, unless allowed."""
    write_text(path, json.dumps(tree, indent=indent, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def reserve(path: Path) -> None:
    """Make sure of the disk's room for every byte of a file with holes.

    Writing through a memory map into a hole ends the process without a word (SIGBUS) when the disk is full.
    """
    with path.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def explained(error: OSError, path: Path) -> OSError:
    """`error` as one sentence that names `path`, if it says that the disk is full."""
    if isinstance(error, WriteError) or error.errno not in FULL:
        return error
    free = shutil.disk_usage(_existing(path)).free / 1e6
    return WriteError(
        f"{path} cannot be written: {os.strerror(error.errno)} ({free:,.1f} MB are free on its disk); "
        "make space and run the same command again. What it held before still stands"
    )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
