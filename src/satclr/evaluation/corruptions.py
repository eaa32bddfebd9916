"""What degrades overhead imagery, as corruptions of tiles at three strengths: slight, clear, and hard for a person.

Tiles (B,H,H,3) uint8 in and out. A tile's corruption is a function of its name, the corruption and the strength,
so every arm is tested on the same pixels, whatever the batch. The list is the paper's (Briody & Aygen, section 1);
graded strengths are those of Hendrycks & Dietterich 2019, arXiv:1903.12261, who use five.
"""

import io
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the field's name for it
from torchvision.transforms.v2 import functional as transforms

from satclr import randomness


def corrupt(tiles: Tensor, name: str, *, strength: int, keys: Sequence[str]) -> Tensor:
    """Corrupt tiles (B,H,H,3) uint8 with strength 1, 2 or 3; `keys` are their B names."""
    draws = [randomness.generator(0, "corruption", name, strength, key) for key in keys]
    x = tiles.permute(0, 3, 1, 2).float() / 255
    x = CORRUPTIONS[name](x, strength - 1, draws).clamp(0, 1)
    return (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _illumination(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:
    """Evening, dark and warm, or noon, bright and washed out; half of the tiles each."""
    amount = (0.35, 0.65, 1.0)[level]
    evening = (_uniform(draws, 1, x) < 0.5).view(-1, 1, 1, 1)
    warm = _colour(x, 1.0, 1 - 0.12 * amount, 1 - 0.35 * amount)
    return torch.where(evening, x * math.exp(-1.3 * amount) * warm, 1 - (1 - x) ** (1 + 1.5 * amount))


def _haze(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:
    """Light scattered into the view, thicker in places (Koschmieder's model)."""
    veil = (0.35, 0.55, 0.75)[level] * (0.8 + 0.4 * _field(draws, x, cells=3))
    return x * (1 - veil) + _colour(x, 0.84, 0.86, 0.89) * veil


def _cloud(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:
    """Opaque clouds over a share of the tile, and their shadows beside them."""
    cover = (0.15, 0.3, 0.5)[level]
    field = _field(draws, x, cells=4)
    cloud = ((field - _quantile(field, 1 - cover)) * 14 + 0.5).clamp(0, 1)
    shadow = cloud.roll((x.shape[-1] // 8, x.shape[-1] // 8), (-2, -1))
    white = _colour(x, 0.93, 0.94, 0.95) * (0.9 + 0.1 * field)
    return x * (1 - 0.5 * shadow) * (1 - cloud) + white * cloud


def _season(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:  # noqa: ARG001
    """Vegetation, where green exceeds both red and blue, turns to the brown of autumn at its own brightness."""
    greenness = ((x[:, 1] - torch.maximum(x[:, 0], x[:, 2])) * 12).clamp(0, 1)[:, None]
    brown = _grey(x) * _colour(x, 1.35, 0.95, 0.5)
    return x + (brown - x) * greenness * (0.4, 0.7, 1.0)[level]


def _snow(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:
    """White over a share of the tile, first in open patches and on bright ground; steep or dark stays bare."""
    ground = _field(draws, x, cells=5) + 0.6 * _grey(x)
    cover = ((ground - _quantile(ground, (0.75, 0.5, 0.25)[level])) * 6 + 0.5).clamp(0, 1)
    return x + (_colour(x, 0.92, 0.94, 0.97) * (0.8 + 0.2 * _grey(x)) - x) * 0.95 * cover


def _noise(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:
    """Noise of the sensor: a floor, and more where there is more light."""
    noise = torch.stack([torch.randn(x.shape[1:], generator=g) for g in draws]).to(x.device)
    return x + (0.04, 0.08, 0.15)[level] * (0.6 + 0.8 * x).sqrt() * noise


def _resolution(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:  # noqa: ARG001
    """A ground pixel 2, 3 or 5 times as wide, shown at the tile's size."""
    small = max(1, round(x.shape[-1] / (2, 3, 5)[level]))
    coarse = F.interpolate(x, size=(small, small), mode="area")
    return F.interpolate(coarse, size=x.shape[-2:], mode="bicubic", align_corners=False)


def _blur(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:  # noqa: ARG001
    """Out of focus: a Gaussian of 1, 2 or 3.5 hundredths of the tile's side."""
    sigma = (0.01, 0.02, 0.035)[level] * x.shape[-1]
    blurred: Tensor = transforms.gaussian_blur(x, [2 * math.ceil(3 * sigma) + 1] * 2, [sigma, sigma])
    return blurred


def _jpeg(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:  # noqa: ARG001
    """JPEG of quality 25, 12 or 5."""
    pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = []
    for tile in pixels:
        buffer = io.BytesIO()
        Image.fromarray(tile).save(buffer, "JPEG", quality=(25, 12, 5)[level])
        decoded.append(np.asarray(Image.open(buffer)))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(x.device).float() / 255


def _rotation(x: Tensor, level: int, draws: list[torch.Generator]) -> Tensor:
    """Turned by any angle up to 15, 45 or 180 degrees either way; corners mirror what is beside them."""
    angle = (2 * _uniform(draws, 1, x)[:, 0] - 1) * math.radians((15, 45, 180)[level])
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    turn = torch.stack([torch.stack([cos, -sin, zero], 1), torch.stack([sin, cos, zero], 1)], 1)
    grid = F.affine_grid(turn, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


CORRUPTIONS: dict[str, Callable[[Tensor, int, list[torch.Generator]], Tensor]] = {
    f.__name__.removeprefix("_"): f
    for f in (
        _illumination, _haze, _cloud, _season, _snow, _noise, _resolution, _blur, _jpeg, _rotation,
    )
}  # fmt: skip


def _uniform(draws: list[torch.Generator], count: int, like: Tensor) -> Tensor:
    """Numbers in [0, 1), `count` a tile: (B,count)."""
    return torch.stack([torch.rand(count, generator=g) for g in draws]).to(like.device)


def _field(draws: list[torch.Generator], like: Tensor, *, cells: int) -> Tensor:
    """Smooth noise, (B,1,H,H) in [0, 1]: octaves of random grids, each half as strong and twice as fine."""
    total = torch.zeros(len(like), 1, *like.shape[-2:], device=like.device)
    for octave in range(4):
        side = cells * 2**octave
        grid = _uniform(draws, side * side, like).view(-1, 1, side, side)
        total += F.interpolate(grid, size=like.shape[-2:], mode="bicubic", align_corners=False) / 2**octave
    low, high = total.amin((2, 3), keepdim=True), total.amax((2, 3), keepdim=True)
    return (total - low) / (high - low).clamp(min=1e-6)


def _quantile(field: Tensor, share: float) -> Tensor:
    return field.flatten(1).quantile(share, dim=1).view(-1, 1, 1, 1)


def _grey(x: Tensor) -> Tensor:
    return (x * _colour(x, 0.299, 0.587, 0.114)).sum(1, keepdim=True)  # ITU-R BT.601


def _colour(like: Tensor, *rgb: float) -> Tensor:
    return torch.tensor(rgb, device=like.device).view(1, 3, 1, 1)
