"""Where people live and work: dense and sparse housing, industry, tennis courts."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tools.sample import ground as g
from tools.sample import objects as o
from tools.sample import vehicles

if TYPE_CHECKING:
    from tools.sample.canvas import Canvas


def dense_residential_area(c: Canvas) -> None:
    g.lawn(c, bare=0.35)
    lot, depth, street = c.uniform(13, 17), c.uniform(13, 16), 7.0
    period = 2 * depth + street + 2
    start = c.uniform(0, period)
    plan, drives, pools = [], [], []
    long, wide, skew = c.uniform(10, 12.5), c.uniform(8, 10.5), c.chance(0.3)
    flat = c.chance(0.2)
    for k in range(-4, 5):
        v = start + k * period
        if abs(v) > c.reach_m + period:
            continue
        if abs(v) < c.reach_m + 8:
            g.road(c, v, width=street, walk=1.3, traffic=1.5)
            if c.chance(0.2):
                g.crosswalk(c, (c.uniform(-0.4, 0.4) * c.side_m, v), 0, width=street)
        for side in (-1, 1):
            for i in range(-7, 8):
                u = (i + 0.5) * lot
                y = v + side * (street / 2 + 2.5 + depth / 2)
                if math.hypot(u, y) > c.reach_m + 9:
                    continue
                plan.append(
                    o.Building(
                        (u + c.uniform(-1, 1), y),
                        long * c.uniform(0.85, 1.1),
                        wide * c.uniform(0.85, 1.1),
                        math.pi / 2 * skew,
                        c.uniform(4, 7),
                        flat,
                    )
                )
                drives.append(o.rectangle((u + 0.36 * lot, v + side * (street / 2 + 4.5)), 3, 9))
                if c.chance(0.16):
                    pools.append((u + c.uniform(-2, 2), y + side * (wide / 2 + 4.2)))
    c.surface("paving", c.tinted(c.concrete_colour, 0.05), where=c.stencil(polygons=drives), patchy=0.04)
    vehicles.cars(
        c, [((sum(p[0] for p in d) / 4, sum(p[1] for p in d) / 4), math.pi / 2) for d in drives if c.chance(0.45)]
    )
    for place in pools:
        o.pool(c, place, 0, c.uniform(6, 8))
    g.grove(c, c.count(20, 120), radius_m=(1.4, 3.2))
    o.buildings(c, plan)
    g.grove(c, c.count(5, 50), radius_m=(1.4, 3.6))


def sparse_residential_area(c: Canvas) -> None:
    g.lawn(c, bare=0.7)
    street = c.uniform(-0.45, 0.45) * c.side_m
    if c.chance(0.75):
        g.road(c, street, width=6.5, traffic=1, bend=c.uniform(-0.15, 0.15) * c.side_m)
    homes: list[tuple[float, float]] = []
    for place in c.scatter(30, on=("grass", "soil")):
        if (
            len(homes) < c.count(1, 3)
            and math.hypot(*place) < 0.5 * c.side_m
            and all(math.dist(place, h) > 26 for h in homes)
        ):
            homes.append(place)
    plan, spared = [], []
    for u, v in homes:
        turn = c.uniform(-0.4, 0.4)
        side = -1 if v > street else 1
        c.line(
            [(u + 9, v), (u + 10, v + side * 8), (u + 13, street)],
            3.4,
            c.tinted(c.pick((c.concrete_colour, c.soil_colour)), 0.06),
            "paving",
        )
        long, wide = c.uniform(13, 20), c.uniform(9, 12)
        plan.append(o.Building((u, v), long, wide, turn, 5.5))
        if c.chance(0.6):
            plan.append(
                o.Building(
                    o.moved([(long * 0.28, wide * 0.6)], (u, v), turn)[0],
                    wide,
                    c.uniform(7, 9),
                    turn + math.pi / 2,
                    5.2,
                )
            )
        if c.chance(0.35):
            plan.append(o.Building((u - 16, v - side * 6), 7, 5, turn, 3.5))
        if c.chance(0.55):
            place = (u + c.uniform(-5, 5), v - side * (wide + 5))
            o.pool(c, place, turn, c.uniform(8, 12))
            spared.append(place)
        if c.chance(0.6):
            vehicles.cars(c, [((u + 9.5, v + side * 6), 1.4)])
    o.buildings(c, plan)
    far = [p for p in c.scatter(c.count(15, 120), on=("grass", "soil")) if all(math.dist(p, s) > 9 for s in spared)]
    o.trees(c, far, radius_m=(1.8, 4.4), conifers=c.pick((0.0, 0.1, 0.5)))


def industrial_area(c: Canvas) -> None:
    (g.paving if c.chance(0.75) else g.soil)(c)
    if c.chance(0.6):
        g.grass(c, g.blob(c, c.uniform(0.06, 0.3)))
    street = c.uniform(-0.45, 0.45) * c.side_m
    g.road(c, street, width=c.uniform(7, 11), walk=c.pick((0, 2)), traffic=1.5)
    plan, yards = [], []
    for side in (-1, 1):
        u = -c.reach_m + c.uniform(-10, 5)
        while u < c.reach_m:
            length, width = c.uniform(18, 46), c.uniform(16, 34)
            v = street + side * (9 + c.uniform(3, 14) + width / 2)
            plan.append(o.Building((u + length / 2, v), length, width, 0, c.uniform(6, 12), c.chance(0.75)))
            yards.append((u + length + 5, v))
            u += length + c.uniform(7, 20)
    if c.chance(0.6):
        for yard in yards[::2]:
            g.stalls(c, yard, c.uniform(14, 30), full=c.uniform(0.3, 0.9), marked=True, heading=math.pi / 2, lot=True)
    trucks = [(p, c.pick((0, math.pi / 2))) for p in c.scatter(c.count(2, 12), on=("paving", "soil"))]
    vehicles.cars(c, g.apart(trucks, 9), trucks=0.7)
    if c.chance(0.35):
        o.containers(c, [s for y in yards[1::2] for s in o.stacks(y, math.pi / 2, 26, 8)])
    o.buildings(c, plan)
    if c.chance(0.3):
        r = c.uniform(3, 6)
        free = [p for p in c.scatter(30, on=("paving", "soil", "grass")) if all(b.clear(p, r) for b in plan)]
        o.tanks(c, [(p, r) for p, _ in g.apart([(p, 0.0) for p in free], 2.4 * r)[: c.count(1, 3)]])
    g.grove(c, c.count(0, 45))


def tennis_court(c: Canvas) -> None:
    g.lawn(c, bare=0.35)
    n, rows = c.count(1, 4), c.pick((1, 1, 2))
    centre = (c.uniform(-0.12, 0.12) * c.side_m, c.uniform(-0.12, 0.12) * c.side_m)
    if c.chance(0.5):
        around = o.rectangle(centre, 36 * rows + 8, 18 * n + 8)
        g.paving(c, c.stencil(polygons=[around]))
    side = c.pick((-1, 1))
    beyond = 18 * rows + 6
    extra = c.pick(("parking", "road", "pool", "house", "none"))
    if extra == "parking":
        spot = (centre[0] + side * (beyond + 10), 0.0)
        g.stalls(c, spot, 2 * c.reach_m, full=0.6, marked=True, heading=math.pi / 2, lot=True)
    elif extra == "road":
        g.road(c, centre[1] + side * (9 * n + 12), width=7, walk=1.5, traffic=2.5)
    elif extra == "pool":
        o.pool(c, (centre[0] + side * (beyond + 6), centre[1] + 5), math.pi / 2, c.uniform(10, 20))
    for i in range(n):
        for j in range(rows):
            o.court(c, (centre[0] + (j - (rows - 1) / 2) * 36, centre[1] + (i - (n - 1) / 2) * 18), 0)
    if extra == "house" or c.chance(0.2):
        v = centre[1] - side * (9 * n + 14)
        o.buildings(
            c,
            [o.Building((centre[0] + c.uniform(-10, 10), v), c.uniform(14, 24), c.uniform(9, 13), 0, 5, c.chance(0.4))],
        )
    g.grove(c, c.count(5, 90))
