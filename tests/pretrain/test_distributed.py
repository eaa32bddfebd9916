"""Two gloo processes against one; this file is also what the two run (`python -m tests.pretrain.test_distributed`).

Sums over processes are taken in another order than sums in one, so results differ by rounding: a sum of n terms is
off by at most n · epsilon · Σ|terms| (Higham, "Accuracy and Stability of Numerical Algorithms", section 4.2).
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
import yaml
from torch import Tensor

from satclr import files, settings
from satclr.data.tiles import TileStore
from satclr.pretrain import checkpoint, distributed, optimizer, train
from tests.conftest import ROOT, make_run, tiny_params
from tests.pretrain.conftest import at_step, losses, make_root
from tests.pretrain.test_optimizer import OBJECTIVES, cached, net

B = 13  # tiles per batch: an odd number, so that shares differ
CASES = [(name, norm, size) for name in OBJECTIVES for norm in ("group", "batch") for size in (None, 5)]
TERMS = 2 * B * 36 + 216 + 2 * B  # longest sums: rows and pixels of a weight's gradient, the linear layer, the loss
# No BatchNorm, and LARS, whose steps are a continuous function of the gradient: Adam's first steps, of the size of the
# learning rate whatever the gradient, make rounding visible. No blur: its sums depend on the chunk of views.
CALM: dict[str, Any] = {"arch": "squeezenet1_1", "projection": {"batch_norm": False}, "optimizer": "lars"}
CALM = {"views": {"blur_p": 0.0}, "pretrain": CALM | {"learning_rate": 1.0, "epochs": 3, "select": 2}}
NORMED: dict[str, Any] = {"views": CALM["views"], "pretrain": {"optimizer": "lars", "knn_every_epochs": 1}}
CALM_TERMS = 16 * 15 * 15 + 9 * 64 + 512  # views and pixels of the first layer, longest convolution, projection

Results = dict[str, list[Tensor]]


def losses_and_gradients() -> Results:
    """For each case the loss, then every gradient, then every buffer."""
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, B, 3, 8, 8, generator=draw).double(), torch.rand(B, 4, generator=draw) < 0.4
    results: Results = {}
    for name, norm, size in CASES:
        model = net(norm)
        distributed.synchronize_batch_norm(model)
        loss, gradients = cached(model, x, y, name, size)
        assert not any(buffer.requires_grad for buffer in model.buffers()), "running statistics keep no graph"
        results[f"{name} {norm} {size}"] = [loss, *gradients, *(b.double() for b in model.buffers())]
    return results


def work(root: Path) -> None:
    """All that is compared, as one of several processes or as one alone."""
    with distributed.group("cpu"):
        torch.save(losses_and_gradients(), root / f"results-{distributed.rank()}.pt")
        train.run(make_run(root, **CALM), lambda epoch, _: (root / f"log-{distributed.rank()}-{epoch}").touch())
        train.run(make_run(root, seed=1, **NORMED), lambda *_: None)


def launch(
    count: int, *arguments: str, where: Sequence[str] = ("--standalone",), **options: Any
) -> subprocess.Popen[Any]:
    torchrun = ["-m", "torch.distributed.run", *where, f"--nproc-per-node={count}", "-m", *arguments]
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "SATCLR_CHECKPOINT_AFTER_S": "0"}
    return subprocess.Popen([sys.executable, *torchrun], env=environment, **{"cwd": ROOT} | options)


@pytest.fixture(scope="module")
def roots(store: TileStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The project folders of one process alone and of two."""
    one, two = (make_root(tmp_path_factory.mktemp(name), store) for name in ("one", "two"))
    work(one)
    assert launch(2, "tests.pretrain.test_distributed", "work", str(two)).wait() == 0
    return one, two


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_give_the_loss_and_gradients_of_one(
    case: tuple[str, str, int | None], roots: tuple[Path, Path]
) -> None:
    name = "{} {} {}".format(*case)
    expected = torch.load(roots[0] / "results-0.pt")[name]
    assert max(float(value.abs().max()) for value in expected[1:9]) > 1e-3
    bound = TERMS * torch.finfo(torch.float64).eps * max(1.0, *(float(v.abs().max()) for v in expected))
    for rank in (0, 1):
        results = torch.load(roots[1] / f"results-{rank}.pt")[name]
        assert len(results) == len(expected) > 8
        for a, b in zip(results, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=bound)


def test_two_processes_train_as_one(roots: tuple[Path, Path]) -> None:
    one, two = (losses(make_run(root, **CALM)) for root in roots)
    np.testing.assert_allclose(two, one, rtol=CALM_TERMS * 2**-23)
    assert abs(one[-1] - one[0]) > 1e-3  # the weights did move
    assert [files.load_facts(make_run(root, **CALM).encoder)["epoch"] for root in roots] == ["2", "2"]
    assert sorted(path.name for path in roots[1].glob("log-*")) == ["log-0-1", "log-0-2", "log-0-3"]


def test_diagnostics_of_two_processes_are_those_of_one(roots: tuple[Path, Path]) -> None:
    one, two = (files.read_csv(make_run(root, seed=1).results / "pretrain.csv") for root in roots)
    for a, b in zip(one, two, strict=True):
        assert float(b["knn_val_mAP"]) > 0  # nearest neighbours of so small an encoder hang on rounding
        for name in ("loss", "effective_rank", "projection_rank"):
            assert float(b[name]) == pytest.approx(float(a[name]), rel=0.01), name


def test_a_process_that_dies_ends_the_run_and_another_number_resumes_it(
    roots: tuple[Path, Path], store: TileStore, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = make_root(tmp_path / "root", store)
    assert launch(2, "tests.pretrain.test_distributed", "die", str(root)).wait() == 1
    assert time.time() - (root / "died").stat().st_mtime < 15
    run = make_run(root, **CALM)
    assert not run.encoder.exists()
    capfd.readouterr()
    train.run(run, lambda *_: None)
    assert "resuming from the checkpoint after epoch 1, step 1" in capfd.readouterr().err
    np.testing.assert_allclose(losses(run), losses(make_run(roots[0], **CALM)), rtol=CALM_TERMS * 2**-23)


def die(root: Path) -> None:
    def kill(_model: object) -> None:
        distributed.agree(True, device=torch.device("cpu"))  # process 0 has written the checkpoint of step 5
        if distributed.rank() == 1:
            (root / "died").touch()
            os.kill(os.getpid(), 9)

    optimizer.backward = at_step(6, kill)
    train.run(make_run(root, **CALM), lambda *_: None)


@pytest.mark.slow
def test_torchrun_and_the_command_line_resume_each_other_and_leave_nothing_running(
    store: TileStore, tmp_path: Path
) -> None:
    root, tree = make_root(tmp_path / "root", store), tiny_params()
    tree["profiles"]["tiny"]["pretrain"]["epochs"] = 10_000
    tree["machine"]["processes"] = 3
    (root / "params.yaml").write_text(yaml.safe_dump(tree))
    command = ["satclr", "pretrain", "--arm", "simclr"]

    def wait_for(launcher: subprocess.Popen[Any], what: Callable[[], object]) -> None:
        while not what():
            assert launcher.poll() is None, (root / "log").read_text()
            time.sleep(0.1)

    with (root / "log").open("w") as log:
        launcher = launch(2, *command, cwd=root, stderr=log)
        wait_for(launcher, lambda: list(root.rglob(checkpoint.FILE)))
        workers = psutil.Process(launcher.pid).children()
        workers[1].kill()
        assert launcher.wait() == 1
        assert not psutil.wait_procs(workers, timeout=15)[1]
        launcher = subprocess.Popen([sys.executable, "-m", *command], cwd=root, stderr=log)
        wait_for(launcher, lambda: "resuming from the checkpoint" in (root / "log").read_text())
        workers = psutil.Process(launcher.pid).children(recursive=True)
        assert len(workers) >= 3
        launcher.kill()
        launcher.wait()
        assert not psutil.wait_procs(workers, timeout=15)[1]


@pytest.mark.slow
def test_two_nodes_give_what_one_gives_and_resume_without_the_files_of_the_first(
    store: TileStore, tmp_path: Path
) -> None:
    one, first = (make_root(tmp_path / name, store) for name in ("one", "first"))
    tree = tiny_params()
    tree["profiles"]["tiny"] = settings.merge(tree["profiles"]["tiny"], CALM)
    tree["profiles"]["tiny"]["pretrain"]["learning_rate"] = 0.1  # at 1.0 rounding grows within three epochs
    for root in (one, first):
        (root / "params.yaml").write_text(yaml.safe_dump(tree))
    second = tmp_path / "second"
    shutil.copytree(first, second, symlinks=True)

    def launch_nodes(stage: str) -> list[subprocess.Popen[Any]]:
        """One launcher for each copy of the project, as on machines of their own."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"127.0.0.1:{free.getsockname()[1]}"
        nodes = []
        for rank, root in enumerate((first, second)):
            where = ("--nnodes=2", f"--rdzv-endpoint={endpoint}", f"--node-rank={rank}")
            with (root / "log").open("a") as log:
                nodes.append(launch(1, "satclr", stage, "--arm", "simclr", where=where, cwd=root, stderr=log))
        return nodes

    for stage in ("pretrain", "embed"):
        assert launch(1, "satclr", stage, "--arm", "simclr", cwd=one).wait() == 0
    nodes = launch_nodes("pretrain")
    while not list((first / ".cache").rglob(checkpoint.FILE)):
        time.sleep(0.05)
    psutil.Process(nodes[1].pid).children()[0].kill()
    began = time.monotonic()
    assert [node.wait(60) for node in nodes] == [1, 1]
    assert time.monotonic() - began < 60
    assert (first / "log").read_text().count("error (process 0): process 0 of 2 lost another") == 1
    assert not list((second / ".cache").rglob(checkpoint.FILE))
    for stage in ("pretrain", "embed"):
        assert [node.wait() for node in launch_nodes(stage)] == [0, 0], (first / "log").read_text()
    assert "resuming from the checkpoint" in (first / "log").read_text()
    np.testing.assert_allclose(losses(make_run(first)), losses(make_run(one)), rtol=CALM_TERMS * 2**-23)
    features, expected = (np.load(make_run(root).features) for root in (first, one))
    np.testing.assert_allclose(features, expected, rtol=0, atol=CALM_TERMS * 2**-23 * expected.max())


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    {"work": work, "die": die}[sys.argv[1]](Path(sys.argv[2]))
