"""The vocabulary: what a pixel can show, the labels it counts for, how much of it a person has to see."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from PIL import Image


class Thing(NamedTuple):
    """What a pixel can show: the labels it counts for and how rough its surface looks (relative contrast)."""

    labels: tuple[str, ...]
    rough: float


THINGS: dict[str, Thing] = {
    "clutter": Thing((), 0.05),
    "grass": Thing(("grass",), 0.09),
    "soil": Thing(("bare soil",), 0.07),
    "sand": Thing(("sand",), 0.035),
    "crop": Thing(("field",), 0.07),
    "sea": Thing(("sea", "water"), 0.05),
    "stream": Thing(("river", "water"), 0.04),
    "basin": Thing(("water",), 0.04),
    "road": Thing(("road",), 0.05),
    "crosswalk": Thing(("crosswalk", "road"), 0.03),
    "bridge": Thing(("bridge", "road"), 0.04),
    "paving": Thing(("pavement",), 0.05),
    "parking": Thing(("parking lot", "pavement"), 0.05),
    "trail": Thing(("trail",), 0.06),
    "rails": Thing(("railway",), 0.10),
    "building": Thing(("buildings",), 0.035),
    "car": Thing(("cars",), 0.02),
    "tree": Thing(("trees",), 0.17),
    "pool": Thing(("swimming pool",), 0.05),
    "court": Thing(("tennis court",), 0.025),
    "tank": Thing(("tanks",), 0.02),
    "ship": Thing(("ships",), 0.03),
    "dock": Thing(("dock",), 0.06),
    "plane": Thing(("airplane",), 0.02),
    "container": Thing(("containers",), 0.04),
}
IDS = {name: i for i, name in enumerate(THINGS)}
LABELS = tuple(sorted({label for thing in THINGS.values() for label in thing.labels} | {"forest"}))
ROUGH = np.array([thing.rough for thing in THINGS.values()], dtype=np.float32)
FOREST_SHARE = 0.5

# The share of a tile's pixels below which a person would not name the thing.
_VISIBLE = {
    "airplane": 0.008,
    "bare soil": 0.025,
    "bridge": 0.02,
    "buildings": 0.012,
    "cars": 0.0015,
    "containers": 0.01,
    "crosswalk": 0.004,
    "dock": 0.007,
    "grass": 0.02,
    "ships": 0.0018,
    "swimming pool": 0.003,
    "tanks": 0.006,
    "trail": 0.01,
    "trees": 0.008,
}
_VISIBLE_OTHERWISE = 0.02


def visible(things: Image.Image) -> frozenset[str]:
    """The labels of all that covers enough of `things`, the picture of what each pixel shows, to be named."""
    counts = np.bincount(np.asarray(things).ravel(), minlength=len(THINGS))
    share = dict.fromkeys(LABELS, 0.0)
    for thing, count in zip(THINGS.values(), counts.tolist(), strict=True):
        for label in thing.labels:
            share[label] += count / counts.sum()
    named = {label for label in LABELS if share[label] >= _VISIBLE.get(label, _VISIBLE_OTHERWISE)}
    if share["trees"] >= FOREST_SHARE:
        named.add("forest")
    return frozenset(named)
