"""A training step with matrix products for small maps against torch's convolutions: see satclr.pretrain.convolution.

    python benchmarks/convolution.py [--quick]

Views lie ready in memory; both take turns in one process, each first in every other round.
"""

from __future__ import annotations

import json
import statistics
import sys

import common
import pretrain
import torch
from common import Row
from torch import nn

from satclr.pretrain.convolution import SmallMapConv2d

PRECISIONS = dict.fromkeys((common.PRECISION, "float32"))  # bfloat16 only where the hardware computes in it
FULL = (
    *((pretrain.Size("resnet18", 64, 96, 128, 6, 4, 0), precision) for precision in PRECISIONS),
    (pretrain.Size("resnet50", 64, 96, 64, 4, 4, 0), common.PRECISION),
)
QUICK = ((pretrain.Size("resnet18", 64, 96, 8, 1, 1, 0), common.PRECISION),)
DTYPE = torch.bfloat16 if common.PRECISION == "bfloat16" else torch.float32


def rows(*, quick: bool = False) -> list[Row]:
    steps = [measured(size, precision) for size, precision in (QUICK if quick else FULL)]
    return [*steps, layer(views=8 if quick else 256)]


def layer(*, views: int) -> Row:
    """The slowest of them alone: a convolution of 512 channels on maps of 2×2, forward and backward."""
    usual = nn.Conv2d(512, 512, 3, padding=1, bias=False).to(memory_format=torch.channels_last)
    x = torch.randn(views, 512, 2, 2, dtype=DTYPE).to(memory_format=torch.channels_last)
    x.requires_grad_()

    def milliseconds(conv: nn.Module) -> float:
        def once() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=torch.bfloat16 == DTYPE):
                y = conv(x)
            torch.autograd.grad(y, [x, usual.weight], torch.ones_like(y))

        return min(common.seconds(once) for _ in range(5)) * 1000

    rounds = [(milliseconds(SmallMapConv2d(usual)), milliseconds(usual)) for _ in range(5)]
    ours, theirs = (statistics.median(side) for side in zip(*rounds, strict=True))
    return {
        "name": f"convolution of 512 channels, 2×2 maps of {views} views, against torch's",
        "ours": round(ours, 2),
        "theirs": round(theirs, 2),
        "ratio": round(statistics.median(b / a for a, b in rounds), 2),
        "unit": f"ms, forward and backward, {common.PRECISION}",
    }


def measured(size: pretrain.Size, precision: str) -> Row:
    config = {"arch": size.arch, "weights": "none", "batch_size": size.batch_size, "precision": precision}
    runs = [common.run("simclr", {"pretrain": config | {"matmul_convolutions": on}}) for on in (True, False)]
    fast, usual = (pretrain.limit(size, run.settings.pretrain) for run in runs)
    ours: list[float] = []
    theirs: list[float] = []
    for turn in range(size.rounds + 1):
        sides = [(fast, ours), (usual, theirs)]
        for step, speeds in sides if turn % 2 else sides[::-1]:
            speeds.append(size.batch_size * size.steps / step())
    name = f"step of {size.arch} at {size.crop_px} px, {precision}, against torch's convolutions"
    row = common.rate_row(name, ours[1:], theirs[1:], "images/s")
    return row | {"batch_size": size.batch_size}


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
