"""Crop-resize and Gaussian blur as products with banded matrices, one pair per view.

On a CPU a matrix is a few blocks along its diagonal; on a GPU one dense block. Products take and leave axes
transposed where that saves a copy.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

_BLOCK_PX = 32  # rows of a block: fewer multiply fewer zeros, more keep the processor's pipelines full
_FAR = 1e6  # a distance at which no filter sees anything


@dataclass(frozen=True)
class Bands:
    """Blocks that cover a banded (out, in) matrix: rows[b] + [0, height) by starts[b] + [0, width)."""

    rows: tuple[int, ...]
    starts: tuple[int, ...]
    height: int
    width: int

    @classmethod
    def dense(cls, out_px: int, in_px: int) -> Self:
        return cls((0,), (0,), out_px, in_px)

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
    device = size.device
    # A tensor made of a list would be copied to the device, and the copy waited for.
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
