import re
import sys
import urllib.error
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file

from satclr import files, randomness
from satclr.data.tiles import TileStore
from satclr.pretrain import architectures, encoder, views
from tests.conftest import make_run

VIT = "vit_tiny_patch16_224"
FACTS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_px": 32, "tile_px": 32}


def tiles(count: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(7).integers(0, 256, (count, 32, 32, 3), np.uint8))


def same(model: torch.nn.Module, state: architectures.State) -> bool:
    """Whether the model's tensors are those of a state dict that may have more."""
    return all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 whose BatchNorm has seen data."""
    with randomness.seeded(5):
        model, width = encoder.build("resnet18")
        for _ in range(3):
            model.train()(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("enc") / "encoder.safetensors"
    encoder.save(model, path, arch="resnet18", width=width, **FACTS)
    return path


@pytest.mark.parametrize(
    ("arch", "width"),
    [("resnet18", 512), ("squeezenet1_1", 512), ("mobilenet_v3_small", 576), ("densenet121", 1024),
     ("convnext_tiny", 768), ("regnet_y_400mf", 440), ("timm/resnet10t", 512), ("timm/convnext_atto", 320),
     ("timm/vit_tiny_patch16_224", 192), ("timm/swin_tiny_patch4_window7_224", 768)],
)  # fmt: skip
def test_the_head_is_taken_off(arch: str, width: int) -> None:
    with randomness.seeded(0):
        model, d = encoder.build(arch, 64)
    assert d == width
    assert model.eval()(torch.zeros(2, 3, 64, 64)).shape == (2, width)


@pytest.mark.parametrize("arch", ["resnet18", "timm/efficientnet_lite0", f"timm/{VIT}", "timm/convnext_atto"])
def test_features_are_those_before_the_classifier(arch: str) -> None:
    model, x, name = encoder.build(arch, 64)[0].eval(), torch.randn(2, 3, 64, 64), arch.removeprefix("timm/")
    whole = timm.create_model(name, **{"img_size": 64} if name == VIT else {}).eval()
    if arch == name:
        whole = torchvision.models.get_model(name).eval()
    whole.load_state_dict(model.state_dict(), strict=False)
    head = whole.fc if arch == name else whole.get_classifier()
    torch.testing.assert_close(head(model(x)), whole(x))


@pytest.mark.parametrize(
    ("arch", "crop_px", "message"),
    [("resnet19", 64, "'resnet19'; did you mean resnet18"), ("__class__", 64, "__class__"),
     ("inception_v3", 64, "inception_v3"), ("fasterrcnn_resnet50_fpn", 64, "fasterrcnn"),
     ("timm/efficientnet_lite", 64, "did you mean timm/efficientnet_lite"),
     ("timm/vit_tiny_patch16_224", 72, "crop_px 72 must be a multiple of its patches' side, 16"),
     ("timm/efficientformer_l1", 64, "does not take views of crop_px 64"),
     ("vit_b_16", 64, "does not take views of crop_px 64")],
)  # fmt: skip
def test_an_arch_that_cannot_be_used_is_refused(arch: str, crop_px: int, message: str) -> None:
    with pytest.raises(encoder.EncoderError, match=message):
        encoder.build(arch, crop_px)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(encoder.EncoderError, match="requires timm: uv sync --group timm"):
        encoder.build("timm/resnet10t")


@pytest.mark.parametrize(
    ("suffix", "prefix"),
    [(".safetensors", ""), (".pth", ""), (".pth", "backbone."), (".safetensors", "module.encoder_q.")],
)
def test_weights_come_from_a_local_file_with_or_without_head_and_prefix(
    suffix: str, prefix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(3)
    state, other = (torchvision.models.resnet18(weights=None, num_classes=7).state_dict() for _ in range(2))
    stored = {prefix + key: value for key, value in state.items()}
    if prefix:  # MoCo's second encoder, and a predictor
        stored |= {f"module.encoder_k.{key}": value for key, value in other.items() if "module" in prefix}
        stored["predictor.weight"] = torch.zeros(3)
    path = tmp_path / f"w{suffix}"
    save_file(stored, path) if suffix == ".safetensors" else torch.save({"state_dict": stored}, path)
    model, _ = encoder.initial("resnet18", path.name, seed=0, root=tmp_path)
    assert same(model, state)
    assert not model.training
    said = capsys.readouterr().err
    assert said == (f"{path.name}: 120 tensors named {prefix}* are the encoder's\n" if prefix else "")


def test_torchvisions_published_densenets_have_older_names(tmp_path: Path) -> None:
    state = torchvision.models.densenet121(weights=None).state_dict()
    older = {re.sub(r"(layer\d+\.(?:norm|conv))([12])", r"\1.\2", key): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in older
    torch.save(older, tmp_path / "densenet121.pth")
    model, _ = encoder.initial("densenet121", "densenet121.pth", seed=0, root=tmp_path)
    assert same(model, state)


def test_a_vits_positions_are_interpolated_as_timm_does(tmp_path: Path) -> None:
    state = timm.create_model(VIT).state_dict()
    torch.save(state, tmp_path / "w.pth")
    model, _ = encoder.initial(f"timm/{VIT}", "w.pth", seed=0, root=tmp_path, crop_px=64)
    overlay = {"state_dict": dict(state), "custom_load": False}
    own = timm.create_model(VIT, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0, img_size=64)
    expected = own.state_dict()
    assert same(model, expected)
    assert expected["pos_embed"].shape == (1, 17, 192)
    torch.save({**state, "blocks.0.norm1.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(encoder.EncoderError, match=r"wrong shape: .*norm1"):
        encoder.initial(f"timm/{VIT}", "w.pth", seed=0, root=tmp_path, crop_px=64)


def test_the_input_statistics_are_the_encoders_own(saved: Path, store: TileStore) -> None:
    def own(arch: str, start: str, normalization: str = "encoder") -> Any:
        run = make_run(saved.parent, pretrain={"arch": arch, "weights": start, "normalization": normalization})
        return architectures.input_statistics(run, store)

    imagenet = store.statistics("imagenet")
    assert own(f"timm/{VIT}", "none") == ((0.5,) * 3, (0.5,) * 3)
    assert own("timm/efficientnet_lite0", "ra_in1k") == imagenet
    assert own("resnet18", "IMAGENET1K_V1") == own("resnet18", "none") == imagenet
    assert own("resnet18", saved.name) == ((0.5,) * 3, (0.2,) * 3)
    assert own("resnet18", "none", "train") == store.statistics("train")


def test_adapted_statistics_are_the_mean_over_whole_batches(saved: Path, store: TileStore) -> None:
    model, _ = encoder.load(saved)
    mean, std = store.statistics("train")
    encoder.adapt_batch_norm(model, store, make_run(pretrain={"batch_size": 16}))
    rows = randomness.rng(0, "batch order", "train").permutation(store.rows("train"))
    batches = torch.from_numpy(store.pixels[rows]).split(16)[: len(rows) // 16]
    h = [model.conv1(views.evaluation_view(batch, crop_px=32, mean=mean, std=std)) for batch in batches]  # type: ignore[operator]
    assert len(rows) % 16 > 0
    assert not model.training
    for name, statistic in (("mean", torch.mean), ("var", torch.var)):
        expected = torch.stack([statistic(batch, (0, 2, 3)) for batch in h]).mean(0)
        torch.testing.assert_close(model.state_dict()[f"bn1.running_{name}"], expected)


def test_an_encoder_without_batch_norm_says_so(
    store: TileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, width = encoder.build(f"timm/{VIT}", 32)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    encoder.adapt_batch_norm(model, store, make_run())
    encoder.save(model, tmp_path / "e.safetensors", arch=f"timm/{VIT}", width=width, **FACTS)
    by_batch, frozen = (encoder.Frozen(tmp_path / "e.safetensors", batch_norm=norm) for norm in ("batch", "frozen"))
    np.testing.assert_array_equal(by_batch(tiles(4)), frozen(tiles(4)))
    assert same(model, before)
    said = capsys.readouterr().err
    assert "no BatchNorm, so pretrain.adapt_batch_norm changes nothing" in said
    assert said.count("no BatchNorm, so probe.batch_norm changes nothing") == 1


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [("missing", "conv1.weight", None), ("unknown", "layer9.weight", torch.zeros(1)),
     ("wrong shape", "conv1.weight", torch.zeros(1)),
     ("not finite", "conv1.weight", torch.full((64, 3, 7, 7), torch.nan))],
)  # fmt: skip
def test_weights_that_do_not_fit_say_how(change: str, name: str, value: torch.Tensor | None, tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict() | {name: value}
    save_file({key: tensor for key, tensor in state.items() if tensor is not None}, tmp_path / "w.safetensors")
    with pytest.raises(encoder.EncoderError, match=change):
        encoder.initial("resnet18", "w.safetensors", seed=0, root=tmp_path)


@pytest.mark.parametrize(
    ("arch", "tag", "file"),
    [("resnet50", "IMAGENET1K_V2", "resnet50-11ad3fa6.pth"),
     ("timm/resnet10t", "c3_in1k", "resnet10t.c3_in1k.safetensors")],
)  # fmt: skip
def test_weights_that_cannot_be_had_name_the_file_the_place_and_the_way_out(
    arch: str, tag: str, file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(encoder.EncoderError) as caught:
        encoder.initial(arch, tag, seed=0, root=tmp_path)
    for text in ("could not find or download", f"as {file}", str(tmp_path / "checkpoints"), "no route to host"):
        assert text in str(caught.value)
    with pytest.raises(encoder.EncoderError, match=tag):
        encoder.initial(arch, "IMAGENET", seed=0, root=tmp_path)
    if arch.startswith("timm/"):  # put there by hand
        state = encoder.build(arch)[0].state_dict()
        save_file(state, tmp_path / "checkpoints" / file)
        assert same(encoder.initial(arch, tag, seed=1, root=tmp_path)[0], state)


def test_a_saved_encoder_comes_back(saved: Path) -> None:
    model, width = encoder.load(saved)
    assert width == 512
    assert not model.training
    facts = files.load_facts(saved)
    assert (facts["arch"], facts["feature_dim"], facts["std"]) == ('"resnet18"', "512", "[0.2, 0.2, 0.2]")
    with pytest.raises(encoder.EncoderError, match="does not exist; run `satclr pretrain` first"):
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
    assert same(frozen.model, before)


def test_batch_mode_is_torchs_training_mode(saved: Path) -> None:
    frozen = encoder.Frozen(saved, batch_norm="batch")
    model, _ = encoder.load(saved)
    x = (tiles(32).permute(0, 3, 1, 2) / 255 - 0.5) / 0.2
    with torch.no_grad():
        np.testing.assert_allclose(frozen(tiles(32)), model.train()(x).numpy(), rtol=1e-3, atol=1e-4)
