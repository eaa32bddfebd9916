"""Files that are written completely or not at all: text, JSON, CSV, and tensors with facts (safetensors).

with files.replacing(path) as part:
    part.write_text("...")

Equal content gives equal bytes (safetensors alone orders its metadata at random), so that DVC sees no change where
there is none.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Arrays = dict[str, npt.NDArray[Any]]


class WriteError(OSError):
    """A file could not be written; its former content is intact. Exit code 1."""


class FileError(ValueError):
    """A damaged or unexpected file: which, why, what to do."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary file beside `path`; it replaces `path` if the block succeeds and is deleted otherwise.

    A killed process may leave it behind; the next writer of `path` overwrites it. Raises `WriteError` when the
    disk is full.
    """
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield part
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise explain(error, path) from error
    finally:
        part.unlink(missing_ok=True)


def part_of(path: Path) -> Path:
    """The temporary file of `replacing(path)`."""
    return path.with_name(path.name + ".part")


def write_text(path: Path, text: str) -> None:
    """Replace the content of `path`; characters that UTF-8 cannot encode (in file names) are escaped."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")


def write_json(path: Path, tree: Any, *, indent: int | None = 1, allow_nan: bool = False) -> None:
    """Write `tree` as JSON. Raises `ValueError` for NaN and infinity, unless allowed."""
    write_text(path, json.dumps(tree, indent=indent, ensure_ascii=False, allow_nan=allow_nan) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a table with a header line."""
    with replacing(path) as part, part.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table that `write_csv` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def columns(labels: Iterable[str], own: Sequence[str]) -> list[str]:
    """Each label's column in a table that has columns of its `own`: a label of such a name is called `tile (label)`."""
    found = list(own)
    for name in labels:
        while name in found:
            name += " (label)"  # noqa: PLW2901
        found.append(name)
    return found[len(own) :]


def reserve(path: Path) -> None:
    """Allocate disk space for a sparse file.

    Writing to a hole through a memory map kills the process (SIGBUS) when the disk is full.
    """
    with path.open("rb+") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)


def save_tensors(path: Path, tensors: Mapping[str, Any], **facts: Any) -> None:
    """Write arrays or tensors as safetensors, and each fact as JSON in its metadata."""
    arrays = {}
    for name, value in tensors.items():
        arrays[name] = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, order="C")
    raw = save(arrays)
    end = 8 + int.from_bytes(raw[:8], "little")
    metadata = {name: json.dumps(facts[name], ensure_ascii=False) for name in sorted(facts)}
    header = {"__metadata__": metadata, **json.loads(raw[8:end])}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # keeps the tensors aligned
    with replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(raw)[end:])


def load_tensors(path: Path, prefix: str = "") -> tuple[Arrays, dict[str, str]]:
    """The arrays whose names begin with `prefix`, and the facts (as JSON), of a safetensors file.

    Raises FileNotFoundError, or `FileError` for a damaged file and for values that are not finite. safetensors
    checks the header against the file's size before it allocates memory, and runs no code.
    """
    with _complete(path, "safetensors file"), safe_open(path, "np") as file:
        facts = dict(file.metadata() or {})
        names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118 - not a mapping
        arrays = {key: file.get_tensor(key) for key in names}
    if broken := [key for key in names if arrays[key].dtype.kind == "f" and not np.isfinite(arrays[key]).all()]:
        raise FileError(f"{path} is not finite in {some(broken)}; create or download it again")
    return arrays, facts


def load_facts(path: Path) -> dict[str, str]:
    """The facts (as JSON) alone, from the file's header. Raises as `load_tensors`."""
    with _complete(path, "safetensors file"), safe_open(path, "np") as file:
        return dict(file.metadata() or {})


def load_npz(path: Path) -> Arrays:
    """The arrays of an .npz that `numpy.savez` wrote.

    Raises FileNotFoundError, or `FileError` for a damaged file, for Python objects and for a file that unpacks to more
    than its size.
    """
    with _complete(path, "npz file of numbers"):
        with zipfile.ZipFile(path) as file:
            unpacked = sum(info.file_size for info in file.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"unpacks to {unpacked:,} bytes, more than its own {path.stat().st_size:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)


@contextmanager
def _complete(path: Path, kind: str) -> Iterator[None]:
    """Raise `FileError` for whatever a damaged or hostile file raises while it is read."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever the readers raise
        raise FileError(f"{path} is not a complete {kind} ({error}); create or download it again") from None


def some(names: Sequence[str], count: int = 3) -> str:
    """The first of `names` for a message, and how many more there are."""
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def counted(count: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: 1 tile, 1,200 tiles; plural: if it is not the noun with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def sha256(*paths: Path) -> str:
    """The SHA-256 of the files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def explain(error: OSError, path: Path) -> OSError:
    """`error`, or a `WriteError` that names `path` and says what to do where the disk is full."""
    if isinstance(error, WriteError) or error.errno not in FULL:
        return error
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e6
    return WriteError(
        f"cannot write {path}: {os.strerror(error.errno)} ({free:,.1f} MB free); "
        "free some space and run the same command again. The former file is intact"
    )
