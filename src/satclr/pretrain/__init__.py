"""Contrastive pretraining: the tile store → models/<profile>/<arm>/encoder.safetensors and a loss curve.

    satclr pretrain --profile sample --arm simclr --seed 0
    torchrun --nproc-per-node 2 -m satclr pretrain --profile sample --arm simclr --seed 0

`objective: none` writes the initial encoder. A run that was killed goes on from its last checkpoint and ends
with the weights it would have had anyway. Two arms that ask for the same pretraining share it. The loop is in
`loop`, what a step does in `step`.
"""

from satclr.pretrain.checkpoint import RunError as RunError
from satclr.pretrain.stage import CODE as CODE
from satclr.pretrain.stage import fingerprint as fingerprint
from satclr.pretrain.stage import run as run
from satclr.pretrain.stage import train as train
from satclr.pretrain.step import contrast as contrast
