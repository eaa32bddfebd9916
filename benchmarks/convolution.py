"""A training step with matrix products for small maps against torch's convolutions: see satclr.convolution.

    python benchmarks/convolution.py [--quick]

Views lie ready in memory; both take turns in one process, each first in every other round.
"""

from __future__ import annotations

import json
import sys

import common
import pretrain
from common import Row

FULL = (
    (pretrain.Size("resnet18", 64, 96, 128, 6, 4, 0), "bfloat16"),
    (pretrain.Size("resnet18", 64, 96, 128, 6, 4, 0), "float32"),
    (pretrain.Size("resnet50", 64, 96, 64, 4, 4, 0), "bfloat16"),
)
QUICK = ((pretrain.Size("resnet18", 64, 96, 8, 1, 1, 0), "bfloat16"),)


def rows(*, quick: bool = False) -> list[Row]:
    return [measured(size, precision) for size, precision in (QUICK if quick else FULL)]


def measured(size: pretrain.Size, precision: str) -> Row:
    how = {"arch": size.arch, "weights": "none", "batch_size": size.batch_size, "precision": precision}
    settings = common.arm("simclr", {"pretrain": how}).settings
    fast, usual = (pretrain.limit(size, settings, sped_up=sped_up) for sped_up in (True, False))
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
