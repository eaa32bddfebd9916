"""Run a stage: alone on its files, in several processes if asked, logged and published to MLflow.

Also how its errors read and which exit code they give.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from satclr.project import Project, Run

WATCH_S, BUSY_CORES = 10.0, 0.5
MLFLOW = {"mlflow", "sqlalchemy", "sqlite3"}  # packages whose exceptions mean that the store failed


class StageError(RuntimeError):
    """A stage that failed in another process. Exit code 1."""


class Stage(NamedTuple):
    module: str
    help: str
    shared: bool = False  # among the processes that params.yaml asks for
    live: bool = False  # logs to MLflow while it runs
    publish: bool = False  # to MLflow once its files are written


ARM_STAGES = {
    "pretrain": Stage(
        "pretrain.train",
        "Pretrain an arm's encoder (`objective: none` writes the initial one).",
        shared=True,
        live=True,
    ),
    "embed": Stage("evaluation.embed", "Encode every tile once with an arm's frozen encoder.", shared=True),
    "probe": Stage("evaluation.probe", "Train the linear probe on an arm's features.", live=True),
    "evaluate": Stage("evaluation.evaluate", "Test an arm's probe and publish its run to MLflow.", publish=True),
    "robustness": Stage("evaluation.robustness", "Test an arm on corrupted tiles: haze, clouds, snow, noise and more."),
    "maps": Stage("evaluation.maps", "Map an arm's test tiles to the plane: UMAP, t-SNE, PCA."),
}


def find_project(profile: str | None = None, *, or_ours: bool = False) -> "Project":
    """The project of the working folder, as `project.find`."""
    from satclr import project

    return project.find(profile, or_ours=or_ours)


def profile_stage(module: str, profile: str | None) -> None:
    """Run a stage of a profile, alone on its files."""
    project = find_project(profile)
    with lock(project.root, f"{project.profile}-{module}"):
        import_module(f"satclr.{module}").run(project)


def arm_stage(name: str, arm: str, profile: str | None, seed: int | None) -> None:
    """Run a stage of an arm: alone on its files, with what it logs and publishes."""
    stage, others = ARM_STAGES[name], _Others()
    run = find_project(profile).run(arm, seed)
    if stage.shared:
        others.make_room()
    if stage.publish:
        from satclr.tracking import runs, store

        store.preload()
    module = import_module(f"satclr.{stage.module}")
    fingerprint = module.fingerprint(run) if stage.live else ""
    with lock(run.root, f"{name}-{fingerprint[:16]}" if fingerprint else f"{run.profile}-{name}-{run.key}"):
        if stage.shared and run.processes > 1 and "RANK" not in os.environ:
            _torchrun(name, run)
            return
        config = run.settings.pretrain
        idle = name == "pretrain" and config.objective == "none" and not config.finetune.epochs
        logged: Any = nullcontext(lambda _epoch, _metrics: None)
        if stage.live and not idle and os.environ.get("RANK", "0") == "0":
            logged = import_module("satclr.tracking.live").live(run, name, fingerprint)
        if stage.shared:
            timer = threading.Timer(WATCH_S, _Others().point_out, (name,))
            timer.daemon = True
            timer.start()
        with logged as log:
            module.run(run, log)
        if stage.publish:
            runs.publish(run)


class _Others:
    """What other processes take of this machine, from the moment at which this is made."""

    def __init__(self) -> None:
        self._began, self._before = time.monotonic(), self._spent_s()

    def make_room(self) -> None:
        """Have threads wait without spinning where others keep cores busy. Has no effect once torch is loaded."""
        if self._busy_cores() > BUSY_CORES:
            os.environ.setdefault("OMP_WAIT_POLICY", "passive")

    def point_out(self, name: str) -> None:
        """Say if others keep cores busy: every step waits for the slowest thread."""
        from satclr import progress

        busy, cores = self._busy_cores(), os.cpu_count() or 1
        if busy > BUSY_CORES and "OMP_NUM_THREADS" not in os.environ:
            slow = f"other processes keep {busy:.1f} of {cores} cores busy and slow all threads"
            progress.say(f"{name}: {slow}; OMP_NUM_THREADS={max(1, cores - round(busy))} may be faster")

    def _busy_cores(self) -> float:
        return (self._spent_s() - self._before) / (time.monotonic() - self._began)

    @staticmethod
    def _spent_s() -> float:
        """Their processor time so far."""
        import psutil

        times = psutil.cpu_times()
        own = sum(psutil.Process().cpu_times()[:2])
        return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - own)


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Wait for a concurrent run of the same stage and print its PID."""
    from filelock import FileLock, Timeout

    from satclr import progress

    if os.environ.get("SATCLR_LOCKED") or os.environ.get("RANK", "0") != "0":  # another process of ours holds it
        yield
        return
    folder = root / ".cache" / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    file_lock, holder = FileLock(folder / name), folder / f"{name}.pid"
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        pid = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        progress.say(f"waiting for another run of this stage (PID {pid})")
        file_lock.acquire()
    try:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        file_lock.release()


def _torchrun(name: str, run: "Run") -> None:
    """Run a stage in several processes of this machine, which end with this one."""
    import torch.distributed.run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // run.processes)))
    os.environ["SATCLR_LOCKED"] = "1"
    stage = ["satclr", name, "--profile", run.profile, "--arm", run.arm, "--seed", str(run.seed)]
    try:
        torchrun.main(["--standalone", f"--nproc-per-node={run.processes}", "-m", *stage])
    except ChildFailedError:
        raise StageError(f"{name} failed in one of {run.processes} processes; the same command resumes it") from None
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)


def exit_code(error: BaseException) -> int:
    """2 for bad input, which is a `ValueError` of ours; 1 for all else."""
    return 2 if _package(error) == "satclr" and isinstance(error, ValueError) else 1


def sentence(error: BaseException) -> str:
    """What happened and what to do, in one sentence; of an error that nobody foresaw, how to see where it was."""
    from satclr import files

    if _package(error) in MLFLOW:
        lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
        text = f"the MLflow store failed: {(lines or [type(error).__name__])[0]}"
    elif isinstance(error, OSError):
        text = str(files.explain(error, Path(error.filename or Path.cwd())))
    elif _package(error) == "satclr":
        text = str(error)
    elif isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        text = "out of memory; lower the stage's batch_size, or set pretrain.micro_batch_size"
    else:
        reason = " ".join(str(error).split())[:300]
        text = f"unexpected {type(error).__name__}: {reason}; set SATCLR_TRACEBACK=1 to see where it was raised"
    return f"{text}; free some space and run the same command again" if "is full" in text else text  # SQLite


def _package(error: BaseException) -> str:
    return type(error).__module__.partition(".")[0]
