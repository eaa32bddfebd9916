"""Labels of tiles from the registered champion."""

from __future__ import annotations

import csv
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from satclr.tracking import TrackingError, open_store
from satclr.tracking.register.registry import CHAMPION, model_name
from satclr.tracking.register.sources import Bounds, Source, find
from satclr.tracking.store import load_mlflow

if TYPE_CHECKING:
    from satclr.tracking.serving import Tagger

BATCH = 64
PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill"}


@dataclass(frozen=True)
class Prediction:
    """One tile's probabilities by label, best first, and the labels above threshold; or its error."""

    tile: str
    probabilities: dict[str, float]
    labels: tuple[str, ...]
    bounds: Bounds | None = None
    error: str = ""


@contextmanager
def files(root: Path, profile: str, alias: str = CHAMPION) -> Iterator[tuple[Any, Path, Path]]:
    """Yield the version that has an alias, its encoder's file and its probe's, in a folder that is then deleted.

    Whatever else a version holds is left alone: a registered model may come from outside, and MLflow's own way
    of loading one runs the code that it carries. Raises `TrackingError` where no version has the alias, and
    where it is no model of safetensors files.
    """
    mlflow = load_mlflow()
    store = open_store(root, profile)
    name = model_name(profile)
    try:
        version = store.client.get_model_version_by_alias(name, alias)
    except mlflow.MlflowException:
        raise TrackingError(
            f"{name} has no {alias} in {store.uri}; run satclr register, or satclr sync after dvc pull"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{name}/{version.version}"
        where = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder)).resolve()
        pickles = sorted(path.name for path in where.rglob("*") if path.suffix.lower() in PICKLES)
        found = [where / "artifacts" / f"{part}.safetensors" for part in ("encoder", "probe")]
        if pickles or not all(path.is_file() and path.resolve().is_relative_to(where) for path in found):
            reason = f"it holds {pickles[0]}, which may run code" if pickles else "it lacks an encoder or a probe"
            raise TrackingError(f"{name} version {version.version} is no model of satclr's: {reason}; register anew")
        yield version, found[0], found[1]


def champion(root: Path, profile: str, alias: str = CHAMPION) -> Tagger:
    """Load the champion, by this project's code. Raises as `files` does, and ValueError for damaged files."""
    load_mlflow()
    with warnings.catch_warnings(action="ignore"):  # MLflow's, about its own types
        from satclr.tracking.serving import Tagger

    tagger = Tagger()
    with files(root, profile, alias) as (_, encoder, probe):
        tagger.read(encoder, probe)
    return tagger


def predict(
    root: Path,
    profile: str,
    tiles: Sequence[str | Path | Source],
    *,
    scene_tile_px: int = 256,
    done: Callable[[int], object] | None = None,
) -> Iterator[Prediction]:
    """Tag tiles in batches, in their order; a tile that cannot be read has its error and no labels.

    `tiles` are paths, folders, globs or what `find` made of them; `done` is called with the number of tiles
    of each batch (a progress bar). Raises `TrackingError` for a path that is not there or no champion.
    """
    sources = list(_sources(tiles, scene_tile_px))
    model = champion(root, profile)
    waiting = iter(sources)
    while batch := list(islice(waiting, BATCH)):
        yield from _tag(model, batch)
        if done is not None:
            done(len(batch))


def as_json(prediction: Prediction) -> dict[str, Any]:
    """Return a prediction for JSON, without what it does not have."""
    return {key: value for key, value in asdict(prediction).items() if value not in ({}, None, "")}


def write_csv(predictions: Iterable[Prediction], stream: TextIO) -> None:
    """Write one row a tile: labels joined by `|`, then a probability for each label."""
    writer: Any = None
    for prediction in predictions:
        names = sorted(prediction.probabilities)
        if writer is None and (names or not prediction.error):
            writer = csv.DictWriter(stream, ["tile", "error", "labels", *names], lineterminator="\n", restval="")
            writer.writeheader()
        if writer is None:  # no label is known yet
            writer = csv.DictWriter(stream, ["tile", "error"], lineterminator="\n", extrasaction="ignore")
            writer.writeheader()
        row = {"tile": prediction.tile, "error": prediction.error, "labels": "|".join(prediction.labels)}
        writer.writerow(row | prediction.probabilities)


def _sources(tiles: Iterable[str | Path | Source], scene_tile_px: int) -> Iterator[Source]:
    for tile in tiles:
        if isinstance(tile, Source):
            yield tile
        else:
            yield from find([tile], scene_tile_px=scene_tile_px)


def _tag(model: Tagger, sources: list[Source]) -> list[Prediction]:
    try:
        rows = model.tag([source.read() for source in sources]).to_dict("records")
    except Exception as error:  # noqa: BLE001 - whatever a broken picture raises
        if len(sources) > 1:  # find the broken ones
            half = len(sources) // 2
            return _tag(model, sources[:half]) + _tag(model, sources[half:])
        reason = " ".join(str(error).split()) or type(error).__name__
        return [Prediction(sources[0].name, {}, (), sources[0].bounds, reason)]
    return [_prediction(source, row) for source, row in zip(sources, rows, strict=True)]


def _prediction(source: Source, row: dict[str, Any]) -> Prediction:
    labels = tuple(row.pop("predicted_labels"))
    ordered = sorted(row.items(), key=lambda item: -item[1])
    return Prediction(source.name, {label: float(p) for label, p in ordered}, labels, source.bounds)
