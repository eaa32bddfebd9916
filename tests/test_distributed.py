"""Two gloo processes against one: this file is also what the two run (`python -m tests.test_distributed`)."""

from __future__ import annotations

import csv
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch

from satclr import distributed, embed, params, pretrain, tiles
from satclr.pretrain import loop
from satclr.pretrain import step as steps

from .conftest import ROOT, resolve

B = 13  # tiles a batch: an odd number, so that shares differ
OBJECTIVES = [name for name in get_args(params.Objective) if name != "none"]
CASES = [(name, norm, size) for name in OBJECTIVES for norm in ("group", "batch") for size in (None, 5)]
# Views as rows alone decide them, and no BatchNorm, whose gradients amplify rounding on batches this small.
CALM: dict[str, Any] = {
    "views": {"blur_p": 0.0},
    "pretrain": {"arch": "squeezenet1_1", "projection": {"batch_norm": False}, "epochs": 3},
}

Found = dict[str, list[torch.Tensor]]


def net(norm: str) -> torch.nn.Sequential:
    """Rows (b,3,8,8) → z (b,5), the same at each call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        batch = norm == "batch"
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 6, 3),
            torch.nn.BatchNorm2d(6) if batch else torch.nn.GroupNorm(2, 6),
            torch.nn.ReLU(),
            torch.nn.Flatten(),
            torch.nn.Linear(216, 7),
            torch.nn.BatchNorm1d(7) if batch else torch.nn.LayerNorm(7),
            torch.nn.Linear(7, 5),
        )


def losses_and_gradients(folder: Path) -> Found:
    """For each case the loss, then every gradient, then every buffer."""
    x, y = torch.load(folder / "batch.pt")
    found: Found = {}
    for objective, norm, size in CASES:
        model = net(norm)
        distributed.synchronize_batch_norm(model)

        def encode(part: steps.Part, model: torch.nn.Module = model) -> torch.Tensor:
            z: torch.Tensor = model(x[:, part.own].flatten(0, 1)).unflatten(0, (2, -1))
            return z

        def loss_of(z: torch.Tensor, objective: params.Objective = objective) -> torch.Tensor:
            return pretrain.contrast(z.flatten(0, 1), y.repeat(2, 1), objective, 0.5)

        loss = steps.backward(model, encode, steps.cut(B, size), loss_of)
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        found[f"{objective} {norm} {size}"] = [loss, *grads, *(b.float() for b in model.buffers())]
    return found


def train(store: tiles.Store, folder: Path, *, die_after: int | None = None) -> None:
    arm = resolve(**CALM)

    def log(epoch: int, _: Mapping[str, float]) -> None:
        (folder / f"heard-{distributed.rank()}-{epoch}").touch()

    if die_after is not None and distributed.rank() == 1:
        real = steps.Step.__call__

        def dying(*args: Any, **named: Any) -> torch.Tensor:
            if named["epoch"] == die_after:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        steps.Step.__call__ = dying  # type: ignore[method-assign]
    pretrain.run(
        store, settings=arm.settings, seed=0, root=folder, out=folder / "encoder.safetensors",
        curve=folder / "pretrain.csv", log=log,
    )  # fmt: skip


def work(store: tiles.Store, folder: Path) -> None:
    """All that is compared, as one of several processes or as one alone."""
    with distributed.group("cpu"):
        torch.save(losses_and_gradients(folder), folder / f"found-{distributed.rank()}.pt")
        train(store, folder)
        how = resolve(embed={"batch_size": 5}).settings
        embed.run(store, encoder=folder / "encoder.safetensors", out=folder / "features.npy", settings=how)


def losses(folder: Path) -> list[float]:
    with (folder / "pretrain.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.fixture(scope="module")
def environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, sys.path)]))
        yield


@pytest.fixture(scope="module")
def folders(
    environment: None, store: tiles.Store, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """What one process alone left, and what two did."""
    batch = torch.randn(2, B, 3, 8, 8), torch.rand(B, 4) < 0.4
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    for folder in (one, two):
        torch.save(batch, folder / "batch.pt")
    work(store, one)
    distributed.launch(2, "-m", "tests.test_distributed", "work", str(store.folder), str(two))
    return one, two


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_give_the_loss_and_gradients_of_one(
    case: tuple[str, str, int | None], folders: tuple[Path, Path]
) -> None:
    one, two = folders
    name = "{} {} {}".format(*case)
    expected = torch.load(one / "found-0.pt")[name]
    for rank in (0, 1):
        found = torch.load(two / f"found-{rank}.pt")[name]
        assert len(found) == len(expected) > 8
        assert max(float(value.abs().max()) for value in expected[1:9]) > 1e-3
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)


def test_two_processes_train_as_one(folders: tuple[Path, Path]) -> None:
    one, two = folders
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    assert sorted(path.name for path in two.glob("heard-*")) == ["heard-0-1", "heard-0-2", "heard-0-3"]
    features, expected = np.load(two / "features.npy"), np.load(one / "features.npy")
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


def test_a_process_that_dies_ends_the_run_and_another_number_goes_on_with_it(
    folders: tuple[Path, Path], store: tiles.Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    started = time.monotonic()
    with pytest.raises(distributed.ProcessError, match="process 1 of 2 was killed by SIGKILL"):
        distributed.launch(2, "-m", "tests.test_distributed", "die", str(store.folder), str(tmp_path))
    died = float((tmp_path / "heard-0-2").stat().st_mtime)
    assert time.time() - died < 15, time.monotonic() - started
    assert not (tmp_path / "encoder.safetensors").exists()
    capfd.readouterr()
    train(store, tmp_path)
    assert "after epoch 2, step 0" in capfd.readouterr().err
    np.testing.assert_allclose(losses(tmp_path), losses(folders[0]), rtol=1e-4)


def test_shares_cover_everything_in_order_and_differ_by_one_at_most() -> None:
    for count in range(1, 40):
        for parts in range(1, count + 1):
            found = distributed.shares(count, parts)
            assert [i for share in found for i in range(count)[share]] == list(range(count))
            sizes = [share.stop - share.start for share in found]
            assert max(sizes) - min(sizes) <= 1
            assert len(sizes) == parts


def test_micro_batches_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [part.tiles for part in steps.cut(50, 8)]
    for count in (2, 3, 5):
        monkeypatch.setenv("WORLD_SIZE", str(count))
        cuts = []
        for rank in range(count):
            monkeypatch.setenv("RANK", str(rank))
            cuts.append(steps.cut(50, 8))
        for i, tiles_ in enumerate(expected):
            assert all(parts[i].tiles == tiles_ for parts in cuts)
            covered = [row for parts in cuts for row in range(50)[parts[i].own]]
            assert covered == list(range(50)[tiles_])
        for parts in cuts:
            assert [row for part in parts for row in range(50)[part.held]] == list(
                range(sum(part.own.stop - part.own.start for part in parts))
            )


def test_too_many_processes_for_a_batch_is_one_error(
    store: tiles.Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(pretrain.RunError, match="3 processes cannot share 2 tiles"):
        loop._check_size(8, 33, 2)


if __name__ == "__main__":
    loop.CHECKPOINT_AFTER_S = 0.0
    opened, target = tiles.open_store(Path(sys.argv[2])), Path(sys.argv[3])
    if sys.argv[1] == "work":
        work(opened, target)
    else:
        train(opened, target, die_after=2)
