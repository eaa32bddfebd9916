"""Tensors and facts in one safetensors file, written whole or not at all.

The same content gives the same bytes (safetensors itself writes metadata in random order), so that DVC sees
no change where there is none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as serialize
from torch import Tensor

from satclr import atomic


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
