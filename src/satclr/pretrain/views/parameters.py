"""What to do to each view: the augmentation family, and one row of drawn parameters per view."""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from torch import Tensor

from satclr.params import Views

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)  # columns of Parameters.factors
_TRIES = 10  # RandomResizedCrop's tries before it falls back to the central crop
_BLUR_REACH = 4.0  # taps past 4 sigma hold less than 1e-4 of a kernel


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
        return self._each(lambda column: column[rows])

    def to(self, device: torch.device | str) -> Self:
        """The same rows on another device."""
        return self._each(lambda column: column.to(device, non_blocking=True))

    def _each(self, change: Callable[[Tensor], Tensor]) -> Self:
        columns = {field.name: getattr(self, field.name) for field in fields(self)}
        changed: dict[str, Any] = {name: change(v) for name, v in columns.items() if isinstance(v, Tensor)}
        return replace(self, **changed)


def draw(generator: torch.Generator, count: int, settings: Views, *, tile_px: int) -> Parameters:
    """Draw `count` rows of parameters with the distributions of torchvision's transforms.

    A pure function of the (CPU) generator's state; tiles are squares of `tile_px`.
    """

    def uniform(low: float, high: float, *columns: int) -> Tensor:
        u = torch.rand(count, *columns, generator=generator, dtype=torch.float64)
        return u.mul_(high - low).add_(low)

    spans = (settings.brightness, settings.contrast, settings.saturation)
    shifts = [uniform(max(0.0, 1 - span), 1 + span) for span in spans]
    shifts.append(uniform(-settings.hue, settings.hue))
    return Parameters(
        boxes=_boxes(uniform, settings.scale, settings.ratio, tile_px),
        flip=uniform(0, 1) < settings.flip_p,
        jitter=uniform(0, 1) < settings.jitter_p,
        factors=torch.stack(shifts, 1).float(),
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
    largest = torch.tensor([1 / max(1.0, ratio[0]), min(1.0, ratio[1])], dtype=torch.float64)
    fallback = largest.mul_(tile_px).round_()
    centred = ((tile_px - fallback) / 2).floor()
    found = fits.any(1, keepdim=True)
    return torch.cat([torch.where(found, corners, centred), torch.where(found, sides, fallback)], 1).long()
