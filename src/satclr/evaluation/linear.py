"""The linear probe as a file: weights, labels, thresholds, temperature, and the encoder's input facts.

Nobody else opens probe.safetensors. No torch: what evaluates or serves a probe works on arrays.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from satclr import files


@dataclass(frozen=True)
class LinearProbe:
    """One linear layer, D features → K labels, and what turns its scores into decisions."""

    weight: npt.NDArray[np.float32]  # (K,D)
    bias: npt.NDArray[np.float32]  # (K,)
    labels: list[str]  # K names
    thresholds: npt.NDArray[np.float64]  # (K,) of probabilities
    temperature: float  # divides the logits to calibrate them
    best_epoch: int
    val_mAP: float  # noqa: N815 - the field's spelling
    encoder: dict[str, Any]  # the encoder's facts: mean, std, crop_px, tile_px, feature_dim, ...

    def save(self, path: Path) -> None:
        """Write the probe as safetensors, and all but its tensors as JSON in the metadata."""
        facts = self.encoder | {"labels": self.labels, "thresholds": self.thresholds.tolist()}
        facts |= {name: getattr(self, name) for name in ("temperature", "best_epoch", "val_mAP")}
        files.save_tensors(path, {"weight": self.weight, "bias": self.bias}, **facts)

    @classmethod
    def load(cls, path: Path, *, labels: Sequence[str] | None = None) -> Self:
        """Read what `save` wrote; `labels` are those that the probe must have, in this order.

        Raises `files.FileError` where the file is missing, damaged, not a probe, or has other labels.
        """
        try:
            tensors, text = files.load_tensors(path)
        except FileNotFoundError:
            raise files.FileError(f"{path} does not exist; run `satclr probe` first") from None
        try:
            facts = {name: json.loads(value) for name, value in text.items()}
            probe = cls(
                weight=tensors["weight"],
                bias=tensors["bias"],
                labels=[str(label) for label in facts.pop("labels")],
                thresholds=np.asarray(facts.pop("thresholds"), float),
                temperature=float(facts.pop("temperature")),
                best_epoch=int(facts.pop("best_epoch")),
                val_mAP=float(facts.pop("val_mAP")),
                encoder=facts,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise files.FileError(f"{path} is not a linear probe ({error!r}); run `satclr probe` again") from None
        count = len(set(probe.labels))
        shapes = (probe.weight.shape[:1], probe.bias.shape, probe.thresholds.shape, (len(probe.labels),))
        if probe.weight.ndim != 2 or set(shapes) != {(count,)}:
            sizes = f"weight {probe.weight.shape}, bias {probe.bias.shape}, thresholds {probe.thresholds.shape}"
            raise files.FileError(f"{path}: {sizes} do not fit {count} distinct labels; run `satclr probe` again")
        if labels is not None and probe.labels != list(labels):
            raise files.FileError(f"{path} has {count} labels that are not the tile store's; run `satclr probe` again")
        return probe

    def logits(self, features: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.float64]:
        """Logits (N,K) of features (N,D), in double precision."""
        z: npt.NDArray[np.float64] = features.astype(float) @ self.weight.astype(float).T + self.bias.astype(float)
        return z
