import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from satclr.evaluation import corruptions


def tiles(count: int = 5, side: int = 48) -> Tensor:
    """Smooth random tiles, so that blur and coarse pixels are told from noise."""
    rng = np.random.default_rng()
    small = rng.integers(0, 256, (count, side // 6, side // 6, 3)).astype(np.uint8)
    grown = [np.asarray(Image.fromarray(t).resize((side, side), Image.Resampling.BICUBIC)) for t in small]
    return torch.from_numpy(np.stack(grown))


def corrupt(x: Tensor, name: str, strength: int, first: int = 0) -> Tensor:
    """`corruptions.corrupt`; tiles are called by their number, from `first`."""
    return corruptions.corrupt(x, name, strength=strength, keys=[str(first + i) for i in range(len(x))])


@pytest.mark.parametrize("strength", [1, 2, 3])
@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_tile_is_corrupted_alike_in_any_batch(name: str, strength: int) -> None:
    x = tiles()
    before = x.clone()
    whole = corrupt(x, name, strength)
    assert torch.equal(x, before)
    assert (whole.shape, whole.dtype) == (x.shape, torch.uint8)
    alone = torch.cat([corrupt(x[i : i + 1], name, strength, first=i) for i in (4, 0, 2)])
    # interpolation may order its sums by batch size: one grey level
    assert (alone.int() - whole[[4, 0, 2]].int()).abs().max() <= 1
    assert torch.equal(whole, corrupt(x, name, strength))


@pytest.mark.parametrize("name", [n for n in corruptions.CORRUPTIONS if n != "rotation"])
def test_more_strength_is_further_from_the_tile(name: str) -> None:
    x = tiles(count=40)
    gaps = [(corrupt(x, name, strength).float() - x).abs().mean().item() for strength in (1, 2, 3)]
    assert 0 < gaps[0] < gaps[1] < gaps[2]


def test_jpeg_leaves_blocks_of_eight() -> None:
    found = corrupt(tiles(count=20), "jpeg", 3).float()
    steps = (found[:, :, 1:] - found[:, :, :-1]).abs().mean((0, 1, 3))  # between neighbouring columns
    assert steps[7::8].mean() > 2 * steps[[i for i in range(47) if i % 8 != 7]].mean()


def test_blur_is_pillows_gaussian() -> None:
    x = tiles(side=100)
    found = corrupt(x, "blur", 2).numpy()[:, 10:-10, 10:-10]
    for tile, ours in zip(x.numpy(), found, strict=True):
        expected = np.asarray(Image.fromarray(tile).filter(ImageFilter.GaussianBlur(2.0)))[10:-10, 10:-10]
        assert np.abs(expected.astype(int) - ours.astype(int)).mean() < 2


def test_coarse_pixels_are_means_of_the_ground_they_cover() -> None:
    x = tiles(side=48)
    means, ours = (p.float().view(5, 24, 2, 24, 2, 3).mean((2, 4)) for p in (x, corrupt(x, "resolution", 1)))
    assert (means - ours).abs().mean() < 2


def test_season_touches_vegetation_and_nothing_else() -> None:
    green, grey = torch.tensor([60, 140, 50]), torch.tensor([120, 120, 120])
    x = torch.stack([green.expand(16, 16, 3), grey.expand(16, 16, 3)]).to(torch.uint8)
    found = corrupt(x, "season", 3)
    assert torch.equal(found[1], x[1])
    assert (found[0, ..., 0] > found[0, ..., 1]).all()  # red above green: brown


def test_clouds_cover_their_share() -> None:
    for strength, cover in ((1, 0.15), (2, 0.3), (3, 0.5)):
        found = corrupt(torch.zeros(5, 64, 64, 3, dtype=torch.uint8), "cloud", strength)
        assert (found.float().mean(-1) > 110).float().mean().item() == pytest.approx(cover, abs=0.03)


@pytest.mark.parametrize(("strength", "most"), [(1, 15), (2, 45), (3, 180)])
def test_rotation_turns_about_the_centre_by_its_range(strength: int, most: int) -> None:
    x = torch.zeros(60, 65, 65, 3, dtype=torch.uint8)
    x[:, 30:35, 48:] = 255  # a bar to the east
    found, at = corrupt(x, "rotation", strength).float().mean(-1), torch.arange(65.0) - 32
    inside = found * (at[:, None] ** 2 + at**2 <= 24**2)  # corners hold reflections
    angle = torch.rad2deg(torch.atan2(-(inside.sum(2) @ at), inside.sum(1) @ at)).abs()
    assert most / 2 < angle.max() < most + 3


@pytest.mark.parametrize("name", ["haze", "cloud", "snow", "noise", "rotation"])
def test_two_tiles_of_the_same_pixels_are_corrupted_apart(name: str) -> None:
    a, b = corrupt(tiles(1).expand(2, -1, -1, -1), name, 2)
    assert not torch.equal(a, b)
