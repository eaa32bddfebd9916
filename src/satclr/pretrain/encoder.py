"""The encoder: where it starts, BatchNorm's statistics, the projection head, its file, and how it is used frozen.

In: an architecture's name and where its weights come from. Out: a module (B,3,S,S) → h (B,D).
"""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from satclr import files, machine, progress, randomness
from satclr.data import tiles
from satclr.data.tiles import Channels, Statistics
from satclr.params import Settings
from satclr.pretrain import architectures, distributed, views
from satclr.pretrain.architectures import EncoderError, State, build

__all__ = ["EncoderError", "Frozen", "build", "initial", "load", "save"]

MAX_CROP_PX = 1024  # as params.yaml allows; a file with more would fill the memory

BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all three


def initial(arch: str, start: str, *, seed: int, root: Path, crop_px: int = 224) -> tuple[nn.Module, int]:
    """The encoder that pretraining starts from, in eval mode, and its D.

    `start`: `none` (random from `seed`), the name of published weights (torchvision's IMAGENET1K_V2, timm's ra_in1k),
    or the path, relative to `root`, of an encoder of ours or another safetensors or state-dict file with torchvision's
    or timm's names. Raises `EncoderError` when the weights cannot be loaded or do not fit.
    """
    with randomness.seeded(seed):
        model, width = build(arch, crop_px)
    if start != "none":
        architectures.load_into(model, arch, start, root=root)
    return model.eval(), width


def adapt_batch_norm(
    encoder: nn.Module, store: tiles.TileStore, settings: Settings, statistics: Statistics, *, seed: int
) -> None:
    """Re-estimate BatchNorm's running statistics on evaluation views of the training tiles (arXiv:1603.04779).

    They become the mean over batches, in an order drawn by the seed: a batch of one category would have too small a
    variance. `statistics` are the mean and std of the input of the encoder, which is not to be trained afterwards.
    """
    size, config, (mean, std) = settings.pretrain.batch_size, settings.views, statistics
    view = partial(views.evaluation_view, crop_px=config.crop_px, interpolation=config.interpolation)
    for norm in _batch_norms(encoder, "pretrain.adapt_batch_norm"):
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    batches = tiles.split_batches(randomness.rng(seed, "batch order", "train").permutation(store.rows("train")), size)
    if len(batches) > 1 and len(batches[-1]) < size:
        del batches[-1]  # a small rest would count as much as a whole batch
    with torch.inference_mode():
        for _, batch in tiles.stream(store, batches, next(encoder.parameters()).device):
            encoder(view(batch, mean=mean, std=std))
    encoder.eval()


def projection_head(width: int, *, hidden: int | None, out: int, batch_norm: bool) -> nn.Sequential:
    """The map h (B,D) → z (B,out): linear, [BatchNorm,] ReLU, linear[, BatchNorm].

    With BatchNorm as in SimCLR's published code, without as in the paper's notebook.
    """
    hidden, bias = hidden or width, not batch_norm
    first = [nn.Linear(width, hidden, bias=bias), *[nn.BatchNorm1d(hidden)] * batch_norm, nn.ReLU(inplace=True)]
    return nn.Sequential(*first, nn.Linear(hidden, out, bias=bias), *[nn.BatchNorm1d(out)] * batch_norm)


def save(model: nn.Module, path: Path, *, arch: str, width: int, heads: State | None = None, **facts: Any) -> None:
    """Write the encoder's state, and as JSON in the file's metadata what is needed to use it.

    heads: tensors named `heads.*` that go into the file beside the encoder; `load` ignores them.
    """
    facts |= {"arch": arch, "feature_dim": width}
    files.save_tensors(path, model.state_dict() | dict(heads or {}), **facts)


def load(path: Path) -> tuple[nn.Module, int]:
    """The encoder that `save` wrote, in eval mode, and its D. Raises `EncoderError` if it is not one."""
    try:
        facts, (arrays, _) = load_facts(path), files.load_tensors(path)
        arch, crop_px = str(facts["arch"]), int(facts.get("crop_px", 224))
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise EncoderError(f"{path} is not a readable encoder: {error!r}") from None
    _require_crop(crop_px, path)
    state = {key: torch.from_numpy(value) for key, value in arrays.items()}
    skeleton = architectures.skeleton(arch, crop_px)  # a header may name any: no memory before the tensors fit
    fitted = architectures.fitting(state, skeleton, source=path)
    width = architectures.feature_dim(skeleton, arch, crop_px)
    model = architectures.headless(arch, crop_px)
    model.load_state_dict(fitted, strict=False)
    return model.eval(), width


def load_facts(path: Path) -> dict[str, Any]:
    """What `save` wrote about the encoder."""
    return {name: json.loads(text) for name, text in files.load_facts(path).items()}


def evaluation_facts(facts: Mapping[str, Any], source: object) -> tuple[Channels, Channels, int]:
    """Mean, std and crop_px of an encoder's input, from its file's facts; raises `EncoderError` for impossible ones."""
    try:
        mean, std = (tuple(float(v) for v in facts[name]) for name in ("mean", "std"))
        crop_px = int(facts["crop_px"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EncoderError(f"{source} lacks its mean, std or crop_px ({error!r}); write it again") from None
    if not (len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise EncoderError(f"{source}: mean {mean} and std {std} must be three numbers each, std above 0")
    _require_crop(crop_px, source)
    return mean, std, crop_px


def _require_crop(crop_px: int, source: object) -> None:
    if not 8 <= crop_px <= MAX_CROP_PX:
        raise EncoderError(f"{source}: crop_px {crop_px} is not between 8 and {MAX_CROP_PX}")


class Frozen:
    """An encoder that does not learn, with its evaluation view.

    It is in eval mode: a tile's features depend on that tile alone and no buffer moves. With `batch_norm="batch"`, as
    in the notebook, BatchNorm normalises by the batch. `precision` is a setting: float32, bfloat16 or auto.
    """

    def __init__(self, path: Path, *, precision: str = "float32", batch_norm: str = "frozen") -> None:
        model, self.width = load(path)
        facts = load_facts(path)
        mean, std, crop_px = evaluation_facts(facts, path)
        interpolation = str(facts.get("interpolation", "bicubic"))
        self.view = partial(views.evaluation_view, crop_px=crop_px, mean=mean, std=std, interpolation=interpolation)
        self.precision, _ = machine.precision(precision)
        self.device = machine.device()
        if batch_norm == "batch":
            for norm in _batch_norms(model, "probe.batch_norm"):
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


def _batch_norms(model: nn.Module, setting: str) -> list[BatchNorm]:
    found = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if not found and distributed.rank() == 0:
        progress.say(f"warning: the encoder has no BatchNorm, so {setting} changes nothing")
    return found
