"""torchvision encoders without their head, the projection head, and encoder files.

In: an architecture's name and where its weights come from. Out: a module (B,3,S,S) → h (B,D).
"""

import json
import zipfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torchvision
from torch import nn

from satclr import files, machine, randomness
from satclr.data import tiles
from satclr.data.tiles import Channels
from satclr.params import Settings
from satclr.pretrain import views

HEADS = ("fc", "classifier", "head", "heads")
MAX_CROP_PX = 1024  # as params.yaml allows; a file with more would fill the memory

State = Mapping[str, torch.Tensor]
BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all three


class EncoderError(ValueError):
    """An architecture or weights that cannot be loaded: what, where they were looked for, what to do."""


def build(arch: str) -> tuple[nn.Module, int]:
    """A torchvision classification model without its head.

    Returns the module, (B,3,S,S) → (B,D), and D. Its weights are random, from torch's global generator.
    Raises `EncoderError` for a name that torchvision does not have.
    """
    _check_arch(arch)
    model = torchvision.models.get_model(arch, weights=None)
    name = next(n for n in HEADS if hasattr(model, n))
    head = getattr(model, name)
    linear = next((m for m in head.modules() if isinstance(m, nn.Linear)), None)
    if linear is None:  # SqueezeNet's head is a convolution
        conv = next(m for m in head.modules() if isinstance(m, nn.Conv2d))
        setattr(model, name, nn.AdaptiveAvgPool2d(1))
        return model, conv.in_channels
    # What precedes the head's first linear layer (ConvNeXt's LayerNorm) belongs to the features.
    layers = list(head.children())
    before = [m for m in layers[: layers.index(linear)] if not isinstance(m, nn.Dropout)] if layers else []
    setattr(model, name, nn.Sequential(*before) if before else nn.Identity())
    return model, linear.in_features


def initial(arch: str, weights: str, *, seed: int, root: Path) -> tuple[nn.Module, int]:
    """The encoder that pretraining starts from, in eval mode, and its D.

    `weights`: `none` (random from `seed`), a name of torchvision's Multi-Weight API (`IMAGENET1K_V2`),
    or the path, relative to `root`, of an encoder of ours or another safetensors or state-dict file with
    torchvision's names. Raises `EncoderError` when the weights cannot be loaded or do not fit.
    """
    with randomness.seeded(seed):
        model, width = build(arch)
    if weights != "none":
        file = weights_file(arch, weights, root=root)
        state = _read(file) if file else _published(arch, torchvision.models.get_model_weights(arch)[weights])
        model.load_state_dict(_fitting(state, model, source=weights), strict=False)
    return model.eval(), width


def weights_file(arch: str, weights: str, *, root: Path) -> Path | None:
    """The file that `weights` names, or None for `none` and for published weights. Raises `EncoderError`."""
    _check_arch(arch)
    published = torchvision.models.get_model_weights(arch).__members__
    if weights == "none" or weights in published:
        return None
    if not (root / weights).is_file():
        known = ", ".join(published) or "no published weights"
        raise EncoderError(f"pretrain.weights: {root / weights} does not exist; give none, a file, or one of: {known}")
    return root / weights


def adapt_batch_norm(encoder: nn.Module, store: tiles.TileStore, settings: Settings, *, seed: int) -> None:
    """Re-estimate BatchNorm's running statistics on evaluation views of the training tiles (arXiv:1603.04779).

    They become the mean over batches, in an order drawn by the seed: a batch of one category would have too small a
    variance. The encoder is left in eval mode.
    """
    size, crop_px = settings.pretrain.batch_size, settings.views.crop_px
    mean, std = store.statistics(settings.pretrain.normalization)
    norms = _batch_norms(encoder)
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    batches = tiles.split_batches(randomness.rng(seed, "batch order", "train").permutation(store.rows("train")), size)
    if len(batches) > 1 and len(batches[-1]) < size:
        batches = batches[:-1]  # a small rest would count as much as a whole batch
    with torch.inference_mode():
        for _, batch in tiles.stream(store, batches, next(encoder.parameters()).device):
            interpolation = settings.views.interpolation
            encoder(views.evaluation_view(batch, crop_px=crop_px, mean=mean, std=std, interpolation=interpolation))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    encoder.eval()


def projection_head(width: int, *, hidden: int | None, out: int, batch_norm: bool) -> nn.Sequential:
    """The map h (B,D) → z (B,out): linear, [BatchNorm,] ReLU, linear[, BatchNorm].

    With BatchNorm as in SimCLR's published code, without as in the paper's notebook.
    """
    hidden, bias = hidden or width, not batch_norm
    first = [nn.Linear(width, hidden, bias=bias), *[nn.BatchNorm1d(hidden)] * batch_norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*first, nn.Linear(hidden, out, bias=bias), *[nn.BatchNorm1d(out)] * batch_norm)


def save(model: nn.Module, path: Path, *, arch: str, width: int, **facts: Any) -> None:
    """Write the encoder's state, and as JSON in the file's metadata what is needed to use it."""
    facts |= {"arch": arch, "feature_dim": width}
    files.save_tensors(path, model.state_dict(), **facts)


def load(path: Path) -> tuple[nn.Module, int]:
    """The encoder that `save` wrote, in eval mode, and its D. Raises `EncoderError` if it is not one."""
    try:
        arrays, text = files.load_tensors(path)
        arch = str({name: json.loads(value) for name, value in text.items()}["arch"])
    except (OSError, LookupError, ValueError) as error:
        raise EncoderError(f"{path} is not a readable encoder: {error!r}") from None
    state: State = {key: torch.from_numpy(value) for key, value in arrays.items()}
    with torch.device("meta"):  # a header may name any architecture: no memory before the tensors fit
        state = _fitting(state, build(arch)[0], source=path)
    model, width = build(arch)
    model.load_state_dict(state, strict=False)
    return model.eval(), width


def evaluation_facts(facts: Mapping[str, Any], source: object) -> tuple[Channels, Channels, int]:
    """Mean, std and crop_px of an encoder's input, from its file's facts; raises `EncoderError` for impossible ones."""
    try:
        mean, std = (tuple(float(v) for v in facts[name]) for name in ("mean", "std"))
        crop_px = int(facts["crop_px"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EncoderError(f"{source} lacks its mean, std or crop_px ({error!r}); write it again") from None
    if not (len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise EncoderError(f"{source}: mean {mean} and std {std} must be three numbers each, std above 0")
    if not 8 <= crop_px <= MAX_CROP_PX:
        raise EncoderError(f"{source}: crop_px {crop_px} is not between 8 and {MAX_CROP_PX}")
    return mean, std, crop_px


class Frozen:
    """An encoder that does not learn, with its evaluation view.

    It is in eval mode: a tile's features depend on that tile alone and no buffer moves. With `batch_norm="batch"`, as
    in the notebook, BatchNorm normalises by the batch. `precision` is a setting: float32, bfloat16 or auto.
    """

    def __init__(self, path: Path, *, precision: str = "float32", batch_norm: str = "frozen") -> None:
        model, self.width = load(path)
        facts = {name: json.loads(value) for name, value in files.load_facts(path).items()}
        mean, std, crop_px = evaluation_facts(facts, path)
        interpolation = str(facts.get("interpolation", "bicubic"))
        self.view = partial(views.evaluation_view, crop_px=crop_px, mean=mean, std=std, interpolation=interpolation)
        self.precision, _ = machine.precision(precision)
        self.device = machine.device()
        if batch_norm == "batch":
            for norm in _batch_norms(model):
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, batch: torch.Tensor) -> npt.NDArray[np.float32]:
        """Features (B,D) of tiles (B,H,H,3) uint8."""
        x = self.view(batch.to(self.device))
        with machine.autocast(self.device, self.precision):
            h: torch.Tensor = self.model(x)
        features: npt.NDArray[np.float32] = h.float().cpu().numpy()
        return features


def _check_arch(arch: str) -> None:
    known = set(torchvision.models.list_models(module=torchvision.models))
    if arch not in known - {"googlenet", "inception_v3"}:  # which have auxiliary heads
        raise EncoderError(f"unknown encoder arch {arch!r}; use one of torchvision's: resnet18, resnet50, ...")


def _published(arch: str, weights: Any) -> State:
    file = Path(torch.hub.get_dir()) / "checkpoints" / weights.url.rsplit("/", 1)[-1]
    try:
        state: State = weights.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise EncoderError(
            f"could not find or download the weights {weights.name} of {arch} ({error}). "
            f"Put {file.name} from torchvision into {file.parent}, or set pretrain.weights to a local file or to none"
        ) from None
    return state


def _read(path: Path) -> State:
    """Tensors by name from a file that cannot run code: safetensors, or torch's weights-only format."""
    try:
        if path.suffix == ".safetensors":
            return {key: torch.from_numpy(value) for key, value in files.load_tensors(path)[0].items()}
        if zipfile.is_zipfile(path):  # torch does not compress: more would be a bomb
            with zipfile.ZipFile(path) as file:
                if sum(info.file_size for info in file.infolist()) > path.stat().st_size:
                    raise ValueError("it unpacks to more than its size")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - whatever a damaged or hostile file raises
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        raise EncoderError(
            f"pretrain.weights: {path} is not a safetensors or weights-only state-dict file ({reason})"
        ) from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EncoderError(f"pretrain.weights: {path} is not a state dict (a mapping of names to tensors)")
    return state


def _fitting(state: State, model: nn.Module, *, source: object) -> State:
    """`state` without a head; raises `EncoderError` unless the rest fits `model` exactly and is finite."""
    heads, own = tuple(f"{name}." for name in HEADS), model.state_dict()
    given = {k: v for k, v in state.items() if k in own or not k.startswith(heads)}
    shaped = [k for k in own if k in given and given[k].shape == own[k].shape]  # a file may claim any shape
    for problem, names in (
        ("missing", [k for k in own if k not in given and not k.endswith("num_batches_tracked")]),
        ("unknown", [k for k in given if k not in own]),
        ("wrong shape", [f"{k} {tuple(given[k].shape)}" for k in own if k in given and k not in shaped]),
        ("not finite", [k for k in shaped if not given[k].isfinite().all()]),
    ):
        if names:
            raise EncoderError(f"weights {source} do not fit the encoder: {problem}: {files.some(names)}")
    return given


def _batch_norms(model: nn.Module) -> list[BatchNorm]:
    return [m for m in model.modules() if isinstance(m, BatchNorm)]
