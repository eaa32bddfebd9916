"""Colour jitter and grayscale: a chain of blends around one hue rotation, in place on planes in [0,1].

A blend makes x into clamp(gain·x + pixel·luma(x) + view·mean(luma(x))): brightness, contrast and saturation
are blends, grayscale is saturation by 0. A view's four operations in its own order are up to three blends
before its hue and up to three after. All views go through the same steps; in a step that is not its own, a
view's blend is the identity, and where the host knows it beforehand the view is not touched at all.
"""

import torch
from torch import Tensor

from satclr.pretrain.views.parameters import CONTRAST, HUE, SATURATION, Parameters

_LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_BEFORE, _AFTER = ((0, 1, 2), (1, 2, 3))  # possible positions of blends before and after the hue, in a view's order
NO_JITTER = 4  # the hue's position in views without jitter: after all others when sorted


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
