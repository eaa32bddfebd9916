"""Weights that pretraining starts from: published ones, files of other projects, and encoders of ours.

In: `pretrain.arch` and `pretrain.weights`. Out: a state dict that fits the headless model. Reading runs no code.
"""

import json
import sys
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import torch
import torchvision
from torch import nn

from satclr import files, progress
from satclr.data import tiles
from satclr.data.tiles import Channels
from satclr.params import Pretrain
from satclr.pretrain import architectures, distributed
from satclr.pretrain.architectures import HEADS, EncoderError

State = Mapping[str, torch.Tensor]


def named_file(arch: str, weights: str, *, root: Path) -> Path | None:
    """The file that `weights` names, or None for `none` and for published weights. Raises `EncoderError`."""
    known = architectures.published(arch)
    if weights == "none" or weights in known:
        return None
    if not (root / weights).is_file():
        names = ", ".join(known) or "no published weights"
        raise EncoderError(f"pretrain.weights: {root / weights} does not exist; give none, a file, or one of: {names}")
    return root / weights


def load_into(model: nn.Module, arch: str, weights: str, *, root: Path) -> None:
    """Load published weights or a file's. Raises `EncoderError` when they cannot be had or do not fit."""
    file = named_file(arch, weights, root=root)
    state = _own_part(read(file), model, file) if file else _published(arch, weights)
    try:
        model.load_state_dict(fitting(state, model, source=weights), strict=False)
    except EncoderError:
        # timm's own conversion: positions to another size, names that others gave to the same model.
        convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if not arch.startswith(architectures.TIMM) or convert is None:
            raise
        try:
            converted = convert(dict(state), model)
        except Exception:  # noqa: BLE001 - a file of something else
            converted = {}
        if not converted:
            raise
        model.load_state_dict(fitting(converted, model, source=weights), strict=False)


def input_statistics(config: Pretrain, store: tiles.TileStore, *, root: Path) -> tuple[Channels, Channels]:
    """Mean and std of the encoder's input, as `normalization` asks for.

    `encoder`: an encoder file's own, those of published weights or of timm's model, and ImageNet's otherwise.
    """
    if config.normalization != "encoder":
        return store.statistics(config.normalization)
    file = named_file(config.arch, config.weights, root=root)
    facts = files.load_facts(file) if file and file.suffix == ".safetensors" else {}
    if {"arch", "mean", "std"} <= facts.keys():  # an encoder of ours
        return tuple(json.loads(facts["mean"])), tuple(json.loads(facts["std"]))
    return architectures.input_statistics(config.arch, config.weights) or store.statistics("imagenet")


def _published(arch: str, weights: str) -> State:
    url, file = architectures.source(arch, weights)
    try:
        if arch.startswith(architectures.TIMM):
            if not file.is_file():
                file.parent.mkdir(parents=True, exist_ok=True)
                torch.hub.download_url_to_file(url, str(file))
            return read(file)
        state: State = torchvision.models.get_model_weights(arch)[weights].get_state_dict(
            progress=True, check_hash=True
        )
    except (OSError, RuntimeError) as error:  # no network, or a wrong hash
        raise EncoderError(
            f"could not find or download the weights {weights} of {arch} ({error}). Put {url} as "
            f"{file.name} into {file.parent}, or set pretrain.weights to a local file or to none"
        ) from None
    return state


def read(path: Path) -> State:
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
    if distributed.rank() == 0:
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
