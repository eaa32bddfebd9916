"""The registered model: JPEG or PNG bytes in, label probabilities and the labels above threshold out.

MLflow loads this file as the model (models from code) next to the modules it imports and two safetensors
files: no pickle, and no need of this project's installation.

    mlflow models serve -m models:/satclr-sample@champion --env-manager local
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from PIL import Image
from safetensors import safe_open

from satclr.encoder import load
from satclr.tiles import decode
from satclr.views import evaluation_view

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
        self.device = torch.device(os.environ.get("MLFLOW_DEFAULT_PREDICTION_DEVICE", "cpu"))
        module, _ = load(encoder)
        self.encoder = module.to(self.device).eval()
        with safe_open(probe, "pt") as file:
            metadata = file.metadata()
            tensors = (file.get_tensor(name).to(self.device).double() for name in ("weight", "bias"))
            self.weight, self.bias = tensors
        self.labels: list[str] = json.loads(metadata["labels"])
        self.mean: tuple[float, float, float] = tuple(json.loads(metadata["mean"]))
        self.std: tuple[float, float, float] = tuple(json.loads(metadata["std"]))
        self.crop_px, self.tile_px = int(metadata["crop_px"]), int(metadata["tile_px"])
        thresholds = json.loads(metadata.get("thresholds", "null")) or [THRESHOLD] * len(self.labels)
        self.thresholds: npt.NDArray[np.float64] = np.asarray(thresholds, np.float64)

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
            pixels.to(self.device),
            crop_px=self.crop_px,
            mean=self.mean,
            std=self.std,
            dtype=torch.float32,
        )
        features = self.encoder(views).double()  # as evaluate: the layer in double precision
        logits = torch.nn.functional.linear(features, self.weight, self.bias)
        return np.asarray(torch.sigmoid(logits).cpu().numpy())


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
