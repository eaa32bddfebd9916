"""The sixteen scene categories: how each is composed, at what ground resolution, and what must be visible in it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from satclr.sample import ground as g
from satclr.sample import objects as o

if TYPE_CHECKING:
    from collections.abc import Callable

    from satclr.sample.canvas import Canvas


class Scene(NamedTuple):
    """`side_m`: range of the tile's side; `shows`: labels of which one has to be visible for the category's name."""

    paint: Callable[[Canvas], None]
    side_m: tuple[float, float]
    shows: frozenset[str]


def airplane(c: Canvas) -> None:
    small = c.side_m < 62
    g.lawn(c, bare=0.4)
    edge = c.uniform(-0.5, 0.1) * c.side_m
    g.paving(
        c,
        c.v > edge + 0.02 * c.side_m * c.grain("coarse") * c.pick((0, 0, 1)),
        slabs=c.pick((0, 4.5, 6, 7.5)),
    )
    yellow = c.tinted((196, 168, 70), 0.1)
    for _ in range(c.count(1, 3)):
        v, turn = c.uniform(edge, 0.6 * c.side_m), c.uniform(-0.5, 0.5) * c.side_m
        c.line([(-c.reach_m, v), (turn, v), (turn + 8, v + 6), (turn + 8, c.reach_m)], 0.35, yellow)
    if c.chance(0.45):
        depth = c.uniform(0.2, 0.4) * c.side_m
        hall = o.Building(
            (c.uniform(-0.2, 0.2) * c.side_m, 0.5 * c.side_m),
            c.uniform(0.5, 1.3) * c.side_m,
            depth,
            0,
            9,
            True,
        )
        o.buildings(c, [hall])
    length = c.uniform(8, 13) if small else c.uniform(24, 42)
    stands = [
        (c.uniform(-0.45, 0.45) * c.side_m, c.uniform(max(edge, -0.4 * c.side_m), 0.3 * c.side_m))
        for _ in range(9)
    ]
    heading = c.uniform(0, 2 * math.pi)
    wanted, parked = c.count(1, 4), []
    for stand in stands:
        if len(parked) < wanted and all(math.dist(stand, other) > 1.12 * length for other in parked):
            parked.append(stand)
    if c.chance(0.6):
        around = [
            ((p[0] + c.uniform(-1, 1) * length, p[1] + c.uniform(-1, 1) * length), c.uniform(0, 6.3))
            for p in parked
            for _ in range(c.count(1, 4))
        ]
        o.cars(c, g.apart(around, 6), trucks=0.3)
    for stand in parked:
        o.plane(
            c, stand, heading + c.uniform(-0.2, 0.2) + c.pick((0, 0, math.pi)), length * c.uniform(0.85, 1.05)
        )
    g.grove(c, c.count(0, 14))


def beach(c: Canvas) -> None:
    bay = (
        c.grain("coarse") * np.float32(0.05 * c.side_m)
        + np.float32(c.uniform(-0.3, 0.3) / c.side_m) * c.u * c.u
    )
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
        offset, width = line * c.uniform(5, 12) + c.uniform(0, 2), c.uniform(0.4, 2.2)
        c.surface(
            "sea",
            foam,
            where=np.abs(shore - offset + ragged) < width * (1 + 0.5 * c.grain("coarse")),
            patchy=0.04,
        )
    if c.chance(0.35):
        for place in c.scatter(c.count(1, 4), on=("sea",)):
            o.ship(c, place, c.uniform(0, 6.3), c.uniform(7, 13), wake=c.chance(0.4))
    g.grove(c, c.count(0, 60), radius_m=(1.5, 3.4))


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
    o.cars(
        c,
        [
            ((sum(p[0] for p in d) / 4, sum(p[1] for p in d) / 4), math.pi / 2)
            for d in drives
            if c.chance(0.45)
        ],
    )
    for place in pools:
        o.pool(c, place, 0, c.uniform(6, 8))
    g.grove(c, c.count(20, 120), radius_m=(1.4, 3.2))
    o.buildings(c, plan)
    g.grove(c, c.count(5, 50), radius_m=(1.4, 3.6))


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
        dirt(c, v, c.uniform(2.6, 4))
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


def blob_strip(c: Canvas) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    return np.asarray(
        np.abs(c.u - np.float32(c.uniform(-0.3, 0.3) * c.side_m) + 3 * c.grain("coarse")) < c.uniform(6, 14)
    )


def dirt(c: Canvas, v: float, width: float) -> None:
    """A trail along u at about `v`."""
    bend, phase = c.uniform(0, 0.07) * c.side_m, c.uniform(0, 6.3)
    line = [
        (u, v + bend * math.sin(phase + 4 * u / c.side_m))
        for u in np.linspace(-c.reach_m, c.reach_m, 40).tolist()
    ]
    colour = o.gained(c.soil_colour, c.uniform(1.1, 1.35))
    c.surface("trail", colour, where=c.stencil(lines=[(line, width)]), patchy=0.08)
    if c.chance(0.5):
        c.line(line, 0.2 * width, c.grass_colour)


def farm(c: Canvas, centre: tuple[float, float]) -> None:
    g.soil(c, c.stencil(polygons=[o.rectangle(centre, 36, 26)]))
    o.buildings(
        c,
        [
            o.Building(
                (centre[0] - 8, centre[1] + 3), c.uniform(18, 26), c.uniform(9, 13), 0, 7, c.chance(0.5)
            ),
            o.Building((centre[0] + 11, centre[1] - 4), c.uniform(9, 12), 8, math.pi / 2, 5),
        ],
    )


def forest(c: Canvas) -> None:
    (g.grass if c.chance(0.6) else g.soil)(c)
    if c.chance(0.4):
        dirt(c, c.uniform(-0.35, 0.35) * c.side_m, c.uniform(3, 5))
    elif c.chance(0.3):
        g.road(
            c, c.uniform(-0.35, 0.35) * c.side_m, width=7, traffic=1.5, bend=c.uniform(-0.2, 0.2) * c.side_m
        )
    clearing = g.blob(c, c.uniform(0.0, 0.35)) if c.chance(0.6) else np.zeros_like(c.u, bool)
    size = c.uniform(1.9, 3.6)
    places = c.scatter(int(2.0 * (c.side_m / size) ** 2 / 2.6), on=("grass", "soil"))
    k, half = c.px_per_m, clearing.shape[0] / 2

    def is_open(place: tuple[float, float]) -> bool:
        x, y = c.px(*place)
        return bool(clearing[min(int(y), int(2 * half) - 1), min(int(x), int(2 * half) - 1)])

    places = [p for p in places if not is_open(p) or c.chance(0.03)][: int(900 / max(1.0, 3 / k))]
    o.trees(c, places, radius_m=(0.75 * size, 1.3 * size), conifers=c.pick((0, 0.1, 0.5, 0.95)))
    if c.chance(0.12):
        o.buildings(c, [o.Building((0, 0), 11, 8, c.uniform(0, 3), 5)])


def freeway(c: Canvas) -> None:
    g.lawn(c, bare=0.6)
    lanes, lane = c.count(2, 5), 3.6
    half, median = lanes * lane + 3, c.uniform(1.5, 12)
    middle = c.uniform(-0.2, 0.2) * c.side_m
    if median < 4:
        c.surface(
            "paving",
            c.concrete_colour,
            where=c.stencil(polygons=[g.strip(middle, median + 1, c.reach_m)]),
            patchy=0.04,
        )
    decks = [middle + side * (median + half) / 2 for side in (-1, 1)]
    c.surface(
        "road",
        c.asphalt_colour,
        where=c.stencil(polygons=[g.strip(v, half, c.reach_m) for v in decks]),
        patchy=0.05,
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
    o.cars(c, g.apart(places, 8), trucks=0.18)
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


def harbor(c: Canvas) -> None:
    g.water(c, "basin")
    quay = c.uniform(0.05, 0.42) * c.side_m if c.chance(0.75) else c.reach_m * 2
    if quay < c.side_m:
        g.paving(c, c.v > quay)
        c.line([(-c.reach_m, quay), (c.reach_m, quay)], 1.0, o.gained(c.concrete_colour, 1.1), "paving")
        if c.chance(0.4):
            g.grass(c, c.v > quay + c.uniform(6, 16))
        if c.chance(0.6):
            g.stalls(
                c, (0, quay + c.uniform(10, 14)), c.side_m, full=c.uniform(0.2, 0.8), marked=c.chance(0.5)
            )
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
                c.line(
                    [(u - 0.9 * boat, v - pitch / 2), (u + 0.9 * boat, v - pitch / 2)], 0.7, colour, "dock"
                )
            for side in (-1, 1):
                if c.chance(full):
                    n = boat * c.uniform(0.75, 1.0)
                    bow = 0 if side > 0 else math.pi
                    o.ship(
                        c,
                        (u + side * (1.6 + n / 2), v),
                        bow + math.pi * c.chance(0.3) + c.uniform(-0.03, 0.03),
                        n,
                    )
    g.grove(c, c.count(0, 25), on=("grass",))


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
            g.stalls(c, yard, c.uniform(14, 30), full=c.uniform(0.3, 0.9), marked=False, heading=math.pi / 2)
    trucks = [(p, c.pick((0, math.pi / 2))) for p in c.scatter(c.count(2, 12), on=("paving", "soil"))]
    o.cars(c, g.apart(trucks, 9), trucks=0.7)
    if c.chance(0.35):
        o.containers(c, [s for y in yards[1::2] for s in o.rectangle_rows(y, math.pi / 2, 26, 8)])
    o.buildings(c, plan)
    if c.chance(0.3):
        r = c.uniform(3, 6)
        centre = c.uniform(-0.3, 0.3) * c.side_m
        o.tanks(c, [((centre + i * 2.4 * r, street + c.pick((-1, 1)) * 14), r) for i in range(c.count(1, 3))])
    g.grove(c, c.count(0, 45))


def intersection(c: Canvas) -> None:
    (g.lawn if c.chance(0.7) else g.paving)(c)
    width, width2 = c.uniform(8, 16), c.uniform(7, 14)
    walk = c.uniform(1.5, 3.5)
    skew = c.uniform(-0.35, 0.35) if c.chance(0.3) else 0.0
    centre = (c.uniform(-0.15, 0.15) * c.side_m, c.uniform(-0.15, 0.15) * c.side_m)
    reach = 2 * c.reach_m
    arms = [(0.0, width), (math.pi / 2 + skew, width2)]
    lines = [
        (o.moved([(-reach, 0), (reach if n == 0 or c.chance(0.8) else 0, 0)], centre, a), w)
        for n, (a, w) in enumerate(arms)
    ]
    c.surface(
        "paving",
        c.concrete_colour,
        where=c.stencil(lines=[(line, w + 2 * walk) for line, w in lines]),
        patchy=0.04,
    )
    asphalt = c.stencil(lines=list(lines))
    c.surface("road", c.asphalt_colour, where=asphalt, patchy=0.05)
    stripes, places = c.chance(0.75), []
    for (angle, w), (_, other) in zip(arms, reversed(arms), strict=True):
        for way in (0, math.pi):
            heading = angle + way
            if stripes and c.chance(0.85):
                near = other / 2 + 2.5
                for i in range(int(w / 1.3)):
                    y = -w / 2 + 0.9 + 1.3 * i
                    c.polygon(
                        o.moved(
                            [
                                (near, y - 0.36),
                                (near + 3.6, y - 0.36),
                                (near + 3.6, y + 0.36),
                                (near, y + 0.36),
                            ],
                            centre,
                            heading,
                        ),
                        o.WHITE,
                        "crosswalk",
                    )
                base = o.moved(
                    [(near, -w / 2), (near + 3.6, -w / 2), (near + 3.6, w / 2), (near, w / 2)],
                    centre,
                    heading,
                )
                c.claim("crosswalk", c.stencil(polygons=[base]), over="road")
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
    o.cars(c, g.apart(places, 7), trucks=0.1)
    plan = []
    for su in (-1, 1):
        for sv in (-1, 1):
            if c.chance(0.5):
                length, wide = c.uniform(14, 30), c.uniform(12, 26)
                back = width2 / 2 + walk + 3 + abs(skew) * 18
                plan.append(
                    o.Building(
                        (
                            centre[0] + su * (back + length / 2),
                            centre[1] + sv * (width / 2 + walk + 3 + wide / 2),
                        ),
                        length,
                        wide,
                        0,
                        c.uniform(5, 12),
                        c.chance(0.7),
                    )
                )
            elif c.chance(0.35):
                g.stalls(c, (centre[0] + su * 30, centre[1] + sv * 24), 26, full=0.5, marked=True)
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
        o.track(c, offset)
    for offset in offsets:
        if c.chance(0.3 if n > 1 else 0.15):
            o.train(c, offset)
    side = c.pick((-1, 1))
    if c.chance(0.5):
        g.road(c, middle + side * (bed / 2 + c.uniform(7, 14)), width=7, traffic=2)
    elif c.chance(0.3):
        dirt(c, middle + side * (bed / 2 + 5), 3)
    if c.chance(0.45):
        v = middle - side * (bed / 2 + c.uniform(14, 20))
        if c.chance(0.5):
            g.paving(c, c.stencil(polygons=[g.strip(v, 30, c.reach_m)]))
        o.buildings(
            c,
            [
                o.Building(
                    (u + c.uniform(-5, 5), v), c.uniform(12, 28), c.uniform(9, 16), 0, 6, c.chance(0.5)
                )
                for u in (-60, -25, 10, 45)
            ],
        )
    g.grove(c, c.count(0, 90))


def river(c: Canvas) -> None:
    g.lawn(c, bare=0.5)
    if c.chance(0.35):
        g.crop(c, c.v > c.uniform(0.1, 0.3) * c.side_m)
    amplitude, phase = c.uniform(0.03, 0.2) * c.side_m, c.uniform(0, 6.3)
    course = c.v - np.float32(amplitude) * np.sin(
        c.u * np.float32(c.uniform(2, 5) / c.side_m) + np.float32(phase)
    )
    course = (
        course
        + np.float32(0.03 * c.side_m) * c.grain("coarse")
        - np.float32(c.uniform(-0.12, 0.12) * c.side_m)
    )
    half = c.uniform(0.09, 0.24) * c.side_m
    bank = c.uniform(1.5, 8)
    g.soil(c, np.abs(course) < half + bank * (1 + 0.4 * c.grain("medium")), ruts=0)
    g.water(
        c,
        "stream",
        np.abs(course) < half,
        shore=(np.float32(half) - np.abs(course)) / np.float32(c.uniform(3, 12)),
    )
    if c.chance(0.25):
        bar = (np.abs(course - half * c.pick((-1, 1))) < 0.6 * half) & (c.grain("coarse") > 0.5)
        c.surface("sand", c.tinted((196, 180, 148), 0.08), where=bar, patchy=0.05)
    crossing = c.uniform(-0.25, 0.25) * c.side_m
    around = c.scatter(c.count(10, 190), on=("grass", "soil", "crop"))
    spared = c.chance(0.45)
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
    if c.chance(0.2):
        for place in c.scatter(2, on=("stream",)):
            o.ship(c, place, c.pick((0, math.pi)), c.uniform(7, 13), wake=c.chance(0.6))


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
        ((u + c.pick((-1, 1)) * width / 4, c.uniform(-0.5, 0.5) * c.side_m), math.pi / 2)
        for _ in range(c.count(0, 6))
    ]
    o.cars(c, g.apart(places, 7), trucks=0.2)


def shipping_yard(c: Canvas) -> None:
    g.paving(c)
    if c.chance(0.5):
        quay = c.uniform(0.15, 0.42) * c.side_m
        g.water(c, "basin", c.v > quay)
        c.line([(-c.reach_m, quay), (c.reach_m, quay)], 1.2, o.gained(c.concrete_colour, 1.12), "paving")
        if c.chance(0.75):
            o.ship(
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
    stacks = []
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
                stacks += o.rectangle_rows((u + length / 2, v + block / 2), 0, length, block)
            u += length + c.uniform(4, 10)
        v += block + aisle
    trucks = [(p, c.pick((0, math.pi))) for p in c.scatter(c.count(3, 16), on=("paving",))]
    o.cars(c, g.apart(trucks, 10), trucks=0.75)
    o.containers(c, [s for s in stacks if math.hypot(*s[0]) < c.reach_m + 8])
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
            o.cars(c, [((u + 9.5, v + side * 6), 1.4)])
    o.buildings(c, plan)
    far = [
        p
        for p in c.scatter(c.count(25, 190), on=("grass", "soil"))
        if all(math.dist(p, s) > 9 for s in spared)
    ]
    o.trees(c, far, radius_m=(1.8, 4.4), conifers=c.pick((0.0, 0.1, 0.5)))


def storage_tank(c: Canvas) -> None:
    base = c.pick(("soil", "grass", "paving"))
    {"soil": g.soil, "grass": g.lawn, "paving": g.paving}[base](c)
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
        g.paving(c, (c.u * side) > beyond + side * centre[0] + 2, thing="parking")
        g.stalls(
            c, (centre[0] + side * (beyond + 10), 0), c.side_m, full=0.6, marked=True, heading=math.pi / 2
        )
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
            [
                o.Building(
                    (centre[0] + c.uniform(-10, 10), v),
                    c.uniform(14, 24),
                    c.uniform(9, 13),
                    0,
                    5,
                    c.chance(0.4),
                )
            ],
        )
    g.grove(c, c.count(5, 90))


def _scene(paint: Callable[[Canvas], None], low: float, high: float, *shows: str) -> Scene:
    return Scene(paint, (low, high), frozenset(shows))


SCENES = {
    "airplane": _scene(airplane, 45, 110, "airplane"),
    "beach": _scene(beach, 45, 110, "sea"),
    "dense_residential_area": _scene(dense_residential_area, 45, 80, "buildings"),
    "farmland": _scene(farmland, 60, 130, "field"),
    "forest": _scene(forest, 40, 75, "forest"),
    "freeway": _scene(freeway, 48, 85, "road"),
    "harbor&port": _scene(harbor, 38, 75, "ships"),
    "industrial_area": _scene(industrial_area, 60, 110, "buildings"),
    "intersection": _scene(intersection, 45, 75, "road"),
    "parking_lot": _scene(parking_lot, 40, 70, "parking lot"),
    "railway": _scene(railway, 40, 70, "railway"),
    "river": _scene(river, 50, 110, "river"),
    "shipping_yard": _scene(shipping_yard, 60, 105, "containers"),
    "sparse_residential_area": _scene(sparse_residential_area, 45, 80, "buildings"),
    "storage_tank": _scene(storage_tank, 45, 110, "tanks"),
    "tennis_court": _scene(tennis_court, 45, 90, "tennis court"),
}
