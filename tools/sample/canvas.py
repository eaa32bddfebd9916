"""The canvas a tile is painted on: a picture, the thing visible at each of its pixels, a sun and a season.

Scenes paint in metres, in a frame of their own whose origin is the tile's centre and which is turned
by a random angle.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tools.sample.texture import SIDE_PX, noise, speckle
from tools.sample.things import IDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tools.sample.texture import Bools, Floats

    Colour: TypeAlias = tuple[float, float, float]
    Place: TypeAlias = tuple[float, float]  # metres, in the scene's frame
    Points: TypeAlias = Sequence[Place]
    Grain: TypeAlias = Literal["coarse", "medium", "fine"]

T = TypeVar("T")

_SEASONS: dict[str, tuple[Colour, tuple[Colour, ...]]] = {  # grass, crowns
    "spring": ((112, 138, 78), ((84, 112, 62), (98, 122, 70))),
    "summer": ((98, 120, 72), ((58, 86, 52), (70, 96, 56), (50, 78, 58))),
    "dry": ((158, 150, 108), ((84, 94, 62), (100, 104, 72))),
    "autumn": ((130, 126, 82), ((150, 104, 56), (124, 104, 58), (86, 90, 52), (160, 126, 66))),
    "winter": ((134, 132, 104), ((108, 98, 88), (92, 88, 80), (66, 78, 62))),
}


class Canvas:
    """A tile in the making. `rng` decides everything; `side_m` is the range the tile's side is drawn from."""

    def __init__(self, rng: np.random.Generator, side_m: tuple[float, float]) -> None:
        self.rng = rng
        self.side_m = self.uniform(*side_m)
        self.px_per_m = SIDE_PX / self.side_m
        self.reach_m = 0.72 * self.side_m
        turn = self.uniform(0, 2 * math.pi)
        self._cos, self._sin = math.cos(turn), math.sin(turn)
        self.image = Image.new("RGB", (SIDE_PX, SIDE_PX))
        self.things = Image.new("L", (SIDE_PX, SIDE_PX))
        self._draw, self._mark = ImageDraw.Draw(self.image), ImageDraw.Draw(self.things)
        self._grain = {"coarse": noise(rng, 110, 5), "medium": noise(rng, 24, 3), "fine": speckle(rng)}
        axis = (np.arange(SIDE_PX, dtype=np.float32) - SIDE_PX / 2) / np.float32(self.px_per_m)
        cos, sin = np.float32(self._cos), np.float32(self._sin)
        self.u: Floats = cos * axis[None, :] + sin * axis[:, None]  # metres in the scene's frame
        self.v: Floats = cos * axis[:, None] - sin * axis[None, :]
        self._weather()

    def _weather(self) -> None:
        self.season = self.pick(tuple(_SEASONS))
        grass, crowns = _SEASONS[self.season]
        self.grass_colour = self.tinted(grass, 0.12)
        self.crown_colours = [self.tinted(crown, 0.12) for crown in crowns]
        self.soil_colour = self.tinted(
            self.pick(((152, 124, 96), (172, 146, 116), (146, 104, 80), (128, 114, 98))), 0.1
        )
        self.asphalt_colour = self.tinted(
            self.pick(((84, 84, 86), (112, 112, 112), (140, 138, 134), (98, 94, 92))), 0.06
        )
        self.concrete_colour = self.tinted(self.pick(((172, 168, 160), (150, 148, 144), (190, 184, 172))), 0.05)
        azimuth, elevation = self.uniform(0, 2 * math.pi), math.radians(self.uniform(24, 66))
        self.sun = (math.cos(azimuth), math.sin(azimuth))  # on the picture, towards the sun
        self.warmth = 1 - elevation / math.radians(66)
        self.shadow_per_m = min(1.5, 1 / math.tan(elevation)) * self.px_per_m
        self.overcast = self.chance(0.15)
        dark = self.uniform(0.72, 0.85) if self.overcast else self.uniform(0.34, 0.6)
        self._shade = [int(value * gain) for gain in (dark, dark * 1.03, min(1.0, dark * 1.14)) for value in range(256)]

    # ---- chance

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        return bool(self.rng.random() < p)

    def count(self, low: int, high: int) -> int:
        """An integer in [low, high]."""
        return int(self.rng.integers(low, high + 1))

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def tinted(self, colour: Colour, spread: float) -> Colour:
        """`colour` with its brightness and, half as much, each channel shifted by up to `spread` of it."""
        gain = 1 + self.uniform(-spread, spread)
        r, g, b = (gain * c * (1 + self.uniform(-spread, spread) / 2) for c in colour)
        return r, g, b

    def scatter(self, count: int, *, on: Iterable[str]) -> list[tuple[float, float]]:
        """Up to `count` random places (metres) where one of the things `on` is visible."""
        pixels = self.rng.uniform(0, SIDE_PX, (count, 2)).tolist()
        return [place for place in (self.place(x, y) for x, y in pixels) if any(self.shows(t, place) for t in on)]

    def shows(self, thing: str, place: tuple[float, float]) -> bool:
        """Whether `thing` is what is visible at a place in metres."""
        x, y = self.pixel(place)
        return 0 <= x < SIDE_PX and 0 <= y < SIDE_PX and self.things.getpixel((x, y)) == IDS[thing]

    # ---- geometry

    def px(self, u: float, v: float) -> tuple[float, float]:
        """Metres in the scene's frame to pixels on the picture."""
        k, half = self.px_per_m, SIDE_PX / 2
        return half + k * (u * self._cos - v * self._sin), half + k * (u * self._sin + v * self._cos)

    def pixel(self, place: Place) -> tuple[int, int]:
        """The pixel of a place; outside the tile it may be negative or `SIDE_PX` and more."""
        x, y = self.px(*place)
        return math.floor(x), math.floor(y)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """The inverse of `px`."""
        x, y = (x - SIDE_PX / 2) / self.px_per_m, (y - SIDE_PX / 2) / self.px_per_m
        return x * self._cos + y * self._sin, y * self._cos - x * self._sin

    def lit(self, u: float, v: float) -> float:
        """How far the direction (u, v) of the scene's frame points to the sun: -1 to 1 for a unit vector."""
        return (u * self._cos - v * self._sin) * self.sun[0] + (u * self._sin + v * self._cos) * self.sun[1]

    def sunward(self) -> tuple[float, float]:
        """The unit vector towards the sun, in the scene's frame."""
        x, y = self.sun
        return x * self._cos + y * self._sin, y * self._cos - x * self._sin

    def grain(self, scale: Grain) -> Floats:
        """One of the tile's three noise fields, (side, side), flipped and transposed at random."""
        flipped = self._grain[scale][:: self.pick((1, -1)), :: self.pick((1, -1))]
        return flipped.T if self.chance(0.5) else flipped

    # ---- paint

    def surface(
        self,
        thing: str,
        colour: Colour,
        *,
        where: Image.Image | Bools | None = None,
        patchy: float = 0.08,
        pattern: Floats | None = None,
    ) -> None:
        """Cover `where` (all, if None) with a textured surface times `pattern` (side, side)."""
        value = 1 + np.float32(patchy) * self.grain("coarse") + np.float32(patchy * 0.5) * self.grain("medium")
        if pattern is not None:
            value = value * pattern
        tint = np.float32(patchy * 0.4) * self.grain("coarse")
        pixels = np.empty((SIDE_PX, SIDE_PX, 3), np.uint8)
        for channel, gain in enumerate((1, 0, -1)):
            layer = np.float32(colour[channel]) * (value + np.float32(gain) * tint if gain else value)
            pixels[..., channel] = np.clip(layer, 0, 255)
        mask = self.mask(where) if isinstance(where, np.ndarray) else where
        self.image.paste(Image.fromarray(pixels), (0, 0), mask)
        self.things.paste(IDS[thing], (0, 0, SIDE_PX, SIDE_PX), mask)

    @staticmethod
    def mask(where: Bools) -> Image.Image:
        return Image.fromarray(where.astype(np.uint8) * np.uint8(255))

    def stencil(self, *, polygons: Iterable[Points] = (), lines: Iterable[tuple[Points, float]] = ()) -> Image.Image:
        """A mask of polygons and of polylines with a width, all in metres."""
        mask = Image.new("L", (SIDE_PX, SIDE_PX))
        draw = ImageDraw.Draw(mask)
        for polygon in polygons:
            draw.polygon([self.px(*p) for p in polygon], fill=255)
        for line, width_m in lines:
            draw.line([self.px(*p) for p in line], fill=255, width=round(width_m * self.px_per_m), joint="curve")
        return mask

    def claim(self, thing: str, where: Image.Image, *, over: str, only: Bools | None = None) -> None:
        """Call the pixels of `where` that show `over` (and lie in `only`) `thing`, without painting."""
        seen = (np.asarray(where) > 0) & self.is_thing((over,))
        self.things.paste(IDS[thing], (0, 0, SIDE_PX, SIDE_PX), self.mask(seen if only is None else seen & only))

    def is_thing(self, names: Iterable[str]) -> Bools:
        return np.isin(np.asarray(self.things), [IDS[name] for name in names])

    def grown(self, where: Bools, metres: float) -> Bools:
        """`where` and what lies within about `metres` of it."""
        step = 8  # the filter's cost grows with the square of its reach
        size = 2 * max(1, round(metres * self.px_per_m / step)) + 1
        coarse = self.mask(where).reduce(step).filter(ImageFilter.MaxFilter(size))
        return np.asarray(coarse.resize((SIDE_PX, SIDE_PX))) > 0

    def polygon(self, points: Points, colour: Colour, thing: str | None = None) -> None:
        pixels = [self.px(*p) for p in points]
        self._draw.polygon(pixels, fill=_ink(colour))
        if thing:
            self._mark.polygon(pixels, fill=IDS[thing])

    def disc(self, centre: tuple[float, float], radius_m: float, colour: Colour, thing: str | None = None) -> None:
        (x, y), r = self.px(*centre), radius_m * self.px_per_m
        box = (x - r, y - r, x + r, y + r)
        self._draw.ellipse(box, fill=_ink(colour))
        if thing:
            self._mark.ellipse(box, fill=IDS[thing])

    def line(self, points: Points, width_m: float, colour: Colour, thing: str | None = None) -> None:
        pixels, width = [self.px(*p) for p in points], max(1, round(width_m * self.px_per_m))
        self._draw.line(pixels, fill=_ink(colour), width=width, joint="curve")
        if thing:
            self._mark.line(pixels, fill=IDS[thing], width=width, joint="curve")

    def shadow(
        self,
        *,
        polygons: Iterable[tuple[Points, float]] = (),
        discs: Iterable[tuple[tuple[float, float], float, float]] = (),
        floating: bool = False,
        tapered: bool = False,
    ) -> None:
        """Darken the ground beside (polygon, height) and (centre, radius, height), all in metres.

        `floating` drops the shadow beside the thing instead of sweeping it from the thing's foot; `tapered`
        discs narrow towards their top, as crowns do.
        """
        mask = Image.new("L", (SIDE_PX, SIDE_PX))
        draw = ImageDraw.Draw(mask)
        for polygon, height_m in polygons:
            foot = [self.px(*p) for p in polygon]
            dx, dy = -self.sun[0] * self.shadow_per_m * height_m, -self.sun[1] * self.shadow_per_m * height_m
            tip = [(x + dx, y + dy) for x, y in foot]
            draw.polygon(tip, fill=255)
            if not floating:
                for i in range(len(foot)):
                    draw.polygon([foot[i - 1], foot[i], tip[i], tip[i - 1]], fill=255)
        for centre, radius_m, height_m in discs:
            (x, y), r = self.px(*centre), radius_m * self.px_per_m
            dx, dy = -self.sun[0] * self.shadow_per_m * height_m, -self.sun[1] * self.shadow_per_m * height_m
            top = 0.75 * r if tapered else r
            nx, ny = self.sun[1], -self.sun[0]
            ends = [(x + dx + nx * top, y + dy + ny * top), (x + dx - nx * top, y + dy - ny * top)]
            draw.polygon([(x + nx * r, y + ny * r), *ends, (x - nx * r, y - ny * r)], fill=255)
            draw.ellipse((x + dx - top, y + dy - top, x + dx + top, y + dy + top), fill=255)
        if self.overcast:
            mask = mask.filter(ImageFilter.BoxBlur(2))
        self.image.paste(self.image.point(self._shade), (0, 0), mask)


def _ink(colour: Colour) -> tuple[int, int, int]:
    r, g, b = (min(255, max(0, round(c))) for c in colour)
    return r, g, b
