"""Tiles as pictures inside the page: JPEG data URIs, single and many in one sheet."""

from __future__ import annotations

import base64
import io
import math

import numpy as np
import numpy.typing as npt
from PIL import Image

Tiles = npt.NDArray[np.uint8]


def uri(tile: Tiles, *, side_px: int) -> str:
    """One tile (H,H,3) as a data URI of side `side_px`."""
    return _uri(Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.LANCZOS))


def sheet(tiles: Tiles, *, side_px: int) -> tuple[str, int]:
    """Tiles (N,H,H,3) of side `side_px` in one picture, row by row, as a data URI; and how many stand in a row."""
    columns = math.ceil(math.sqrt(len(tiles)))
    picture = Image.new("RGB", (columns * side_px, math.ceil(len(tiles) / columns) * side_px))
    for i, tile in enumerate(tiles):
        small = Image.fromarray(tile).resize((side_px, side_px), Image.Resampling.LANCZOS)
        picture.paste(small, (i % columns * side_px, i // columns * side_px))
    return _uri(picture), columns


def _uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
