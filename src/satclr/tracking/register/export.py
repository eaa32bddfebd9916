"""The champion as ONNX: (N,S,S,3) uint8 pixels in, (N,K) probabilities out.

satclr export champion.onnx
"""

from __future__ import annotations

import importlib.util
import json
import logging
import warnings
from pathlib import Path

from satclr.tracking import TrackingError
from satclr.tracking.register.predict import files
from satclr.tracking.register.registry import CHAMPION

NEEDED = ("onnx", "onnxscript")


def export(root: Path, profile: str, target: Path, alias: str = CHAMPION) -> Path:
    """Write the version that has an alias to `target` and return it.

    The graph normalises and tags pixels of side S (metadata `crop_px`), any number N of them; a tile of another
    side is first resized, antialiased bicubic. Metadata: `labels`, `thresholds`, `crop_px`, `version`.
    Raises `TrackingError` without the optional packages (group `onnx`) or without such a version.
    """
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            raise TrackingError(f"satclr export needs {package}: uv sync --group onnx")
    import onnx

    with files(root, profile, alias) as (version, encoder, probe):
        facts = _write(encoder, probe, target)
    graph = onnx.load(target)
    for key, value in {**facts, "version": str(version.version)}.items():
        graph.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(graph)
    onnx.save(graph, target)
    return target


def _write(encoder: Path, probe: Path, target: Path) -> dict[str, str]:
    import torch

    from satclr.tracking.serving import Tagger

    tagger = Tagger()
    tagger.read(encoder, probe)

    class Graph(torch.nn.Module):
        mean: torch.Tensor
        std: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.encoder = tagger.encoder
            self.register_buffer("mean", torch.tensor(tagger.mean))
            self.register_buffer("std", torch.tensor(tagger.std))
            self.layer = torch.nn.Linear(tagger.weight.shape[1], tagger.weight.shape[0])
            self.layer.load_state_dict({"weight": tagger.weight.float(), "bias": tagger.bias.float()})

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            views = (pixels.float() / 255 - self.mean) / self.std
            return torch.sigmoid(self.layer(self.encoder(views.permute(0, 3, 1, 2))))

    pixels = torch.zeros(2, tagger.crop_px, tagger.crop_px, 3, dtype=torch.uint8)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        torch.onnx.export(
            Graph().eval(),
            (pixels,),
            target,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes={"pixels": {0: torch.export.Dim("tiles", min=1)}},
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return {
        "labels": json.dumps(tagger.labels),
        "thresholds": json.dumps(tagger.thresholds.tolist()),
        "crop_px": str(tagger.crop_px),
    }
