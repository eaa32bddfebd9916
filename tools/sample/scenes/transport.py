"""Where vehicles go and stand: airport apron, freeway, intersection, parking lot, railway."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from tools.sample import ground as g
from tools.sample import objects as o
from tools.sample import vehicles

if TYPE_CHECKING:
    from tools.sample.canvas import Canvas


def airplane(c: Canvas) -> None:
    small = c.side_m < 62
    g.lawn(c, bare=0.4)
    edge = c.uniform(-0.5, 0.1) * c.side_m
    g.paving(
        c,
        c.v > np.float32(edge) + np.float32(c.pick((0.0, 0.0, 0.02)) * c.side_m) * c.grain("coarse"),
        slabs=c.pick((0, 4.5, 6, 7.5)),
    )
    yellow = c.tinted((196, 168, 70), 0.1)
    for _ in range(c.count(1, 3)):
        v, turn = c.uniform(edge, 0.6 * c.side_m), c.uniform(-0.5, 0.5) * c.side_m
        c.line([(-c.reach_m, v), (turn, v), (turn + 8, v + 6), (turn + 8, c.reach_m)], 0.35, yellow)
    wall = 0.45 * c.side_m
    if c.chance(0.45):
        depth = c.uniform(0.2, 0.4) * c.side_m
        wall = 0.5 * c.side_m - depth / 2
        hall = o.Building(
            (c.uniform(-0.2, 0.2) * c.side_m, 0.5 * c.side_m), c.uniform(0.5, 1.3) * c.side_m, depth, 0, 9, True
        )
        o.buildings(c, [hall])
    length = c.uniform(8, 13) if small else c.uniform(24, 42)
    high = wall - 0.4 * length
    stands = [
        (c.uniform(-0.45, 0.45) * c.side_m, c.uniform(min(max(edge + 0.3 * length, -0.4 * c.side_m), high), high))
        for _ in range(9)
    ]
    heading = c.uniform(0, 2 * math.pi)
    wanted = c.count(1, 4)
    parked: list[tuple[float, float]] = []
    for stand in stands:
        if len(parked) < wanted and all(math.dist(stand, other) > 1.12 * length for other in parked):
            parked.append(stand)
    if c.chance(0.6):
        around = [
            ((p[0] + c.uniform(-1, 1) * length, p[1] + c.uniform(-1, 1) * length), c.uniform(0, 6.3))
            for p in parked
            for _ in range(c.count(1, 4))
        ]
        vehicles.cars(c, g.apart(around, 6), trucks=0.3)
    for stand in parked:
        vehicles.plane(
            c, stand, heading + c.uniform(-0.2, 0.2) + c.pick((0, 0, math.pi)), length * c.uniform(0.85, 1.05)
        )
    g.grove(c, c.count(0, 14))


def freeway(c: Canvas) -> None:
    g.lawn(c, bare=0.6)
    lanes, lane = c.count(2, 5), 3.6
    half, median = lanes * lane + 3, c.uniform(1.5, 12)
    middle = c.uniform(-0.2, 0.2) * c.side_m
    if median < 4:
        c.surface(
            "paving", c.concrete_colour, where=c.stencil(polygons=[g.strip(middle, median + 1, c.reach_m)]), patchy=0.04
        )
    decks = [middle + side * (median + half) / 2 for side in (-1, 1)]
    c.surface(
        "road", c.asphalt_colour, where=c.stencil(polygons=[g.strip(v, half, c.reach_m) for v in decks]), patchy=0.05
    )
    traffic = c.uniform(0.4, 3.5)
    places = []
    for v in decks:
        for i in range(lanes + 1):
            w = v + (i - lanes / 2) * lane
            g.dashed(c, [(-c.reach_m, w), (c.reach_m, w)], o.WHITE, solid=i in (0, lanes), width=0.32)
        for _ in range(max(1, round(traffic * lanes * c.side_m / 60))):
            places.append(
                (
                    (c.uniform(-c.reach_m, c.reach_m), v + (c.count(0, lanes - 1) - lanes / 2 + 0.5) * lane),
                    math.pi * (v > middle),
                )
            )
    if median < 4:
        c.line([(-c.reach_m, middle), (c.reach_m, middle)], 0.7, o.gained(c.concrete_colour, 1.1))
    vehicles.cars(c, g.apart(places, 8), trucks=0.18)
    edge = half + median / 2 + 4
    if c.chance(0.35):
        g.road(c, middle + c.pick((-1, 1)) * (edge + c.uniform(4, 14)), width=7, traffic=1.5)
    g.grove(c, c.count(0, 70), radius_m=(1.8, 4))
    if c.chance(0.2):
        v = middle + c.pick((-1, 1)) * (edge + 16)
        o.buildings(
            c,
            [
                o.Building((u, v + c.uniform(-3, 3)), c.uniform(14, 26), c.uniform(12, 20), 0, 7, True)
                for u in (-42, -8, 26, 60)
            ],
        )


def intersection(c: Canvas) -> None:
    (g.lawn if c.chance(0.7) else g.paving)(c)
    width, width2 = c.uniform(8, 16), c.uniform(7, 14)
    walk = c.uniform(1.5, 3.5)
    skew = c.uniform(-0.35, 0.35) if c.chance(0.3) else 0.0
    centre = (c.uniform(-0.15, 0.15) * c.side_m, c.uniform(-0.15, 0.15) * c.side_m)
    reach = 2 * c.reach_m
    arms = [(0.0, width), (math.pi / 2 + skew, width2)]
    crossing = c.chance(0.8)  # or a T
    lines = [
        (o.moved([(-reach, 0), (reach if n == 0 or crossing else 0, 0)], centre, a), w) for n, (a, w) in enumerate(arms)
    ]
    c.surface(
        "paving", c.concrete_colour, where=c.stencil(lines=[(line, w + 2 * walk) for line, w in lines]), patchy=0.04
    )
    asphalt = c.stencil(lines=list(lines))
    c.surface("road", c.asphalt_colour, where=asphalt, patchy=0.05)
    stripes, places = c.chance(0.75), []
    for (angle, w), (_, other) in zip(arms, reversed(arms), strict=True):
        for way in (0, math.pi) if angle == 0 or crossing else (math.pi,):
            heading = angle + way
            if stripes and c.chance(0.85):
                near = other / 2 + 2.5
                (middle,) = o.moved([(near + 1.8, 0)], centre, heading)
                g.crosswalk(c, middle, heading, width=w)
            g.dashed(
                c,
                o.moved([(other / 2 + 8, 0), (reach, 0)], centre, heading),
                c.pick((o.WHITE, (206, 178, 90))),
                solid=True,
            )
            for _ in range(c.count(0, 5)):
                spot = (other / 2 + c.uniform(9, 0.5 * c.side_m), c.pick((-1, 1)) * w / 4)
                places.append((o.moved([spot], centre, heading)[0], heading))
    if c.chance(0.5):
        places.append((centre, c.uniform(0, 6.3)))
    vehicles.cars(c, g.apart(places, 7), trucks=0.1)
    plan = []
    for su in (-1, 1):
        for sv in (-1, 1):
            if c.chance(0.5):
                length, wide = c.uniform(14, 30), c.uniform(12, 26)
                back = width2 / 2 + walk + 3 + abs(skew) * 18
                plan.append(
                    o.Building(
                        (centre[0] + su * (back + length / 2), centre[1] + sv * (width / 2 + walk + 3 + wide / 2)),
                        length,
                        wide,
                        0,
                        c.uniform(5, 12),
                        c.chance(0.7),
                    )
                )
            elif c.chance(0.35):
                g.stalls(c, (centre[0] + su * 30, centre[1] + sv * 24), 26, full=0.5, marked=True, lot=True)
    o.buildings(c, plan)
    g.grove(c, c.count(0, 60))


def parking_lot(c: Canvas) -> None:
    g.paving(c, thing="parking")
    edge = c.uniform(0.2, 0.62) * c.side_m
    pitch, full, marked = c.uniform(16.5, 18.5), c.uniform(0.15, 0.97), c.chance(0.8)
    start = c.uniform(0, pitch)
    islands = []
    for k in range(-6, 7):
        v = start + k * pitch
        if abs(v) < c.reach_m + 5:
            g.stalls(c, (c.uniform(-3, 3), v), 2 * c.reach_m, full=full, marked=marked)
            if c.chance(0.4):
                islands.append(o.rectangle((c.uniform(-0.4, 0.4) * c.side_m, v), c.uniform(2.4, 5), 10.4))
    g.grass(c, c.stencil(polygons=islands))
    border = c.pick(("grass", "road", "building", "none"))
    if border == "grass":
        (g.grass if c.chance(0.6) else g.soil)(c, c.v > edge)
    elif border == "road":
        g.grass(c, c.v > edge)
        g.road(c, edge + c.uniform(7, 10), width=8, walk=1.5, traffic=3)
    elif border == "building":
        g.paving(c, c.v > edge)
        depth = c.uniform(20, 36)
        o.buildings(
            c,
            [
                o.Building(
                    (c.uniform(-0.3, 0.3) * c.side_m, edge + 4 + depth / 2),
                    c.uniform(0.6, 1.4) * c.side_m,
                    depth,
                    0,
                    9,
                    True,
                )
            ],
        )
    g.grove(c, c.count(0, 220), on=("grass",), radius_m=(1.4, 3))


def railway(c: Canvas) -> None:
    g.lawn(c, bare=0.8)
    n, gap = c.count(1, 6), c.uniform(4.2, 5.6)
    middle = c.uniform(-0.25, 0.25) * c.side_m
    bed = n * gap + 2
    ballast = c.tinted(c.pick(((134, 124, 114), (120, 108, 100), (150, 142, 134))), 0.08)
    c.surface("rails", ballast, where=c.stencil(polygons=[g.strip(middle, bed, c.reach_m)]), patchy=0.07)
    offsets = [middle + (i - (n - 1) / 2) * gap for i in range(n)]
    for offset in offsets:
        vehicles.track(c, offset)
    for offset in offsets:
        if c.chance(0.3 if n > 1 else 0.15):
            vehicles.train(c, offset)
    side = c.pick((-1, 1))
    if c.chance(0.5):
        g.road(c, middle + side * (bed / 2 + c.uniform(7, 14)), width=7, traffic=2)
    elif c.chance(0.3):
        g.dirt(c, middle + side * (bed / 2 + 5), 3)
    if c.chance(0.45):
        v = middle - side * (bed / 2 + c.uniform(14, 20))
        if c.chance(0.5):
            g.paving(c, c.stencil(polygons=[g.strip(v, 30, c.reach_m)]))
        o.buildings(
            c,
            [
                o.Building((u + c.uniform(-5, 5), v), c.uniform(12, 28), c.uniform(9, 16), 0, 6, c.chance(0.5))
                for u in (-60, -25, 10, 45)
            ],
        )
    g.grove(c, c.count(0, 90))
