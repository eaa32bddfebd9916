"""Open country: beach, farmland, forest, river."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tools.sample import ground as g
from tools.sample import objects as o
from tools.sample import vehicles

if TYPE_CHECKING:
    from tools.sample.canvas import Canvas
    from tools.sample.texture import Bools


def beach(c: Canvas) -> None:
    bay = c.grain("coarse") * np.float32(0.05 * c.side_m) + np.float32(c.uniform(-0.3, 0.3) / c.side_m) * c.u * c.u
    shore = c.v - np.float32(c.uniform(-0.2, 0.25) * c.side_m) + bay  # > 0: sea
    sand = c.tinted(c.pick(((214, 196, 160), (196, 178, 146), (226, 214, 190), (172, 156, 130))), 0.06)
    wet = c.uniform(3, 8)
    damp = 1 - np.float32(0.22) * np.clip(1 + shore / np.float32(wet), 0, 1)
    c.surface("sand", sand, patchy=0.05, pattern=damp)
    back = c.uniform(0.15, 0.5) * c.side_m
    if c.chance(0.65):
        dunes = shore < -back + 3 * c.grain("medium")
        (g.grass if c.chance(0.7) else g.soil)(c, dunes)
    if c.chance(0.35):
        g.road(c, -back - c.uniform(8, 20), width=7, walk=c.pick((0, 2)), traffic=2)
    if c.chance(0.3):
        v = -back - c.uniform(14, 30)
        o.buildings(
            c,
            [
                o.Building(
                    (u + c.uniform(-3, 3), v),
                    c.uniform(9, 18),
                    c.uniform(8, 14),
                    c.uniform(-0.1, 0.1),
                    6,
                    c.chance(0.4),
                )
                for u in range(-60, 61, 24)
            ],
        )
    g.water(c, "sea", shore > 0, shore=shore / np.float32(c.uniform(12, 45)))
    foam = c.tinted((226, 230, 228), 0.03)
    ragged = np.float32(1.3) * c.grain("medium") + np.float32(0.5) * c.grain("fine")
    for line in range(c.count(1, 4)):
        offset, width = line * c.uniform(5, 12) + c.uniform(0, 2), c.uniform(0.4, 1.6)
        c.surface(
            "sea", foam, where=np.abs(shore - offset + ragged) < width * (1 + 0.5 * c.grain("coarse")), patchy=0.04
        )
    if c.chance(0.35):
        for u, v in c.scatter(c.count(3, 10), on=("sea",)):
            if not c.shows("sea", (u, v - 11)):  # too near the shore
                continue
            vehicles.ship(c, (u, v), c.uniform(0, 6.3), c.uniform(9, 16), wake=c.chance(0.4))
    if c.chance(0.2):
        pier(c, c.uniform(-0.3, 0.3) * c.side_m)
    g.grove(c, c.count(0, 60), radius_m=(1.5, 3.4))


def pier(c: Canvas, u: float) -> None:
    """A pier along v at `u`, from the sand out to sea."""
    wet = [v for v in np.linspace(-c.reach_m, c.reach_m, 60).tolist() if c.shows("sea", (u, v))]
    if not wet:
        return
    low, high = wet[0] - 8, wet[0] + c.uniform(0.3, 0.8) * c.side_m
    deck = o.rectangle((u, (low + high) / 2), c.uniform(3, 6), high - low)
    c.shadow(polygons=[(deck, 3)], floating=True)
    c.polygon(deck, c.tinted((158, 144, 126), 0.12), "dock")
    for v in np.arange(low, high, 4).tolist():
        c.line([(u - 2, v), (u + 2, v)], 0.3, (112, 100, 90))


def farmland(c: Canvas) -> None:
    turn = c.uniform(0, math.pi)
    g.crop(c, heading=turn)
    cuts_u = sorted(c.uniform(-0.6, 0.6) * c.side_m for _ in range(c.count(0, 2)))
    cuts_v = sorted(c.uniform(-0.6, 0.6) * c.side_m for _ in range(c.count(0, 2)))
    for left, right in zip(cuts_u, [*cuts_u[1:], c.reach_m], strict=False):
        g.crop(c, (c.u > left) & (c.u < right), heading=turn + c.pick((0, math.pi / 2)))
    for low in cuts_v:
        g.crop(c, (c.v > low) & (c.u > (cuts_u[0] if cuts_u and c.chance(0.5) else -c.reach_m)))
    if c.chance(0.2):
        middle, radius = (
            (c.uniform(-0.4, 0.4) * c.side_m, c.uniform(-0.4, 0.4) * c.side_m),
            c.uniform(0.35, 0.6) * c.side_m,
        )
        rings = np.hypot(c.u - np.float32(middle[0]), c.v - np.float32(middle[1]))
        c.surface(
            "crop",
            c.tinted((92, 122, 66), 0.2),
            where=rings < radius,
            patchy=0.06,
            pattern=g.wave(rings, c.uniform(3, 6), 0.12),
        )
    elif c.chance(0.2):
        g.soil(c, blob_strip(c))
    v = c.pick(cuts_v) if cuts_v else c.uniform(-0.4, 0.4) * c.side_m
    if c.chance(0.3):
        g.grass(c, c.stencil(polygons=[g.strip(v, c.uniform(6, 14), c.reach_m)]))
    if c.chance(0.5):
        g.dirt(c, v, c.uniform(2.6, 4))
    elif c.chance(0.4):
        g.road(c, v, width=6.5, traffic=1.2)
    if c.chance(0.4):
        g.hedge(c, v + c.uniform(5, 8), spacing=c.uniform(4, 9), radius_m=(2, 4.2))
    if c.chance(0.2):
        orchard = [
            (u, w)
            for u in np.arange(-c.reach_m, c.reach_m, 6.5).tolist()
            for w in np.arange(v + 12, c.reach_m, 6).tolist()
        ]
        o.trees(c, orchard, radius_m=(1.6, 2.1), conifers=0)
    if c.chance(0.2):
        farm(c, (c.uniform(-0.3, 0.3) * c.side_m, v - 16))


def blob_strip(c: Canvas) -> Bools:
    return np.asarray(
        np.abs(c.u - np.float32(c.uniform(-0.3, 0.3) * c.side_m) + 3 * c.grain("coarse")) < c.uniform(6, 14)
    )


def farm(c: Canvas, centre: tuple[float, float]) -> None:
    g.soil(c, c.stencil(polygons=[o.rectangle(centre, 36, 26)]))
    o.buildings(
        c,
        [
            o.Building((centre[0] - 8, centre[1] + 3), c.uniform(18, 26), c.uniform(9, 13), 0, 7, c.chance(0.5)),
            o.Building((centre[0] + 11, centre[1] - 4), c.uniform(9, 12), 8, math.pi / 2, 5),
        ],
    )


def forest(c: Canvas) -> None:
    (g.grass if c.chance(0.6) else g.soil)(c)
    if c.chance(0.4):
        g.dirt(c, c.uniform(-0.35, 0.35) * c.side_m, c.uniform(3, 5))
    elif c.chance(0.3):
        g.road(c, c.uniform(-0.35, 0.35) * c.side_m, width=7, traffic=1.5, bend=c.uniform(-0.2, 0.2) * c.side_m)
    size = c.uniform(1.9, 3.6)
    places = c.scatter(int(0.77 * (c.side_m / size) ** 2), on=("grass", "soil"))
    if c.chance(0.6):
        clearing = c.mask(g.blob(c, c.uniform(0.0, 0.35)))
        places = [p for p in places if not clearing.getpixel(c.pixel(p)) or c.chance(0.03)]
    o.trees(c, places[:900], radius_m=(0.75 * size, 1.3 * size), conifers=c.pick((0, 0.1, 0.5, 0.95)))
    if c.chance(0.12):
        o.buildings(c, [o.Building((0, 0), 11, 8, c.uniform(0, 3), 5)])


def river(c: Canvas) -> None:
    g.lawn(c, bare=0.5)
    if c.chance(0.25):
        g.crop(c, c.v > c.uniform(0.1, 0.3) * c.side_m)
    amplitude, phase = c.uniform(0.03, 0.2) * c.side_m, c.uniform(0, 6.3)
    course = c.v - np.float32(amplitude) * np.sin(c.u * np.float32(c.uniform(2, 5) / c.side_m) + np.float32(phase))
    course = course + np.float32(0.03 * c.side_m) * c.grain("coarse") - np.float32(c.uniform(-0.12, 0.12) * c.side_m)
    half = c.uniform(0.09, 0.24) * c.side_m
    bank = c.uniform(1.5, 8)
    if c.chance(0.6):
        g.soil(c, np.abs(course) < half + bank * (1 + 0.4 * c.grain("medium")), ruts=0)
    g.water(
        c, "stream", np.abs(course) < half, shore=(np.float32(half) - np.abs(course)) / np.float32(c.uniform(3, 12))
    )
    if c.chance(0.35):
        bar = (np.abs(course - half * c.pick((-1, 1))) < 0.6 * half) & (c.grain("coarse") > 0.5)
        c.surface("sand", c.tinted((196, 180, 148), 0.08), where=bar, patchy=0.05)
    spared = c.chance(0.7)  # for a bridge
    if not spared and c.chance(0.5):
        g.dirt(c, c.pick((-1, 1)) * (half + c.uniform(0.1, 0.2) * c.side_m), 3)
    crossing = c.uniform(-0.25, 0.25) * c.side_m
    around = c.scatter(c.count(10, 190), on=("grass", "soil", "crop"))
    o.trees(
        c,
        [p for p in around if not spared or abs(p[0] - crossing) > 11],
        radius_m=(1.6, 4),
        conifers=c.pick((0.0, 0.1, 0.4)),
    )
    if spared:
        span(c, crossing, c.uniform(7, 14))
    elif c.chance(0.25):
        o.buildings(
            c,
            [
                o.Building(p, c.uniform(9, 14), c.uniform(8, 10), c.uniform(0, 3), 5)
                for p in c.scatter(c.count(1, 4), on=("grass",))
            ],
        )
    if c.chance(0.3):
        jetty(c, c.pick((-1, 1)) * c.uniform(0.28, 0.45) * c.side_m, half)
    if c.chance(0.3):
        for place in c.scatter(3, on=("stream",)):
            vehicles.ship(c, place, c.pick((0, math.pi)), c.uniform(7, 13), wake=c.chance(0.6))


def jetty(c: Canvas, u: float, half: float) -> None:
    """A landing stage along v at `u` with a few boats, where the stream is."""
    wet = [(u, v) for v in np.linspace(-c.reach_m, c.reach_m, 60).tolist() if c.shows("stream", (u, v))]
    if len(wet) < 4:
        return
    low, high = wet[0][1] - 2, wet[0][1] + min(wet[-1][1] - wet[0][1], 1.1 * half)
    colour = c.tinted((160, 148, 130), 0.1)
    c.line([(u, low), (u, high)], 2.4, colour, "dock")
    c.line([(u - 7, high), (u + 7, high)], 2.4, colour, "dock")
    for side in (-1, 1):
        if c.chance(0.7):
            vehicles.ship(c, (u + side * 3.2, (low + high) / 2), math.pi / 2, c.uniform(6, 10))


def span(c: Canvas, u: float, width: float) -> None:
    """A bridge along v at `u`, and the road that leads to it."""
    deck = [(u, -c.reach_m), (u, c.reach_m)]
    outline = c.stencil(lines=[(deck, width)])
    wet = c.is_thing(("stream",))
    box = o.rectangle((u, 0), width, 2 * c.reach_m)
    c.shadow(polygons=[(box, 5)])
    c.surface("road", c.asphalt_colour, where=outline, patchy=0.05)
    c.claim("bridge", outline, over="road", only=c.grown(wet, 4))
    for side in (-1, 1):
        c.line(
            [(u + side * (width / 2 - 0.5), -c.reach_m), (u + side * (width / 2 - 0.5), c.reach_m)],
            0.6,
            o.gained(c.concrete_colour, 1.12),
        )
    g.dashed(c, deck, o.WHITE)
    places = [
        ((u + c.pick((-1, 1)) * width / 4, c.uniform(-0.5, 0.5) * c.side_m), math.pi / 2) for _ in range(c.count(0, 6))
    ]
    vehicles.cars(c, g.apart(places, 7), trucks=0.2)
