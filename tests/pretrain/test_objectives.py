"""Objectives: the loss of their name, and what those that learn or remember do between steps."""

import json
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from satclr import files
from satclr.data import tiles
from satclr.evaluation import embed, evaluate, probe
from satclr.evaluation.metrics import mean_average_precision
from satclr.params import OWN_OUTPUTS, WITHOUT_LABELS, Objective
from satclr.pretrain import encoder, objectives
from satclr.pretrain import loss as losses
from satclr.pretrain.architectures import EncoderError
from satclr.project import Run
from tests.conftest import make_run
from tests.pretrain.conftest import pretrained
from tests.pretrain.test_loss import LOSSES, close, draw
from tests.pretrain.test_optimizer import ARMS

MIXED = [name for name in get_args(Objective) if name not in (*WITHOUT_LABELS, *OWN_OUTPUTS)]


def build(name: str, model: nn.Sequential | None = None, **changes: object) -> objectives.Objective:
    """For z of 5 dimensions and 4 labels, in float64."""
    settings = make_run(arm=ARMS.get(name, name), pretrain={"projection": {"out": 5}, **changes}).settings
    return objectives.build(settings.pretrain, model or nn.Sequential(), 4).double()


@pytest.mark.parametrize("name", [*LOSSES, "vicreg", "msc_reg"])
def test_an_objective_is_the_loss_of_its_name_and_msc_has_prototypes_of_its_own(name: str) -> None:
    objective, (z, y) = build(name, temperature=0.3), draw(15)
    if isinstance(objective, objectives.Prototypes):
        assert objective.prototypes.shape == (4, 5)
        expected = losses.msc(z, y, objective.prototypes, 0.3, attract_only=name == "msc_reg")
    else:
        expected = losses.vicreg(z) if name == "vicreg" else LOSSES[name](z, y, 0.3)
    assert objective(y, 0, z) == expected


@pytest.mark.parametrize("name", MIXED)
def test_nt_xent_is_mixed_in(name: str) -> None:
    z, y = draw(15)
    own, mixed = build(name, temperature=0.3), build(name, temperature=0.3, nt_xent_weight=0.2)
    mixed.load_state_dict(own.state_dict())
    close(mixed(y, 0, z), 0.2 * losses.nt_xent(z, 0.3) + 0.8 * own(y, 0, z))


def test_views_are_encoded_in_one_batch_or_one_after_the_other() -> None:
    seen: list[int] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(len(x))
        return x

    x = torch.randn(6, 5)
    for forward_setting in ("joint", "separate"):
        close(build("nt_xent", forward=forward_setting).encode(forward, x), x)
    assert seen == [6, 3, 3]


def test_the_queue_holds_the_latest_keys_and_their_encoder_follows_with_momentum() -> None:
    layer = nn.Linear(3, 5, bias=False).double()
    model = nn.Sequential(layer)
    objective = build("mulsupcon_moco", model, queue={"length": 7, "momentum": 0.75}, temperature=0.3)
    assert isinstance(objective, objectives.MomentumQueue)
    slow = layer.weight.detach().clone()
    keys, labels = torch.empty(0, 5).double(), torch.empty(0, 4).double()
    for _ in range(4):  # batches of 3 tiles into a queue of 7
        x, y = torch.randn(6, 3).double(), (torch.rand(3, 4) < 0.5).double().repeat(2, 1)
        z = objective.encode(model, x)
        close(z, torch.cat([layer(x[:3]), x[3:] @ slow.T]))
        expected = losses.mulsupcon_moco(z[:3], y[:3], torch.cat([z[3:], keys]), torch.cat([y[:3], labels]), 0.3)
        loss = objective(y, 0, z)
        close(loss, expected)
        model.zero_grad()
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1.0).step()
        objective.after_step(model)
        slow = 0.75 * slow + 0.25 * layer.weight.detach()
        keys, labels = torch.cat([keys, z[3:].detach()])[-7:], torch.cat([labels, y[:3]])[-7:]
    assert all(p.grad is None for p in objective.parameters())
    assert sorted(map(sum, objective.past.tolist())) == pytest.approx(sorted(map(sum, keys.tolist())))


def test_mulcon_classifies_in_the_first_half_of_the_epochs_and_contrasts_as_well_in_the_second() -> None:
    objective, (_, y) = build("mulcon", epochs=4), draw(2)
    z = torch.randn(len(y), 4 + 4 * 5).double()
    entropy = nn.functional.binary_cross_entropy_with_logits(z[:, :4], y)
    close(objective(y, 1, z), entropy)
    close(objective(y, 2, z), losses.mulcon(z[:, 4:].unflatten(1, (4, 5)), z[:, :4], y, 0.5, 0.5))
    assert objective(y, 2, z) > entropy


ARCHS = ["resnet18", "shufflenet_v2_x0_5", "densenet121", "mobilenet_v2", "timm/efficientnet_lite0"]


@pytest.mark.parametrize("arch", ARCHS)
def test_label_queries_attend_to_the_map_that_the_encoder_averages(arch: str) -> None:
    torch.manual_seed(0)
    model, width = encoder.build(arch, 64)
    head = objectives.LabelHead(width, 4, hidden=32, out=5)
    head.attend(model, 64)
    h = model.train()(torch.randn(3, 3, 64, 64))
    assert head._map.shape[2:] == (2, 2)
    torch.testing.assert_close(head._map.mean((2, 3)), h, rtol=1e-4, atol=1e-4 * float(h.detach().abs().max()))
    tokens = head._map.flatten(2).transpose(1, 2)
    z = head(h)
    assert z.shape == (3, 4 + 4 * 5)
    e = head.queries + head.attention(head.queries.expand(3, -1, -1), tokens, tokens)[0]
    e = head.norm(e)
    e = head.last_norm(e + head.mix(e).relu())
    for k in range(4):  # one classifier a label
        close(z[:, k], e[:, k] @ head.classify.weight[k] + head.classify.bias[k], atol=1e-5)
        close(z[:, 4 + 5 * k : 9 + 5 * k], head.project(e[:, k]), atol=1e-5)


@pytest.mark.parametrize(("arch", "crop_px"), [("timm/vit_tiny_patch16_224", 32), ("resnet18", 32)])
def test_an_encoder_without_a_feature_map_cannot_have_label_queries(arch: str, crop_px: int) -> None:
    model, width = encoder.build(arch, crop_px)
    with pytest.raises(EncoderError, match=f"features average a map of more than one cell.* which is {crop_px}"):
        objectives.LabelHead(width, 4, hidden=None, out=5).attend(model, crop_px)
    with pytest.raises(EncoderError, match=r"a multiple of 4 .* not 30; set pretrain\.projection\.hidden"):
        objectives.LabelHead(width, 4, hidden=30, out=5)


def test_mulcon_is_scored_by_its_own_heads_beside_the_probe(root: Path, store: tiles.TileStore) -> None:
    changes = {"epochs": 16, "learning_rate": 3e-3, "keep_epochs": [3]}

    def evaluated(select: str | int) -> tuple[Run, files.Arrays, str]:
        run = make_run(root, "mulcon", pretrain=changes | {"select": select}, views={"crop_px": 64})
        tensors = pretrained(run)
        for stage in (embed, probe, evaluate):
            stage.run(run, lambda _epoch, _metrics: None)
        return run, tensors, (run.results / "details.json").read_text()

    run, tensors, text = evaluated("last")
    encoded, details = encoder.load(run.encoder)[0], json.loads(text)
    assert encoded.state_dict().keys() | {"heads.val_logits", "heads.test_logits"} == tensors.keys()
    for split in ("val", "test"):
        rows, logits = store.rows(split), tensors[f"heads.{split}_logits"]
        assert logits.shape == (len(rows), len(store.labels))
        assert details[f"{split}_own_heads_mAP"] == mean_average_precision(logits, store.targets[rows])
    trained = mean_average_precision(tensors["heads.val_logits"], store.targets[store.rows("val")])
    assert trained > store.targets[store.rows("val")].mean() + 0.1
    assert "own_heads" not in evaluated(3)[2]
