"""What bfloat16 does to a step of pretraining with other encoders: `python benchmarks/precision.py [--quick]`.

A training step is forward and backward of random views; encoding is the forward pass of a frozen encoder. Both
precisions take turns. Only where the hardware computes in bfloat16, which `precision: auto` then chooses.
"""

import json
import sys
from functools import partial

import common
import torch
from common import Row
from torch import nn

from satclr import machine
from satclr.pretrain import architectures

CROP_PX, VIEWS, ROUNDS = 128, 32, 5
ENCODERS = (
    *("resnet18", "resnet50", "resnext50_32x4d", "densenet121", "regnet_y_400mf", "convnext_tiny", "swin_t"),
    *("mobilenet_v2", "mobilenet_v3_small", "mnasnet1_0", "shufflenet_v2_x1_0", "efficientnet_b0"),
)


def rows(*, quick: bool = False) -> list[Row]:
    if common.PRECISION != "bfloat16":
        return []
    return [row for arch in (ENCODERS[:1] if quick else ENCODERS) for row in measured(arch, quick=quick)]


def measured(arch: str, *, quick: bool) -> list[Row]:
    model, _ = architectures.build(arch, CROP_PX)
    model.to(memory_format=torch.channels_last)
    size = (2, 3, CROP_PX, CROP_PX) if quick else (VIEWS, 3, CROP_PX, CROP_PX)
    x = torch.randn(size).to(memory_format=torch.channels_last)
    found = []
    for name, once in (("training step", partial(train, model, x)), ("encoding", partial(encode, model, x))):
        model.train(once.func is train)
        speeds: dict[str, list[float]] = {"bfloat16": [], "float32": []}
        for _ in range(2 if quick else ROUNDS + 1):
            for precision, each in speeds.items():
                each.append(len(x) / common.seconds(partial(once, precision)))
        ours, theirs = (each[1:] for each in speeds.values())
        found.append(common.rate_row(f"{name} of {arch}, bfloat16 against float32", ours, theirs, "views/s"))
    return found


def train(model: nn.Module, x: torch.Tensor, precision: str) -> None:
    with machine.autocast(x.device, precision):
        loss = model(x).float().square().mean()
    loss.backward()
    model.zero_grad()


@torch.inference_mode()
def encode(model: nn.Module, x: torch.Tensor, precision: str) -> None:
    with machine.autocast(x.device, precision):
        model(x)


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=1))
