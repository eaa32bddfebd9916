"""Checkpoints: progress, weights and the optimizer's moments in one file that is replaced as a whole."""

import json
import math
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from satclr import files, progress
from satclr.pretrain import distributed

FILE = "checkpoint.safetensors"
CHECKPOINT_AFTER_S = float(os.environ.get("SATCLR_CHECKPOINT_AFTER_S", "30"))
COST_RATIO = 50  # train at least so many times as long as the last checkpoint took to write
REMEDY = "Lower learning_rate or raise temperature; the last checkpoint is kept"


class RunError(RuntimeError):
    """Training cannot go on: exit code 1, the last good checkpoint kept."""


@dataclass
class State:
    """How far a run is: `epoch` finished epochs, `step` finished steps of the next, and their losses."""

    epoch: int = 0
    step: int = 0
    losses: list[float] = field(default_factory=list)  # of the steps of the current epoch
    curve: list[dict[str, float]] = field(default_factory=list)  # each epoch's mean loss and other numbers

    def __str__(self) -> str:
        return f"after epoch {self.epoch}, step {self.step}"

    def finish_epoch(self, **numbers: float) -> None:
        self.curve.append({"loss": math.fsum(self.losses) / self.step, **numbers})
        self.epoch, self.step, self.losses = self.epoch + 1, 0, []


class Writer:
    """Writes a checkpoint every CHECKPOINT_AFTER_S."""

    def __init__(self, folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
        self.path, self.model, self.optimizer, self.state = folder / FILE, model, optimizer, state
        self._since, self._cost_s = time.monotonic(), 0.0  # since and of the last checkpoint

    def due(self) -> bool:
        wait_s = max(CHECKPOINT_AFTER_S, COST_RATIO * self._cost_s) if CHECKPOINT_AFTER_S else 0.0
        return time.monotonic() - self._since >= wait_s

    def write(self) -> None:
        """Replace the last checkpoint, on process 0. The losses of all steps must be in the state.

        Raises `RunError`, and keeps the last one, when a weight or a moment is not finite.
        """
        began = time.monotonic()
        if distributed.rank() == 0:
            tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
            moments = self.optimizer.state_dict()["state"]
            tensors |= {f"optimizer.{i}.{k}": v for i, entry in moments.items() for k, v in entry.items()}
            require_finite(tensors, self.state)
            files.save_tensors(self.path, tensors, state=asdict(self.state))
        self._since = time.monotonic()
        self._cost_s = self._since - began


def require_finite(tensors: Mapping[str, Tensor], state: State) -> None:
    """Raise `RunError` naming the epoch, the step and the tensors that are not finite."""
    if broken := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise RunError(f"the model is not finite in {files.some(broken)} {state}. {REMEDY}")


def resume(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Load the last checkpoint into model and optimizer, if there is one; returns how far it is.

    Raises `RunError` when the file is not a checkpoint of this model. It is data only: no code in it is run.
    """
    path, parameters = folder / FILE, optimizer.param_groups[0]["params"]
    distributed.share_file(path, device=parameters[0].device)
    if not path.exists():
        return State()
    weights: dict[str, Tensor] = {}
    moments: dict[int, dict[str, Tensor]] = defaultdict(dict)
    try:
        arrays, facts = files.load_tensors(path)
        for key, array in arrays.items():
            value = torch.from_numpy(array)
            if key.startswith("model."):
                weights[key.removeprefix("model.")] = value
            else:
                _, i, name = key.split(".")
                parameter = parameters[int(i)]
                if value.shape == parameter.shape:  # in the parameter's memory order, which fused steps rely on
                    value = torch.empty_like(parameter).copy_(value)
                moments[int(i)][name] = value
        model.load_state_dict(weights)
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
        state = State(**json.loads(facts["state"]))
    except (RuntimeError, LookupError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise RunError(f"{path} is not a checkpoint of this run ({reason}); delete it to start over") from None
    progress.say(f"resuming from the checkpoint {state}")
    return state


def copy(source: Path, target: Path) -> None:
    """Replace `target` by a copy of `source`."""
    with files.replacing(target) as part:
        shutil.copyfile(source, part)
