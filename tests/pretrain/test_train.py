import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from satclr import files, machine, randomness
from satclr.data import tiles
from satclr.params import WITHOUT_LABELS, Objective
from satclr.pretrain import checkpoint, encoder, optimizer, train
from satclr.project import Run
from tests.conftest import ROOT, make_run
from tests.pretrain.conftest import at_step, losses, make_root, pretrained, pretrained_anew, same, threads


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(checkpoint, "CHECKPOINT_AFTER_S", 0.0)


MULCON: dict[str, Any] = {"views": {"crop_px": 64}}  # whose feature map has four cells


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def break_off(
    run: Run, step: int, do: Callable[[torch.nn.Module], object], patches: pytest.MonkeyPatch, *,
    error: type[BaseException] = KeyboardInterrupt, match: str | None = None,
) -> None:  # fmt: skip
    """Pretrain anew, with `do(model)` before a step, which ends it with `error`."""
    with patches.context() as patch:
        patch.setattr(optimizer, "backward", at_step(step, do))
        with pytest.raises(error, match=match):
            pretrained_anew(run)


def test_objective_none_writes_the_initial_encoder(root: Path) -> None:
    run = make_run(root, "baseline")
    initial = pretrained(run)
    assert losses(run) == []
    facts = files.load_facts(run.encoder)
    assert facts["arch"] == '"shufflenet_v2_x0_5"'
    assert (facts["precision"], facts["weights_sha256"]) == ('"float32"', "null")
    assert facts["fingerprint"] == f'"{train.fingerprint(run)}"'
    trained, other = pretrained(make_run(root)), pretrained(make_run(root, "baseline", seed=1))
    assert initial.keys() == trained.keys()
    assert not same(initial, trained)
    assert not same(initial, other)


@pytest.mark.parametrize(
    ("step", "arm", "changes"),
    [
        (3, "simclr", {"pretrain": {"optimizer": "adam"}}),  # within an epoch of four steps
        (4, "simclr", {"pretrain": {"optimizer": "adamw", "micro_batch_size": 3}}),  # its last
        (5, "simclr", {"pretrain": {"optimizer": "lars", "schedule": "cosine", "warmup_epochs": 1}}),  # then the next
        (6, "simclr", {"pretrain": {"select": "best"}}),
        (6, "msc_reg", {}),  # with prototypes
        (6, "mulsupcon_moco", {"pretrain": {"queue": {"length": 20, "momentum": 0.9}, "micro_batch_size": 3}}),
        (6, "mulcon", MULCON),  # in its second phase
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    arm: str, changes: dict[str, Any], step: int, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(root, arm, **changes)
    whole, curve = pretrained(run), losses(run)
    break_off(run, step, interrupt, monkeypatch)
    assert same(pretrained(run), whole)
    assert losses(run) == curve


@pytest.mark.parametrize("step", [2, 4, 8])  # within an epoch, at its end, at the end of the run
def test_a_signal_saves_a_checkpoint_first(step: int, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHECKPOINT_AFTER_S", 1e9)  # no other checkpoint
    run = make_run(root)
    whole = pretrained(run)
    with monkeypatch.context() as patch:
        patch.setattr(machine.stop, "_handle", interrupt)
        patch.setattr(machine.stop, "requested", None)
        break_off(run, step, lambda _: setattr(machine.stop, "requested", signal.SIGTERM), patch)
    calls: list[int] = []
    monkeypatch.setattr(optimizer, "backward", at_step(1, lambda _: calls.append(1)))
    assert same(pretrained(run), whole)
    assert bool(calls) == (step < 8)


KILLED = """
import sys
from pathlib import Path
from satclr.pretrain import train
from tests.conftest import make_run
train.run(make_run(Path(sys.argv[1]), pretrain={"epochs": 4}), lambda *_: None)
"""


def test_a_run_killed_with_sigkill_gives_bit_identical_weights(store: tiles.TileStore, tmp_path: Path) -> None:
    runs = [make_run(make_root(tmp_path / name, store)) for name in "ab"]

    def start(run: Run) -> subprocess.Popen[bytes]:
        paths = os.pathsep.join(filter(None, sys.path))
        environment = os.environ | {"PYTHONPATH": paths, "SATCLR_CHECKPOINT_AFTER_S": "0"}
        return subprocess.Popen([sys.executable, "-c", KILLED, str(run.root)], cwd=ROOT, env=environment)

    process = start(runs[0])
    while not list(runs[0].root.rglob(checkpoint.FILE)):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not runs[0].encoder.exists()
    assert [process.wait() for process in [start(run) for run in runs]] == [0, 0]
    assert runs[0].encoder.read_bytes() == runs[1].encoder.read_bytes()
    assert losses(runs[0]) == losses(runs[1])


def test_arms_select_among_the_kept_epochs_of_one_pretraining(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for select in ("last", 1, 2, "best", "arbitrary"):
        run = make_run(root, pretrain={"epochs": 3, "keep_epochs": "all", "select": select})
        run = replace(run, arm=f"simclr_{select}")
        found[select] = pretrained(run)
        assert ("reusing the encoder" in capsys.readouterr().err) == (select != "last")
        facts = files.load_facts(run.encoder)
        expected = randomness.epoch(select, losses(run), 0, "pretrain")
        assert (facts["epoch"], len(losses(run))) == (str(expected), 3)
        assert same(found[select], found["last" if expected == 3 else expected])
    for epochs, select in ((1, 1), (2, 2), (3, "last")):  # what a pretraining of so many epochs ends with
        assert same(pretrained(make_run(root, pretrain={"epochs": epochs})), found[select])
    capsys.readouterr()
    alone = make_run(root, pretrain={"epochs": 3, "select": 2})  # keeps this epoch only, so it is another pretraining
    assert same(pretrained(alone), found[2])
    assert "reusing" not in capsys.readouterr().err
    assert {path.name for path in root.rglob("epochs/*")} == {f"00{i}.safetensors" for i in (1, 2, 3)}


def test_a_fingerprint_covers_settings_seed_tiles_and_precision(
    root: Path, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = train.fingerprint(make_run(root))
    assert key == train.fingerprint(make_run(root, probe={"epochs": 9}))
    assert key == train.fingerprint(replace(make_run(root), arm="other", processes=2, deterministic=False))
    auto = make_run(root, pretrain={"precision": "auto"})
    monkeypatch.setattr(machine, "_bfloat16", lambda: (False, ""))
    assert key == train.fingerprint(auto)
    monkeypatch.setattr(machine, "_bfloat16", lambda: (True, ""))
    others = [auto, make_run(root, pretrain={"temperature": 0.4}), make_run(root, views={"flip_p": 0.4})]
    keys = {train.fingerprint(run) for run in (*others, make_run(root, seed=1))}
    normalization = {**store.stats["normalization"], "train": store.stats["normalization"]["imagenet"]}
    for change in ({"digest": "other tiles"}, {"normalization": normalization}):
        other = replace(store, stats=store.stats | change)
        with monkeypatch.context() as patch:
            patch.setattr(tiles, "open_store", lambda _, other=other: other)
            keys.add(train.fingerprint(make_run(root)))
    assert len(keys - {key}) == 6
    (root / "build" / "tiny").unlink()
    with pytest.raises(tiles.TileError, match="run `satclr prepare --profile tiny` first"):
        train.fingerprint(make_run(root))


def test_weights_may_be_an_encoder_of_ours(root: Path) -> None:
    first = make_run(root)
    state = pretrained(first)
    weights = str(first.encoder.relative_to(root))
    still = make_run(root, "baseline", pretrain={"weights": weights})
    assert same(pretrained(still), state)
    assert files.load_facts(still.encoder)["weights_sha256"] == f'"{files.sha256(first.encoder)}"'
    warm = make_run(root, "jaccard", pretrain={"weights": weights})
    key = train.fingerprint(warm)
    assert not same(pretrained(warm), pretrained(make_run(root, "jaccard")))
    first.encoder.write_bytes(first.encoder.read_bytes() + b"x")
    assert train.fingerprint(warm) != key
    first.encoder.unlink()
    with pytest.raises(encoder.EncoderError, match=r"encoder\.safetensors does not exist"):
        train.fingerprint(warm)


def poison(model: torch.nn.Module) -> None:
    with torch.no_grad():
        next(model.parameters()).mul_(torch.inf)


def test_the_last_good_checkpoint_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(root)
    whole = pretrained(run)
    message = r"the loss is nan in epoch 2, step 2; its 8 tiles begin with \w+\.jpg"
    break_off(run, 6, poison, monkeypatch, error=checkpoint.RunError, match=message)
    (kept,) = root.rglob(checkpoint.FILE)
    files.load_tensors(kept)  # raises for what is not finite
    assert same(pretrained(run), whole)


def test_bfloat16_does_not_change_the_course(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full, half = make_run(root), replace(make_run(root, pretrain={"precision": "bfloat16"}), arm="half")
    pretrained(full)
    pretrained(half)
    np.testing.assert_allclose(losses(half), losses(full), rtol=0.05)
    assert losses(half) != losses(full)
    assert "pretraining in bfloat16: as set" in capsys.readouterr().err
    assert files.load_facts(half.encoder)["precision"] == '"bfloat16"'


@pytest.mark.parametrize("objective", [name for name in get_args(Objective) if name not in WITHOUT_LABELS])
def test_supervised_objectives_use_the_labels_of_training_tiles_alone(
    objective: str, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    run = make_run(root, objective, pretrain={"epochs": 1}, **(MULCON if objective == "mulcon" else {}))
    training = (store.splits == "train")[:, None]
    weights = pretrained(run)
    others = np.where(training, store.targets, 1 - store.targets), np.roll(store.targets, 1, axis=0)
    for targets, expected in zip(others, (True, False), strict=True):
        other = replace(store, targets=targets)
        monkeypatch.setattr(tiles, "open_store", lambda _, other=other: other)
        assert same(pretrained_anew(run), weights) == expected


def test_shuffled_labels_are_those_of_other_training_tiles(
    store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    own, plain = (make_run(root, "jaccard", pretrain={"shuffle_labels": s}) for s in (True, False))
    other = train._shuffled(store, own.seed)
    rows, rest = store.rows("train"), np.flatnonzero(store.splits != "train")
    assert not np.array_equal(other.targets[rows], store.targets[rows])
    assert sorted(map(bytes, other.targets[rows])) == sorted(map(bytes, store.targets[rows]))
    assert np.array_equal(other.targets[rest], store.targets[rest])
    weights, unshuffled = pretrained(own), pretrained(plain)
    monkeypatch.setattr(tiles, "open_store", lambda _: other)
    assert same(pretrained_anew(plain), weights)
    assert not same(unshuffled, weights)


@pytest.mark.parametrize(("which", "objective"), [("both", "nt_xent"), ("unlabelled", "nt_xent"), ("both", "jaccard")])
def test_unlabelled_tiles_are_learned_from_like_training_tiles_without_labels(
    which: str, objective: str, store: tiles.TileStore, monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    own, plain = (make_run(root, pretrain={"objective": objective, "tiles": t}) for t in (which, "train"))
    half = np.flatnonzero(store.splits == "train")[::2]
    splits, targets = store.splits.astype("U10"), store.targets.copy()
    splits[half], targets[half] = "unlabelled", 0
    left_out = (splits == "train") & (which == "unlabelled")
    as_training = np.where(left_out, "", np.where(splits == "unlabelled", "train", splits))
    monkeypatch.setattr(tiles, "open_store", lambda _: replace(store, splits=splits, targets=targets))
    weights, ordinary = pretrained(own), pretrained(plain)
    monkeypatch.setattr(tiles, "open_store", lambda _: replace(store, splits=as_training, targets=targets))
    assert same(pretrained_anew(plain), weights)
    assert not same(ordinary, weights)


def test_micro_batches_take_both_views_of_their_tiles_and_the_draws_of_the_whole_batch(root: Path) -> None:
    changes = {"arch": "squeezenet1_1", "projection": {"batch_norm": False}, "epochs": 2}  # no BatchNorm
    run = make_run(root, pretrain=changes)
    pretrained(run)
    expected = losses(run)
    pretrained(make_run(root, pretrain={**changes, "micro_batch_size": 3}))
    np.testing.assert_allclose(losses(run)[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(losses(run), expected, rtol=1e-3)  # Adam's first steps magnify rounding


def test_what_processes_cannot_do_is_one_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net = torch.nn.Linear(2, 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(checkpoint.RunError, match="3 processes cannot share 2 tiles"):
        train._model(net, 2, make_run(root, pretrain={"micro_batch_size": 2}), optimizer.cut(8, 2), labels=3)
    with pytest.raises(checkpoint.RunError, match=r"pretrain\.compile requires one process, not 3"):
        train._model(net, 2, make_run(root, pretrain={"compile": True}), optimizer.cut(8, None), labels=3)


# Of one and the same encoder, and of what training makes of that: rounding grows with every step.
FEATURES_ATOL = 1e-5
LOSS_ATOL = 0.1  # of an epoch (2.7)
WEIGHTS_ATOL = 0.005  # learned ones; twice the learning rate times the steps


def test_two_threads_train_and_encode_the_same_within_the_stated_tolerances(
    store: tiles.TileStore, tmp_path: Path
) -> None:
    runs, states, features = [make_run(make_root(tmp_path / name, store)) for name in ("one", "two")], [], []
    for count, run in enumerate(runs, 1):
        with threads(count):
            states.append(pretrained(run))
            features.append(encoder.Frozen(runs[0].encoder)(torch.from_numpy(store.pixels[:32].copy())))
    one, two = states
    for key in one:
        if "running" not in key and one[key].dtype == np.float32:
            assert np.abs(one[key] - two[key]).max() <= WEIGHTS_ATOL, key
    np.testing.assert_allclose(losses(runs[0]), losses(runs[1]), atol=LOSS_ATOL)
    np.testing.assert_allclose(features[0], features[1], atol=FEATURES_ATOL)
