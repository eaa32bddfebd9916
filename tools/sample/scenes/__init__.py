"""The sixteen scene categories: how each is composed, at what size, and what must be visible in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tools.sample.scenes import land, port, town, transport

if TYPE_CHECKING:
    from collections.abc import Callable

    from tools.sample.canvas import Canvas


class Scene(NamedTuple):
    """`side_m`: range of the tile's side; `shows`: labels of which one has to be visible."""

    paint: Callable[[Canvas], None]
    side_m: tuple[float, float]
    shows: frozenset[str]


def _scene(paint: Callable[[Canvas], None], low: float, high: float, *shows: str) -> Scene:
    return Scene(paint, (low, high), frozenset(shows))


SCENES = {
    "airplane": _scene(transport.airplane, 45, 110, "airplane"),
    "beach": _scene(land.beach, 45, 110, "sea"),
    "dense_residential_area": _scene(town.dense_residential_area, 45, 80, "buildings"),
    "farmland": _scene(land.farmland, 60, 130, "field"),
    "forest": _scene(land.forest, 40, 75, "forest"),
    "freeway": _scene(transport.freeway, 48, 85, "road"),
    "harbor&port": _scene(port.harbor, 38, 75, "ships"),
    "industrial_area": _scene(town.industrial_area, 60, 110, "buildings"),
    "intersection": _scene(transport.intersection, 45, 75, "road"),
    "parking_lot": _scene(transport.parking_lot, 40, 70, "parking lot"),
    "railway": _scene(transport.railway, 40, 70, "railway"),
    "river": _scene(land.river, 50, 110, "river"),
    "shipping_yard": _scene(port.shipping_yard, 60, 105, "containers"),
    "sparse_residential_area": _scene(town.sparse_residential_area, 45, 80, "buildings"),
    "storage_tank": _scene(port.storage_tank, 45, 110, "tanks"),
    "tennis_court": _scene(town.tennis_court, 45, 90, "tennis court"),
}
