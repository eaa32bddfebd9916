"""Noise: what keeps a painted surface from looking painted. All fields are (side, side), `SIDE_PX` wide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats: TypeAlias = NDArray[np.float32]
    Bools: TypeAlias = NDArray[np.bool_]

TILE_PX = 128
SIDE_PX = 2 * TILE_PX  # painted at twice the size: edges come out smooth


def noise(rng: np.random.Generator, cell_px: float, octaves: int) -> Floats:
    """Smooth noise of about unit variance, (side, side): lattices, each finer and weaker than the last."""
    total = np.zeros((SIDE_PX, SIDE_PX), np.float32)
    for octave in range(octaves):
        cells = SIDE_PX * 1.73**octave / cell_px  # no whole number, or the lattices would line up to a weave
        n = math.ceil(cells) + 1
        lattice = rng.standard_normal((n, n), dtype=np.float32)
        x, y = rng.uniform(0, n - cells, 2).tolist()
        layer = Image.fromarray(lattice).resize(
            (SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC, box=(x, y, x + cells, y + cells)
        )
        total += np.asarray(layer) * np.float32(0.58**octave * 1.1)
    return total


def speckle(rng: np.random.Generator, sigma_px: float = 1.6) -> Floats:
    """Isotropic noise of about unit variance and the finest scale that survives the camera, (side, side)."""
    white = 128 + 40 * rng.standard_normal((SIDE_PX, SIDE_PX), dtype=np.float32)
    blurred = Image.fromarray(np.clip(white, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(sigma_px))
    gain = 2 * math.sqrt(math.pi) * sigma_px / 40  # a Gaussian blur divides the deviation by 2 sigma sqrt(pi)
    return (np.asarray(blurred, np.float32) - 128) * np.float32(gain)
