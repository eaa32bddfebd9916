"""Labels of tiles from the registered champion."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from satclr.register.registry import CHAMPION, model_name
from satclr.tracking import TrackingError, open_store
from satclr.tracking.store import load_mlflow

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """One tile's probabilities by label, best first, and the labels above threshold; or its error."""

    tile: str
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    error: str = ""


def champion(root: Path, profile: str, alias: str = CHAMPION) -> Any:
    """Load the champion's pyfunc. Raises `TrackingError` where no version has the alias."""
    mlflow = load_mlflow()
    open_store(root, profile)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return mlflow.pyfunc.load_model(f"models:/{model_name(profile)}@{alias}")
    except mlflow.MlflowException as error:
        reason = " ".join(str(error).split())[:200]
        raise TrackingError(
            f"{model_name(profile)} has no {alias} ({reason}); run satclr register"
        ) from error


def predict(
    root: Path,
    profile: str,
    paths: Iterable[Path],
    *,
    done: Callable[[int], object] | None = None,
) -> Iterator[Prediction]:
    """Tag tiles in batches, in their order; a tile that cannot be read has its error and no labels.

    `done` is called with the number of tiles of each batch (a progress bar).
    """
    model = champion(root, profile)
    waiting = iter(paths)
    while batch := list(islice(waiting, BATCH)):
        yield from _tag(model, batch)
        if done is not None:
            done(len(batch))


def _tag(model: Any, paths: list[Path]) -> list[Prediction]:
    if not paths:
        return []
    import pandas as pd

    try:
        tiles = [path.read_bytes() for path in paths]
        rows = model.predict(pd.DataFrame({"tile": tiles})).to_dict("records")
    except Exception as error:  # noqa: BLE001 - whatever a broken picture raises
        if len(paths) > 1:  # find the broken one
            return [prediction for path in paths for prediction in _tag(model, [path])]
        return [Prediction(str(paths[0]), {}, (), " ".join(str(error).split()) or type(error).__name__)]
    return [_prediction(path, row) for path, row in zip(paths, rows, strict=True)]


def _prediction(path: Path, row: dict[str, Any]) -> Prediction:
    labels = tuple(row.pop("predicted_labels"))
    ordered = sorted(row.items(), key=lambda item: -item[1])
    return Prediction(str(path), {label: float(value) for label, value in ordered}, labels)
