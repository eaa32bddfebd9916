import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file

from satclr import files, randomness
from satclr.pretrain import encoder


@pytest.mark.parametrize(
    ("arch", "width"),
    [("resnet18", 512), ("squeezenet1_1", 512), ("mobilenet_v3_small", 576), ("densenet121", 1024),
     ("convnext_tiny", 768), ("regnet_y_400mf", 440)],
)  # fmt: skip
def test_the_head_is_taken_off(arch: str, width: int) -> None:
    with randomness.seeded(0):
        model, d = encoder.build(arch)
    assert d == width
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, width)


def test_features_are_those_before_torchvisions_head() -> None:
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None).eval()
    model, _ = encoder.build("resnet18")
    model.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")})
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(whole.fc(model.eval()(x)), whole(x))


@pytest.mark.parametrize("arch", ["resnet19", "__class__", "inception_v3", "fasterrcnn_resnet50_fpn"])
def test_an_arch_without_a_removable_head_is_refused(arch: str) -> None:
    with pytest.raises(encoder.EncoderError, match=arch):
        encoder.build(arch)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_local_file_with_or_without_its_head(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = torchvision.models.resnet18(weights=None, num_classes=7).state_dict()
    path = tmp_path / f"w{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save({"state_dict": state}, path)
    model, _ = encoder.initial("resnet18", path.name, seed=0, root=tmp_path)
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert not model.training


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ("missing", "conv1.weight", None),
        ("unknown", "layer9.weight", torch.zeros(1)),
        ("wrong shape", "conv1.weight", torch.zeros(1)),
        ("not finite", "conv1.weight", torch.full((64, 3, 7, 7), torch.nan)),
    ],
)
def test_weights_that_do_not_fit_say_how(change: str, name: str, value: torch.Tensor | None, tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict() | {name: value}
    save_file({key: tensor for key, tensor in state.items() if tensor is not None}, tmp_path / "w.safetensors")
    with pytest.raises(encoder.EncoderError, match=change):
        encoder.initial("resnet18", "w.safetensors", seed=0, root=tmp_path)


def test_weights_that_cannot_be_had_name_the_file_the_place_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(encoder.EncoderError) as caught:
        encoder.initial("resnet50", "IMAGENET1K_V2", seed=0, root=tmp_path)
    for text in (
        "could not find or download",
        "resnet50-11ad3fa6.pth",
        str(tmp_path / "checkpoints"),
        "no route to host",
    ):
        assert text in str(caught.value)
    with pytest.raises(encoder.EncoderError, match="IMAGENET1K_V1, IMAGENET1K_V2"):
        encoder.initial("resnet50", "IMAGENET", seed=0, root=tmp_path)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 whose BatchNorm has seen data."""
    with randomness.seeded(5):
        model, width = encoder.build("resnet18")
        for _ in range(3):
            model.train()(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("enc") / "encoder.safetensors"
    facts = {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_px": 32, "tile_px": 32}
    encoder.save(model, path, arch="resnet18", width=width, **facts)
    return path


def tiles(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).integers(0, 256, (count, 32, 32, 3), np.uint8))


def test_a_saved_encoder_comes_back(saved: Path) -> None:
    model, width = encoder.load(saved)
    assert width == 512
    assert not model.training
    facts = files.load_facts(saved)
    assert (facts["arch"], facts["feature_dim"], facts["std"]) == ('"resnet18"', "512", "[0.2, 0.2, 0.2]")
    with pytest.raises(encoder.EncoderError, match="is not a readable encoder"):
        encoder.load(saved.with_name("none.safetensors"))


def test_a_frozen_encoders_features_do_not_depend_on_the_batch_nor_its_buffers_move(saved: Path) -> None:
    frozen = encoder.Frozen(saved)
    before = {k: v.clone() for k, v in frozen.model.state_dict().items()}
    batch = tiles(128)
    whole = frozen(batch)
    order = torch.randperm(128, generator=torch.Generator().manual_seed(0))
    for size in (1, 7, 128):
        parts = np.concatenate([frozen(batch[rows]) for rows in order.split(size)])
        np.testing.assert_allclose(parts, whole[order.numpy()], rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in frozen.model.state_dict().items())


def test_batch_mode_is_torchs_training_mode(saved: Path) -> None:
    frozen = encoder.Frozen(saved, batch_norm="batch")
    model, _ = encoder.load(saved)
    batch = tiles(32)
    x = (batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    with torch.no_grad():
        np.testing.assert_allclose(frozen(batch), model.train()(x).numpy(), rtol=1e-3, atol=1e-4)
