"""The registered model: JPEG or PNG bytes in, each label's probability and the labels above their threshold out.

MLflow runs this file as the model (models from code), beside a copy of this package and two safetensors files: no
pickle, no installation of satclr. It also runs it to log the model, hence torch is imported when the model is loaded.

    mlflow models serve -m models:/satclr-sample@champion --env-manager local
"""

import io
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import numpy.typing as npt
import pandas as pd

from satclr import files

BATCH = 64
OWN = ("predicted_labels",)  # the column that is no label

Tile = bytes | str | Path | npt.NDArray[np.uint8]


class Tagger(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """A frozen encoder and its linear probe: K labels. A tile's scores never depend on the others of a request."""

    minimum_valid = 0.5  # share of a tile's pixels that must hold data

    def load_context(self, context: Any) -> None:
        """Load the artifacts, as MLflow asks for."""
        self.load(Path(context.artifacts["encoder"]), Path(context.artifacts["probe"]))

    def load(self, encoder: Path, probe: Path) -> None:
        """Load the two files. Raises `FileError` or `EncoderError` if they are damaged or do not go together."""
        from satclr.evaluation.linear import LinearProbe
        from satclr.pretrain.encoder import Frozen

        self.probe, self.encoder = LinearProbe.load(probe), Frozen(encoder)
        self.labels, self.scale = self.probe.labels, self.probe.encoder.get("scale")
        self.tile_px: int = self.probe.encoder.get("tile_px", 0)
        if not isinstance(self.tile_px, int) or not 8 <= self.tile_px <= 1024:
            raise files.FileError(f"{probe} has tile_px {self.tile_px!r}; run `satclr probe` again")
        if self.probe.weight.shape[1] != self.encoder.width:
            raise files.FileError(f"{probe} does not fit the {self.encoder.width} features of {encoder}")

    def predict(self, context: Any, model_input: pd.DataFrame) -> pd.DataFrame:  # noqa: ARG002
        """Tag a table with the column `tile`: bytes of a JPEG or PNG, paths, or (H,W,3) uint8 arrays.

        Returns one row per tile: the probability of each label, and `predicted_labels`, those at or above the
        threshold that was tuned on the validation split.
        """
        tiles = iter(model_input.iloc[:, 0])
        parts = [np.empty((0, len(self.labels)))]
        while batch := [self.decode(tile) for tile in islice(tiles, BATCH)]:
            parts.append(self.scores(batch))
        scores = np.concatenate(parts)
        table = pd.DataFrame(scores, columns=files.columns(self.labels, OWN), index=model_input.index)
        return table.assign(predicted_labels=[self.chosen(row) for row in scores])

    def decode(self, tile: Tile) -> npt.NDArray[np.uint8]:
        """One tile as (tile_px, tile_px, 3) uint8. Raises `TileError` if it is not a sound picture."""
        from PIL import Image

        from satclr.data import pixels

        if isinstance(tile, np.ndarray):
            Image.fromarray(tile).save(buffer := io.BytesIO(), "PNG")  # lossless
            tile = buffer.getvalue()
        file = Path(tile) if isinstance(tile, str) else tile
        return pixels.decode(file, self.tile_px, scale=self.scale, minimum_valid=self.minimum_valid)

    def scores(self, tiles: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
        """Decoded tiles (B,H,H,3) → probabilities (B,K), as `evaluate` computes them."""
        import torch

        logits = self.probe.logits(self.encoder(torch.from_numpy(np.stack(tiles))))
        with np.errstate(over="ignore"):
            return np.asarray(1 / (1 + np.exp(-logits)))

    def chosen(self, scores: npt.NDArray[np.float64]) -> list[str]:
        """The labels of one tile's probabilities (K,)."""
        return [self.labels[k] for k in np.flatnonzero(scores >= self.probe.thresholds)]


mlflow.models.set_model(Tagger())
