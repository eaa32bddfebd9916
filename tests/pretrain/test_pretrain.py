from __future__ import annotations

import csv
import dataclasses
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from satclr import cli, params
from satclr.pretrain import encoder, optimizers, stage as pretrain
from satclr.data import tiles
from satclr.pretrain.stage import checkpoint, loop
from satclr.pretrain.stage import step as steps

from .conftest import resolve, tiny_params


def run(
    store: tiles.TileStore,
    root: Path,
    arm: params.Arm,
    log: Callable[[int, Mapping[str, float]], None] | None = None,
    start: Path | None = None,
) -> dict[str, torch.Tensor]:
    out = root / arm.key / "encoder.safetensors"
    pretrain.run(
        store, settings=arm.settings, seed=arm.seed, root=root, out=out,
        curve=root / arm.key / "pretrain.csv", log=log or (lambda _step, _metrics: None), start=start,
    )  # fmt: skip
    return load_file(out)


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at every epoch's end."""
    monkeypatch.setattr(loop, "CHECKPOINT_AFTER_S", 0.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", 0)


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def losses(folder: Path) -> list[float]:
    with (folder / "pretrain.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


def test_objective_none_writes_the_initial_encoder(store: tiles.TileStore, tmp_path: Path) -> None:
    arm = resolve("baseline")
    found = run(store, tmp_path, arm)
    assert losses(tmp_path / arm.key) == []
    facts = encoder.metadata(tmp_path / arm.key / "encoder.safetensors")
    assert (facts["mean"], facts["std"]) == tuple(map(list, store.statistics("train")))
    contrasted = run(store, tmp_path, resolve("simclr"))
    assert found.keys() == contrasted.keys()
    assert not same(found, contrasted)


def test_the_loss_falls(store: tiles.TileStore, tmp_path: Path) -> None:
    arm = resolve(pretrain={"arch": "resnet18", "epochs": 12, "learning_rate": 1e-3, "batch_size": 16})
    heard: list[int] = []
    run(store, tmp_path, arm, lambda epoch, _: heard.append(epoch))
    found = losses(tmp_path / arm.key)
    assert heard == list(range(1, 13))
    assert np.mean(found[-3:]) < found[0] - 0.1


def test_the_same_run_twice_is_bit_identical(store: tiles.TileStore, tmp_path: Path) -> None:
    arm = resolve()
    assert same(run(store, tmp_path / "a", arm), run(store, tmp_path / "b", arm))
    assert not same(run(store, tmp_path / "a", arm), run(store, tmp_path / "a", resolve(seed=1)))


class Stopped(Exception):  # noqa: N818 - not an error
    pass


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "lars"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    optimizer: str, store: tiles.TileStore, tmp_path: Path
) -> None:
    arm = resolve(pretrain={"epochs": 3, "optimizer": optimizer, "schedule": "cosine", "warmup_epochs": 1})

    def stop(epoch: int, _: Mapping[str, float]) -> None:
        if epoch == 2:
            raise Stopped

    with pytest.raises(Stopped):
        run(store, tmp_path / "a", arm, stop)
    resumed = run(store, tmp_path / "a", arm)
    assert same(resumed, run(store, tmp_path / "b", arm))
    assert losses(tmp_path / "a" / arm.key) == losses(tmp_path / "b" / arm.key)


def test_a_checkpoint_within_an_epoch_is_exact_too(
    store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = resolve()
    whole = run(store, tmp_path / "a", arm)
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    count = iter(range(100))
    real = steps.Step.__call__

    def failing(*args: Any, **named: Any) -> torch.Tensor:
        if next(count) == 6:  # the third step of the second epoch
            raise Stopped
        return real(*args, **named)

    monkeypatch.setattr(steps.Step, "__call__", failing)
    with pytest.raises(Stopped):
        run(store, tmp_path / "b", arm)
    monkeypatch.setattr(steps.Step, "__call__", real)
    assert same(run(store, tmp_path / "b", arm), whole)


@pytest.mark.parametrize("step", [2, 4, 5])  # within an epoch of four steps, at its end, in the next
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_leave_saves_its_place_first(
    number: signal.Signals, step: int, store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_AFTER_S", 1e9)  # no other checkpoint than the last
    arm = resolve()
    whole = run(store, tmp_path / "a", arm)
    real, count = steps.Step.__call__, iter(range(1, 100))

    def asked(*args: Any, **named: Any) -> torch.Tensor:
        if next(count) == step:
            signal.raise_signal(number)
        return real(*args, **named)

    def leave(*_: object) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(steps.Step, "__call__", asked)
        before = signal.signal(number, leave)
        try:
            with pytest.raises(Stopped):
                run(store, tmp_path / "b", arm)
        finally:
            signal.signal(number, before)
    assert next(count) == step + 1
    assert same(run(store, tmp_path / "b", arm), whole)
    assert losses(tmp_path / "b" / arm.key) == losses(tmp_path / "a" / arm.key)


def test_a_checkpoint_at_an_epochs_last_step_is_none(
    store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One there would be resumed with no step left in the epoch."""
    monkeypatch.setattr(loop, "CHECKPOINT_EVERY_S", 0.0)
    places: list[tuple[int, int]] = []

    def note(_folder: Path, _model: object, _optimizer: object, state: checkpoint.State) -> None:
        places.append((state.epoch, state.step))

    monkeypatch.setattr(checkpoint, "save", note)
    run(store, tmp_path, resolve(pretrain={"epochs": 1}))
    assert places == [(0, 1), (0, 2), (0, 3), (1, 0)]


KILLED = """
import sys
from pathlib import Path
from satclr import pretrain, tiles
from satclr.pretrain import checkpoint, loop
from tests.conftest import resolve
loop.CHECKPOINT_AFTER_S = 0.0
loop.CHECKPOINT_SHARE = 0
arm = resolve(pretrain={"epochs": 12})
root = Path(sys.argv[2])
pretrain.run(tiles.open_store(Path(sys.argv[1])), settings=arm.settings, seed=0, root=root,
             out=root / "encoder.safetensors", curve=root / "pretrain.csv", log=lambda *_: None)
"""


def test_a_run_killed_with_sigkill_gives_bit_identical_weights(store: tiles.TileStore, tmp_path: Path) -> None:
    def start(root: Path) -> subprocess.Popen[bytes]:
        root.mkdir(exist_ok=True)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        command = [sys.executable, "-c", KILLED, str(store.folder), str(root)]
        return subprocess.Popen(command, cwd=Path(__file__).parents[2], env=environment)

    process = start(tmp_path / "a")
    while not list((tmp_path / "a").rglob("checkpoint.safetensors")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "a" / "encoder.safetensors").exists()
    for root in ("a", "b"):
        assert start(tmp_path / root).wait() == 0
    files = ("encoder.safetensors", "pretrain.csv")
    for name in files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_arms_that_share_a_pretraining_run_it_once(
    store: tiles.TileStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(store, tmp_path, resolve("simclr"))
    other = resolve("simclr").model_copy(update={"name": "simclr_other_probe"})
    capsys.readouterr()
    assert same(run(store, tmp_path, other), first)
    assert "has been run before" in capsys.readouterr().err


def test_a_fingerprint_stands_for_parameters_seed_and_tiles(store: tiles.TileStore) -> None:
    arm = resolve()
    key = pretrain.fingerprint(arm.settings, 0, store.digest)
    assert key == pretrain.fingerprint(resolve(probe={"epochs": 9}).settings, 0, store.digest)
    for other in (
        pretrain.fingerprint(resolve(pretrain={"temperature": 0.4}).settings, 0, store.digest),
        pretrain.fingerprint(resolve(views={"flip_p": 0.4}).settings, 0, store.digest),
        pretrain.fingerprint(arm.settings, 1, store.digest),
        pretrain.fingerprint(arm.settings, 0, "other tiles"),
    ):
        assert other != key


def test_a_loss_that_is_not_finite_stops_with_epoch_step_and_tiles(
    store: tiles.TileStore, tmp_path: Path
) -> None:
    arm = resolve(pretrain={"learning_rate": 1e30, "epochs": 9})
    with pytest.raises(pretrain.RunError, match=r"epoch \d+, step \d+; its 8 tiles begin with \w+\.jpg"):
        run(store, tmp_path, arm)
    assert not (tmp_path / arm.key / "encoder.safetensors").exists()


def test_a_loss_that_blows_up_at_a_low_temperature_keeps_the_last_good_checkpoint(
    store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = resolve(pretrain={"temperature": 0.01, "epochs": 4})
    real = steps.Step.__call__

    def overflowing(self: Any, *args: Any, epoch: int, **named: Any) -> torch.Tensor:
        loss = real(self, *args, epoch=epoch, **named)
        if epoch == 2:  # the step's loss is finite, its update was not
            with torch.no_grad():
                next(self.model.parameters()).mul_(torch.inf)
        return loss

    monkeypatch.setattr(steps.Step, "__call__", overflowing)
    with pytest.raises(pretrain.RunError, match=r"epoch 3, step 2; its 8 tiles begin with"):
        run(store, tmp_path / "a", arm)
    (kept,) = (tmp_path / "a").rglob("checkpoint.safetensors")
    assert all(value.isfinite().all() for value in load_file(kept).values())
    monkeypatch.setattr(steps.Step, "__call__", real)
    assert same(run(store, tmp_path / "a", arm), run(store, tmp_path / "b", arm))


def test_weights_that_the_last_step_made_infinite_are_not_written(
    store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_AFTER_S", math.inf)
    arm = resolve(pretrain={"epochs": 1})
    real = steps.Step.__call__

    def overflowing(self: Any, *args: Any, step: int, **named: Any) -> torch.Tensor:
        loss = real(self, *args, step=step, **named)
        if step == 3:  # the last
            with torch.no_grad():
                next(self.model.parameters()).mul_(torch.inf)
        return loss

    monkeypatch.setattr(steps.Step, "__call__", overflowing)
    with pytest.raises(pretrain.RunError, match=r"not finite in .* after epoch 1"):
        run(store, tmp_path, arm)
    assert not list(tmp_path.rglob("encoder.safetensors"))


def test_separate_forwards_normalise_each_view_by_itself(store: tiles.TileStore, tmp_path: Path) -> None:
    joint = run(store, tmp_path, resolve())
    separate = run(store, tmp_path, resolve(pretrain={"forward": "separate"}))
    assert not same(joint, separate)
    assert int(separate["conv1.1.num_batches_tracked"]) == 2 * int(joint["conv1.1.num_batches_tracked"])


def test_adapting_batch_norm_moves_its_statistics_and_nothing_else(
    store: tiles.TileStore, tmp_path: Path
) -> None:
    plain = run(store, tmp_path, resolve("baseline"))
    adapted = run(store, tmp_path, resolve("baseline", pretrain={"adapt_batch_norm": True}))
    moved = {k for k in plain if not torch.equal(plain[k], adapted[k])}
    assert moved == {k for k in plain if "running_" in k or "num_batches" in k}
    mean = np.array(store.statistics("train")[0]), np.array(store.statistics("train")[1])
    x = (store.pixels[store.rows("train")[:32]] / 255 - mean[0]) / mean[1]
    side = torch.nn.functional.interpolate(
        torch.from_numpy(x).float().permute(0, 3, 1, 2), 32, mode="bicubic", antialias=True
    )
    first = torch.nn.functional.conv2d(side, plain["conv1.0.weight"], stride=2, padding=1).mean(dim=(0, 2, 3))
    torch.testing.assert_close(adapted["conv1.1.running_mean"], first, rtol=0.1, atol=0.02)


@pytest.mark.parametrize("change", [{"precision": "bfloat16"}, {"channels_last": False}])
def test_precision_and_memory_order_do_not_change_the_course(
    change: dict[str, Any], store: tiles.TileStore, tmp_path: Path
) -> None:
    run(store, tmp_path / "a", resolve())
    run(store, tmp_path / "b", resolve(pretrain=change))
    found, expected = losses(tmp_path / "b" / "simclr-s0"), losses(tmp_path / "a" / "simclr-s0")
    np.testing.assert_allclose(found, expected, rtol=0.05)
    assert found != expected


def test_schedules() -> None:
    constant = resolve().settings.pretrain
    assert {optimizers.learning_rate(constant, step, 4) for step in range(8)} == {constant.learning_rate}
    changes = {"schedule": "cosine", "warmup_epochs": 2, "epochs": 10, "learning_rate": 1.0}
    cosine = resolve(pretrain=changes).settings.pretrain
    rates = [optimizers.learning_rate(cosine, step, 5) for step in range(50)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], [(1 + math.cos(math.pi * i / 40)) / 2 for i in range(40)])


def test_lars_scales_matrices_by_trust_and_leaves_vectors_alone() -> None:
    w, b = torch.randn(4, 3, requires_grad=True), torch.randn(4, requires_grad=True)
    w.grad, b.grad = torch.randn(4, 3), torch.randn(4)
    decayed = w.grad + 0.1 * w.detach()
    expected_w = w.detach() - 0.5 * 0.001 * w.detach().norm() / decayed.norm() * decayed
    expected_b = b.detach() - 0.5 * b.grad
    optimizers.Lars([w, b], lr=0.5, weight_decay=0.1).step()
    torch.testing.assert_close(w.detach(), expected_w)
    torch.testing.assert_close(b.detach(), expected_b)


SUPERVISED = ("supcon_any", "supcon_all", "jaccard", "mulsupcon")


@pytest.mark.parametrize("name", SUPERVISED)
def test_supervised_objectives_see_the_labels_of_training_tiles_and_no_others(
    name: str, store: tiles.TileStore, tmp_path: Path
) -> None:
    arm = resolve(name, pretrain={"epochs": 1})
    assert arm.settings.pretrain.objective == name
    train = (store.splits == "train")[:, None]
    poisoned = dataclasses.replace(store, targets=np.where(train, store.targets, 1 - store.targets))
    other = dataclasses.replace(store, targets=np.roll(store.targets, 1, axis=0))
    weights = run(store, tmp_path / "a", arm)
    assert same(run(poisoned, tmp_path / "b", arm), weights)
    assert not same(run(other, tmp_path / "c", arm), weights)


def test_each_objective_is_the_loss_of_its_name() -> None:
    z, y = torch.randn(12, 5, dtype=torch.float64), (torch.rand(6, 4) < 0.5).repeat(2, 1)
    S = torch.nn.functional.normalize(z, dim=1) @ torch.nn.functional.normalize(z, dim=1).T / 0.3
    log_p = S.masked_fill(torch.eye(12, dtype=torch.bool), -math.inf).log_softmax(1)
    shared = (y[:, None] & y).sum(2).double()
    union = (y[:, None] | y).sum(2).clamp(min=1)
    both = torch.eye(12, dtype=torch.float64).roll(6, 0)
    alike = ((y[:, None] == y).all(2) & y.any(1)).double()
    others = y.double() @ (y.double() / (y.sum(0) - 1).clamp(min=1)).T
    log_p.fill_diagonal_(0)
    weights: dict[params.Objective, torch.Tensor] = {
        "nt_xent": both,
        "supcon_any": (shared > 0).double(),
        "supcon_all": alike,
        "jaccard": shared / union,
    }
    for name, W in weights.items():
        W.fill_diagonal_(0)
        rows = W.sum(1) > 0
        expected = -(W * log_p).sum(1)[rows] / W.sum(1)[rows]
        torch.testing.assert_close(pretrain.contrast(z, y, name, 0.3), expected.mean())
    expected = -(others * log_p).sum() / y.sum()
    torch.testing.assert_close(pretrain.contrast(z, y, "mulsupcon", 0.3), expected)


def test_nt_xent_may_have_a_share_of_the_loss(store: tiles.TileStore, tmp_path: Path) -> None:
    z, y = torch.randn(12, 5, dtype=torch.float64), (torch.rand(6, 4) < 0.5).repeat(2, 1)
    plain, own = pretrain.contrast(z, y, "nt_xent", 0.3), pretrain.contrast(z, y, "mulsupcon", 0.3)
    found = pretrain.contrast(z, y, "mulsupcon", 0.3, nt_xent_weight=0.2)
    torch.testing.assert_close(found, 0.2 * plain + 0.8 * own)
    ends = {w: resolve("jaccard", pretrain={"nt_xent_weight": w, "epochs": 1}) for w in (0.0, 0.5, 1.0)}
    first = {}
    for weight, arm in ends.items():
        run(store, tmp_path / str(weight), arm)
        (first[weight],) = losses(tmp_path / str(weight) / arm.key)
    assert len(set(first.values())) == 3
    with pytest.raises(
        params.ParamsError, match=r"nt_xent_weight 0\.5 goes with an objective that sees labels"
    ):
        resolve("simclr", pretrain={"nt_xent_weight": 0.5})


class Net(torch.nn.Module):
    """Rows (b,3,8,8) → z (b,5)."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        norm = torch.nn.BatchNorm2d(6) if batch_norm else torch.nn.GroupNorm(2, 6)
        self.layers = torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3), norm, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(216, 5)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(x)
        return out


def gradients(
    net: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, objective: params.Objective, size: int | None
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients by `step.backward`; x (2,B,3,8,8)."""

    def encode(part: steps.Part) -> torch.Tensor:
        z: torch.Tensor = net(x[:, part.own].flatten(0, 1)).unflatten(0, (2, -1))
        return z

    net.zero_grad()
    loss = steps.backward(
        net,
        encode,
        steps.cut(x.shape[1], size),
        lambda z: pretrain.contrast(z.flatten(0, 1), y.repeat(2, 1), objective, 0.3),
    )
    return loss, [p.grad.clone() for p in net.parameters() if p.grad is not None]


@pytest.mark.parametrize("objective", ["nt_xent", *SUPERVISED])
@pytest.mark.parametrize("size", [2, 3, 5, 13])
def test_cached_gradients_are_those_of_the_whole_batch(objective: params.Objective, size: int) -> None:
    net = Net(batch_norm=False).double()
    x, y = torch.randn(2, 13, 3, 8, 8, dtype=torch.float64), torch.rand(13, 4) < 0.4
    loss, found = gradients(net, x, y, objective, size)
    net.zero_grad()
    expected = pretrain.contrast(net(x.flatten(0, 1)), y.repeat(2, 1), objective, 0.3)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach(), rtol=0, atol=1e-12)
    for grad, parameter in zip(found, net.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=1e-10)


def test_cached_gradients_normalise_by_micro_batch_and_move_statistics_once() -> None:
    net = Net(batch_norm=True).double()
    x, y = torch.randn(2, 12, 3, 8, 8, dtype=torch.float64), torch.rand(12, 4) < 0.4
    twin = Net(batch_norm=True).double()
    twin.load_state_dict(net.state_dict())
    _, found = gradients(net, x, y, "nt_xent", 4)
    chunks = [x[:, start : start + 4].flatten(0, 1) for start in (0, 4, 8)]
    z = torch.cat([twin(chunk).unflatten(0, (2, -1)) for chunk in chunks], 1)
    pretrain.contrast(z.flatten(0, 1), y.repeat(2, 1), "nt_xent", 0.3).backward()
    for grad, parameter in zip(found, twin.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=0, atol=1e-10)
    inside = [net.layers[0](chunk) for chunk in chunks]  # (8,6,6,6)
    norm = net.layers[1]
    mean = torch.stack([h.mean((0, 2, 3)) for h in inside]).mean(0)
    var = torch.stack([h.var((0, 2, 3)) for h in inside]).mean(0)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var)
    assert norm.num_batches_tracked == 1


def test_a_micro_batch_takes_both_views_of_its_tiles_and_the_draws_of_the_whole_batch(
    store: tiles.TileStore, tmp_path: Path
) -> None:
    changes = {"arch": "squeezenet1_1", "projection": {"batch_norm": False}, "epochs": 2}  # no BatchNorm
    run(store, tmp_path / "a", resolve(pretrain=changes))
    run(store, tmp_path / "b", resolve(pretrain={**changes, "micro_batch_size": 3}))
    found, expected = losses(tmp_path / "b" / "simclr-s0"), losses(tmp_path / "a" / "simclr-s0")
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found, expected, rtol=1e-3)  # Adam's first steps blow rounding up


def test_cached_runs_are_resumed_exactly(store: tiles.TileStore, tmp_path: Path) -> None:
    arm = resolve(pretrain={"micro_batch_size": 3})

    def stop(_epoch: int, _: Mapping[str, float]) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run(store, tmp_path / "a", arm, stop)
    resumed = run(store, tmp_path / "a", arm)
    assert same(resumed, run(store, tmp_path / "b", arm))
    assert not same(resumed, run(store, tmp_path / "c", resolve()))
    assert (
        resumed["conv1.1.num_batches_tracked"]
        == run(store, tmp_path / "c", resolve())["conv1.1.num_batches_tracked"]
    )


def test_a_warm_restart_goes_on_from_the_other_arms_encoder(store: tiles.TileStore, tmp_path: Path) -> None:
    first = run(store, tmp_path, resolve())
    start = tmp_path / "simclr-s0" / "encoder.safetensors"
    still = resolve("baseline")
    assert same(run(store, tmp_path / "still", still, start=start), first)
    arm = resolve("jaccard")
    warm = run(store, tmp_path / "warm", arm, start=start)
    assert not same(warm, first)
    assert not same(warm, run(store, tmp_path / "cold", arm))
    key = pretrain.fingerprint(arm.settings, 0, store.digest, start)
    assert key != pretrain.fingerprint(arm.settings, 0, store.digest)
    start.write_bytes(start.read_bytes() + b"x")
    assert key != pretrain.fingerprint(arm.settings, 0, store.digest, start)


@pytest.mark.parametrize(
    ("arms", "run_", "says"),
    [
        ({"a": "b"}, ["baseline"], ["arms.a.pretrain.from", "'b'", "params.yaml has"]),
        ({"a": "a"}, ["baseline"], ["leads back: a from a"]),
        ({"a": "b", "b": "a"}, ["baseline"], ["leads back: a from b from a"]),
        ({"a": "simclr"}, ["baseline", "a"], ["'simclr' is not in run"]),
        ({"a": "simclr"}, ["a", "simclr"], ["'simclr' is behind it in run"]),
        ({"a": "simclr"}, ["baseline", "simclr", "a"], []),
        ({"a": "simclr"}, ["baseline"], []),
    ],
)
def test_a_warm_restart_that_cannot_be_is_named(
    arms: dict[str, str], run_: list[str], says: list[str], tmp_path: Path
) -> None:
    tree = tiny_params() | {"run": run_}
    tree["arms"] |= {arm: {"pretrain": {"from": start}} for arm, start in arms.items()}
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(tree))
    if not says:
        loaded = params.load(path)
        arm = params.resolve(loaded, "tiny", "a", 0)
        assert arm.settings.pretrain.from_ == arm.flat()["pretrain.from"] == "simclr"
        return
    with pytest.raises(params.ParamsError) as caught:
        params.load(path)
    assert all(text in str(caught.value) for text in says), str(caught.value)


def test_a_warm_restart_says_which_arm_to_run_first(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    project(lambda tree: tree["arms"].update(warm={"pretrain": {"from": "simclr"}}))
    monkeypatch.setattr(sys, "argv", ["satclr", "pretrain", "--arm", "warm", "--seed", "3"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "`satclr pretrain --profile tiny --arm simclr --seed 3`" in message
    assert "simclr-s3/encoder.safetensors does not exist" in message


def test_the_number_of_processes_is_no_part_of_a_fingerprint(store: tiles.TileStore) -> None:
    one, two = (resolve(pretrain={"processes": n}).settings for n in (1, 2))
    assert pretrain.fingerprint(one, 0, store.digest) == pretrain.fingerprint(two, 0, store.digest)


def test_compiling_goes_with_one_process(
    store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(params.ParamsError, match="compile goes with processes: 1, not with processes: 2"):
        resolve(pretrain={"compile": True, "processes": 2})
    monkeypatch.setenv("WORLD_SIZE", "2")  # torchrun's doing
    with pytest.raises(pretrain.RunError, match=r"pretrain\.compile goes with one process, not with 2"):
        pretrain.train(
            store, settings=resolve(pretrain={"compile": True}).settings, seed=0, root=tmp_path,
            folder=tmp_path, log=lambda *_: None,
        )  # fmt: skip
