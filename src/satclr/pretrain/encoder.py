"""The encoder: where it starts, BatchNorm's statistics, the projection head, its file, and how it is used frozen.

In: an architecture's name and where its weights come from. Out: a module (B,3,S,S) → h (B,D).
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from satclr import files, machine, progress, randomness
from satclr.data import tiles
from satclr.pretrain import architectures, views
from satclr.pretrain.architectures import EncoderError, State, build
from satclr.project import Run

__all__ = ["EncoderError", "Frozen", "Input", "build", "initial", "load", "save"]

MAX_CROP_PX = 1024  # as params.yaml allows; a file with more would fill the memory

BatchNorm = nn.modules.batchnorm._BatchNorm  # noqa: SLF001 - the base of all three


@dataclass(frozen=True)
class Input:
    """What an encoder is given and how it computes, as its file records it: S = crop_px, mean and std in [0,1] units.

    `precision` is float32 or bfloat16.
    """

    mean: tiles.Channels
    std: tiles.Channels
    crop_px: int
    interpolation: str
    precision: str

    @classmethod
    def of(cls, run: Run, store: tiles.TileStore) -> Self:
        """The input of the run's encoder."""
        computed, _ = machine.precision(run.settings.pretrain.precision)
        config, statistics = run.settings.views, architectures.input_statistics(run, store)
        return cls(*statistics, config.crop_px, config.interpolation, computed)

    def whole(self, pixels: Tensor) -> Tensor:
        """Whole tiles (B,H,W,3) uint8 as evaluation shows them: (B,3,S,S)."""
        mean, std, interpolation = self.mean, self.std, self.interpolation
        return views.evaluation_view(pixels, crop_px=self.crop_px, mean=mean, std=std, interpolation=interpolation)

    def render(self, pixels: Tensor, drawn: views.Parameters) -> Tensor:
        """The views of tiles (B,H,W,3) uint8 that were drawn: (count,3,S,S), in the precision."""
        dtype = torch.bfloat16 if self.precision == "bfloat16" else torch.float32
        return views.render(pixels, drawn, crop_px=self.crop_px, mean=self.mean, std=self.std, dtype=dtype)

    def encode(self, model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        """What `model` makes of views (B,3,S,S), computed in the precision: float32."""
        with machine.autocast(x.device, self.precision):
            return model(x).float()


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


def adapt_batch_norm(encoder: nn.Module, store: tiles.TileStore, run: Run) -> None:
    """Re-estimate BatchNorm's running statistics on evaluation views of the training tiles (arXiv:1603.04779).

    They become the mean over batches, in an order drawn by the seed: a batch of one category would have too small a
    variance. The encoder is not to be trained afterwards.
    """
    size, inputs = run.settings.pretrain.batch_size, Input.of(run, store)
    for norm in _batch_norms(encoder, "pretrain.adapt_batch_norm"):
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    order = randomness.rng(run.seed, "batch order", "train").permutation(store.rows("train"))
    batches = tiles.split_batches(order, size)
    if len(batches) > 1 and len(batches[-1]) < size:
        del batches[-1]  # a small rest would count as much as a whole batch
    with torch.inference_mode():
        for _, batch in tiles.stream(store, batches, next(encoder.parameters()).device):
            encoder(inputs.whole(batch))
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
    if not path.is_file():
        raise EncoderError(f"{path} does not exist; run `satclr pretrain` first")
    try:
        facts, (arrays, _) = load_facts(path), files.load_tensors(path)
        arch = str(facts["arch"])
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise EncoderError(f"{path} is not a readable encoder: {error!r}") from None
    crop_px = recorded_input(facts, path).crop_px
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


def recorded_input(facts: Mapping[str, Any], source: object, precision: str = "float32") -> Input:
    """The input that an encoder's file records, in another precision; raises `EncoderError` for an impossible one."""
    try:
        mean, std = (tuple(float(v) for v in facts[name]) for name in ("mean", "std"))
        crop_px = int(facts["crop_px"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise EncoderError(f"{source} lacks its mean, std or crop_px ({error!r}); write it again") from None
    if not (len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0):
        raise EncoderError(f"{source}: mean {mean} and std {std} must be three numbers each, std above 0")
    if not 8 <= crop_px <= MAX_CROP_PX:
        raise EncoderError(f"{source}: crop_px {crop_px} is not between 8 and {MAX_CROP_PX}")
    return Input(mean, std, crop_px, str(facts.get("interpolation", "bicubic")), precision)


class Frozen:
    """An encoder that does not learn, with its evaluation view.

    It is in eval mode: a tile's features depend on that tile alone and no buffer moves. With `batch_norm="batch"`, as
    in the notebook, BatchNorm normalises by the batch. `precision` is a setting: float32, bfloat16 or auto.
    """

    def __init__(self, path: Path, *, precision: str = "float32", batch_norm: str = "frozen") -> None:
        model, self.width = load(path)
        self.inputs = recorded_input(load_facts(path), path, machine.precision(precision)[0])
        self.device = machine.device()
        if batch_norm == "batch":
            for norm in _batch_norms(model, "probe.batch_norm"):
                norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        self.model = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def __call__(self, batch: Tensor) -> npt.NDArray[np.float32]:
        """Features (B,D) of tiles (B,H,H,3) uint8."""
        x = self.inputs.whole(batch.to(self.device))
        features: npt.NDArray[np.float32] = self.inputs.encode(self.model, x).cpu().numpy()
        return features


def _batch_norms(model: nn.Module, setting: str) -> list[BatchNorm]:
    found = [m for m in model.modules() if isinstance(m, BatchNorm)]
    if not found:
        progress.say(f"warning: the encoder has no BatchNorm, so {setting} changes nothing")
    return found
