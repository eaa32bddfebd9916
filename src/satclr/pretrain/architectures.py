"""Encoders by name: classification models of torchvision (`resnet18`) and timm (`timm/vit_tiny_patch16_224`), headless.

In: `pretrain.arch`. Out: a module (B,3,S,S) → h (B,D), and what is published for it: weights and input statistics.
timm is imported only where an architecture or an encoder's file asks for it.
"""

import difflib
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from satclr.data.tiles import Channels

HEADS = ("fc", "classifier", "head", "heads", "head_dist")
TIMM = "timm/"
AUXILIARY = {"googlenet", "inception_v3"}  # torchvision's with auxiliary heads


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
        return model
    # What precedes the head's first linear layer (ConvNeXt's LayerNorm) belongs to the features.
    layers = list(head.children())
    before = [m for m in layers[: layers.index(linear)] if not isinstance(m, nn.Dropout)] if layers else []
    setattr(model, name, nn.Sequential(*before) if before else nn.Identity())
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


def source(arch: str, weights: str) -> tuple[str, Path]:
    """The URL of published weights, and the file where torch keeps them."""
    if arch.startswith(TIMM):
        name = f"{arch.removeprefix(TIMM)}.{weights}"
        config = _timm(arch).get_pretrained_cfg(name)
        if config.hf_hub_id:
            from huggingface_hub import hf_hub_url

            url, file = hf_hub_url(config.hf_hub_id, "model.safetensors"), f"{name}.safetensors"
        else:
            url, file = config.url, config.url.rpartition("/")[2]
    else:
        url = torchvision.models.get_model_weights(arch)[weights].url
        file = url.rpartition("/")[2]
    return url, Path(torch.hub.get_dir()) / "checkpoints" / file


def input_statistics(arch: str, weights: str) -> tuple[Channels, Channels] | None:
    """Mean and std of the input that published weights were trained on; None where nobody says."""
    config: Any = None
    if arch.startswith(TIMM):
        name = arch.removeprefix(TIMM)
        config = _timm(arch).get_pretrained_cfg(f"{name}.{weights}" if weights in published(arch) else name)
    elif weights in published(arch):
        config = torchvision.models.get_model_weights(arch)[weights].transforms()
    return (tuple(config.mean), tuple(config.std)) if config else None


def _timm(arch: str) -> Any:
    try:
        import timm
    except ImportError:
        raise EncoderError(f"{arch} requires timm: uv sync --group timm") from None
    return timm
