"""A training step with matrix products for small maps against torch's convolutions: see satclr.convolution.

    python benchmarks/convolution.py [--quick]

Views lie ready in memory; both take turns in one process.
"""

from __future__ import annotations

import json
import sys

import common
import pretrain
from common import Row

FULL = (
    pretrain.Size("resnet18", 64, 96, 128, 6, 4, 0),
    pretrain.Size("resnet50", 64, 96, 64, 4, 4, 0),
)
QUICK = (pretrain.Size("resnet18", 64, 96, 8, 1, 1, 0),)


def rows(*, quick: bool = False) -> list[Row]:
    return [measured(size) for size in (QUICK if quick else FULL)]


def measured(size: pretrain.Size) -> Row:
    how = {"arch": size.arch, "weights": "none", "precision": "bfloat16"}
    settings = common.arm("simclr", {"pretrain": how}).settings
    ways = [pretrain.limit(size, settings, sped_up=sped_up) for sped_up in (True, False)]
    images = size.batch_size * size.steps
    rounds = [[images / step() for step in ways] for _ in range(size.rounds + 1)][1:]
    ours, theirs = ([speeds[way] for speeds in rounds] for way in (0, 1))
    name = f"step of {size.arch} at {size.crop_px} px against torch's convolutions"
    return common.rate_row(name, ours, theirs, "images/s")


if __name__ == "__main__":
    print(json.dumps(rows(quick="--quick" in sys.argv), indent=2))
