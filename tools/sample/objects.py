"""What stands on the ground: crowns, buildings, tanks, courts, pools, containers.

All sizes are in metres. Each function paints shadows first, then the things, and marks what it covers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tools.sample.canvas import Canvas, Colour, Place, Points

WHITE: Colour = (232, 232, 228)


_PITCHED: tuple[Colour, ...] = (
    (136, 122, 112),
    (112, 106, 104),
    (150, 98, 78),
    (166, 118, 92),
    (92, 88, 88),
    (178, 168, 156),
    (124, 96, 82),
)


_FLAT: tuple[Colour, ...] = (
    (214, 212, 206),
    (186, 182, 174),
    (150, 148, 146),
    (120, 118, 116),
    (196, 182, 160),
    (166, 140, 122),
    (134, 150, 160),
)


CONTAINER_COLOURS: tuple[Colour, ...] = (
    (158, 62, 48),
    (60, 92, 138),
    (70, 112, 92),
    (178, 128, 62),
    (196, 196, 192),
    (112, 70, 60),
    (120, 130, 140),
)


def gained(colour: Colour, gain: float) -> Colour:
    return colour[0] * gain, colour[1] * gain, colour[2] * gain


def moved(points: Points, centre: Place, heading: float) -> list[Place]:
    """`points` turned by `heading` (radians) about the origin, then carried to `centre`."""
    cos, sin = math.cos(heading), math.sin(heading)
    return [(centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos) for x, y in points]


def rectangle(centre: Place, length: float, width: float, heading: float = 0.0) -> list[Place]:
    a, b = length / 2, width / 2
    return moved([(-a, -b), (a, -b), (a, b), (-a, b)], centre, heading)


def trees(c: Canvas, places: Sequence[Place], *, radius_m: tuple[float, float], conifers: float = 0.2) -> None:
    """Crowns of a radius in the given range, in two storeys; a share of them `conifers`."""
    crowns = [(place, c.uniform(*radius_m) * c.pick((0.8, 1.0, 1.2))) for place in places]
    crowns.sort(key=lambda crown: crown[1])
    half = len(crowns) // 2
    for storey in (crowns[:half], crowns[half:]):
        c.shadow(discs=[(place, 0.9 * r, r + 0.8) for place, r in storey], tapered=True)
        for place, r in storey:
            if c.chance(conifers):
                _conifer(c, place, r)
            else:
                _crown(c, place, r)


def _crown(c: Canvas, place: Place, r: float) -> None:
    colour = c.tinted(c.pick(c.crown_colours), 0.16)
    su, sv = c.sunward()
    c.disc(place, r, gained(colour, 0.58), "tree")
    for a, b in c.rng.uniform(-1, 1, (max(4, min(11, int(r * c.px_per_m / 2.2))), 2)).tolist():
        if a * a + b * b < 1:
            facing = a * su + b * sv
            size = r * (0.34 + 0.12 * abs(a))
            spot = (place[0] + 0.74 * r * a, place[1] + 0.74 * r * b)
            c.disc(spot, size, gained(colour, 0.92 + 0.36 * facing), "tree")


def _conifer(c: Canvas, place: Place, r: float) -> None:
    colour = c.tinted((54, 76, 58), 0.14)
    su, sv = c.sunward()
    phase, points = c.uniform(0, 1), 9
    star = [
        (
            place[0] + r * (0.95, 0.62)[i % 2] * math.cos(math.pi * (i + phase) / points),
            place[1] + r * (0.95, 0.62)[i % 2] * math.sin(math.pi * (i + phase) / points),
        )
        for i in range(2 * points)
    ]
    c.polygon(star, gained(colour, 0.7), "tree")
    for share, gain in ((0.5, 1.05), (0.28, 1.35)):
        c.disc((place[0] + su * r * 0.28, place[1] + sv * r * 0.28), r * share, gained(colour, gain))


class Building(NamedTuple):
    centre: Place
    length: float
    width: float
    heading: float = 0.0
    height: float = 5.0
    flat: bool = False

    def outline(self) -> list[Place]:
        return rectangle(self.centre, self.length, self.width, self.heading)

    def clear(self, place: Place, margin: float) -> bool:
        """Whether `place` is more than `margin` metres outside the roof."""
        return math.dist(place, self.centre) > math.hypot(self.length, self.width) / 2 + margin


def buildings(c: Canvas, plan: Sequence[Building]) -> None:
    c.shadow(polygons=[(b.outline(), b.height) for b in plan])
    for b in plan:
        (_flat_roof if b.flat else _pitched_roof)(c, b)


def _pitched_roof(c: Canvas, b: Building) -> None:
    colour = c.tinted(c.pick(_PITCHED), 0.1)
    if b.width > b.length:
        b = b._replace(length=b.width, width=b.length, heading=b.heading + math.pi / 2)
    a, w = b.length / 2, b.width / 2
    ridge = a - w * (c.uniform(0.75, 1.0) if c.chance(0.6) else 0.0)  # hipped or gabled
    facets: list[tuple[list[Place], Place]] = [
        ([(-a, -w), (a, -w), (ridge, 0), (-ridge, 0)], (0, -1)),
        ([(-a, w), (a, w), (ridge, 0), (-ridge, 0)], (0, 1)),
        ([(a, -w), (a, w), (ridge, 0)], (1, 0)),
        ([(-a, -w), (-a, w), (-ridge, 0)], (-1, 0)),
    ]
    slope = 0.12 if c.overcast else 0.34
    for facet, normal in facets:
        ((nu, nv),) = moved([normal], (0, 0), b.heading)
        c.polygon(moved(facet, b.centre, b.heading), gained(colour, 1 + slope * c.lit(nu, nv)), "building")
    c.line(moved([(-ridge, 0), (ridge, 0)], b.centre, b.heading), 0.3, gained(colour, 1.15))


def _flat_roof(c: Canvas, b: Building) -> None:
    colour = c.tinted(c.pick(_FLAT), 0.1)
    c.polygon(b.outline(), gained(colour, 1.14), "building")
    rim = 0.7
    inner = rectangle(b.centre, b.length - 2 * rim, b.width - 2 * rim, b.heading)
    c.polygon(inner, colour, "building")
    if c.chance(0.5):  # seams of sheet metal or roofing felt
        step = c.uniform(2.5, 6)
        for i in range(int(b.length / step)):
            x = -b.length / 2 + rim + (i + 0.5) * step
            if x < b.length / 2 - rim:
                seam = [(x, -b.width / 2 + rim), (x, b.width / 2 - rim)]
                c.line(moved(seam, b.centre, b.heading), 0.25, gained(colour, 0.9))
    units = []
    for _ in range(min(9, int(b.length * b.width / 110) + c.count(0, 2))):
        spot = (c.uniform(-0.36, 0.36) * b.length, c.uniform(-0.36, 0.36) * b.width)
        (centre,) = moved([spot], b.centre, b.heading)
        units.append(rectangle(centre, c.uniform(1.2, 3.2), c.uniform(1.0, 2.4), b.heading))
    c.shadow(polygons=[(unit, 1.6) for unit in units])
    for unit in units:
        c.polygon(unit, c.tinted((204, 204, 202), 0.12))


def tanks(c: Canvas, plan: Sequence[tuple[Place, float]]) -> None:
    """Storage tanks at (centre, radius)."""
    su, sv = c.sunward()
    heights = [min(14.0, 2.5 + 0.55 * r) for _, r in plan]
    c.shadow(discs=[(place, r, h) for (place, r), h in zip(plan, heights, strict=True)])
    colour = c.tinted(c.pick((WHITE, WHITE, (206, 202, 192), (160, 160, 156), (150, 120, 100))), 0.06)
    floating = c.chance(0.4)
    for (place, r), height in zip(plan, heights, strict=True):
        c.disc(place, r, gained(colour, 1.08), "tank")
        c.disc(place, 0.93 * r, gained(colour, 0.9), "tank")
        if floating:  # the roof lies low and the wall throws a crescent on it
            c.disc(place, 0.91 * r, gained(colour, 0.5), "tank")
            drop = min(0.35 * r, 0.4 * height)
            c.disc(
                (place[0] - su * drop * 0.5, place[1] - sv * drop * 0.5),
                0.91 * r - drop * 0.5,
                gained(colour, 0.86),
                "tank",
            )
        else:
            for share, gain in ((0.8, 0.95), (0.55, 1.0), (0.28, 1.04)):
                c.disc(
                    (place[0] + su * r * (1 - share) * 0.35, place[1] + sv * r * (1 - share) * 0.35),
                    r * share,
                    gained(colour, gain),
                )
            c.disc(place, 0.06 * r, gained(colour, 0.6))
        angle = c.uniform(0, 2 * math.pi)
        stair = [(place[0] + r * math.cos(angle + t), place[1] + r * math.sin(angle + t)) for t in (0, 0.25, 0.5, 0.75)]
        c.line(stair, 0.6, (120, 120, 120))


def court(c: Canvas, centre: Place, heading: float) -> None:
    """A tennis court, 36 m by 18 m with its run-off."""
    green, blue, clay, grey = (84, 122, 92), (74, 104, 146), (172, 104, 76), (130, 136, 136)
    outside, inside = c.pick(
        ((green, green), (green, blue), (clay, green), (clay, clay), (green, clay), (blue, blue), (grey, green))
    )
    c.polygon(rectangle(centre, 36, 18, heading), c.tinted(outside, 0.08), "court")
    c.polygon(rectangle(centre, 23.8, 11, heading), c.tinted(inside, 0.08), "court")
    lines: list[list[Place]] = [
        [(-11.9, -5.5), (11.9, -5.5), (11.9, 5.5), (-11.9, 5.5), (-11.9, -5.5)],
        [(-11.9, -4.1), (11.9, -4.1)],
        [(-11.9, 4.1), (11.9, 4.1)],
        [(-6.4, -4.1), (-6.4, 4.1)],
        [(6.4, -4.1), (6.4, 4.1)],
        [(-6.4, 0), (6.4, 0)],
    ]
    for line in lines:
        c.line(moved(line, centre, heading), 0.35, WHITE)
    net = moved([(0, -6.4), (0, 6.4)], centre, heading)
    c.shadow(polygons=[(net, 0.6)])
    c.line(net, 0.3, (60, 64, 66))


def pool(c: Canvas, centre: Place, heading: float, length: float) -> None:
    width = length * c.uniform(0.4, 0.6)
    c.polygon(rectangle(centre, length + 3, width + 3, heading), c.tinted(c.concrete_colour, 0.06), "paving")
    colour = c.tinted(c.pick(((82, 178, 196), (64, 150, 190), (110, 196, 200), (60, 130, 150))), 0.1)
    a, b = length / 2 - width / 2, width / 2
    if c.chance(0.6):
        c.polygon(rectangle(centre, length, width, heading), colour, "pool")
    else:
        left, right = moved([(-a, 0), (a, 0)], centre, heading)
        c.line([left, right], width, colour, "pool")
        c.disc(left, b, colour, "pool")
        c.disc(right, b * c.uniform(0.9, 1.25), colour, "pool")
    rim = moved([(-length * 0.42, -b * 0.5), (length * 0.42, -b * 0.5)], centre, heading)
    c.line(rim, 0.35, gained(colour, 1.15))


def stacks(centre: Place, heading: float, length: float, width: float) -> list[tuple[Place, float]]:
    """The (place, heading) of each container stack in a `length` by `width` block."""
    across, along = max(1, int(width / 2.6)), max(1, int(length / 12.6))
    spots = [((i - (along - 1) / 2) * 12.6, (j - (across - 1) / 2) * 2.6) for i in range(along) for j in range(across)]
    return [(place, heading) for place in moved(spots, centre, heading)]


def containers(c: Canvas, plan: Sequence[tuple[Place, float]]) -> None:
    """Stacks of 40-foot containers at (place, heading), one to four high; some places stay empty."""
    standing = [(p, h, rectangle(p, 12.2, 2.44, h), 2.6 * c.count(1, 4)) for p, h in plan if c.chance(0.88)]
    c.shadow(polygons=[(outline, height) for _, _, outline, height in standing])
    livery = c.pick(CONTAINER_COLOURS)
    for place, heading, outline, height in standing:
        colour = c.tinted(livery if c.chance(0.3) else c.pick(CONTAINER_COLOURS), 0.1)
        colour = gained(colour, 0.86 + 0.025 * height)
        c.polygon(outline, colour, "container")
        c.line([outline[0], outline[3]], 0.3, gained(colour, 0.6))
        c.line(moved([(-5.8, 0), (5.8, 0)], place, heading), 0.25, gained(colour, 1.14))
