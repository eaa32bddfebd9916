"""Two gloo processes against one: this file is also what the two run (`python -m tests.test_distributed`)."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import psutil
import pytest
import torch
import yaml

from satclr.pretrain import distributed, stage as pretrain
from satclr.evaluation import embed
from satclr import params
from satclr.data import prepare, tiles
from satclr.pretrain.stage import loop
from satclr.pretrain.stage import step as steps

from .conftest import ROOT, resolve

B = 13  # tiles a batch: an odd number, so that shares differ
OBJECTIVES = [name for name in get_args(params.Objective) if name != "none"]
CASES = [(name, norm, size) for name in OBJECTIVES for norm in ("group", "batch") for size in (None, 5)]
# No blur, whose sums round differently in another chunk of views, and no BatchNorm: Adam's first steps on batches
# this small blow rounding up. That views do not depend on their chunk is tested in test_views.
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


def normalized(folder: Path) -> list[torch.Tensor]:
    """BatchNorm of this process's rows in bfloat16, as autocast has it: output and input gradient (B,3,8,8), zero
    where the rows are others', the parameters' gradients and the statistics."""
    x, upstream = (half.bfloat16() * 3 + 20 for half in torch.load(folder / "batch.pt")[0])
    layer = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    distributed.synchronize_batch_norm(layer)
    own = distributed.share(slice(0, B))
    rows = x[own].requires_grad_()
    out = layer(rows)
    out.backward(upstream[own])
    y, by_rows = torch.zeros(2, *x.shape)
    y[own], by_rows[own] = out.detach().float(), rows.grad.float()
    norm = layer[0]
    return [y, by_rows, norm.weight.grad, norm.bias.grad, norm.running_mean, norm.running_var]


def train(store: tiles.TileStore, folder: Path, *, die_after: int | None = None) -> None:
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


def work(store: tiles.TileStore, folder: Path) -> None:
    """All that is compared, as one of several processes or as one alone."""
    with distributed.group("cpu"):
        torch.save(losses_and_gradients(folder), folder / f"found-{distributed.rank()}.pt")
        torch.save(normalized(folder), folder / f"normalized-{distributed.rank()}.pt")
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
    environment: None, store: tiles.TileStore, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """What one process alone left, and what two did."""
    draw = torch.Generator().manual_seed(0)  # one draw: float32 rounding passes 1e-6 on some
    batch = torch.randn(2, B, 3, 8, 8, generator=draw), torch.rand(B, 4, generator=draw) < 0.4
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


def test_two_processes_normalise_bfloat16_as_one(folders: tuple[Path, Path]) -> None:
    one, two = folders
    y, by_x, *others = torch.load(one / "normalized-0.pt")
    both = [torch.load(two / f"normalized-{rank}.pt") for rank in (0, 1)]
    torch.testing.assert_close(both[0][0] + both[1][0], y, rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(both[0][1] + both[1][1], by_x, rtol=2e-2, atol=2e-2 * float(by_x.abs().max()))
    for i, expected in enumerate(others[:2], 2):  # summed over processes by sum_gradients
        torch.testing.assert_close(both[0][i] + both[1][i], expected, rtol=1e-3, atol=1e-2)
    for i, expected in enumerate(others[2:], 4):
        for found in both:
            torch.testing.assert_close(found[i], expected, rtol=1e-4, atol=1e-4)


def test_two_processes_train_as_one(folders: tuple[Path, Path]) -> None:
    one, two = folders
    np.testing.assert_allclose(losses(two), losses(one), rtol=1e-4)
    assert sorted(path.name for path in two.glob("heard-*")) == ["heard-0-1", "heard-0-2", "heard-0-3"]
    features, expected = np.load(two / "features.npy"), np.load(one / "features.npy")
    assert features.shape == expected.shape
    np.testing.assert_allclose(features, expected, rtol=1e-2, atol=1e-2 * np.abs(expected).max())


def test_a_process_that_dies_ends_the_run_and_another_number_goes_on_with_it(
    folders: tuple[Path, Path], store: tiles.TileStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
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


class Endless:
    """`satclr pretrain` in several processes, with epochs that do not end."""

    def __init__(self, root: Path, count: int, *, torchrun: bool = False) -> None:
        tree = yaml.safe_load((root / "params.yaml").read_text())
        tree["profiles"]["tiny"]["pretrain"]["processes"] = 1 if torchrun else count
        (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        command = [sys.executable, "-m", "satclr", "pretrain", "--arm", "simclr"]
        if torchrun:
            options = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
            command[1:1] = options
        self.log = root / f"log-{time.monotonic_ns()}"
        with self.log.open("w") as log:
            self.launcher = subprocess.Popen(command, cwd=root, stderr=log)

    def workers(self) -> dict[int, psutil.Process]:
        """The processes that the launcher has started, by rank."""
        children = psutil.Process(self.launcher.pid).children()
        return {int(child.environ()["RANK"]): child for child in children}

    def wait_for(self, what: Callable[[], object]) -> None:
        while not what():
            assert self.launcher.poll() is None, self.log.read_text()
            time.sleep(0.1)

    def says(self, text: str) -> bool:
        return text in self.log.read_text()

    def kill(self, rank: int) -> tuple[int, str, float]:
        """SIGKILL for a worker: the launcher's exit code, all that was said, and seconds until the end."""
        all_of_them = self.workers()
        started = time.monotonic()
        all_of_them[rank].kill()
        code = self.launcher.wait()
        assert not any(worker.is_running() for worker in all_of_them.values())
        return code, self.log.read_text(), time.monotonic() - started


@pytest.mark.slow
def test_a_worker_of_the_command_line_can_be_killed_and_another_number_goes_on(
    project: Callable[..., Path], environment: None
) -> None:
    root = project(
        lambda tree: tree["profiles"]["tiny"]["pretrain"].update(epochs=10_000, precision="bfloat16")
    )
    prepare.run(root / "data" / "tiny", root / "build" / "tiny", resolve().settings.data)
    run = Endless(root, 2)
    run.wait_for(lambda: list(root.rglob("checkpoint.safetensors")))
    code, said, took_s = run.kill(1)
    assert (code, "error: process 1 of 2 was killed by SIGKILL" in said) == (1, True), said
    assert took_s < 15
    run = Endless(root, 3, torchrun=True)
    run.wait_for(lambda: run.says("going on from the checkpoint after epoch"))
    code, said, took_s = run.kill(0)
    assert (code, "rank      : 0" in said, "Signal 9 (SIGKILL)" in said) == (1, True, True), said
    assert took_s < 15
    run = Endless(root, 2)
    run.wait_for(lambda: run.says("going on from the checkpoint after epoch"))
    orphans = run.workers().values()
    run.launcher.kill()
    run.launcher.wait()
    _, alive = psutil.wait_procs(orphans, timeout=15)
    assert not alive


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
    store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(pretrain.RunError, match="3 processes cannot share 2 tiles"):
        loop._check_size(8, 33, 2)


if __name__ == "__main__":
    loop.CHECKPOINT_AFTER_S, loop.CHECKPOINT_SHARE = 0.0, 0
    opened, target = tiles.open_store(Path(sys.argv[2])), Path(sys.argv[3])
    if sys.argv[1] == "work":
        work(opened, target)
    else:
        train(opened, target, die_after=2)
