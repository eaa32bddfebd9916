"""The ground scenes stand on: grass, soil, crops, paving, water, roads and their traffic."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from tools.sample.objects import WHITE, gained, moved, rectangle, trees
from tools.sample.vehicles import cars

if TYPE_CHECKING:
    from PIL import Image

    from tools.sample.canvas import Canvas, Colour, Place
    from tools.sample.texture import Bools, Floats


def blob(c: Canvas, share: float) -> Bools:
    """An irregular region that covers about `share` of the tile."""
    field = c.grain("coarse")
    return np.asarray(field > np.quantile(field, 1 - share))


def wave(field: Floats, period: float, depth: float) -> Floats:
    """1 ± `depth`, a sine of `period` along `field`."""
    return np.asarray(1 + np.float32(depth) * np.sin(field * np.float32(2 * math.pi / period)), np.float32)


# ---- open ground


def grass(c: Canvas, where: Image.Image | Bools | None = None) -> None:
    mown = None
    if c.chance(0.25):
        mown = wave(c.u if c.chance(0.5) else c.v, c.uniform(4, 9), 0.04)
    c.surface("grass", c.tinted(c.grass_colour, 0.07), where=where, patchy=0.1, pattern=mown)


def soil(c: Canvas, where: Image.Image | Bools | None = None, *, ruts: float = 0.5) -> None:
    pattern = None
    if c.chance(ruts):
        warped = c.v + np.float32(c.side_m * 0.05) * c.grain("coarse")
        pattern = 1 - np.float32(0.14) * (np.abs(warped % np.float32(c.uniform(9, 25)) - 1) < 0.5)
    c.surface("soil", c.tinted(c.soil_colour, 0.08), where=where, patchy=0.09, pattern=pattern)


def lawn(c: Canvas, *, bare: float = 0.3) -> None:
    """Grass everywhere, with a patch of bare soil at a chance of `bare`; or the other way round."""
    if c.chance(bare / 4):
        soil(c)
        return
    grass(c)
    if c.chance(bare):
        soil(c, blob(c, c.uniform(0.08, 0.3)))


def paving(c: Canvas, where: Image.Image | Bools | None = None, *, thing: str = "paving", slabs: float = 0.0) -> None:
    """Concrete or asphalt; `slabs` is the side of its slabs in metres, 0 for none."""
    pattern = None
    if slabs:
        joint = np.float32(0.35)
        lines = (c.u % np.float32(slabs) < joint) | (c.v % np.float32(slabs) < joint)
        pattern = 1 - np.float32(0.13) * lines.astype(np.float32)
    colour = c.tinted(c.concrete_colour if slabs or c.chance(0.4) else c.asphalt_colour, 0.06)
    c.surface(thing, colour, where=where, patchy=0.06, pattern=pattern)


def crop(c: Canvas, where: Image.Image | Bools | None = None, *, heading: float | None = None) -> None:
    """A field: rows of a crop, stubble, or ploughed soil, with the wheel tracks of its tractor."""
    angle = c.uniform(0, math.pi) if heading is None else heading
    across = c.u * np.float32(math.sin(angle)) - c.v * np.float32(math.cos(angle))
    across = across + np.float32(c.uniform(0, 0.6)) * c.grain("coarse")
    colours: tuple[Colour, ...] = (
        (96, 124, 66),
        (74, 104, 60),
        (124, 138, 84),
        (178, 164, 112),
        (196, 184, 140),
        (150, 142, 92),
        gained(c.soil_colour, 0.8),
        gained(c.soil_colour, 0.95),
    )
    rows = wave(across, c.uniform(1.6, 4.2), c.uniform(0.06, 0.2))
    if c.chance(0.6):
        gap = c.uniform(12, 26)
        rows = rows * (1 - np.float32(c.uniform(0.12, 0.3)) * (np.abs(across % gap - gap / 2) < 0.45))
    c.surface("crop", c.tinted(c.pick(colours), 0.12), where=where, patchy=c.uniform(0.04, 0.14), pattern=rows)


# ---- water


def water(c: Canvas, thing: str, where: Image.Image | Bools | None = None, *, shore: Floats | None = None) -> None:
    """Water; `shore` (side, side), 0 at the shore and 1 far out, makes the shallows lighter."""
    deep = c.pick(((52, 72, 84), (44, 62, 62), (70, 92, 104), (72, 84, 72), (38, 48, 56), (60, 104, 116), (92, 96, 84)))
    heading = c.uniform(0, math.pi)
    across = c.u * np.float32(math.cos(heading)) + c.v * np.float32(math.sin(heading))
    ripples = wave(across + np.float32(0.9) * c.grain("medium"), c.uniform(1.5, 4.5), c.uniform(0.01, 0.05))
    if shore is not None:
        ripples = ripples * (1 + np.float32(c.uniform(0.2, 0.7)) * (1 - np.clip(shore, 0, 1)))
    if c.chance(0.2):  # sun glint
        ripples = ripples * (1 + np.float32(0.5) * np.clip(c.grain("medium") * np.float32(0.6), 0, 1))
    c.surface(thing, c.tinted(deep, 0.15), where=where, patchy=0.05, pattern=ripples)


# ---- roads


def road(c: Canvas, v: float, *, width: float, walk: float = 0.0, traffic: float = 0.0, bend: float = 0.0) -> None:
    """A road along u at `v`, `width` metres wide; sidewalks `walk` wide; about `traffic` cars a 70 m."""
    line = [(u, v + bend * (u / c.reach_m) ** 2) for u in np.linspace(-c.reach_m, c.reach_m, 13).tolist()]
    if walk:
        c.surface("paving", c.concrete_colour, where=c.stencil(lines=[(line, width + 2 * walk)]), patchy=0.04)
    c.surface("road", c.tinted(c.asphalt_colour, 0.03), where=c.stencil(lines=[(line, width)]), patchy=0.05)
    if width >= 6:
        dashed(c, line, c.pick((WHITE, (206, 178, 90))), solid=c.chance(0.4))
    places = []
    for side in (-1, 1):
        for _ in range(round(traffic * c.side_m * c.uniform(0.5, 1.5) / 70)):
            i = c.count(0, 11)
            (u0, v0), (u1, v1) = line[i], line[i + 1]
            t = c.uniform(0, 1)
            places.append(
                (
                    (u0 + t * (u1 - u0), v0 + t * (v1 - v0) + side * width / 4),
                    math.atan2(v1 - v0, u1 - u0) + (math.pi if side > 0 else 0),
                )
            )
    cars(c, apart(places, 7), trucks=0.08)


def dirt(c: Canvas, v: float, width: float) -> None:
    """A trail along u at about `v`."""
    bend, phase = c.uniform(0, 0.07) * c.side_m, c.uniform(0, 6.3)
    line = [(u, v + bend * math.sin(phase + 4 * u / c.side_m)) for u in np.linspace(-c.reach_m, c.reach_m, 40).tolist()]
    colour = gained(c.soil_colour, c.uniform(1.1, 1.35))
    c.surface("trail", colour, where=c.stencil(lines=[(line, width)]), patchy=0.08)
    if c.chance(0.5):
        c.line(line, 0.2 * width, c.grass_colour)


def dashed(c: Canvas, line: list[Place], colour: Colour, *, solid: bool = False, width: float = 0.3) -> None:
    if solid:
        c.line(line, width, colour)
        return
    for (u0, v0), (u1, v1) in pairwise(line):
        n = max(1, round(math.hypot(u1 - u0, v1 - v0) / 7))
        for i in range(n):
            a, b = i / n, (i + 0.45) / n
            c.line([(u0 + a * (u1 - u0), v0 + a * (v1 - v0)), (u0 + b * (u1 - u0), v0 + b * (v1 - v0))], width, colour)


def crosswalk(c: Canvas, centre: Place, heading: float, *, width: float) -> None:
    """Stripes across a road `width` metres wide that runs along `heading`."""
    n = int(width / 1.3)
    for i in range(n):
        (stripe,) = moved([(0, (i - (n - 1) / 2) * 1.3)], centre, heading)
        c.polygon(rectangle(stripe, 3.6, 0.72, heading), WHITE, "crosswalk")
    c.claim("crosswalk", c.stencil(polygons=[rectangle(centre, 3.6, width, heading)]), over="road")


def apart(places: list[tuple[Place, float]], gap: float) -> list[tuple[Place, float]]:
    """The places that keep `gap` metres from those before them."""
    kept: list[tuple[Place, float]] = []
    for place, heading in places:
        if all(math.dist(place, other) > gap for other, _ in kept):
            kept.append((place, heading))
    return kept


def stalls(
    c: Canvas, centre: Place, length: float, *, full: float, marked: bool, heading: float = 0.0, lot: bool = False
) -> None:
    """Two facing rows of parking stalls along `heading`, a share `full` of them taken.

    `lot` lays the asphalt they and their aisles stand on.
    """
    pitch, depth = 2.7, 5.2
    n = int(length / pitch)
    if lot:
        paving(c, c.stencil(polygons=[rectangle(centre, n * pitch + 2, 2 * depth + 11, heading)]), thing="parking")
    cos, sin = math.cos(heading), math.sin(heading)

    def at(x: float, y: float) -> Place:
        return centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos

    if marked:
        for i in range(n + 1):
            x = (i - n / 2) * pitch
            c.line([at(x, -depth), at(x, depth)], 0.22, WHITE)
        c.line([at(-n / 2 * pitch, 0), at(n / 2 * pitch, 0)], 0.22, WHITE)
    places = []
    for i in range(n):
        for side in (-1, 1):
            if c.chance(full):
                spot = at((i - n / 2 + 0.5) * pitch + c.uniform(-0.2, 0.2), side * depth / 2 + c.uniform(-0.3, 0.3))
                if math.hypot(*spot) < c.reach_m + 3:
                    places.append((spot, heading + math.pi / 2 * c.pick((-1, 1)) + c.uniform(-0.04, 0.04)))
    cars(c, places)


def grove(
    c: Canvas, count: int, *, on: tuple[str, ...] = ("grass", "soil"), radius_m: tuple[float, float] = (1.6, 4.0)
) -> None:
    """Up to `count` trees where one of the things `on` is visible."""
    trees(c, c.scatter(count, on=on), radius_m=radius_m, conifers=c.pick((0.0, 0.1, 0.6)))


def hedge(c: Canvas, v: float, *, spacing: float, radius_m: tuple[float, float]) -> None:
    """A row of trees along u at `v`."""
    n = int(2 * c.reach_m / spacing)
    places = [(-c.reach_m + (i + c.uniform(-0.3, 0.3)) * spacing, v + c.uniform(-0.6, 0.6)) for i in range(n)]
    trees(c, [p for p in places if c.chance(0.85)], radius_m=radius_m, conifers=0.1)


def strip(v: float, width: float, reach: float) -> list[Place]:
    """The rectangle along u, `width` wide, at `v`."""
    return rectangle((0, v), 2 * reach, width)
