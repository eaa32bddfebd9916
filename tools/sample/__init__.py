"""The embedded sample data set: rendered overhead tiles in MLRSNet's layout.

Enters: a seed. Leaves: `Images/<category>/<category>_00001.jpg` and `Labels/<category>.csv`, the same
bytes for the same seed, Pillow and numpy. The tiles are painted, not photographed.
`python -m tools.sample FOLDER` makes them.
"""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

import numpy as np

from tools.sample.camera import photograph
from tools.sample.canvas import Canvas
from tools.sample.scenes import SCENES
from tools.sample.things import LABELS, visible

if TYPE_CHECKING:
    from pathlib import Path

TILES_PER_CATEGORY = 75
MAX_LABELS = 8
CATEGORIES = tuple(SCENES)

__all__ = ["CATEGORIES", "LABELS", "MAX_LABELS", "TILES_PER_CATEGORY", "render", "tile"]


def tile(category: str, index: int, *, seed: int = 0) -> tuple[bytes, frozenset[str]]:
    """The JPEG and the labels of tile `index` of `category`; a function of its arguments alone."""
    scene = SCENES[category]
    entropy = [seed, index, *category.encode()]
    attempt = 0
    while True:
        canvas = Canvas(np.random.default_rng([attempt, *entropy]), scene.side_m)
        scene.paint(canvas)
        labels = visible(canvas.things)
        if labels & scene.shows and len(labels) <= MAX_LABELS:
            break
        attempt += 1  # an object that gives the category its name is hidden, or too much is in view: paint another
    buffer = io.BytesIO()
    photograph(canvas).save(buffer, "JPEG", quality=canvas.count(72, 86))
    return buffer.getvalue(), labels


def render(folder: Path, *, seed: int = 0, tiles_per_category: int = TILES_PER_CATEGORY) -> None:
    """Write the sample into `folder`, in MLRSNet's layout; tiles already there are overwritten.

    Raises ValueError for a negative seed or fewer than one tile a category.
    """
    if seed < 0 or tiles_per_category < 1:
        raise ValueError(
            f"seed must be at least 0 and tiles_per_category at least 1, got {seed} and {tiles_per_category}"
        )
    (folder / "Labels").mkdir(parents=True, exist_ok=True)
    for category in CATEGORIES:
        images = folder / "Images" / category
        images.mkdir(parents=True, exist_ok=True)
        with (folder / "Labels" / f"{category}.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", *LABELS])
            for number in range(1, tiles_per_category + 1):
                jpeg, labels = tile(category, number, seed=seed)
                name = f"{category}_{number:05d}.jpg"
                (images / name).write_bytes(jpeg)
                table.writerow([name, *(int(label in labels) for label in LABELS)])
