"""The registered model: JPEG or PNG bytes in, label probabilities and the labels above threshold out.

MLflow loads this file as the model (models from code) next to the modules it imports and two safetensors
files: no pickle, and no need of this project's installation.

    mlflow models serve -m models:/satclr-sample@champion --env-manager local
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image

from satclr import tensorfile
from satclr.data.tiles import decode
from satclr.pretrain.encoder import evaluation_facts, load
from satclr.pretrain.views import evaluation_view

BATCH = 64
THRESHOLD = 0.5  # of a probe without thresholds of its own
PREDICTED = "predicted_labels"

Tile = bytes | str | Path | npt.NDArray[np.uint8]


class Tagger(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A frozen encoder and its linear probe."""

    def load_context(self, context: Any) -> None:
        """Read the two safetensors files."""
        self.read(Path(context.artifacts["encoder"]), Path(context.artifacts["probe"]))

    def read(self, encoder: Path, probe: Path) -> None:
        """Take up the two files. Raises ValueError where they are not an encoder and its probe."""
        self.device = torch.device(os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu"))
        module, width = load(encoder)
        self.encoder = module.to(self.device).eval()
        tensors, facts = tensorfile.load(probe)
        self.labels, thresholds = _labels(facts, probe)
        self.thresholds: npt.NDArray[np.float64] = np.asarray(thresholds, np.float64)
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        if shapes != {"weight": (len(self.labels), width), "bias": (len(self.labels),)}:
            raise tensorfile.TensorFileError(
                f"{probe}: tensors {shapes} are no probe of {width} features and {len(self.labels)} labels"
            )
        self.weight, self.bias = (tensors[name].to(self.device).double() for name in ("weight", "bias"))
        known = _numbers(facts, probe)
        self.mean, self.std, self.crop_px = evaluation_facts(known, probe)
        self.tile_px = evaluation_facts(known | {"crop_px": known.get("tile_px")}, probe)[2]

    def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002
        """Tag a table with the column `tile`: bytes of a JPEG or PNG, paths, or (H,W,3) uint8 arrays.

        Returns one row a tile: a column of probabilities for each label, and `predicted_labels`, those at or
        above the threshold tuned on the validation split (0.5 where none was).
        """
        table = self.tag(model_input.iloc[:, 0] if isinstance(model_input, pd.DataFrame) else model_input)
        return table if not isinstance(model_input, pd.DataFrame) else table.set_index(model_input.index)

    def tag(self, tiles: Iterable[Tile]) -> pd.DataFrame:
        """Like `predict`, from an iterable, in batches."""
        parts = [self.scores(batch) for batch in _batches(tiles)]
        scores = np.concatenate(parts) if parts else np.empty((0, len(self.labels)))
        table = pd.DataFrame(scores, columns=self.labels)
        names = np.asarray(self.labels)
        table[PREDICTED] = [names[row].tolist() for row in scores >= self.thresholds]
        return table

    @torch.inference_mode()
    def scores(self, tiles: Sequence[Tile]) -> npt.NDArray[np.float64]:
        """(B) tiles → (B,K) probabilities."""
        pixels = torch.from_numpy(np.stack([decode(_readable(tile), self.tile_px) for tile in tiles]))
        views = evaluation_view(
            pixels.to(self.device), crop_px=self.crop_px, mean=self.mean, std=self.std, dtype=torch.float32
        )
        features = self.encoder(views).double()  # as evaluate: the layer in double precision
        logits = torch.nn.functional.linear(features, self.weight, self.bias)
        return np.asarray(torch.sigmoid(logits).cpu().numpy())


def _numbers(facts: Mapping[str, str], probe: Path) -> dict[str, Any]:
    """What belongs to the evaluation view, as far as it is there."""
    try:
        return {name: json.loads(facts[name]) for name in ("mean", "std", "crop_px", "tile_px") if name in facts}
    except ValueError as error:
        raise tensorfile.TensorFileError(f"{probe} has metadata that are not JSON ({error})") from None


def _labels(facts: Mapping[str, str], probe: Path) -> tuple[list[str], list[float]]:
    """The K labels and their thresholds."""
    try:
        labels = [str(label) for label in json.loads(facts["labels"])]
        thresholds = [float(v) for v in json.loads(facts.get("thresholds", "null")) or [THRESHOLD] * len(labels)]
    except (KeyError, TypeError, ValueError) as error:
        raise tensorfile.TensorFileError(f"{probe} does not say its labels ({error!r}); make it again") from None
    if len(thresholds) != len(labels) or len(set(labels)) < len(labels):
        raise tensorfile.TensorFileError(f"{probe}: {len(thresholds)} thresholds, {len(set(labels))} different labels")
    return labels, thresholds


def _batches(tiles: Iterable[Tile]) -> Iterator[list[Tile]]:
    batch: list[Tile] = []
    for tile in tiles:
        batch.append(tile)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _readable(tile: Tile) -> bytes | Path:
    if isinstance(tile, np.ndarray):
        buffer = io.BytesIO()
        Image.fromarray(tile).save(buffer, "PNG")  # lossless, so that arrays and files take one way
        return buffer.getvalue()
    return Path(tile) if isinstance(tile, str) else tile


mlflow.models.set_model(Tagger())
