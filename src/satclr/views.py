"""Views: random crops of tiles with flips, colour jitter, grayscale and blur, drawn and rendered apart.

uint8 tiles (N,H,W,3) and a generator enter; normalised float views (count,3,S,S) leave, on the tiles' device:

    parameters = views.draw(torch.Generator().manual_seed(0), 2 * len(tiles), settings, tile_px=256)
    x = views.render(tiles, parameters, crop_px=224, mean=mean, std=std)    # rows i and i+N: two views of tile i

Geometry and blur are banded matrices, two a view. Colour is a chain of blends around one hue rotation, so that
every row keeps its own random order while the whole batch runs through the same few tensor operations.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Protocol, Self

import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
LUMA = (0.2989, 0.587, 0.114)  # torchvision's rgb_to_grayscale
_TRIES = 10  # RandomResizedCrop's tries before it falls back to the central crop
_BLOCK_PX = 32  # output rows a banded product computes at once on a CPU
_CPU_CHUNK_FLOATS = 2**18  # some 1 MB of float32: what stays near a core's cache
_DEVICE_CHUNK_FLOATS = 2**26


class Settings(Protocol):
    """The augmentation family (SimCLR appendix A, arXiv:2002.05709); frozen pydantic models satisfy it."""

    @property
    def crop_px(self) -> int:
        """Side S of a view."""

    @property
    def scale(self) -> tuple[float, float]:
        """Area of a crop as a fraction of the tile's, lowest and highest."""

    @property
    def ratio(self) -> tuple[float, float]:
        """Width of a crop over its height, lowest and highest."""

    @property
    def flip_p(self) -> float:
        """Probability of a horizontal flip."""

    @property
    def jitter_p(self) -> float:
        """Probability of the colour jitter."""

    @property
    def brightness(self) -> float:
        """Half range b: the factor is uniform in [max(0, 1 - b), 1 + b]; so for contrast and saturation."""

    @property
    def contrast(self) -> float:
        """Half range of the contrast factor."""

    @property
    def saturation(self) -> float:
        """Half range of the saturation factor."""

    @property
    def hue(self) -> float:
        """Half range of the hue shift, in turns, at most 0.5."""

    @property
    def grayscale_p(self) -> float:
        """Probability of grayscale."""

    @property
    def blur_p(self) -> float:
        """Probability of the Gaussian blur."""

    @property
    def blur_kernel_px(self) -> int:
        """Side of the blur's kernel, odd."""

    @property
    def blur_sigma(self) -> tuple[float, float]:
        """Standard deviation of the blur in view pixels, lowest and highest."""


@dataclass(frozen=True)
class Parameters:
    """What `draw` decided, one row a view; `parameters[a:b]` replays a part of a batch.

    boxes (count,4) int64: top, left, height, width in tile pixels. factors (count,4) float32: brightness, contrast,
    saturation, hue (turns). order (count,4) int64: the operations (columns of factors) in order of application.
    flip, jitter, grayscale, blur (count,) bool: applied or not. sigma (count,) float32 in view pixels.
    """

    boxes: Tensor
    flip: Tensor
    jitter: Tensor
    factors: Tensor
    order: Tensor
    grayscale: Tensor
    blur: Tensor
    sigma: Tensor
    blur_kernel_px: int

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: slice) -> Self:
        return replace(self, **{name: value[rows] for name, value in self._tensors()})

    def to(self, device: torch.device | str) -> Self:
        """The same rows on another device."""
        return replace(self, **{name: value.to(device, non_blocking=True) for name, value in self._tensors()})

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value


def draw(generator: torch.Generator, count: int, settings: Settings, *, tile_px: int) -> Parameters:
    """Draw `count` rows of parameters with the distributions of torchvision's transforms.

    A pure function of the (CPU) generator's state; tiles are squares of `tile_px`.
    Raises ValueError for an empty draw or a blur that reaches past the view's far edge.
    """
    if count < 1 or tile_px < 1:
        raise ValueError(f"draw needs count >= 1 and tile_px >= 1, got {count} and {tile_px}")
    _check_blur(settings.blur_kernel_px, settings.crop_px)

    def uniform(low: float, high: float, *columns: int) -> Tensor:
        u = torch.rand(count, *columns, generator=generator, dtype=torch.float64)
        return u.mul_(high - low).add_(low)

    spans = (settings.brightness, settings.contrast, settings.saturation)
    shifts = [uniform(max(0.0, 1 - span), 1 + span) for span in spans] + [
        uniform(-settings.hue, settings.hue)
    ]
    return Parameters(
        boxes=_boxes(uniform, settings.scale, settings.ratio, tile_px),
        flip=uniform(0, 1) < settings.flip_p,
        jitter=uniform(0, 1) < settings.jitter_p,
        factors=torch.stack(shifts, 1).float(),
        order=uniform(0, 1, 4).argsort(1),
        grayscale=uniform(0, 1) < settings.grayscale_p,
        blur=uniform(0, 1) < settings.blur_p,
        sigma=uniform(*settings.blur_sigma).float(),
        blur_kernel_px=settings.blur_kernel_px,
    )


class _Uniform(Protocol):
    def __call__(self, low: float, high: float, *columns: int) -> Tensor: ...


def _boxes(uniform: _Uniform, scale: tuple[float, float], ratio: tuple[float, float], tile_px: int) -> Tensor:
    """RandomResizedCrop's boxes: the first of ten tries that fits, else the largest central crop."""
    area = uniform(*scale, _TRIES).mul_(tile_px**2)
    aspect = uniform(math.log(ratio[0]), math.log(ratio[1]), _TRIES).exp_()
    sides = (
        torch.stack([area.div(aspect), area.mul(aspect)], 2).sqrt_().round_()
    )  # (count, tries, height width)
    fits = ((sides > 0) & (sides <= tile_px)).all(2)
    first = fits.to(torch.uint8).argmax(1)
    sides = sides[torch.arange(len(sides)), first]
    corners = uniform(0, 1, 2).mul_(tile_px + 1 - sides).floor_()
    largest = torch.tensor([1 / max(1.0, ratio[0]), min(1.0, ratio[1])], dtype=torch.float64)
    fallback = largest.mul_(tile_px).round_()
    centred = ((tile_px - fallback) / 2).floor()
    found = fits.any(1, keepdim=True)
    return torch.cat([torch.where(found, corners, centred), torch.where(found, sides, fallback)], 1).long()


def render(
    tiles: Tensor,
    parameters: Parameters,
    *,
    crop_px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Render one view a row of `parameters`: crop, flip, jitter, grayscale, blur, normalise, as torchvision does.

    tiles uint8 (N,H,W,3) on any device; row j shows tile j % N. Returns (count,3,S,S) in channels-last memory, S =
    crop_px, on the tiles' device. mean and std are in [0,1] units. On a CPU the rows are shared among
    torch.get_num_threads() threads; the result does not depend on their number.
    Raises ValueError for tiles of another type or shape and for a blur larger than the view.
    """
    _check_tiles(tiles)
    _check_blur(parameters.blur_kernel_px, crop_px)
    out = torch.empty(len(parameters), crop_px, crop_px, 3, dtype=dtype, device=tiles.device)
    job = _Job(tiles, _controls(parameters), out, mean, std, parameters.blur_kernel_px // 2)
    if tiles.device.type == "cpu":
        _render_cpu(job)
    else:
        _render_device(job)
    return out.permute(0, 3, 1, 2)


def evaluation_view(
    tiles: Tensor,
    *,
    crop_px: int,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Resize whole tiles (antialiased bicubic) to S = crop_px and normalise: uint8 (N,H,W,3) → (N,3,S,S).

    Channels-last memory, on the tiles' device; tiles already of side S are only normalised.
    """
    _check_tiles(tiles)
    count, height, width, _ = tiles.shape
    shift, gain = _normalisation(mean, std, tiles.device)
    if height == width == crop_px:
        return tiles.float().div_(255).mul_(gain).add_(shift).to(dtype).permute(0, 3, 1, 2)
    out = torch.empty(count, crop_px, crop_px, 3, dtype=dtype, device=tiles.device)
    box = torch.tensor([[0.0, 0.0, height, width]], device=tiles.device)
    no_flip = box[:, 0]
    rows = _resize_matrix(box[:, 0], box[:, 2], no_flip, crop_px, height)[0]
    columns = _resize_matrix(box[:, 1], box[:, 3], no_flip, crop_px, width)[0] / 255
    step = max(1, 2**20 // (3 * height * width))
    for start in range(0, count, step):
        x = tiles[start : start + step].float().flatten(2)
        y = torch.matmul(rows, x).unflatten(2, (width, 3))  # (n, S, W, 3)
        y = torch.matmul(columns, y).clamp_(0, 1)
        out[start : start + step] = y.mul_(gain).add_(shift)
    return out.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Job:
    tiles: Tensor  # (N,H,W,3) uint8
    controls: Tensor  # (count, _CONTROLS) float32, on the parameters' device
    out: Tensor  # (count,S,S,3)
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    radius: int

    @property
    def crop_px(self) -> int:
        return self.out.shape[1]


def _check_tiles(tiles: Tensor) -> None:
    if tiles.dtype != torch.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3 or len(tiles) == 0:
        raise ValueError(
            f"tiles must be uint8 of shape (N,H,W,3) with N >= 1, got {tiles.dtype} {tuple(tiles.shape)}"
        )


def _check_blur(kernel_px: int, crop_px: int) -> None:
    if kernel_px < 1 or kernel_px % 2 == 0 or kernel_px // 2 >= crop_px:
        raise ValueError(
            f"blur_kernel_px = {kernel_px} with crop_px = {crop_px}: take an odd kernel below 2 * crop_px "
            "(reflection at the border needs its half to fit in the view)"
        )


def _normalisation(
    mean: tuple[float, float, float], std: tuple[float, float, float], device: torch.device
) -> tuple[Tensor, Tensor]:
    gain = [1 / s for s in std]
    shift = [-m / s for m, s in zip(mean, std, strict=True)]
    return torch.tensor(shift, device=device), torch.tensor(gain, device=device)


# Controls: one row of float32 a view, so that a device gets everything in one transfer.
_BOX, _FLIP, _SIGMA, _TURN, _POSITION, _BLENDS = slice(0, 4), 4, 5, 6, 7, 8
_SLOTS = ((0, True), (1, True), (2, True), (1, False), (2, False), (3, False))  # (position, before the hue?)


def _controls(p: Parameters) -> Tensor:
    """Pack parameters as box, flip, sigma (0: none), hue in sixths of a turn, the hue's position, 7 blends.

    A blend (gain, gray, mean) makes x into clamp(gain·x + gray·luma(x) + mean·mean(luma(x))): brightness, contrast
    and saturation are blends, grayscale is saturation by 0. A row's chain of four operations is up to three blends
    before its hue and three after; slots that it leaves out are the identity blend (1, 0, 0).
    """
    position = (p.order == HUE).to(torch.uint8).argmax(1)
    columns = [*p.boxes.unbind(1), p.flip, p.sigma * p.blur, 6 * p.factors[:, HUE] * p.jitter]
    columns.append(torch.where(p.jitter, position, 4))
    for slot, before in _SLOTS:
        operation = p.order[:, slot]
        factor = p.factors.gather(1, operation[:, None])[:, 0]
        used = p.jitter & ((position > slot) if before else (position < slot))
        rest = (1 - factor) * used
        columns += [1 - rest, rest * (operation == SATURATION), rest * (operation == CONTRAST)]
    columns += [~p.grayscale, p.grayscale, torch.zeros_like(p.sigma)]
    return torch.stack([column.float() for column in columns], 1)


def _resize_matrix(start: Tensor, size: Tensor, flip: Tensor, out_px: int, in_px: int) -> Tensor:
    """Antialiased bicubic (a = -0.5) weights (n, out_px, in_px) that resize in[start : start + size] to out_px."""
    index = torch.arange(out_px, device=size.device, dtype=torch.float32)
    index = torch.where(flip[:, None] > 0, out_px - 1 - index, index)
    scale = (size / out_px)[:, None]
    source = torch.arange(in_px, device=size.device, dtype=torch.float32)
    centre = (index + 0.5) * scale - 0.5 + start[:, None]
    x = (source - centre[:, :, None]).abs_().div_(scale.clamp(min=1)[:, :, None])
    near = ((1.5 * x - 2.5) * x).mul_(x).add_(1)
    far = ((-0.5 * x + 2.5) * x).sub_(4).mul_(x).add_(2)
    weights = torch.where(x < 1, near, far).mul_(x < 2)
    offset = source - start[:, None]
    weights.mul_(((offset >= 0) & (offset < size[:, None]))[:, None, :])
    return weights.div_(weights.sum(2, keepdim=True))


@lru_cache(maxsize=8)
def _blur_basis(side_px: int, radius: int, device: torch.device) -> Tensor:
    """(radius+1, S·S): where the kernel's tap at distance d falls, with the border reflected."""
    target = torch.arange(side_px)[:, None].expand(-1, 2 * radius + 1)
    distance = torch.arange(-radius, radius + 1).expand(side_px, -1)
    source = (target + distance).abs()
    source = (side_px - 1) - (side_px - 1 - source).abs()
    basis = torch.zeros(radius + 1, side_px, side_px)
    basis.index_put_((distance.abs(), target, source), torch.ones(()), accumulate=True)
    return basis.flatten(1).to(device)


def _blur_matrix(sigma: Tensor, side_px: int, radius: int) -> Tensor:
    """(n,S,S) matrices that blur along one axis; sigma 0 leaves the row as it is."""
    distance = torch.arange(radius + 1, device=sigma.device, dtype=torch.float32)
    taps = distance.div(sigma.clamp(min=1e-3)[:, None]).square_().mul_(-0.5).exp_()
    taps = taps / (2 * taps.sum(1, keepdim=True) - 1)
    return (taps @ _blur_basis(side_px, radius, sigma.device)).unflatten(1, (side_px, side_px))


def _colour(x: Tensor, controls: Tensor, bounds: tuple[int, int, int, int]) -> None:
    """Jitter, then grayscale, in place on planes x (3,n,·,·) in [0,1].

    bounds[q] is how many leading rows have their hue at position q or earlier, where rows are sorted by it; rows
    past bounds[3] have no jitter. Unsorted rows take `everything`: their unused slots are the identity.
    """
    blends = controls[:, _BLENDS:].unflatten(1, (7, 3))[..., None, None]  # (n, slot, coefficient, 1, 1)
    jittered = bounds[3]
    unsorted = bounds[0] == jittered
    gray = torch.empty_like(x[0])

    def blend(slot: int, first: int, last: int) -> None:
        if first < last:
            _blend(x[:, first:last], blends[first:last, slot], gray[first:last])

    for slot in (0, 1, 2):
        blend(slot, 0 if unsorted else bounds[slot], jittered)
    if jittered:
        _rotate_hue(x[:, :jittered], controls[:jittered, _TURN, None, None])
    for slot in (3, 4, 5):
        blend(slot, 0, bounds[slot - 3])
    blend(6, 0, x.shape[1])


def _blend(x: Tensor, coefficients: Tensor, gray: Tensor) -> None:
    gain, per_pixel, per_view = coefficients.unbind(1)
    torch.mul(x[0], LUMA[0], out=gray)
    gray.add_(x[1], alpha=LUMA[1]).add_(x[2], alpha=LUMA[2])
    level = gray.mean((1, 2), keepdim=True).mul_(per_view)
    gray.mul_(per_pixel).add_(level)
    torch.addcmul(gray, x, gain, out=x)
    x.clamp_(0, 1)


def _rotate_hue(x: Tensor, sixths: Tensor) -> None:
    """Shift the hue of HSV: its value and chroma stay, so each channel is low + chroma · trapezium(hue)."""
    red, green, blue = x.unbind(0)
    high = torch.maximum(red, green)
    torch.maximum(high, blue, out=high)
    low = torch.minimum(red, green)
    torch.minimum(low, blue, out=low)
    chroma = high - low
    divisor = chroma.clamp(min=1e-12)
    hue = torch.where(
        red == high,
        (green - blue).div_(divisor),
        torch.where(green == high, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4)),
    )
    hue.add_(sixths)
    hue.sub_(hue.div(6).floor_(), alpha=6)
    for channel, (centre, sign, offset) in zip(
        (red, green, blue), ((3, 1, -1), (2, -1, 2), (4, -1, 2)), strict=True
    ):
        weight = (hue - centre).abs_().mul_(sign).add_(offset).clamp_(0, 1)
        torch.addcmul(low, chroma, weight, out=channel)


def _finish(x: Tensor, job: _Job, controls: Tensor, out: Tensor, bands: list[tuple[slice, slice]]) -> None:
    """Normalise and blur planes x (3,n,w,h) into out (n,S,S,3): the second product turns them upright."""
    side_px = job.crop_px
    for plane, mean, std in zip(x, job.mean, job.std, strict=True):
        plane.sub_(mean).div_(std)
    blur = _blur_matrix(controls[:, _SIGMA], side_px, job.radius)
    y = x.new_empty(x.shape[1], side_px, 3, side_px)  # (n, w, 3, h)
    for to, source in bands:
        for channel in range(3):
            y[:, to, channel] = torch.bmm(blur[:, to, source], x[channel, :, source])
    y = y.flatten(1, 2).transpose(1, 2)  # (n, h, w·3)
    for to, source in bands:
        torch.bmm(blur[:, to, source], y[:, source], out=out.flatten(2)[:, to])


def _render_device(job: _Job) -> None:
    """Every row through the same dense operations: no loop over rows and no wait for the device."""
    count, (_, height, width, _) = len(job.out), job.tiles.shape
    controls = job.controls
    if controls.device.type == "cpu":
        controls = controls.pin_memory()
    controls = controls.to(job.tiles.device, non_blocking=True)
    step = max(1, _DEVICE_CHUNK_FLOATS // (3 * max(height * width, job.crop_px**2)))
    for start in range(0, count, step):
        c = controls[start : start + step]
        rows = torch.arange(start, start + len(c), device=c.device) % len(job.tiles)
        pixels = job.tiles[rows].flatten(2).float()  # (n, H, W·3)
        x = torch.empty(3, len(c), job.crop_px, job.crop_px, device=c.device)
        vertical = _resize_matrix(c[:, 0], c[:, 2], torch.zeros_like(c[:, 0]), job.crop_px, height)
        horizontal = _resize_matrix(c[:, 1], c[:, 3], c[:, _FLIP], job.crop_px, width)
        t = torch.bmm(pixels.transpose(1, 2), vertical.transpose(1, 2)).unflatten(1, (width, 3))
        for channel in range(3):
            torch.bmm(horizontal, t[:, :, channel], out=x[channel])
        x.div_(255).clamp_(0, 1)
        n = len(c)
        _colour(x, c, (n, n, n, n))
        out = torch.empty_like(job.out[start : start + step], dtype=torch.float32)
        _finish(x, job, c, out, [(slice(None), slice(None))])
        job.out[start : start + step] = out


def _render_cpu(job: _Job) -> None:
    job = replace(job, controls=job.controls.cpu())
    chunks = _chunks(job.controls, max(1, _CPU_CHUNK_FLOATS // (3 * job.crop_px**2)))
    for rows in chunks:
        _render_chunk(job, rows)


def _chunks(controls: Tensor, rows: int) -> list[Tensor]:
    """Row numbers of chunks alike in flip and crop size, each sorted by the hue's position."""
    area = controls[:, 2] * controls[:, 3]
    chunks: list[Tensor] = []
    for flipped in (0, 1):
        members = (controls[:, _FLIP] == flipped).nonzero()[:, 0]
        members = members[area[members].argsort(stable=True)]
        for chunk in members.split(rows):
            if len(chunk):
                chunks.append(chunk[controls[chunk, _POSITION].argsort(stable=True)])
    return chunks


def _render_chunk(job: _Job, rows: Tensor) -> None:
    side_px, n, c = job.crop_px, len(rows), job.controls[rows]
    boxes: list[list[int]] = c[:, _BOX].long().tolist()
    height, width = max(b[2] for b in boxes), max(b[3] for b in boxes)
    pixels = torch.zeros(n, height, width, 3)
    for i, (row, (top, left, h, w)) in enumerate(zip(rows.tolist(), boxes, strict=True)):
        pixels[i, :h, :w] = job.tiles[row % len(job.tiles), top : top + h, left : left + w]
    zero = torch.zeros(n)
    vertical = _resize_matrix(zero, c[:, 2], zero, side_px, height)
    horizontal = _resize_matrix(zero, c[:, 3], c[:, _FLIP], side_px, width)
    t = torch.bmm(pixels.flatten(2).transpose(1, 2), vertical.transpose(1, 2)).unflatten(1, (width, 3))
    x = torch.empty(3, n, side_px, side_px)
    for channel in range(3):
        torch.bmm(horizontal, t[:, :, channel], out=x[channel])
    x.div_(255).clamp_(0, 1)
    counts = torch.bincount(c[:, _POSITION].long(), minlength=5).cumsum(0).tolist()
    _colour(x, c, (counts[0], counts[1], counts[2], counts[3]))
    out = torch.empty(n, side_px, side_px, 3)
    _finish(x, job, c, out, [(slice(None), slice(None))])
    job.out[rows] = out.to(job.out.dtype)
