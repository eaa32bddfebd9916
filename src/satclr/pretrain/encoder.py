"""torchvision encoders without their head, the projection head, and safetensors in and out.

In: an architecture's name and where its weights come from. Out: a module (B,3,S,S) → h (B,D).
"""

from __future__ import annotations

import json
import os
import urllib.error
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import nn

from satclr import tensorfile
from satclr.pretrain import views
from satclr.data.tiles import Channels

HEADS = ("fc.", "classifier.", "head.", "heads.")
SIDE_MAX_PX = 1024  # of a view; a file that claims more would fill the memory


class EncoderError(ValueError):
    """An architecture or weights that cannot be had: what, where it was looked for, what to do."""


def build(arch: str) -> tuple[nn.Module, int]:
    """A torchvision classification model without its head.

    Returns the module, (B,3,S,S) → (B,D), and D. Weights are random, drawn from torch's global
    generator (see `seeded`). Raises `EncoderError` for a name that torchvision does not have.
    """
    if arch not in torchvision.models.list_models(module=torchvision.models):
        raise EncoderError(
            f"unknown encoder arch {arch!r}; torchvision has resnet18, resnet50, squeezenet1_1, ..."
        )
    if arch in ("googlenet", "inception_v3"):
        raise EncoderError(f"encoder arch {arch!r} has auxiliary heads; use a ResNet, say")
    model = torchvision.models.get_model(arch, weights=None)
    name = next((n for n in ("fc", "classifier", "head", "heads") if hasattr(model, n)), None)
    if name is None:
        raise EncoderError(f"encoder arch {arch!r} has no head that can be taken off; use a ResNet, say")
    head = getattr(model, name)
    linear = [m for m in head.modules() if isinstance(m, nn.Linear)]
    if linear:
        # What stands before the head's first linear layer (ConvNeXt's LayerNorm) belongs to the features.
        before = (
            list(head.children())[: list(head.children()).index(linear[0])] if list(head.children()) else []
        )
        kept = [m for m in before if not isinstance(m, nn.Dropout)]
        setattr(model, name, nn.Sequential(*kept) if kept else nn.Identity())
        return model, linear[0].in_features
    conv = next(m for m in head.modules() if isinstance(m, nn.Conv2d))  # SqueezeNet's head is a convolution
    setattr(model, name, nn.AdaptiveAvgPool2d(1))
    return model, conv.in_channels


def initial(arch: str, weights: str, *, seed: int, root: Path) -> tuple[nn.Module, int]:
    """The encoder that pretraining starts from, in eval mode, and its D.

    `weights`: `none` (random from `seed`), a name of torchvision's Multi-Weight API (`IMAGENET1K_V2`),
    or the path, relative to `root`, of a safetensors or state-dict file with torchvision's names.
    Raises `EncoderError` when the weights are not to be had or do not fit.
    """
    with seeded(seed):
        model, width = build(arch)
    if weights != "none":
        named = torchvision.models.get_model_weights(arch).__members__
        if weights in named:
            state = _published(arch, named[weights])
        else:
            state = _read(root / weights, known=", ".join(named) or "no published weights")
        _fill(model, state, source=weights)
    return model.eval(), width


def load(path: Path) -> tuple[nn.Module, int]:
    """The encoder that `save` wrote, in eval mode, and its D. Raises `EncoderError` if it is not one."""
    state, facts = _contents(path)
    if "arch" not in facts:
        raise EncoderError(f"{path} does not say its architecture; write it with `satclr pretrain`")
    with torch.device("meta"):  # a header may name any architecture: no memory before the tensors fit
        _refuse_misfits(build(facts["arch"])[0], state, source=str(path))
    model, width = build(facts["arch"])
    _fill(model, state, source=str(path))
    return model.eval(), width


def metadata(path: Path) -> dict[str, Any]:
    """What `save` wrote beside the tensors and the architecture. Raises `EncoderError` where it is no JSON."""
    facts = _contents(path)[1]
    try:
        return {k: json.loads(v) for k, v in facts.items() if k != "arch"}
    except ValueError as error:
        raise EncoderError(
            f"{path} has metadata that are not JSON ({error}); make or fetch it again"
        ) from None


def evaluation_facts(facts: Mapping[str, Any], source: object) -> tuple[Channels, Channels, int]:
    """The mean, the std and the crop_px that belong to an encoder, of the facts that its file holds.

    Raises `EncoderError` where they are not three finite means, three positive deviations and a side that
    params.yaml could ask for.
    """
    try:
        mean, std = (tuple(float(v) for v in facts[name]) for name in ("mean", "std"))
        crop_px = int(facts["crop_px"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EncoderError(
            f"{source} does not say its mean, std and crop_px ({error!r}); make it again"
        ) from None
    if not (len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise EncoderError(f"{source}: mean {mean} and std {std} are not three numbers each, std above 0")
    if not 8 <= crop_px <= SIDE_MAX_PX:
        raise EncoderError(f"{source}: crop_px {crop_px} is not between 8 and {SIDE_MAX_PX}")
    return mean, std, crop_px


def save(model: nn.Module, path: Path, *, arch: str, width: int, **facts: Any) -> None:
    """Write the encoder's state and what is needed to use it."""
    tensorfile.save(path, model.state_dict(), arch=arch, feature_dim=width, **facts)


class Frozen:
    """An encoder that does not learn, with the evaluation view that belongs to it.

    Eval mode: a tile's features depend on that tile alone and no buffer moves. `batch_norm="batch"` is the
    notebook's way: BatchNorm normalises by the batch at hand, so they depend on its other tiles.
    """

    def __init__(self, path: Path, *, precision: str = "float32", batch_norm: str = "frozen") -> None:
        model, self.width = load(path)
        self.mean, self.std, self.crop_px = evaluation_facts(metadata(path), path)
        self.precision = precision
        self.device = device()
        if batch_norm == "batch":
            forget_running_statistics(model)
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> npt.NDArray[np.float32]:
        """Features (B,D) of tiles (B,H,H,3) uint8."""
        x = views.evaluation_view(
            batch.to(self.device), crop_px=self.crop_px, mean=self.mean, std=self.std, dtype=torch.float32
        )
        with autocast(self.device, self.precision):
            h: torch.Tensor = self.model(x)
        features: npt.NDArray[np.float32] = h.float().cpu().numpy()
        return features


def projection_head(width: int, *, hidden: int | None, out: int, batch_norm: bool) -> nn.Sequential:
    """The map h (B,D) → z (B,out): linear, [BatchNorm,] ReLU, linear[, BatchNorm].

    With BatchNorm as in SimCLR's published code, without as in the paper's notebook.
    """
    hidden = hidden or width
    layers: list[nn.Module] = [nn.Linear(width, hidden, bias=not batch_norm)]
    layers += [nn.BatchNorm1d(hidden)] * batch_norm + [nn.ReLU(inplace=True)]
    layers += [nn.Linear(hidden, out, bias=not batch_norm)] + [nn.BatchNorm1d(out)] * batch_norm
    return nn.Sequential(*layers)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Put torch's global CPU generator at `seed` inside, as it was before outside."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _published(arch: str, weights: Any) -> Mapping[str, torch.Tensor]:
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        state: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=True, check_hash=True)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        raise EncoderError(
            f"the weights {weights.name} of {arch} are neither on disk nor to be downloaded ({reason}). "
            f"Put {weights.url.rsplit('/', 1)[-1]} from torchvision into {file.parent}, "
            "or set pretrain.weights to a local file or to none"
        ) from None
    except RuntimeError as error:  # a wrong hash
        raise EncoderError(f"{file} is damaged ({error}); delete it and run again") from None
    return state


def _contents(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        return tensorfile.load(path)
    except (OSError, tensorfile.TensorFileError) as error:
        raise EncoderError(f"{path} is not a readable encoder: {error}") from None


def _read(path: Path, *, known: str) -> Mapping[str, torch.Tensor]:
    """Tensors by name from a file that cannot run code: safetensors, or torch's weights-only format."""
    if not path.is_file():
        raise EncoderError(
            f"pretrain.weights: {path} does not exist; give none, the path of a file, or one of: {known}"
        )
    try:
        if path.suffix == ".safetensors":
            return tensorfile.load(path)[0]
        _refuse_bomb(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except tensorfile.TensorFileError as error:
        raise EncoderError(f"pretrain.weights: {error}") from None
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file provokes
        raise EncoderError(
            f"pretrain.weights: {path} is not a safetensors or weights-only state-dict file "
            f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason given'})"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EncoderError(f"pretrain.weights: {path} holds no state dict (a mapping of names to tensors)")
    return state


def _refuse_bomb(path: Path) -> None:
    """Refuse what unpacks to more than its size: torch stores tensors as they are, so it was made to fill memory."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as file:
            unpacked = sum(info.file_size for info in file.infolist())
        if unpacked > path.stat().st_size:
            raise ValueError(f"unpacks to {unpacked:,} bytes, more than its own {path.stat().st_size:,}")


def _fill(model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str) -> None:
    """Load `state` into `model`, its own head left out; everything else must fit exactly and be finite."""
    given = _refuse_misfits(model, state, source=source)
    broken = [k for k, v in given.items() if v.is_floating_point() and not v.isfinite().all()]
    if broken:
        raise _misfit(source, "is not finite in", broken)
    model.load_state_dict(given, strict=False)


def _refuse_misfits(
    model: nn.Module, state: Mapping[str, torch.Tensor], *, source: str
) -> dict[str, torch.Tensor]:
    """`state` without a head, if its names and shapes are those of `model`."""
    own = model.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith(HEADS)}
    missing = [k for k in own if k not in given and not k.endswith("num_batches_tracked")]
    unknown = [k for k in given if k not in own]
    wrong = [f"{k} {tuple(given[k].shape)} for {tuple(own[k].shape)}" for k in own if k in given
             and given[k].shape != own[k].shape]  # fmt: skip
    for problem, names in (("lacks", missing), ("has unknown", unknown), ("has other shapes:", wrong)):
        if names:
            raise _misfit(source, problem, names)
    return given


def _misfit(source: str, problem: str, names: list[str]) -> EncoderError:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return EncoderError(f"weights {source} do not fit the encoder: it {problem} {', '.join(names[:3])}{more}")


@contextmanager
def deterministic(enabled: bool) -> Iterator[None]:
    """Inside, if `enabled`, torch refuses algorithms that may give other bits the next time (on a GPU, some do)."""
    before = torch.are_deterministic_algorithms_enabled()
    if enabled:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS then needs
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def device() -> torch.device:
    """The GPU when there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast(where: torch.device, precision: str) -> torch.autocast:
    """A context in which the encoder's arithmetic has `precision` (float32 or bfloat16)."""
    return torch.autocast(where.type, torch.bfloat16, enabled=precision == "bfloat16")


def forget_running_statistics(model: nn.Module) -> None:
    """Make every BatchNorm normalise by the batch at hand, in eval mode too (the notebook's encoders)."""
    for module in batch_norms(model):
        module.running_mean = module.running_var = module.num_batches_tracked = None


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The model's BatchNorm layers."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]  # noqa: SLF001
