"""The pyfunc of one arm and seed: safetensors, the code that serves them, its signature and requirements."""

from __future__ import annotations

import ast
import io
import json
import shutil
import tempfile
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from satclr.tracking.outputs import Outputs
from satclr.tracking.store import load_mlflow

PACKAGES = ("mlflow", "numpy", "pandas", "pillow", "safetensors", "torch", "torchvision")
SERVING = "satclr.tracking.serving"


def log_model(found: Outputs, run_id: str) -> str:
    """Log the model of an arm run; return its id, `m-...`."""
    mlflow = load_mlflow()
    labels, tile_px = _labels(found.models / "probe.safetensors")
    with tempfile.TemporaryDirectory() as folder, mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's advice on type hints
        info = mlflow.pyfunc.log_model(
            name=found.name,
            python_model=str(source(SERVING)),
            artifacts={name: str(found.models / f"{name}.safetensors") for name in ("encoder", "probe")},
            code_paths=[str(package(Path(folder)))],
            signature=signature(labels),
            input_example=example(tile_px),
            pip_requirements=requirements(),
            metadata={"arm": found.arm, "seed": found.seed, "profile": found.profile, "digest": found.digest},
        )
    return str(info.model_id)


def signature(labels: list[str]) -> Any:
    """One binary column `tile` in; a probability for each label and the list `predicted_labels` out."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    columns = [ColSpec("double", label) for label in labels]
    columns.append(ColSpec(Array(DataType.string), "predicted_labels"))
    return ModelSignature(inputs=Schema([ColSpec("binary", "tile")]), outputs=Schema(columns))


def example(tile_px: int) -> Any:
    """Return one grey JPEG tile as the table that the model takes."""
    import pandas as pd
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (tile_px, tile_px), (96, 112, 88)).save(buffer, "JPEG")
    return pd.DataFrame({"tile": [buffer.getvalue()]})


def requirements() -> list[str]:
    """Return what the served code imports, pinned; a build's local suffix (+cpu) is no release."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]


def package(folder: Path) -> Path:
    """Copy what `serving.py` imports of this project into `folder/satclr`, so that the model needs no install."""
    target = folder / "satclr"
    target.mkdir()
    for name in closure(SERVING):
        file = source(name)
        place = folder.joinpath(*name.split("."))
        place = place / "__init__.py" if file.name == "__init__.py" else place.with_suffix(".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    return target


def closure(module: str) -> set[str]:
    """Return the modules of ours that a module imports, directly or not, and their packages."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen or (name != "satclr" and not _exists(name)):
            continue
        seen.add(name)
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]
        for node in ast.walk(ast.parse(source(name).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.split(".")[0] == "satclr"]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "satclr":
                waiting += [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
    return seen - {module}


def source(module: str) -> Path:
    """Return the file of a module of ours."""
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{module} is not installed")
    return Path(spec.origin)


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # a name inside a module
        return False


def _labels(probe: Path) -> tuple[list[str], int]:
    from safetensors import safe_open

    with safe_open(probe, "np") as file:
        metadata = file.metadata()
    return json.loads(metadata["labels"]), int(metadata["tile_px"])
