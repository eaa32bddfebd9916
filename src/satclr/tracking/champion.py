"""The registered champion: its two files, the model that labels tiles, and ONNX.

satclr export champion.onnx
"""

import importlib.util
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from satclr.evaluation.linear import LinearProbe
from satclr.project import Project
from satclr.tracking.store import TrackingError, load_mlflow, open_store, preload

if TYPE_CHECKING:
    from satclr.tracking.serving import Tagger

PICKLES = {".pkl", ".pickle", ".pt", ".pth", ".joblib", ".dill"}


def champion(project: Project) -> "Tagger":
    """Load the champion with this project's code. Raises as `champion_files` does, and for damaged files."""
    preload()
    import torchvision  # noqa: F401 - meanwhile

    load_mlflow()
    with warnings.catch_warnings(action="ignore"):  # advice on type hints
        from satclr.tracking.serving import Tagger
    tagger = Tagger()
    with champion_files(project) as (_version, encoder, probe):
        tagger.load(encoder, probe)
    return tagger


@contextmanager
def champion_files(project: Project) -> Iterator[tuple[int, Path, Path]]:
    """Yield the champion's version, encoder file and probe file, in a temporary folder.

    Nothing else of the version is used: a registered model may come from outside, and MLflow's own way of loading one
    runs the code in it. Raises `TrackingError` without a champion, and if it is not one of safetensors files.
    """
    mlflow = load_mlflow()
    store, name = open_store(project.root, project.profile), f"satclr-{project.profile}"
    try:
        version = int(store.client.get_model_version_by_alias(name, "champion").version)
    except mlflow.MlflowException:
        raise TrackingError(
            f"{name} has no champion in {store.uri}; run `satclr register`, or `satclr sync` after `dvc pull`"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        uri = f"models:/{name}/{version}"
        model = Path(mlflow.artifacts.download_artifacts(uri, dst_path=folder, tracking_uri=store.uri)).resolve()
        pickles = sorted(path.name for path in model.rglob("*") if path.suffix.lower() in PICKLES)
        parts = [model / "artifacts" / f"{part}.safetensors" for part in ("encoder", "probe")]
        if pickles or not all(path.is_file() and path.resolve().is_relative_to(model) for path in parts):
            reason = f"{pickles[0]} may run code" if pickles else "it lacks an encoder or a probe"
            raise TrackingError(f"{name} version {version} is not a model of satclr: {reason}; register again")
        yield version, parts[0], parts[1]


def export(project: Project, target: Path) -> None:
    """Write the champion to `target` as ONNX: (N,S,S,3) uint8 pixels in, (N,K) probabilities out.

    The graph takes pixels of side S (metadata `crop_px`), any number N; resize other tiles first. Metadata: `labels`,
    `thresholds`, `crop_px`, `interpolation` (of the resize), `version`. Raises `TrackingError` without the optional
    packages (group `onnx`) or without a champion.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise TrackingError(f"`satclr export` requires {package}: uv sync --group onnx")
    import onnx
    import torch

    from satclr.pretrain.encoder import load

    with champion_files(project) as (version, encoder_file, probe_file):
        encoder, probe = load(encoder_file)[0], LinearProbe.load(probe_file)
    mean, std = (torch.tensor(probe.encoder[name]) for name in ("mean", "std"))
    layer = torch.nn.Linear(probe.weight.shape[1], len(probe.labels))
    layer.load_state_dict({"weight": torch.from_numpy(probe.weight), "bias": torch.from_numpy(probe.bias)})

    class Graph(torch.nn.Sequential):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            views = (pixels.float() / 255 - mean) / std
            return torch.sigmoid(self[1](self[0](views.permute(0, 3, 1, 2))))

    side = int(probe.encoder["crop_px"])
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(action="ignore"):  # the exporter's own deprecations
        torch.onnx.export(
            Graph(encoder, layer).eval(),
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            target,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("tiles", min=1)}},
            external_data=False,
            verbose=False,
        )
    graph = onnx.load(target)
    facts = {"crop_px": side, "interpolation": probe.encoder.get("interpolation", "bicubic"), "version": version}
    facts |= {"labels": probe.labels, "thresholds": probe.thresholds.tolist()}
    for key, value in facts.items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(graph)
    onnx.save(graph, target)
