"""Tensors and facts in one safetensors file, written whole or not at all.

The same content gives the same bytes (safetensors itself writes metadata in random order), so that DVC sees
no change where there is none.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.torch import save as serialize
from torch import Tensor

from satclr import atomic


class TensorFileError(ValueError):
    """A file that is not what `save` writes, or holds what is not finite: which, why, what to do."""


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the facts' texts of a file, which is data only and can run nothing.

    Raises FileNotFoundError without it, and `TensorFileError` when it is no whole safetensors file or a tensor
    is not finite. What a header claims is held against the file's size before memory is taken.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = dict(file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except FileNotFoundError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file provokes
        raise TensorFileError(
            f"{path} is no whole safetensors file ({error}); make or fetch it again"
        ) from None
    require_finite(tensors, path)
    return tensors, facts


def load_arrays(path: Path) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz that `numpy.savez` wrote: data only, and no larger than the file.

    Raises `TensorFileError` for a damaged one, and for one that holds Python objects or unpacks to more than it is.
    """
    try:
        with zipfile.ZipFile(path) as file:
            unpacked = sum(info.file_size for info in file.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"unpacks to {unpacked:,} bytes, more than its own {path.stat().st_size:,}")
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file provokes
        raise TensorFileError(
            f"{path} is no whole npz file of numbers ({error}); make or fetch it again"
        ) from None


def require_finite(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise `TensorFileError` naming the tensors that hold NaN or infinity."""
    broken = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise TensorFileError(
            f"{where} is not finite in {', '.join(broken[:3])}{more}; make or fetch it again"
        )


def save(path: Path, tensors: Mapping[str, Tensor], **facts: Any) -> None:
    """Write `tensors`, and each fact as JSON text (text stays as it is), in place of what `path` held."""
    metadata = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False) for k, v in facts.items()}
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    raw = serialize(plain, metadata=metadata)
    end = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:end])
    if metadata:
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned
    with atomic.replacing(path) as part, part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        file.write(memoryview(raw)[end:])


def digest(path: Path) -> str:
    """What tells this file's content from any other's (SHA-256)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
