"""The augmentations: `draw` decides what is done to each view, the operations below do it to a batch of views.

Products with banded matrices take and leave axes transposed where that saves a copy. Colours change in place, on planes
in [0,1]. A blend makes x into clamp(gain·x + pixel·luma(x) + view·mean(luma(x))); grayscale is saturation by 0.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

import torch
from torch import Tensor

from satclr.params import Views

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of Parameters.factors
_TRIES = 10  # RandomResizedCrop's tries before it falls back to the central crop
_BLUR_REACH = 4.0  # taps past 4 sigma hold less than 1e-4 of a kernel
_BLOCK_PX = 32  # rows of a block: fewer multiply fewer zeros, more keep the processor's pipelines full
_FAR = 1e6  # a distance at which no filter sees anything
_LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_BEFORE, _AFTER = ((0, 1, 2), (1, 2, 3))  # possible positions of blends before and after the hue, in a view's order
NO_JITTER = 4  # the hue's position in views without jitter: after all others when sorted


@dataclass(frozen=True)
class Parameters:
    """What `draw` decided, one row per view; `parameters[a:b]` replays a part of a batch.

    boxes (count,4) int64: top, left, height, width in tile pixels. factors (count,4) float32: brightness,
    contrast, saturation, hue in turns. order (count,4) int64: columns of factors in order of application.
    flip, jitter, grayscale, blur (count,) bool: applied or not. sigma (count,) float32 in view pixels.
    blur_reach_px: how far from a pixel the blur looks, the same for all views, so that none depends on others.
    """

    boxes: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    blur_reach_px: int

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: slice) -> Self:
        chosen: dict[str, Any] = {name: v[rows] for name, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **chosen)


def draw(generator: torch.Generator, count: int, settings: Views, *, tile_px: int) -> Parameters:
    """Draw `count` rows of parameters with the distributions of torchvision's transforms.

    A pure function of the (CPU) generator's state; tiles are squares of `tile_px`.
    """

    def uniform(low: float, high: float, *columns: int) -> Tensor:
        u = torch.rand(count, *columns, generator=generator, dtype=torch.float64)
        return u.mul_(high - low).add_(low)

    factors = [uniform(1 - x, 1 + x) for x in (settings.brightness, settings.contrast, settings.saturation)]
    factors.append(uniform(-settings.hue, settings.hue))
    return Parameters(
        boxes=_boxes(uniform, settings.scale, settings.ratio, tile_px),
        flip=uniform(0, 1) < settings.flip_p,
        jitter=uniform(0, 1) < settings.jitter_p,
        factors=torch.stack(factors, 1).float(),
        order=uniform(0, 1, 4).argsort(1),
        grayscale=uniform(0, 1) < settings.grayscale_p,
        blur=uniform(0, 1) < settings.blur_p,
        sigma=uniform(*settings.blur_sigma).float(),
        blur_reach_px=min(settings.blur_kernel_px // 2, math.ceil(_BLUR_REACH * settings.blur_sigma[1])),
    )


def _boxes(
    uniform: Callable[..., Tensor], scale: tuple[float, float], ratio: tuple[float, float], tile_px: int
) -> Tensor:
    """RandomResizedCrop's boxes: the first of ten tries that fits, else the largest central crop."""
    area = uniform(*scale, _TRIES).mul_(tile_px**2)
    aspect = uniform(math.log(ratio[0]), math.log(ratio[1]), _TRIES).exp_()
    sides = torch.stack([area.div(aspect), area.mul(aspect)], 2).sqrt_().round_()  # (count, tries, height width)
    fits = ((sides > 0) & (sides <= tile_px)).all(2)
    first = fits.to(torch.uint8).argmax(1)
    sides = sides[torch.arange(len(sides)), first]
    corners = uniform(0, 1, 2).mul_(tile_px + 1 - sides).floor_()
    fallback = torch.tensor([1 / max(1.0, ratio[0]), min(1.0, ratio[1])], dtype=torch.float64).mul_(tile_px).round_()
    centred = ((tile_px - fallback) / 2).floor()
    found = fits.any(1, keepdim=True)
    return torch.cat([torch.where(found, corners, centred), torch.where(found, sides, fallback)], 1).long()


@dataclass(frozen=True)
class Bands:
    """Blocks that cover a banded (out, in) matrix: rows[b] + [0, height) by starts[b] + [0, width)."""

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    height: int
    width: int

    @classmethod
    def cover(cls, out_px: int, in_px: int, scales: tuple[float, float], reach_px: float) -> Self:
        """Blocks for rows i that see reach_px around scale·(i + 0.5), at any scale between the two."""
        count = -(-out_px // _BLOCK_PX)
        height = -(-out_px // count)
        rows = tuple(min(b * height, out_px - height) for b in range(count))
        firsts = [max(0, math.floor(min((r + 0.5) * s for s in scales) - reach_px - 0.5)) for r in rows]
        lasts = [max((r + height - 0.5) * s for s in scales) + reach_px + 0.5 for r in rows]
        width = min(in_px, max(math.ceil(last) - first for first, last in zip(firsts, lasts, strict=True)))
        return cls(rows, tuple(min(first, in_px - width) for first in firsts), height, width)

    def upside_down(self, out_px: int) -> Self:
        rows = tuple(out_px - self.height - row for row in reversed(self.rows))
        return replace(self, rows=rows, starts=self.starts[::-1])

    def __iter__(self) -> Iterator[tuple[int, slice, slice]]:
        for b, (row, start) in enumerate(zip(self.rows, self.starts, strict=True)):
            yield b, slice(row, row + self.height), slice(start, start + self.width)


def resize_weights(
    start: Tensor, size: Tensor, flip: Tensor, out_px: int, bands: Bands, interpolation: str = "bicubic"
) -> Tensor:
    """Antialiased bicubic (a = -0.5) or bilinear weights that resize in[start : start + size] to out_px.

    start, size, flip (n,); flip 1 reverses the output. Returns (n, b, i, j): blocks of (out_px, in_px).
    """
    device = size.device  # a tensor made of a list would be copied there, and the copy waited for
    rows = torch.stack([torch.arange(row, row + bands.height, device=device) for row in bands.rows])
    source = torch.stack([torch.arange(first, first + bands.width, device=device) for first in bands.starts])
    size, start = size[:, None, None], start[:, None, None]
    scale = size / out_px
    index = torch.where(flip[:, None, None] > 0, out_px - 1 - rows, rows)
    shrink = scale.clamp(min=1)
    centre = ((index + 0.5) * scale - 0.5 + start) / shrink
    inside = (source >= start) & (source < start + size)
    x = torch.where(inside, source / shrink, _FAR)[:, :, None, :] - centre[..., None]
    if interpolation == "bilinear":
        weights = torch.rsub(x.abs_(), 1).clamp_(min=0)
        return weights.div_(weights.sum(3, keepdim=True))
    # Twice both cubics at once: t²(t-1) with t = 2-|x|, to which |x| < 1 adds 2u²(1-2u) with u = 1-|x|.
    t = torch.rsub(x.abs_(), 2).clamp_(min=0)
    weights = t - 1
    u = weights.clamp(min=0)
    weights.mul_(t.square_())
    torch.square(u, out=t)
    weights.sub_(u.sub_(0.5).mul_(t), alpha=4)
    return weights.div_(weights.sum(3, keepdim=True))


@lru_cache(maxsize=64)
def _blur_basis(side_px: int, radius: int, bands: Bands, device: torch.device) -> Tensor:
    """(radius+1, b·i·j): where the kernel's tap at distance d falls, with the border reflected."""
    target = torch.arange(side_px)[:, None].expand(-1, 2 * radius + 1)
    distance = torch.arange(-radius, radius + 1).expand(side_px, -1)
    source = (target + distance).abs()
    source = (side_px - 1) - (side_px - 1 - source).abs()
    basis = torch.zeros(radius + 1, side_px, side_px)
    basis.index_put_((distance.abs(), target, source), torch.ones(()), accumulate=True)
    return torch.stack([basis[:, to, source] for _, to, source in bands], 1).flatten(1).to(device)


def blur_weights(sigma: Tensor, side_px: int, radius: int, bands: Bands) -> Tensor:
    """Blocks (n, b, i, j) of matrices that blur along one axis; sigma 0 leaves the row as it is."""
    distance = torch.arange(radius + 1, device=sigma.device, dtype=torch.float32)
    taps = distance.div(sigma.clamp(min=1e-3)[:, None]).square_().mul_(-0.5).exp_()
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)
    blocks = taps @ _blur_basis(side_px, radius, bands, sigma.device)
    return blocks.view(len(sigma), len(bands.rows), bands.height, bands.width)


def resize(pixels: Tensor, x: Tensor, *, vertical: Tensor, up: Bands, horizontal: Tensor, across: Bands) -> None:
    """Resize pixels (n,H,W,3) in 0..255 into planes x (3,n,w,h) in [0,1].

    vertical and horizontal are `resize_weights` of n rows, or of one for all, in the bands up and across.
    """
    _, n, side_px, _ = x.shape
    flat = pixels.flatten(2).transpose(1, 2)  # (n, W·3, H)
    t = x.new_empty(n, flat.shape[1], side_px)
    for b, to, source in up:
        torch.bmm(flat[:, :, source], vertical[:, b].transpose(1, 2).expand(n, -1, -1), out=t[:, :, to])
    t = t.view(n, -1, 3, side_px)  # (n, W, 3, h)
    for b, to, source in across:
        for channel in range(3):
            torch.bmm(horizontal[:, b].expand(n, -1, -1), t[:, source, channel], out=x[channel, :, to])
    x.mul_(1 / 255).clamp_(0, 1)


def blur(x: Tensor, weights: Tensor, bands: Bands) -> Tensor:
    """Blur planes x (3,n,w,h) along both axes into (n,h,w,3): the second product stands them upright."""
    _, n, side_px, _ = x.shape
    y = x.new_empty(n, side_px, 3, side_px)  # (n, w, 3, h)
    for b, to, source in bands:
        for channel in range(3):
            torch.bmm(weights[:, b], x[channel, :, source], out=y[:, to, channel])
    columns = y.flatten(1, 2).transpose(1, 2)  # (n, h, w·3)
    out = x.new_empty(n, side_px, 3 * side_px)
    for b, to, source in bands:
        torch.bmm(weights[:, b], columns[:, source], out=out[:, to])
    return out.view(n, side_px, side_px, 3)


def coefficients(p: Parameters) -> tuple[Tensor, Tensor, Tensor]:
    """What each view's chain multiplies by: blends, hue shift, and the hue's place in the order.

    Returns (count,7,3) of gain, pixel and view; (count,) in sixths of a turn; (count,) of 0..3 or NO_JITTER.
    """
    at = (p.order == HUE).to(torch.uint8).argmax(1)
    used = torch.stack([at > q for q in _BEFORE] + [at < q for q in _AFTER], 1) & p.jitter[:, None]
    operation = torch.cat([p.order[:, :3], p.order[:, 1:]], 1)  # at _BEFORE, then at _AFTER
    rest = (1 - p.factors.gather(1, operation)) * used
    jitter = torch.stack([1 - rest, rest * (operation == SATURATION), rest * (operation == CONTRAST)], 2)
    gray = p.grayscale.float()
    grayscale = torch.stack([1 - gray, gray, torch.zeros_like(gray)], 1)
    blends = torch.cat([jitter, grayscale[:, None]], 1)
    return blends, 6 * p.factors[:, HUE] * p.jitter, torch.where(p.jitter, at, NO_JITTER)


def spans(positions: Tensor) -> list[tuple[int, int]]:
    """Rows that each of the seven steps and the hue touch, where rows are sorted by their hue's position."""
    up_to = torch.bincount(positions, minlength=NO_JITTER + 1).cumsum(0).tolist()
    last = up_to[NO_JITTER - 1]
    before, after = [(up_to[q], last) for q in _BEFORE], [(0, up_to[q - 1]) for q in _AFTER]
    return [*before, (0, last), *after, (0, up_to[-1])]


def recolour(x: Tensor, blends: Tensor, shift: Tensor, touched: list[tuple[int, int]]) -> None:
    """Apply `coefficients` to planes x (3,n,w,h).

    touched is `spans` of rows sorted by the hue's position, or all rows for each of the eight steps.
    """
    steps = [*blends[..., None, None].unbind(1)]
    steps.insert(3, shift[:, None, None])  # the hue
    gray = torch.empty_like(x[0])
    for i, (step, (first, last)) in enumerate(zip(steps, touched, strict=True)):
        rows = slice(first, last)
        if first < last and i == 3:
            _rotate_hue(x[:, rows], step[rows])
        elif first < last:
            _blend(x[:, rows], step[rows], gray[rows])


def _blend(x: Tensor, blend: Tensor, gray: Tensor) -> None:
    gain, per_pixel, per_view = blend.unbind(1)
    torch.mul(x[0], _LUMA[0], out=gray)
    gray.add_(x[1], alpha=_LUMA[1]).add_(x[2], alpha=_LUMA[2])
    level = gray.mean((1, 2), keepdim=True).mul_(per_view)
    gray.mul_(per_pixel).add_(level)
    torch.addcmul(gray, x, gain, out=x)
    x.clamp_(0, 1)


def _rotate_hue(x: Tensor, sixths: Tensor) -> None:
    """Shift the hue of HSV: value and chroma stay, and each channel is a trapezium of the hue between them.

    With channels scaled to [0,1] by low and chroma, ±(1 + green + blue - red) is the hue in sixths of a turn,
    signed like green - blue: from red by yellow and green to cyan one channel moves at a time, and so on the
    way by magenta and blue.
    """
    red, green, blue = x.unbind(0)
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    hue = (green + blue).sub_(red).sub_(low).div_(chroma.clamp(min=1e-12)).add_(1)
    weight = green - blue
    torch.copysign(hue, weight, out=hue)
    hue.add_(sixths)
    hue.sub_(torch.mul(hue, 1 / 6, out=weight).floor_(), alpha=6)
    for channel, base, centre, sign in ((red, low, 3, 1), (green, high, 2, -1), (blue, high, 4, -1)):
        torch.sub(hue, centre, out=weight).abs_().sub_(1).clamp_(0, 1)
        torch.addcmul(base, chroma, weight, value=sign, out=channel)
