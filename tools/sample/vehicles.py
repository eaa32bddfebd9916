"""What moves: cars and trucks, planes, ships, and the railway with its trains.

All sizes are in metres. Each function paints shadows first, then the things, and marks what it covers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tools.sample.objects import CONTAINER_COLOURS, WHITE, containers, gained, moved, rectangle, stacks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.sample.canvas import Canvas, Colour, Place

_CAR_COLOURS: tuple[Colour, ...] = (
    (228, 228, 226),
    (236, 236, 236),
    (188, 190, 192),
    (150, 154, 158),
    (98, 100, 104),
    (44, 46, 50),
    (34, 36, 40),
    (150, 40, 38),
    (44, 70, 120),
    (120, 104, 84),
)


def cars(c: Canvas, places: Sequence[tuple[Place, float]], *, trucks: float = 0.0) -> None:
    """Cars at (place, heading); a share of them `trucks`."""
    plan = []
    for place, heading in places:
        truck = c.chance(trucks)
        length = c.uniform(9, 15) if truck else c.uniform(4.1, 5.3)
        plan.append((place, heading, length, 2.5 if truck else c.uniform(1.8, 2.1), truck))
    c.shadow(polygons=[(rectangle(p, n, w, h), 3.4 if t else 1.4) for p, h, n, w, t in plan])
    for place, heading, length, width, truck in plan:
        a, w = length / 2, width / 2
        if truck:
            colour = c.tinted(c.pick((WHITE, WHITE, (170, 174, 178), (96, 110, 140), (160, 90, 70))), 0.08)
            c.polygon(rectangle(place, length, width, heading), colour, "car")
            (gap,) = moved([(a - 2.3, 0)], place, heading)
            c.polygon(rectangle(gap, 0.5, width, heading), gained(colour, 0.45), "car")
            continue
        colour = c.tinted(c.pick(_CAR_COLOURS), 0.08)
        body = [(-a, -w * 0.8), (-a + 0.4, -w), (a - 0.7, -w), (a, -w * 0.6)]
        body += [(x, -y) for x, y in reversed(body)]
        c.polygon(moved(body, place, heading), colour, "car")
        glass = [(-a + 0.6, -w * 0.75), (a - 1.2, -w * 0.75), (a - 1.2, w * 0.75), (-a + 0.6, w * 0.75)]
        c.polygon(moved(glass, place, heading), (38, 42, 48), "car")
        roof = [(-a + 1.2, -w * 0.7), (a - 2.1, -w * 0.7), (a - 2.1, w * 0.7), (-a + 1.2, w * 0.7)]
        c.polygon(moved(roof, place, heading), gained(colour, 1.05), "car")


_FUSELAGE = [(0.5, 0.0), (0.47, 0.022), (0.4, 0.036), (-0.26, 0.036), (-0.5, 0.008)]


_AIRLINER = [
    [(0.14, 0.03), (-0.1, 0.47), (-0.15, 0.47), (-0.09, 0.15), (-0.1, 0.03)],
    [(-0.36, 0.02), (-0.47, 0.18), (-0.51, 0.18), (-0.47, 0.015)],
]


_LIGHT_PLANE = [
    [(0.2, 0.03), (0.19, 0.62), (0.03, 0.62), (0.0, 0.03)],
    [(-0.38, 0.01), (-0.39, 0.2), (-0.48, 0.2), (-0.5, 0.01)],
]


def plane(c: Canvas, place: Place, heading: float, length: float) -> None:
    """An airliner, or below 16 m a light plane."""
    light = length < 16
    parts = [[*_FUSELAGE, *((x, -y) for x, y in reversed(_FUSELAGE))]]
    for wing in _LIGHT_PLANE if light else _AIRLINER:
        parts += [wing, [(x, -y) for x, y in wing]]
    shapes = [moved([(x * length, y * length) for x, y in part], place, heading) for part in parts]
    c.shadow(polygons=[(shape, 0.1 * length) for shape in shapes], floating=True)
    colour = c.tinted(c.pick((WHITE, WHITE, (206, 210, 214), (176, 180, 184))), 0.05)
    for y in () if light else (0.17, -0.17):
        spots = moved([(0.07 * length, y * length), (-0.03 * length, y * length)], place, heading)
        c.line(spots, 0.045 * length, gained(colour, 0.55), "plane")
    for shape in shapes[1:]:
        c.polygon(shape, gained(colour, 0.9), "plane")
    c.polygon(shapes[0], colour, "plane")
    dim = moved([(0.42 * length, -0.028 * length), (-0.3 * length, -0.028 * length)], place, heading)
    bright = moved([(0.42 * length, 0.028 * length), (-0.3 * length, 0.028 * length)], place, heading)
    if c.lit(bright[0][0] - dim[0][0], bright[0][1] - dim[0][1]) < 0:
        dim = bright
    c.line(dim, 0.018 * length, gained(colour, 0.68))
    fin = moved([(-0.33 * length, 0), (-0.5 * length, 0)], place, heading)
    c.line(fin, 0.016 * length, c.tinted(c.pick(((150, 50, 46), (50, 74, 130), (70, 110, 90), (120, 120, 124))), 0.1))


def ship(c: Canvas, place: Place, heading: float, length: float, *, wake: bool = False) -> None:
    """A boat or, from 40 m, a freighter."""
    a, w = length / 2, length * (0.13 if length < 40 else 0.085)
    if wake:
        foam = c.tinted((206, 216, 216), 0.04)
        for side in (-1, 1):
            tail = [(-a * 0.6, side * w * 0.7), (-a - 1.2 * length, side * (w + 0.3 * length))]
            c.line(moved(tail, place, heading), 0.05 * length, foam)
        c.polygon(moved([(-a, -w * 0.6), (-a, w * 0.6), (-a - 1.6 * length, 0)], place, heading), foam)
    hull = [(-a, -w * 0.8), (a * 0.35, -w), (a * 0.75, -w * 0.6), (a, 0)]
    hull += [(x, -y) for x, y in reversed(hull)]
    outline = moved(hull, place, heading)
    c.shadow(polygons=[(outline, 0.06 * length + 0.6)])
    freighter = length >= 40
    colour = c.tinted(
        c.pick(
            ((120, 60, 52), (70, 84, 104), (90, 96, 92))
            if freighter
            else (WHITE, WHITE, (214, 206, 190), (60, 74, 104))
        ),
        0.08,
    )
    c.polygon(outline, colour, "ship")
    deck = gained(c.tinted(c.pick(((176, 150, 120), (206, 204, 200), (140, 146, 150))), 0.08), 1.0)
    c.polygon(moved([(x * 0.86, y * 0.7) for x, y in hull], place, heading), deck, "ship")
    if freighter:
        (bridge,) = moved([(-a * 0.78, 0)], place, heading)
        containers(c, stacks(place, heading, length * 0.62, w * 1.5))
        c.shadow(polygons=[(rectangle(bridge, length * 0.09, w * 1.5, heading), 9)])
        c.polygon(rectangle(bridge, length * 0.09, w * 1.5, heading), WHITE, "ship")
        return
    (cabin,) = moved([(-a * 0.1, 0)], place, heading)
    c.polygon(rectangle(cabin, length * 0.3, w * 1.05, heading), gained(WHITE, 0.98), "ship")
    (glass,) = moved([(a * 0.2, 0)], place, heading)
    c.polygon(rectangle(glass, length * 0.07, w, heading), (58, 66, 76), "ship")


def track(c: Canvas, offset: float) -> None:
    """One railway track along u at v = `offset`, sleepers and two rails, on ballast that lies there."""
    reach = c.reach_m
    sleeper = c.tinted((104, 92, 82), 0.1)
    for i in range(int(2 * reach / 1.3)):
        u = -reach + 1.3 * i
        c.line([(u, offset - 1.25), (u, offset + 1.25)], 0.5, sleeper)
    for side in (-0.75, 0.75):
        c.line([(-reach, offset + side), (reach, offset + side)], 0.3, c.tinted((182, 178, 174), 0.05))


def train(c: Canvas, offset: float) -> None:
    """Wagons on the track at v = `offset`."""
    colour = c.tinted(c.pick(((120, 84, 66), (176, 180, 182), (90, 104, 120), (70, 70, 72))), 0.08)
    length = c.uniform(12, 20)
    start = c.uniform(-c.reach_m, c.reach_m / 2)
    wagons = [rectangle((start + i * (length + 1), offset), length, 3, 0) for i in range(c.count(2, 9))]
    c.shadow(polygons=[(wagon, 4) for wagon in wagons])
    mixed = c.chance(0.4)
    for wagon in wagons:
        body = c.tinted(c.pick(CONTAINER_COLOURS), 0.1) if mixed else colour
        c.polygon(wagon, body, "container" if mixed else "clutter")
        c.line([_mid(wagon[0], wagon[3]), _mid(wagon[1], wagon[2])], 0.9, gained(body, 1.2))


def _mid(p: Place, q: Place) -> Place:
    return (p[0] + q[0]) / 2, (p[1] + q[1]) / 2
