"""Where goods and boats wait: marina, container yard, tank farm."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tools.sample import ground as g
from tools.sample import objects as o
from tools.sample import vehicles

if TYPE_CHECKING:
    from tools.sample.canvas import Canvas


def harbor(c: Canvas) -> None:
    g.water(c, "basin")
    quay = c.uniform(0.05, 0.42) * c.side_m if c.chance(0.75) else c.reach_m * 2
    if quay < c.side_m:
        g.paving(c, c.v > quay)
        c.line([(-c.reach_m, quay), (c.reach_m, quay)], 1.0, o.gained(c.concrete_colour, 1.1), "paving")
        if c.chance(0.4):
            g.grass(c, c.v > quay + c.uniform(6, 16))
        if c.chance(0.6):
            spot = (0.0, quay + c.uniform(10, 14))
            g.stalls(c, spot, 2 * c.reach_m, full=c.uniform(0.2, 0.8), marked=c.chance(0.5), lot=True)
        if c.chance(0.35):
            o.buildings(
                c,
                [
                    o.Building(
                        (c.uniform(-0.4, 0.4) * c.side_m, quay + 28),
                        c.uniform(18, 40),
                        c.uniform(10, 18),
                        0,
                        7,
                        c.chance(0.6),
                    )
                ],
            )
    boat = c.uniform(7, 14)
    pitch, arm = boat * 0.36, boat * 2 + c.uniform(9, 15)
    colour = c.tinted(c.pick(((176, 168, 156), (150, 132, 112), (196, 192, 184))), 0.06)
    start = c.uniform(0, arm)
    full = c.uniform(0.45, 0.98)
    for k in range(-5, 6):
        u = start + k * arm
        if abs(u) > c.reach_m + boat:
            continue
        low = -c.reach_m if c.chance(0.7) else -c.uniform(0, 0.4) * c.side_m
        high = min(quay, c.reach_m)
        c.shadow(polygons=[(o.rectangle((u, (low + high) / 2), 2.2, high - low), 0.8)])
        c.line([(u, low), (u, high)], 2.2, colour, "dock")
        for i in range(int((high - low) / pitch)):
            v = low + (i + 0.5) * pitch
            if math.hypot(u, v) > c.reach_m + boat:
                continue
            if i % 2 == 0:
                c.line([(u - 0.9 * boat, v - pitch / 2), (u + 0.9 * boat, v - pitch / 2)], 0.7, colour, "dock")
            for side in (-1, 1):
                if c.chance(full):
                    n = boat * c.uniform(0.75, 1.0)
                    bow = 0 if side > 0 else math.pi
                    vehicles.ship(
                        c, (u + side * (1.6 + n / 2), v), bow + math.pi * c.chance(0.3) + c.uniform(-0.03, 0.03), n
                    )
    g.grove(c, c.count(0, 25), on=("grass",))


def shipping_yard(c: Canvas) -> None:
    g.paving(c)
    if c.chance(0.5):
        quay = c.uniform(0.15, 0.42) * c.side_m
        g.water(c, "basin", c.v > quay)
        c.line([(-c.reach_m, quay), (c.reach_m, quay)], 1.2, o.gained(c.concrete_colour, 1.12), "paving")
        if c.chance(0.75):
            vehicles.ship(
                c,
                (c.uniform(-0.3, 0.3) * c.side_m, quay + 13),
                c.pick((0, math.pi)),
                c.uniform(0.8, 1.3) * max(c.side_m, 90),
            )
    else:
        quay = c.reach_m
        if c.chance(0.4):
            g.grass(c, c.v > c.uniform(0.25, 0.45) * c.side_m)
    block, aisle = c.uniform(10, 19), c.uniform(5, 9)
    lanes = c.uniform(14, 30) if c.chance(0.6) else 0
    v = -c.reach_m
    plan: list[tuple[tuple[float, float], float]] = []
    while v < quay - 8:
        if lanes and -lanes < v + block < lanes / 2:
            v += aisle
            if lanes:
                g.road(c, v + lanes / 4, width=8, traffic=2)
                v += lanes / 2 + 4
                lanes = 0
        u = -c.reach_m + c.uniform(0, 10)
        while u < c.reach_m:
            length = 12.6 * c.count(2, 5)
            if c.chance(0.85) and v + block < quay - 4:
                plan += o.stacks((u + length / 2, v + block / 2), 0, length, block)
            u += length + c.uniform(4, 10)
        v += block + aisle
    trucks = [(p, c.pick((0, math.pi))) for p in c.scatter(c.count(3, 16), on=("paving",))]
    vehicles.cars(c, g.apart(trucks, 10), trucks=0.75)
    o.containers(c, [s for s in plan if math.hypot(*s[0]) < c.reach_m + 8])
    if quay < c.reach_m and c.chance(0.6):
        crane(c, c.uniform(-0.3, 0.3) * c.side_m, quay)
    g.grove(c, c.count(0, 60), on=("grass",))


def crane(c: Canvas, u: float, quay: float) -> None:
    colour = c.tinted(c.pick(((176, 90, 50), (70, 100, 150), (196, 196, 196))), 0.08)
    beams = [o.rectangle((u + side * 4, quay + 4), 1.3, 52) for side in (-1, 1)]
    beams += [o.rectangle((u, quay + k * 14 - 10), 9, 1.3) for k in range(-1, 3)]
    c.shadow(polygons=[(beam, 16) for beam in beams], floating=True)
    for beam in beams:
        c.polygon(beam, colour, "clutter")


def storage_tank(c: Canvas) -> None:
    base = c.pick(("soil", "grass", "paving"))
    if base == "soil":
        g.soil(c)
    elif base == "grass":
        g.lawn(c)
    else:
        g.paving(c)
    r = c.uniform(0.06, 0.2) * c.side_m
    pitch = r * c.uniform(2.5, 3.2)
    start = (c.uniform(0, pitch), c.uniform(0, pitch))
    plan = []
    for i in range(-6, 7):
        for j in range(-6, 7):
            place = (start[0] + i * pitch, start[1] + j * pitch)
            if math.hypot(*place) < 0.62 * c.side_m and c.chance(0.7):
                plan.append((place, r * c.pick((1.0, 1.0, 0.7))))
    plan = plan[: c.count(1, 22)]
    if c.chance(0.6):
        pads = [o.rectangle(place, 2.35 * r, 2.35 * r) for place, _ in plan]
        (g.paving if base != "paving" else g.soil)(c, c.stencil(polygons=pads))
    if c.chance(0.6):
        v = start[1] + pitch / 2 - pitch * c.count(0, 1)
        g.road(c, v, width=min(7.0, 0.7 * (pitch - 2 * r) + 3), traffic=1)
    pipe = c.tinted((170, 168, 162), 0.1)
    for i in range(c.count(0, 3)):
        w = start[0] + pitch / 2 + 1.4 * i
        c.line([(w, -c.reach_m), (w, c.reach_m)], 0.6, pipe)
    if c.chance(0.4):
        o.buildings(
            c,
            [
                o.Building(
                    (c.uniform(-0.4, 0.4) * c.side_m, c.pick((-1, 1)) * 0.42 * c.side_m),
                    c.uniform(10, 20),
                    c.uniform(8, 14),
                    0,
                    5,
                    True,
                )
            ],
        )
    g.grove(c, c.count(0, 50))
    o.tanks(c, plan)
