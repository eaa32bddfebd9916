"""Fine-tuning starts from the pretrained encoder, learns from every tile, and keeps the best epoch."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from satclr import files
from satclr.data import tiles
from satclr.params import Views
from satclr.pretrain import checkpoint, optimizer, train, views
from tests.conftest import make_run
from tests.pretrain.conftest import at_step, losses, pretrained, pretrained_anew, same


def test_fine_tuning_starts_from_the_pretrained_encoder_and_keeps_its_best_epoch(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, logged, calls = pretrained(make_run(root)), [], []
    curve = losses(make_run(root))
    monkeypatch.setattr(optimizer, "backward", at_step(1, lambda _: calls.append(1)))
    changes = {"finetune": {"epochs": 12, "learning_rate": 1e-3, "patience": 2}}
    run = make_run(root, pretrain=changes)
    weights = pretrained(run, lambda epoch, measured: logged.append((epoch, dict(measured))))
    assert calls == [], "the pretraining of the same arm is used"
    assert losses(run) == curve
    assert not same(weights, start)
    found = [measured["finetune_val_loss"] for _, measured in logged]
    best = 1 + int(np.argmin(found))
    assert [epoch for epoch, _ in logged] == list(range(1, len(found) + 1))
    assert len(found) == min(12, best + 2)
    assert logged[-1][1]["finetune_loss"] < logged[0][1]["finetune_loss"]
    facts = {name: json.loads(text) for name, text in files.load_facts(run.encoder).items()}
    assert facts["finetuned"] == {"epoch": best, "val_loss": min(found)}
    assert facts["fingerprint"] == train.fingerprint(run)
    other = make_run(root, pretrain=changes | {"select": 1, "keep_epochs": "all"})
    plain = make_run(root, pretrain=changes | {"keep_epochs": "all"})
    assert len({train.fingerprint(r) for r in (run, make_run(root), other, plain)}) == 4, "selects another start"
    short = make_run(root, pretrain={"finetune": changes["finetune"] | {"epochs": best}})
    assert same(pretrained_anew(short), weights)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(checkpoint.RunError, match=r"pretrain\.finetune requires one process, not 2"):
        train._finetune(run, root, lambda *_: None)


def test_fine_tuning_shows_every_tile_in_large_crops_and_no_tiny_batch(
    root: Path, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, drawn = views.draw, []

    def draw(source: torch.Generator, count: int, settings: Views, *, tile_px: int) -> views.Parameters:
        drawn.append((count, settings))
        return real(source, count, settings, tile_px=tile_px)

    monkeypatch.setattr(views, "draw", draw)
    run = make_run(root, "baseline", pretrain={"finetune": {"epochs": 1}, "batch_size": 16})
    pretrained(run)
    counts = [count for count, _ in drawn]
    assert len(store.rows("train")) % 16 in range(1, 9)
    assert (sum(counts), min(counts)) == (len(store.rows("train")), 16)
    mild = {"scale": (0.5, 1.0), "jitter_p": 0.0, "grayscale_p": 0.0, "blur_p": 0.0}
    assert {settings for _, settings in drawn} == {run.settings.views.model_copy(update=mild)}
