"""Convolutions of small maps against torch's own."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision import models

from satclr import machine
from satclr.pretrain import train
from satclr.pretrain.convolution import SmallMapConv2d, speed_up_small_maps
from tests.conftest import make_run
from tests.pretrain.conftest import pretrained

SIDES = [(height, width) for height in range(1, 9) for width in (1, 2, 3, 4, 7, 8)]


def conv(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False).to(memory_format=torch.channels_last)


def results(module: nn.Module, x: Tensor, gradient: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients by input and weights."""
    x = x.clone().requires_grad_()
    y = module(x)
    by = torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y) if gradient is None else gradient)
    return [y.detach(), *by]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_equals_torch(side: tuple[int, int], stride: int, layout: torch.memory_format) -> None:
    plain = conv(5, 6, stride).double()
    x = torch.randn(3, 5, *side, dtype=torch.float64).contiguous(memory_format=layout)
    gradient = torch.randn_like(plain(x))
    ours, theirs = (results(module, x, gradient) for module in (SmallMapConv2d(plain), plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("side", [1, 2, 4])
def test_in_bfloat16_it_is_as_near_to_the_truth_as_torch(side: int) -> None:
    plain = conv(64, 64)
    x = torch.randn(32, 64, side, side)
    truth = results(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        mine, theirs = results(SmallMapConv2d(plain), x), results(plain, x)
    for exact, fast, usual in zip(truth, mine, theirs, strict=True):
        assert fast.dtype == usual.dtype
        error, usual_error = (float((y - exact).square().mean().sqrt()) for y in (fast, usual))  # the largest is luck
        assert error <= 1.2 * usual_error + 1e-6


@pytest.mark.parametrize(
    "change", [{"bias": True}, {"groups": 2}, {"padding": 2, "dilation": 2}, {"padding_mode": "reflect"}, {"stride": 3}]
)
def test_others_are_left_alone(change: dict[str, object]) -> None:
    other = nn.Conv2d(256, 256, 3, **{"padding": 1, "bias": False} | change)  # type: ignore[arg-type]
    model = nn.Sequential(other)
    speed_up_small_maps(model)
    assert model[0] is other


def test_a_network_has_the_same_gradients() -> None:
    torch.manual_seed(0)
    plain, fast = (models.resnet18(num_classes=8).double().train().to(memory_format=torch.channels_last) for _ in "ab")
    fast.load_state_dict(plain.state_dict())
    speed_up_small_maps(fast)
    assert list(fast.state_dict()) == list(plain.state_dict())
    fast_ones = [name for name, module in fast.named_modules() if isinstance(module, SmallMapConv2d)]
    assert {name.split(".")[0] for name in fast_ones} == {"layer3", "layer4"}  # the wide 3×3 ones
    x = torch.randn(6, 3, 64, 64, dtype=torch.float64).to(memory_format=torch.channels_last)
    torch.testing.assert_close(results(fast, x), results(plain, x), rtol=1e-6, atol=1e-9, check_stride=True)


@pytest.mark.parametrize("enabled", [True, False])
def test_pretraining_follows_the_setting(enabled: bool, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models: list[nn.Module] = []
    monkeypatch.setattr(train, "speed_up_small_maps", models.append)
    pretrained(make_run(root, pretrain={"matmul_convolutions": enabled, "epochs": 1}))
    assert bool(models) == (enabled and machine.device().type == "cpu")
