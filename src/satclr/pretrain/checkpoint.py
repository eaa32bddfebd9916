"""Checkpoints: where a run is, its weights and its optimizer's moments, in one file replaced as a whole."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from satclr import tensorfile

FILE = "checkpoint.safetensors"


@dataclass
class State:
    """Where a run is: `epoch` finished epochs, `step` finished steps of the next, their losses."""

    epoch: int = 0
    step: int = 0
    partial: list[float] = field(default_factory=list)  # losses of the epoch under way
    curve: list[tuple[float, float]] = field(default_factory=list)  # (mean loss, learning rate) an epoch


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put model, optimizer and place in place of the last checkpoint."""
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
    tensorfile.save(folder / FILE, tensors, state=vars(state))


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load the last checkpoint, if there is one, and say where it stands."""
    path = folder / FILE
    if not path.exists():
        return State()
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        saved = json.loads(file.metadata()["state"])
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            moments.setdefault(int(i), {})[name] = value
    for i, parameter in enumerate(model.parameters()):
        for name, value in moments.get(i, {}).items():
            if value.shape == parameter.shape:  # in the parameter's memory order, which fused steps rely on
                moments[i][name] = torch.empty_like(parameter).copy_(value)
    optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return State(**{**saved, "curve": [tuple(pair) for pair in saved["curve"]]})
