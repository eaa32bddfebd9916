import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch.nn import functional as F  # noqa: N812

from satclr import files, randomness
from satclr.data import tiles
from satclr.evaluation import probe
from satclr.evaluation.linear import LinearProbe
from satclr.evaluation.metrics import decisions
from satclr.project import ProjectError

from .conftest import MakeRun, log


def test_training_is_torchs_fused_adam_bit_by_bit(run_of: MakeRun, store: tiles.TileStore) -> None:
    run = run_of(probe={"epochs": 4, "learning_rate": 0.03})
    x, y = torch.from_numpy(np.load(run.features)), torch.from_numpy(store.targets).float()
    layer, expected = (probe.new_layer(8, len(store.labels), seed=0) for _ in range(2))
    optimizer = torch.optim.Adam(expected.parameters(), lr=0.03, fused=True)
    rows, size = torch.from_numpy(store.rows("train")), run.settings.probe.batch_size
    for epoch, measured in enumerate(probe.train(layer, store, x.numpy(), run=run)):
        total = 0.0
        for batch in rows[randomness.permutation(len(rows), 0, "probe order", epoch)].split(size):
            loss = F.binary_cross_entropy_with_logits(expected(x[batch]), y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
        assert torch.equal(layer.weight, expected.weight)
        assert torch.equal(layer.bias, expected.bias)
        assert measured["train_loss"] == pytest.approx(total / len(rows))
        val = store.rows("val")
        scores = expected(x[val]).detach()
        assert measured["val_mAP"] == pytest.approx(reference.average_precision_score(store.targets[val], scores))
        assert measured["val_loss"] == pytest.approx(F.binary_cross_entropy_with_logits(scores, y[val]).item())


@pytest.mark.parametrize("select", ["best", "last", 2, "arbitrary"])
def test_the_selected_epoch_is_saved_with_its_curve(run_of: MakeRun, store: tiles.TileStore, select: str | int) -> None:
    run = run_of(probe={"epochs": 6, "learning_rate": 0.1, "select": select})
    logged: dict[int, dict[str, float]] = {}
    probe.run(run, lambda epoch, measured: logged.update({epoch: dict(measured)}))
    curve = [row["val_mAP"] for row in logged.values()]
    drawn = randomness.epoch("arbitrary", [-value for value in curve], run.seed, "probe")  # a perfect one is apart
    expected = {"best": 1 + int(np.argmax(curve)), "last": 6, 2: 2, "arbitrary": drawn}[select]
    saved = LinearProbe.load(run.probe)
    layer = probe.new_layer(8, len(store.labels), seed=0)
    trained = [layer.weight.tolist() for _ in probe.train(layer, store, np.load(run.features), run=run)]
    assert saved.weight.tolist() == trained[expected - 1]
    assert (saved.best_epoch, saved.val_mAP) == (expected, curve[expected - 1])
    assert (saved.encoder["crop_px"], saved.encoder["arch"]) == (64, "none")
    val = store.rows("val")
    logits, targets = saved.logits(np.load(run.features)[val]), store.targets[val]
    assert saved.temperature == decisions.fit_temperature(logits, targets)
    scores = decisions.sigmoid(logits).astype(np.float32)  # as `evaluate` compares them with the thresholds
    np.testing.assert_array_equal(saved.thresholds, decisions.tune_thresholds(scores, targets))
    rows = files.read_csv(run.results / "probe.csv")
    assert [float(row["val_mAP"]) for row in rows] == curve
    assert [row["epoch"] for row in rows] == [str(epoch) for epoch in logged]
    before = run.probe.read_bytes()
    probe.run(run, log)
    assert run.probe.read_bytes() == before


def test_the_fingerprint_tells_settings_seeds_and_encoders_apart(run_of: MakeRun) -> None:
    run = run_of()
    found = {probe.fingerprint(each) for each in (run, run_of(), run_of(probe={"epochs": 9}), run_of(seed=1))}
    run.encoder.write_bytes(b"another")
    assert len(found) == 3
    assert probe.fingerprint(run) not in found
    run.encoder.unlink()
    with pytest.raises(ProjectError, match="run `satclr pretrain` first"):
        probe.fingerprint(run)
