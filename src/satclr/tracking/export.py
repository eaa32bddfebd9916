"""The champion as ONNX: (N,S,S,3) uint8 pixels in, (N,K) probabilities out.

satclr export champion.onnx
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path

from satclr.evaluation.linear import LinearProbe
from satclr.project import Project
from satclr.tracking.predict import champion_files
from satclr.tracking.store import TrackingError


def export(project: Project, target: Path) -> Path:
    """Write the champion to `target` and return it.

    The graph takes pixels of side S (metadata `crop_px`), any number N; resize other tiles first. Metadata: `labels`,
    `thresholds`, `crop_px`, `interpolation` (of the resize), `version`. Raises `TrackingError` without the optional
    packages (group `onnx`) or without a champion.
    """
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            raise TrackingError(f"`satclr export` requires {package}: uv sync --group onnx")
    import onnx

    with champion_files(project) as (version, encoder, probe_file):
        probe = LinearProbe.load(probe_file)
        _write(encoder, probe, target)
    graph = onnx.load(target)
    facts = {"crop_px": probe.encoder["crop_px"], "interpolation": probe.encoder.get("interpolation", "bicubic")}
    facts |= {"version": int(version.version)}
    facts |= {"labels": probe.labels, "thresholds": probe.thresholds.tolist()}
    for key, value in facts.items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    onnx.checker.check_model(graph)
    onnx.save(graph, target)
    return target


def _write(encoder: Path, probe: LinearProbe, target: Path) -> None:
    import torch

    from satclr.pretrain.encoder import load

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
            Graph(load(encoder)[0], layer).eval(),
            (torch.zeros(2, side, side, 3, dtype=torch.uint8),),
            target,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("tiles", min=1)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
