"""Encoders by name: classification models of torchvision (`resnet18`) and timm (`timm/vit_tiny_patch16_224`), headless.

In: `pretrain.arch` and `pretrain.weights`. Out: a module (B,3,S,S) → h (B,D), and a state dict that fits it: published
weights, those of other projects' files, or of an encoder of ours. Reading runs no code. timm is imported only where an
architecture or an encoder's file asks for it.
"""

import difflib
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from satclr import files, progress
from satclr.data import tiles
from satclr.data.tiles import IMAGENET, Statistics
from satclr.project import Run

HEADS = ("fc", "classifier", "head", "heads", "head_dist")
TIMM = "timm/"
AUXILIARY = {"googlenet", "inception_v3"}  # torchvision's with auxiliary heads
OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")  # names in published files: norm.1 for norm1

COLUMNS = ("encoder, weights", "parameters", "width", "crop_px", "normalization")  # of `table`

State = Mapping[str, torch.Tensor]


class EncoderError(ValueError):
    """An architecture or weights that cannot be loaded: what, where they were looked for, what to do."""


def build(arch: str, crop_px: int = 224) -> tuple[nn.Module, int]:
    """A classification model without its head, for views of side `crop_px`.

    Returns the module, (B,3,S,S) → (B,D), and D. Its weights are random, from torch's global generator.
    Raises `EncoderError` for an unknown name, and for a crop that the model does not take.
    """
    model = headless(arch, crop_px)
    return model, feature_dim(skeleton(arch, crop_px), arch, crop_px)


def skeleton(arch: str, crop_px: int) -> nn.Module:
    """`headless` without memory for weights, where the model's code allows that (RegNet's does not)."""
    try:
        with torch.device("meta"):
            return headless(arch, crop_px)
    except NotImplementedError:
        return headless(arch, crop_px)


def feature_dim(model: nn.Module, arch: str, crop_px: int) -> int:
    """D of a `skeleton`. Raises `EncoderError` where it does not map views of side `crop_px` to vectors."""
    patch = getattr(getattr(model, "patch_embed", None), "patch_size", 1)
    side = patch if isinstance(patch, int) else max(patch)
    if crop_px % side:  # timm would leave the rest out
        raise EncoderError(f"{arch}: views.crop_px {crop_px} must be a multiple of its patches' side, {side}")
    try:
        with next(model.parameters()).device, torch.no_grad():
            shape = model.eval()(torch.zeros(2, 3, crop_px, crop_px)).shape
    except Exception as error:  # noqa: BLE001 - whatever a model raises at a size that is not its own
        reason = str(error).partition("\n")[0]
        raise EncoderError(f"{arch} does not take views of crop_px {crop_px} ({reason}); set views.crop_px") from None
    if len(shape) != 2:
        raise EncoderError(f"{arch} gives features of shape {tuple(shape[1:])}, not one vector a view")
    return int(shape[1])


def headless(arch: str, crop_px: int) -> nn.Module:
    """The module alone, unchecked: what `build` returns for an encoder known to fit."""
    require(arch)
    if arch.startswith(TIMM):
        timm, name = _timm(arch), arch.removeprefix(TIMM)
        fixed = timm.get_pretrained_cfg(name).fixed_input_size  # then positions are made for this size
        model: nn.Module = timm.create_model(name, num_classes=0, **{"img_size": crop_px} if fixed else {})
        return model
    model = torchvision.models.get_model(arch, weights=None)
    name = next(n for n in HEADS if hasattr(model, n))
    head = getattr(model, name)
    linear = next((m for m in head.modules() if isinstance(m, nn.Linear)), None)
    if linear is None:  # SqueezeNet's head is a convolution
        setattr(model, name, nn.AdaptiveAvgPool2d(1))
    else:  # what precedes the head's first linear layer (ConvNeXt's LayerNorm) belongs to the features
        layers = list(head.children()) or [linear]
        before = [m for m in layers[: layers.index(linear)] if not isinstance(m, nn.Dropout)]
        setattr(model, name, nn.Sequential(*before))
    return model


def require(arch: str) -> None:
    """Raise `EncoderError` with the nearest names unless torchvision or timm has `arch`."""
    if arch.startswith(TIMM):
        known = {TIMM + name for name in _timm(arch).list_models()}
    else:
        known = set(torchvision.models.list_models(module=torchvision.models)) - AUXILIARY
    if arch not in known:
        near = difflib.get_close_matches(arch, known) or ["resnet18", "resnet50", "timm/vit_tiny_patch16_224"]
        raise EncoderError(f"unknown encoder arch {arch!r}; did you mean {', '.join(near)}?")


def published(arch: str) -> list[str]:
    """The names of the weights that torchvision (`IMAGENET1K_V2`) or timm (tags: `ra_in1k`) publishes for `arch`."""
    require(arch)
    if arch.startswith(TIMM):
        names = _timm(arch).list_models(f"{arch.removeprefix(TIMM)}.*", pretrained=True)
        return [name.partition(".")[2] for name in names]
    return list(torchvision.models.get_model_weights(arch).__members__)


def named_file(arch: str, weights: str, *, root: Path) -> Path | None:
    """The file that `weights` names, or None for `none` and for published weights. Raises `EncoderError`."""
    known = published(arch)
    if weights == "none" or weights in known:
        return None
    if not (root / weights).is_file():
        names = ", ".join(known) or "no published weights"
        raise EncoderError(f"pretrain.weights: {root / weights} does not exist; give none, a file, or one of: {names}")
    return root / weights


def load_into(model: nn.Module, arch: str, weights: str, *, root: Path) -> None:
    """Load published weights or a file's. Raises `EncoderError` when they cannot be had or do not fit."""
    file = named_file(arch, weights, root=root)
    state = read_weights(file) if file else _published(arch, weights)
    state = {OLD_DENSENET.sub(r"\1\2", key): value for key, value in state.items()}
    if file:
        state = _own_part(state, model, file)
    try:
        fitted = fitting(state, model, source=weights)
    except EncoderError:
        converted = _converted(state, model) if arch.startswith(TIMM) else None
        if not converted:
            raise
        fitted = fitting(converted, model, source=weights)
    model.load_state_dict(fitted, strict=False)


def input_statistics(run: Run, store: tiles.TileStore) -> Statistics:
    """Mean and std of the encoder's input, as `normalization` asks for."""
    return own_statistics(run) or store.statistics(run.settings.pretrain.normalization)


def own_statistics(run: Run) -> Statistics | None:
    """Mean and std of the input as far as they do not depend on the tiles: `imagenet` and `encoder`.

    `encoder`: an encoder file's own, those of published weights or of timm's model, and ImageNet's otherwise.
    """
    config = run.settings.pretrain
    if config.normalization != "encoder":
        return IMAGENET if config.normalization == "imagenet" else None
    file = named_file(config.arch, config.weights, root=run.root)
    facts = files.load_facts(file) if file and file.suffix == ".safetensors" else {}
    if {"arch", "mean", "std"} <= facts.keys():  # an encoder of ours
        return tuple(json.loads(facts["mean"])), tuple(json.loads(facts["std"]))
    trained, name = config.weights in published(config.arch), config.arch.removeprefix(TIMM)
    found: Any = None
    if config.arch.startswith(TIMM):
        found = _timm(config.arch).get_pretrained_cfg(f"{name}.{config.weights}" if trained else name)
    elif trained:
        found = torchvision.models.get_model_weights(name)[config.weights].transforms()
    return (tuple(found.mean), tuple(found.std)) if found else IMAGENET


def table(runs: Iterable[Run]) -> list[tuple[str, ...]]:
    """Each distinct encoder of the runs, by `COLUMNS`, or the reason why it cannot be built. Weights take no memory."""
    rows: dict[tuple[object, ...], tuple[str, ...]] = {}
    for run in runs:
        config, crop_px = run.settings.pretrain, run.settings.views.crop_px
        name = f"{config.arch}\n{config.weights}"
        if (key := (name, crop_px, config.normalization)) in rows:
            continue
        try:
            model = skeleton(config.arch, crop_px)
            sizes = (sum(p.numel() for p in model.parameters()), feature_dim(model, config.arch, crop_px))
            cells = (*(f"{size:,}" for size in sizes), str(crop_px), f"{config.normalization}\n{_statistics(run)}")
        except EncoderError as error:
            cells = ("", "", str(crop_px), str(error))
        rows[key] = (name, *cells)
    return list(rows.values())


def _statistics(run: Run) -> str:
    try:
        mean, std = own_statistics(run) or input_statistics(run, tiles.open_store(run.store))
    except tiles.TileError:
        return "run `satclr prepare`"
    return "mean {:.3f} {:.3f} {:.3f}\nstd {:.3f} {:.3f} {:.3f}".format(*mean, *std)


def _published(arch: str, weights: str) -> State:
    """The state dict of published weights, from torch's folder or downloaded into it."""
    if arch.startswith(TIMM):
        name = f"{arch.removeprefix(TIMM)}.{weights}"
        config = _timm(arch).get_pretrained_cfg(name)
        if config.hf_hub_id:
            from huggingface_hub import hf_hub_url

            url, file = hf_hub_url(config.hf_hub_id, "model.safetensors"), f"{name}.safetensors"
        else:
            url, file = config.url, config.url.rpartition("/")[2]
    else:
        member = torchvision.models.get_model_weights(arch)[weights]
        url, file = member.url, member.url.rpartition("/")[2]
    path = Path(torch.hub.get_dir()) / "checkpoints" / file
    try:
        if not arch.startswith(TIMM):
            state: State = member.get_state_dict(progress=True, check_hash=True)
            return state
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path))
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise EncoderError(
            f"could not find or download the weights {weights} of {arch} ({error}). Put {url} as "
            f"{file} into {path.parent}, or set pretrain.weights to a local file or to none"
        ) from None
    return read_weights(path)


def _converted(state: State, model: nn.Module) -> State | None:
    """As timm converts it: positions to another size, names that others gave to the same model."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    try:
        converted: State | None = convert and convert(dict(state), model)
    except Exception:  # noqa: BLE001 - a file of something else
        return None
    return converted


def read_weights(path: Path) -> State:
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
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise EncoderError(f"pretrain.weights: {path} is not a state dict (a mapping of names to tensors)")
    if any(v.numel() * v.element_size() > v.untyped_storage().nbytes() for v in state.values()):
        raise EncoderError(f"pretrain.weights: {path} has tensors that are larger than their data")
    return state


def _own_part(state: State, model: nn.Module, path: Path) -> State:
    """The tensors of the encoder in a larger checkpoint, whose names share a prefix (`module.encoder_q.`)."""
    own = set(model.state_dict())
    ends = [(key, key.split(".", i)[i]) for key in state for i in range(key.count(".") + 1)]
    found = Counter(key[: -len(end)] for key, end in ends if end in own)
    # Of as many, the shortest (`base`, not `momentum`); of the same length, MoCo's encoder_q and not its encoder_k.
    count, _, prefix = max(((n, -len(name), name) for name, n in found.items()), default=(0, 0, ""))
    if not prefix or 2 * count < len(own):
        return state
    progress.say(f"{path.name}: {count} tensors named {prefix}* are the encoder's")
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def fitting(state: State, model: nn.Module, *, source: object) -> State:
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


def _timm(arch: str) -> Any:
    try:
        import timm
    except ImportError:
        raise EncoderError(f"{arch} requires timm: uv sync --group timm") from None
    return timm
