import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from torch import Tensor
from torchvision.transforms import ColorJitter, GaussianBlur, RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F  # noqa: N812

from satclr.params import Views
from satclr.pretrain import views
from satclr.pretrain.views.augmentations import BRIGHTNESS, CONTRAST, HUE, SATURATION
from satclr.pretrain.views.sheet import ROWS, write
from tests.conftest import make_run
from tests.pretrain.conftest import threads

MEAN, STD = (0.41, 0.42, 0.37), (0.2, 0.17, 0.18)
STEP = 1 / 255


def Family(**changes: Any) -> Views:  # noqa: N802 - reads as the settings it makes
    """The paper's augmentations on views of 64 px, with some settings changed."""
    return make_run(views={"crop_px": 64} | changes).settings.views


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(count: int, side_px: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (count, side_px, side_px, 3), dtype=torch.uint8, generator=generator(seed))


def black_or_white(count: int, side_px: int) -> Tensor:
    """The noise on which a cubic filter overshoots most."""
    return noise(count, side_px, 1).gt(127).byte().mul(255)


def one_by_one(tiles: Tensor, p: views.Parameters, crop_px: int) -> Tensor:
    """torchvision's functional reference, before normalisation: (count,3,S,S) in [0,1]."""
    return torch.stack([reference(tiles[j % len(tiles)], p[j : j + 1], crop_px) for j in range(len(p))])


def reference(tile: Tensor, p: views.Parameters, crop_px: int) -> Tensor:
    x = tile.permute(2, 0, 1).float() / 255
    cubic = v2.InterpolationMode.BICUBIC
    x = F.resized_crop(x, *p.boxes[0].tolist(), size=[crop_px] * 2, interpolation=cubic, antialias=True).clamp(0, 1)
    if p.flip:
        x = F.horizontal_flip(x)
    if p.jitter:
        adjust: dict[int, Callable[[Tensor, float], Tensor]] = {
            BRIGHTNESS: F.adjust_brightness, CONTRAST: F.adjust_contrast, SATURATION: F.adjust_saturation,
            HUE: F.adjust_hue,
        }  # fmt: skip
        for operation in p.order[0].tolist():
            x = adjust[operation](x, p.factors[0, operation].item())
    if p.grayscale:
        x = F.rgb_to_grayscale(x, num_output_channels=3)
    if p.blur:
        x = F.gaussian_blur(x, [23] * 2, [p.sigma.item()] * 2)
    return x


def rendered(tiles: Tensor, p: views.Parameters, crop_px: int) -> Tensor:
    return views.render(tiles, p, crop_px=crop_px, mean=(0.0,) * 3, std=(1.0,) * 3)


def rendered_dense(tiles: Tensor, p: views.Parameters, crop_px: int) -> Tensor:
    """The path of a GPU, on the CPU."""
    with mock.patch.object(views, "_render_chunks", views._render_dense):
        return rendered(tiles, p, crop_px)


both_paths = pytest.mark.parametrize("path", [rendered, rendered_dense])
Render = Callable[[Tensor, views.Parameters, int], Tensor]


@both_paths
@pytest.mark.parametrize(
    ("tile_px", "family"),
    [
        (96, Family()),
        (128, Family(ratio=(0.6, 1.8), blur_p=0.5)),
        (256, Family(crop_px=224)),
        (40, Family(crop_px=50, scale=(0.01, 0.05), hue=0.5, jitter_p=1)),
        (64, Family(crop_px=13, scale=(0.5, 1), brightness=1, contrast=1, saturation=1, hue=0.5)),
    ],
)
def test_views_equal_torchvision_for_random_parameters(path: Render, tile_px: int, family: Views) -> None:
    tiles = torch.cat([noise(4, tile_px), black_or_white(2, tile_px), noise(2, tile_px, 2) // 64 * 85])
    p = views.draw(generator(3), 60 if tile_px < 256 else 16, family, tile_px=tile_px)
    expected = one_by_one(tiles, p, family.crop_px)
    assert (path(tiles, p, family.crop_px) - expected).abs().max() < STEP / 10


def edge_cases(tile_px: int) -> Iterator[views.Parameters]:
    orders = torch.tensor(list(itertools.permutations(range(4))))
    base = replace(views.draw(generator(), 24, Family(jitter_p=1, grayscale_p=0), tile_px=tile_px), order=orders)
    for sigma, hue, factor in itertools.product((0.1, 2.0), (-0.1, 0.0, 0.1), (0.6, 1.4)):
        factors = torch.tensor([factor, factor, factor, hue]).expand(24, 4)
        yield replace(base, sigma=torch.full((24,), sigma), factors=factors)
    for box in ([0, 0, tile_px, tile_px], [tile_px - 1, 0, 1, 1], [3, 5, 2, 7]):
        yield replace(base, boxes=torch.tensor(box).expand(24, 4))


@both_paths
def test_views_equal_torchvision_in_edge_cases(path: Render) -> None:
    flat = torch.stack([torch.full((80, 80, 3), level, dtype=torch.uint8) for level in (0, 128, 255)])
    pure = torch.eye(3, dtype=torch.uint8).mul(255)[:, None, None].expand(-1, 80, 80, -1)
    tiles = torch.cat([noise(2, 80), flat, pure, 255 - pure])
    for p in edge_cases(80):
        assert (path(tiles, p, 32) - one_by_one(tiles, p, 32)).abs().max() < STEP / 10


def test_normalisation_layout_and_dtype() -> None:
    tiles = noise(3, 96)
    p = views.draw(generator(), 12, Family(), tile_px=96)
    plain = rendered(tiles, p, 64)
    x = views.render(tiles, p, crop_px=64, mean=MEAN, std=STD)
    assert torch.allclose(x, F.normalize(plain, list(MEAN), list(STD)), atol=1e-4)
    assert x.is_contiguous(memory_format=torch.channels_last)
    half = views.render(tiles, p, crop_px=64, mean=MEAN, std=STD, dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, x.bfloat16())


@pytest.mark.parametrize(("tile_px", "crop_px"), [(96, 64), (160, 48), (64, 96)])
def test_a_row_does_not_depend_on_the_others_rendered_with_it(tile_px: int, crop_px: int) -> None:
    tiles = noise(12, tile_px)
    p = views.draw(generator(), 24, Family(crop_px=crop_px), tile_px=tile_px)
    x = rendered(tiles, p, crop_px)
    for rows in (slice(0, 3), slice(3, 12), slice(13, 24), *(slice(j, j + 1) for j in range(24))):
        found = rendered(tiles.repeat(2, 1, 1, 1)[rows], p[rows], crop_px)
        assert (found - x[rows]).abs().max() < 1e-6, "more than rounding"


def test_threads_autocast_and_inference_mode_change_no_bit() -> None:
    tiles = noise(32, 96)
    p = views.draw(generator(), 96, Family(), tile_px=96)
    with threads(1):
        expected = rendered(tiles, p, 64)
    for count in (2, 3):
        with threads(count):
            assert torch.equal(rendered(tiles, p, 64), expected)
            assert torch.get_num_threads() == count
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        assert torch.equal(rendered(tiles, p, 64), expected)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("height", "width", "crop_px"), [(96, 96, 64), (60, 90, 64), (64, 64, 64), (31, 31, 50)])
def test_evaluation_view_equals_torchvision(height: int, width: int, crop_px: int, interpolation: str) -> None:
    tiles = torch.cat([noise(40, 96)[:, :height, :width], black_or_white(3, 96)[:, :height, :width]])
    x = tiles.permute(0, 3, 1, 2).float() / 255
    mode = v2.InterpolationMode(interpolation)
    x = F.resize(x, [crop_px, crop_px], interpolation=mode, antialias=True).clamp(0, 1)
    ours = views.evaluation_view(tiles, crop_px=crop_px, mean=MEAN, std=STD, interpolation=interpolation)
    assert (ours - F.normalize(x, list(MEAN), list(STD))).abs().max() < STEP / 10
    assert ours.is_contiguous(memory_format=torch.channels_last)


DRAWS = 4000


@pytest.mark.parametrize(
    ("tile_px", "scale", "ratio"),
    [
        (256, (0.08, 1.0), (1.0, 1.0)),
        (256, (0.08, 1.0), (3 / 4, 4 / 3)),
        (96, (0.9, 1.0), (0.5, 2.0)),  # most tries fail
        (96, (0.9, 1.0), (2.0, 3.0)),  # all tries fail: too wide
        (96, (0.9, 1.0), (0.2, 0.4)),
    ],
)
def test_boxes_are_distributed_like_torchvisions(
    tile_px: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    p = views.draw(generator(5), DRAWS, Family(scale=scale, ratio=ratio), tile_px=tile_px)
    torch.manual_seed(6)
    image = torch.empty(3, tile_px, tile_px)
    theirs = np.array([RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(DRAWS)])

    def numbers(boxes: np.ndarray) -> list[np.ndarray]:
        return [*boxes.T, boxes[:, 2] * boxes[:, 3], boxes[:, 0] / (tile_px + 1 - boxes[:, 2])]

    for mine, its in zip(numbers(p.boxes.numpy()), numbers(theirs), strict=True):
        assert same_distribution(mine, its)


def test_jitter_switches_and_sigma_are_distributed_like_torchvisions() -> None:
    family = Family(brightness=0.4, contrast=0.3, saturation=1.0, hue=0.1, flip_p=0.5, jitter_p=0.8, blur_p=0.3)
    p = views.draw(generator(7), DRAWS, family, tile_px=64)
    for column, probability in ((p.flip, 0.5), (p.jitter, 0.8), (p.grayscale, 0.2), (p.blur, 0.3)):
        assert stats.binomtest(int(column.sum()), DRAWS, probability).pvalue > 0.01
    jitter = ColorJitter(0.4, 0.3, 1.0, 0.1)
    torch.manual_seed(8)
    ranges = (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue)
    drawn = [(*ColorJitter.get_params(*ranges)[1:], GaussianBlur.get_params(0.1, 2.0)) for _ in range(DRAWS)]
    for mine, theirs in zip((*p.factors.T, p.sigma), np.array(drawn).T, strict=True):
        assert same_distribution(mine.numpy(), theirs)
    digits = torch.tensor([64, 16, 4, 1])
    counts = torch.unique((p.order * digits).sum(1), return_counts=True)[1]
    assert len(counts) == 24
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    assert np.abs(np.corrcoef(p.factors.T.numpy()) - np.eye(4)).max() < 0.05, "a factor says something about another"
    never = views.draw(generator(), 500, Family(flip_p=0, blur_p=1), tile_px=64)
    assert not never.flip.any()
    assert never.blur.all()


def same_distribution(a: np.ndarray, b: np.ndarray) -> bool:
    if a.min() == a.max() == b.min() == b.max():
        return True
    return bool(stats.ks_2samp(a, b).pvalue > 0.01)


def test_contact_sheets_show_each_augmentation_of_several_tiles(tmp_path: Path) -> None:
    tiles = [tmp_path / f"{i}.png" for i in range(2)]
    for path, tile in zip(tiles, noise(2, 64), strict=True):
        Image.fromarray(tile.numpy()).save(path)
    settings, out = make_run().settings, tmp_path / "out" / "views.png"
    write(tiles, out, settings, seed=0)
    step = settings.views.crop_px + 4
    sheet = np.asarray(Image.open(out))
    assert sheet.shape == (2 * (4 + 6 * step), 88 + 9 * step, 3)
    assert (sheet[:, :84] < 128).any()  # labels
    columns = {name: sheet[4 + row * step :, 88:][: step - 4] for row, name in enumerate(ROWS)}
    original, flipped, gray = (
        columns[name][:, at:][:, : step - 4] for name, at in (("all", 0), ("flip", step), ("grayscale", step))
    )
    assert np.array_equal(flipped, original[:, ::-1])
    assert np.array_equal(gray[..., 0], gray[..., 1])
