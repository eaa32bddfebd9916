"""Each number against a loop or an independent definition; a measurement leaves the training as it is."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from satclr import files, randomness
from satclr.data import prepare, tiles
from satclr.evaluation import evaluate, metrics
from satclr.pretrain import diagnostics, distributed
from satclr.pretrain.encoder import Frozen
from tests.conftest import make_run
from tests.pretrain.conftest import pretrained, pretrained_anew, same


def test_the_numbers_are_those_of_their_definitions() -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model(torch.ones(4, 3)).square().sum().backward()
    h, z = torch.randn(10, 7), torch.randn(10, 4)
    values = diagnostics.measure(h, z, model)
    unit = (z / z.norm(dim=1, keepdim=True)).double().numpy()
    pairs = [(i, j) for view in (range(5), range(5, 10)) for i in view for j in view if i != j]
    cosine = [[float(unit[i] @ unit[5 + j]) for j in range(5)] for i in range(5)]
    p = np.linalg.svd(h.double().numpy(), compute_uv=False)
    p /= p.sum()
    gradients = [float((g.grad**2).sum()) for g in model.parameters() if g.grad is not None]
    assert values == pytest.approx(
        {
            "alignment": np.mean([((unit[i] - unit[i + 5]) ** 2).sum() for i in range(5)]),
            "uniformity": math.log(np.mean([math.exp(-2 * ((unit[i] - unit[j]) ** 2).sum()) for i, j in pairs])),
            "effective_rank": math.exp(-sum(v * math.log(v) for v in p)),
            "projection_rank": float(diagnostics.effective_rank(z)),
            "z_std": np.mean(np.std(unit, axis=0, ddof=1)),
            "positive_similarity": np.mean([cosine[i][i] for i in range(5)]),
            "negative_similarity": np.mean([cosine[i][j] for i in range(5) for j in range(5) if i != j]),
            "gradient_norm": math.sqrt(sum(gradients)),
        },
        rel=1e-5,
    )


vote = partial(evaluate.knn, k=evaluate.NEIGHBOURS, temperature=evaluate.TEMPERATURE)


def test_the_effective_rank_counts_equal_directions() -> None:
    basis, _ = torch.linalg.qr(torch.randn(20, 20))
    ranks = [float(diagnostics.effective_rank(basis[:, :rank] @ basis[:rank])) for rank in (1, 3)]
    assert ranks == pytest.approx([1, 3], rel=1e-4)


def test_neighbours_vote_as_in_evaluation() -> None:
    torch.manual_seed(0)
    queries, known, targets = torch.randn(9, 6), torch.randn(50, 6), (torch.rand(50, 4) < 0.3).float()
    expected = vote(queries.numpy(), known.numpy(), targets.int().numpy())
    assert (diagnostics.NEIGHBOURS, diagnostics.TEMPERATURE) == (evaluate.NEIGHBOURS, evaluate.TEMPERATURE)
    np.testing.assert_allclose(diagnostics.knn_scores(queries, known, targets), expected, atol=1e-6)


@pytest.mark.parametrize("arch", ["shufflenet_v2_x0_5", "timm/vit_tiny_patch16_224"])
def test_a_measurement_changes_neither_weights_nor_statistics(
    arch: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(root, pretrain={"arch": arch, "knn_every_epochs": 1})
    watched = pretrained(run)
    rows = files.read_csv(run.results / "pretrain.csv")
    assert len(rows) == 2
    assert all(math.isfinite(float(value)) for row in rows for value in row.values())
    assert same(pretrained_anew(run), watched)
    assert files.read_csv(run.results / "pretrain.csv") == rows
    monkeypatch.setattr(diagnostics, "after_epoch", lambda *_: {})
    assert same(pretrained_anew(run), watched)


@pytest.mark.parametrize("which", ["train", "both", "unlabelled"])
def test_the_knn_map_is_that_of_the_finished_encoder_without_unlabelled_tiles(
    which: str, root: Path, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = replace(store, splits=store.splits.astype("U10"))
    store.splits[store.rows("train")[::2]] = tiles.UNLABELLED
    monkeypatch.setattr(tiles, "open_store", lambda _: store)
    run = make_run(root, pretrain={"arch": "squeezenet1_1", "knn_every_epochs": 2, "tiles": which})
    pretrained(run)
    features = Frozen(run.encoder)(torch.from_numpy(np.array(store.pixels)))
    known, val = store.rows("train"), store.rows("val")
    scores = vote(features[val], features[known], store.targets[known])
    expected = metrics.mean_average_precision(scores, store.targets[val])
    first, last = files.read_csv(run.results / "pretrain.csv")
    assert first["knn_val_mAP"] == ""
    assert float(last["knn_val_mAP"]) == pytest.approx(expected, abs=1e-4)


def test_one_process_measures_by_the_batch_without_the_others() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.BatchNorm1d(4)), torch.randn(6, 4)
    expected = model(x)
    model[0].__class__ = distributed.SyncBatchNorm  # as processes on CPUs have it
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with diagnostics._still(model):
        torch.testing.assert_close(model(x), expected)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.slow
def test_a_collapsing_arm_is_warned_of_once_and_a_healthy_one_is_not(
    external_data: Path, root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three epochs on 320 real tiles."""
    prepare.write_store(external_data / "ucmerced", root / "real", make_run().settings.data)
    whole = tiles.open_store(root / "real")
    left_out = whole.rows("train")[randomness.permutation(len(whole.rows("train")), 0, "test")[320:].numpy()]
    whole.splits[left_out] = ""
    monkeypatch.setattr(tiles, "open_store", lambda _: whole)
    for arch in ("resnet18", "timm/vit_tiny_patch16_224"):
        for changes, warnings in (({"temperature": 10.0, "learning_rate": 0.1}, 1), ({"learning_rate": 3e-4}, 0)):
            pretrained(make_run(root, pretrain={"arch": arch, "epochs": 3, "batch_size": 64, **changes}))
            assert capsys.readouterr().err.count("warning: the projections collapse") == warnings
