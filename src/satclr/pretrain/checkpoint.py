"""Checkpoints: where a run is, its weights and its optimizer's moments, in one file replaced as a whole."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from satclr import tensorfile

FILE = "checkpoint.safetensors"


class RunError(RuntimeError):
    """Training cannot go on: exit code 1, the last good checkpoint kept."""


@dataclass
class State:
    """Where a run is: `epoch` finished epochs, `step` finished steps of the next, their losses."""

    epoch: int = 0
    step: int = 0
    partial: list[float] = field(default_factory=list)  # losses of the epoch under way
    curve: list[tuple[float, float]] = field(default_factory=list)  # (mean loss, learning rate) an epoch


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Put model, optimizer and place in place of the last checkpoint.

    Raises `RunError`, and keeps the last one, when a weight or a moment is not finite.
    """
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    for i, entry in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{i}.{k}": v for k, v in entry.items()}
    require_finite(tensors, state)
    tensorfile.save(folder / FILE, tensors, state=vars(state))


def require_finite(tensors: Mapping[str, Tensor], state: State) -> None:
    """Raise `RunError` naming the epoch, the step and the tensors that are not finite."""
    try:
        tensorfile.require_finite(tensors, "the model")
    except tensorfile.TensorFileError as error:
        raise RunError(
            f"{str(error).partition(';')[0]} after epoch {state.epoch}, step {state.step}. "
            "Lower learning_rate or raise temperature; the last checkpoint is kept"
        ) from None


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load the last checkpoint, if there is one, and say where it stands.

    Raises `RunError` when the file is not a checkpoint of this model: it is data only, and nothing of it is run.
    """
    path = folder / FILE
    if not path.exists():
        return State()
    try:
        tensors, facts = tensorfile.load(path)
        weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        model.load_state_dict(weights)
        moments = _moments(tensors, list(model.parameters()))
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": moments, "param_groups": groups})
        state = State(**json.loads(facts["state"]))
        if min(state.epoch, state.step) < 0:
            raise ValueError(f"epoch {state.epoch}, step {state.step}")
        state.curve = [(float(loss), float(rate)) for loss, rate in state.curve]
        state.partial = [float(loss) for loss in state.partial]
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(f"{path} is no checkpoint of this run ({reason}); delete it to begin again") from None
    return state


def _moments(tensors: Mapping[str, Tensor], parameters: Sequence[Tensor]) -> dict[int, dict[str, Tensor]]:
    """The optimizer's state, by parameter: of its shape, or a number."""
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, i, name = key.split(".")
            parameter = parameters[int(i)]
            if value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{key} has the shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
            moments.setdefault(int(i), {})[name] = (
                # in the parameter's memory order, which fused steps rely on
                torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            )
    return moments
