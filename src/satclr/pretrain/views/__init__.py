"""Views: random crops of tiles with flips, colour jitter, grayscale and blur, faster than one image at a time.

In: uint8 tiles (N,H,W,3) and a generator. Out: normalised float views (count,3,S,S) on the tiles' device.

    parameters = views.draw(torch.Generator().manual_seed(0), 2 * len(tiles), settings, tile_px=256)
    x = views.render(tiles, parameters, crop_px=224, mean=mean, std=std)  # rows i and i+N: views of tile i

torchvision's transforms walk one image at a time through some twenty small operations; on a CPU that costs more than
the encoder. Here deciding (`augmentations.draw`, with torchvision's distributions) and computing are two steps, and a
whole batch goes through a few large operations.

**Crop, resize and flip.** Resizing is linear: a row of the view is a weighted sum of a few rows of the crop. The
weights of all rows form a matrix that is zero away from its diagonal (a banded matrix), so a crop resized along both
axes is `vertical @ pixels @ horizontal.T`; a flip reverses the order of the rows of `horizontal`. A batch is two
`torch.bmm`. On a CPU only the blocks along the diagonal are multiplied (`Bands`), on a GPU the whole matrix.

**Colour.** Brightness, contrast, saturation and grayscale are one formula, a blend of the pixel with black, the view's
mean gray or the pixel's own gray; hue is a rotation. Every view has its own order of these: up to three blends, the
hue, up to three blends, and grayscale. All views take the same eight steps, in which a view's unused blends are the
identity. Sorted by where their hue comes, views skip most of what they do not need.

**Blur.** Two more banded matrices, with the border reflected; without blur, sigma is 0 and the matrix the identity.

**All together: `render`.** On a CPU, views are cut into chunks that fit in a core's cache, alike in crop size and
flip, and shared among threads. On a GPU all views take one dense path that never waits for the device.
"""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor

from satclr.pretrain.views import augmentations
from satclr.pretrain.views.augmentations import Bands, Parameters, draw, resize, resize_weights

__all__ = ["Parameters", "draw", "evaluation_view", "render"]

Triple = tuple[float, float, float]

_CPU_CHUNK_FLOATS = 2**18  # some 1 MB of float32: what stays near a core's cache
_CPU_CHUNK_ROWS = 4  # with fewer, Python's own time would show
_DEVICE_CHUNK_FLOATS = 2**26


def render(
    tiles: Tensor, parameters: Parameters, *, crop_px: int, mean: Triple, std: Triple,
    dtype: torch.dtype = torch.float32,
) -> Tensor:  # fmt: skip
    """Render a view for each row: crop, flip, jitter, grayscale, blur, normalise, as torchvision does.

    tiles uint8 (N,H,W,3) on any device; row j shows tile j % N. Returns channels-last (count,3,S,S),
    S = crop_px, on the tiles' device. mean and std are in [0,1] units. On a CPU the rows are shared among
    torch.get_num_threads() threads; the result does not depend on their number.
    """
    p = parameters
    out = torch.empty(len(p), crop_px, crop_px, 3, dtype=dtype, device=tiles.device)
    with torch.no_grad(), torch.autocast(tiles.device.type, enabled=False):
        blends, shift, positions = augmentations.coefficients(p)
        single = torch.stack([p.flip.float(), p.sigma * p.blur, shift], 1)
        table = torch.cat([p.boxes.float(), single, blends.flatten(1)], 1)
        job = _Job(tiles, table, positions, out, mean, std, p.blur_reach_px)
        (_render_chunks if tiles.device.type == "cpu" else _render_dense)(job)
    return out.permute(0, 3, 1, 2)


def evaluation_view(
    tiles: Tensor, *, crop_px: int, mean: Triple, std: Triple, interpolation: str = "bicubic"
) -> Tensor:
    """Resize whole tiles (antialiased, bicubic or bilinear) to S = crop_px and normalise: uint8 (N,H,W,3) → (N,3,S,S).

    Channels-last memory, on the tiles' device; tiles already of side S are only normalised.
    """
    (count, height, width, _), device = tiles.shape, tiles.device
    out = torch.empty(count, crop_px, crop_px, 3, device=device)
    chunk_floats = _CPU_CHUNK_FLOATS if device.type == "cpu" else _DEVICE_CHUNK_FLOATS
    step = max(1, chunk_floats // (3 * height * width))
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        vertical, up = _crop_weights(torch.tensor([height]), crop_px, device, interpolation)
        horizontal, across = _crop_weights(torch.tensor([width]), crop_px, device, interpolation)
        for start in range(0, count, step):
            pixels = tiles[start : start + step].float()
            if (height, width) == (crop_px, crop_px):
                x = pixels.permute(3, 0, 2, 1).div_(255)
            else:
                x = torch.empty(3, len(pixels), crop_px, crop_px, device=device)
                resize(pixels, x, vertical=vertical, up=up, horizontal=horizontal, across=across)
            _normalise(x, mean, std)
            out[start : start + step] = x.permute(1, 3, 2, 0)
    return out.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Job:
    """A batch to render, with its parameters as the operations take them."""

    tiles: Tensor  # (N,H,W,3) uint8
    table: Tensor  # (count,28) float32, see `_columns`: one transfer takes everything to a device
    positions: Tensor  # (count,) of the hue
    out: Tensor  # (count,S,S,3)
    mean: Triple
    std: Triple
    reach_px: int


def _columns(table: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Boxes (n,4), flip, sigma and hue shift (n,), blends (n,7,3) of some rows of a job's table."""
    return table[:, :4], table[:, 4], table[:, 5], table[:, 6], table[:, 7:].reshape(-1, 7, 3)


def _normalise(x: Tensor, mean: Triple, std: Triple) -> None:
    for plane, centre, scale in zip(x, mean, std, strict=True):
        plane.sub_(centre).mul_(1 / scale)


def _render_dense(job: _Job) -> None:
    """Every row through the same dense operations: no loop over rows and no wait for the device."""
    count, side_px = job.out.shape[:2]
    tile_count, height, width, _ = job.tiles.shape
    table = job.table
    if job.tiles.is_cuda:
        table = table.pin_memory().to(job.tiles.device, non_blocking=True)
    up, across, square = (Bands((0,), (0,), side_px, length) for length in (height, width, side_px))
    step = max(1, _DEVICE_CHUNK_FLOATS // (3 * max(height * width, side_px**2)))
    for start in range(0, count, step):
        boxes, flip, sigma, shift, blends = _columns(table[start : start + step])
        n = len(boxes)
        top, left, box_height, box_width = boxes.unbind(1)
        pixels = job.tiles[torch.arange(start, start + n, device=table.device) % tile_count].float()
        x = torch.empty(3, n, side_px, side_px, device=table.device)
        vertical = resize_weights(top, box_height, torch.zeros_like(top), side_px, up)
        horizontal = resize_weights(left, box_width, flip, side_px, across)
        resize(pixels, x, vertical=vertical, up=up, horizontal=horizontal, across=across)
        augmentations.recolour(x, blends, shift, [(0, n)] * 8)
        _normalise(x, job.mean, job.std)
        job.out[start : start + step] = augmentations.blur(
            x, augmentations.blur_weights(sigma, side_px, job.reach_px, square), square
        )


def _render_chunks(job: _Job) -> None:
    """Share chunks of rows among threads; chunks do not depend on the threads, so neither does the result."""
    chunks = _chunks(job, max(_CPU_CHUNK_ROWS, _CPU_CHUNK_FLOATS // (3 * job.out.shape[1] ** 2)))
    pool = _pool(torch.get_num_threads(), os.getpid())
    list(pool.map(partial(_render_chunk, job), chunks[::-1]))  # big ones first: the threads then finish together


@lru_cache(maxsize=4)
def _pool(threads: int, _pid: int) -> ThreadPoolExecutor:
    """Threads whose own torch operations use one thread each; a forked process needs its own."""

    def use_one() -> None:
        torch.get_num_threads()  # a thread takes the global number at its first look, even after it set its own
        torch.set_num_threads(1)

    pool = ThreadPoolExecutor(threads, "views", initializer=use_one)
    started = threading.Barrier(threads)
    list(pool.map(lambda _: started.wait(), range(threads)))
    torch.set_num_threads(threads)  # the initializer also set what threads started later would take
    return pool


def _chunks(job: _Job, size: int) -> list[Tensor]:
    """Row numbers of chunks alike in flip and crop size, each sorted by the hue's position."""
    boxes, flip, *_ = _columns(job.table)
    by_area = (boxes[:, 2] * boxes[:, 3]).argsort(stable=True)
    halves = (by_area[flip[by_area] == flipped] for flipped in (0, 1))
    chunks = [chunk for half in halves for chunk in torch.split(half, size) if len(chunk)]
    return [chunk[job.positions[chunk].argsort(stable=True)] for chunk in chunks]


@torch.inference_mode()
def _render_chunk(job: _Job, numbers: Tensor) -> None:
    side_px = job.out.shape[1]
    columns, flip, sigma, shift, blends = _columns(job.table[numbers])
    boxes: list[list[int]] = columns.int().tolist()
    x = torch.empty(3, len(numbers), side_px, side_px)
    heights, widths = (torch.tensor([box[axis] for box in boxes]) for axis in (2, 3))
    vertical, up = _crop_weights(heights, side_px)
    horizontal, across = (vertical, up) if heights.equal(widths) else _crop_weights(widths, side_px)
    if flip[0]:
        horizontal, across = horizontal.flip(1, 2), across.upside_down(side_px)
    pixels = _crops(job.tiles, numbers.tolist(), boxes)
    resize(pixels, x, vertical=vertical, up=up, horizontal=horizontal, across=across)
    augmentations.recolour(x, blends, shift, augmentations.spans(job.positions[numbers]))
    _normalise(x, job.mean, job.std)
    bands = Bands.cover(side_px, side_px, (1.0, 1.0), job.reach_px)
    out = augmentations.blur(x, augmentations.blur_weights(sigma, side_px, job.reach_px, bands), bands)
    job.out.index_copy_(0, numbers, out.to(job.out.dtype))


def _crops(tiles: Tensor, numbers: list[int], boxes: list[list[int]]) -> Tensor:
    """The boxes' pixels in the top left corners of one float tensor; zeros elsewhere."""
    pixels = torch.zeros(len(numbers), max(box[2] for box in boxes), max(box[3] for box in boxes), 3)
    source, to = tiles.numpy(), pixels.numpy()  # numpy slices and casts small arrays several times faster
    for i, (number, (top, left, height, width)) in enumerate(zip(numbers, boxes, strict=True)):
        to[i, :height, :width] = source[number % len(tiles), top : top + height, left : left + width]
    return pixels


def _crop_weights(
    sizes: Tensor, out_px: int, device: torch.device | None = None, interpolation: str = "bicubic"
) -> tuple[Tensor, Bands]:
    """Weights of crops that start at 0, each size computed once: a chunk of like crops has few."""
    unique, inverse = torch.unique(sizes, return_inverse=True)
    scales = (int(unique[0]) / out_px, int(unique[-1]) / out_px)
    bands = Bands.cover(out_px, int(unique[-1]), scales, 2 * max(1.0, scales[1]))
    zero = torch.zeros(len(unique))
    return resize_weights(zero, unique, zero, out_px, bands, interpolation)[inverse].to(device), bands
