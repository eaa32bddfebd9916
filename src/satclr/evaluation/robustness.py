"""How much mAP survives what the sky and the sensor do: test tiles corrupted, encoded and scored again.

In: the tile store, encoder.safetensors, probe.safetensors. Out: robustness.json, in results/<profile>/<arm>/.

    satclr robustness --profile sample --arm simclr --seed 0

`robustness.corruptions: []` leaves it out; the file then says so.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from satclr import atomic, progress, tensorfile
from satclr.data import tiles
from satclr.evaluation import corruptions, metrics
from satclr.params import Arm
from satclr.pretrain import encoder


def run(store: tiles.TileStore, *, encoder_file: Path, probe: Path, out: Path, arm: Arm) -> dict[str, Any]:
    """Score the test tiles untouched and under every corruption and strength; write and return the mAPs.

    {"clean_mAP", "corruptions": {name: {strength: mAP}}, "mean_corruption_mAP", "relative_drop"}, the drop as
    a fraction of the clean mAP. Raises `tiles.TileError` when the probe is not this store's.
    """
    settings = arm.settings.robustness
    result: dict[str, Any] = {
        "clean_mAP": None, "mean_corruption_mAP": None, "relative_drop": None, "corruptions": {},
    }  # fmt: skip
    if settings.corruptions:
        score = _Scorer(store, encoder_file, probe, arm)
        rounds = [(name, strength) for name in settings.corruptions for strength in settings.strengths]
        with progress.bar("robustness", len(rounds) + 1) as advance:
            clean = score(None, 0)
            advance(1)
            for name, strength in rounds:
                result["corruptions"].setdefault(name, {})[str(strength)] = score(name, strength)
                advance(1)
        left = float(np.mean([v for each in result["corruptions"].values() for v in each.values()]))
        result |= {"clean_mAP": clean, "mean_corruption_mAP": left, "relative_drop": 1 - left / clean}
    atomic.write_json(out, result)
    return result


class _Scorer:
    """mAP of the test tiles under one corruption."""

    def __init__(self, store: tiles.TileStore, encoder_file: Path, probe: Path, arm: Arm) -> None:
        settings = arm.settings
        self.store, self.zero = store, settings.evaluate.undefined_ap == "zero"
        self.frozen = encoder.Frozen(
            encoder_file, precision=settings.embed.precision, batch_norm=settings.probe.batch_norm
        )
        try:
            tensors, facts = tensorfile.load(probe)
        except FileNotFoundError:
            raise tiles.TileError(f"{probe} does not exist; run `satclr probe` first") from None
        self.weight, self.bias = (tensors[name].double().numpy() for name in ("weight", "bias"))
        if json.loads(facts["labels"]) != store.labels:
            raise tiles.TileError(f"{probe} has labels that are not the store's; run probe again")
        frozen = settings.probe.batch_norm == "frozen"
        size = settings.embed.batch_size if frozen else settings.probe.batch_size
        self.batches = tiles.split_batches(store.rows("test"), size)

    def __call__(self, name: str | None, strength: int) -> float:
        parts = []
        for rows, batch in tiles.stream(self.store, self.batches, self.frozen.device):
            pixels = batch
            if name is not None:
                pixels = self._corrupted(batch, name, strength, rows)
            parts.append(self.frozen(pixels).astype(float) @ self.weight.T + self.bias)
        ap = metrics.average_precision(np.concatenate(parts), self.store.targets[self.store.rows("test")])
        return metrics.mean_average_precision(np.nan_to_num(ap) if self.zero else ap)

    def _corrupted(self, batch: torch.Tensor, name: str, strength: int, rows: npt.NDArray[np.int64]) -> torch.Tensor:
        names = [self.store.names[row] for row in rows]
        return corruptions.corrupt(batch, name, strength=strength, keys=names)
