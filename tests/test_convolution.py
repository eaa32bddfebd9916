"""Convolutions of small maps against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from satclr.convolution import SMALL_PX, SmallMapConv2d, speed_up_small_maps

SIDES = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 3), (2, 4), (4, 3), (4, 4), (5, 7), (8, 8), (9, 9)]


def _results(conv: nn.Module, x: Tensor, gradient: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients by input and weights."""
    x = x.clone().requires_grad_()
    y = conv(x)
    by = torch.autograd.grad(y, [x, *conv.parameters()], torch.ones_like(y) if gradient is None else gradient)
    return [y.detach(), *by]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", SIDES)
def test_equals_torch(side: tuple[int, int], stride: int) -> None:
    plain = nn.Conv2d(5, 6, 3, stride, padding=1, bias=False).double().to(memory_format=torch.channels_last)
    x = torch.randn(3, 5, *side, dtype=torch.float64)
    gradient = torch.randn_like(plain(x))
    for mine, theirs in zip(
        _results(SmallMapConv2d(plain), x, gradient), _results(plain, x, gradient), strict=True
    ):
        assert mine.shape == theirs.shape
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_torch(side: int) -> None:
    plain = nn.Conv2d(64, 64, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(32, 64, side, side)
    truth = _results(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = _results(SmallMapConv2d(plain), x), _results(plain, x)
    for exact, fast, usual in zip(truth, mine, theirs, strict=True):
        assert fast.dtype == usual.dtype
        error, usual_error = (fast - exact).abs().max(), (usual - exact).abs().max()
        assert error <= 1.5 * usual_error + 1e-6


def test_weights_are_shared_and_names_stay() -> None:
    model = models.resnet18()
    before = dict(model.named_parameters())
    speed_up_small_maps(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[name] is before[name] for name in before)
    assert list(model.state_dict()) == list(models.resnet18().state_dict())
    assert isinstance(model.layer4[1].conv2, SmallMapConv2d)
    assert type(model.conv1) is nn.Conv2d  # 7×7
    assert type(model.layer4[0].downsample[0]) is nn.Conv2d  # 1×1


def test_others_are_left_alone() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1),  # a bias
        nn.Conv2d(4, 4, 3, padding=1, bias=False, groups=2),
        nn.Conv2d(4, 4, 3, padding=2, bias=False, dilation=2),
        nn.Conv2d(4, 4, 3, bias=False),
        nn.Conv2d(4, 4, 3, padding=1, bias=False, padding_mode="reflect"),
    )
    speed_up_small_maps(model)
    assert all(type(module) is nn.Conv2d for module in model)


def test_a_network_learns_the_same() -> None:
    torch.manual_seed(0)
    plain = models.resnet18(num_classes=8).double().train()
    fast = models.resnet18(num_classes=8).double().train()
    fast.load_state_dict(plain.state_dict())
    speed_up_small_maps(fast)
    x = torch.randn(6, 3, 64, 64, dtype=torch.float64)
    for mine, theirs in zip(_results(fast, x), _results(plain, x), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-9)


def test_maps_that_are_not_small_and_inference_take_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the fast way was taken")

    monkeypatch.setattr("satclr.convolution._Convolve.apply", refuse)
    conv = SmallMapConv2d(nn.Conv2d(2, 2, 3, padding=1, bias=False))
    conv(torch.zeros(1, 2, SMALL_PX + 1, SMALL_PX))
    conv.eval()(torch.zeros(1, 2, SMALL_PX, SMALL_PX))
    with pytest.raises(AssertionError, match="fast way"):
        conv.train()(torch.zeros(1, 2, SMALL_PX, SMALL_PX))
