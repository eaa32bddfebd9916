"""Kill the ablation at random moments, run `dvc repro` after each, and check that nothing was lost.

    make faults                                   # all of it, on made-up tiles
    python -m tests.faults --seed 1 --kills 60    # other moments, more of them

A reference project runs undisturbed; its twin is killed (SIGKILL to the stage, to DVC, or to all) in every stage and
during the writes that matter. In the end both must hold the same bytes.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from satclr.settings import merge

from .conftest import ROOT, tiny_params, write_data

FIGURES = ROOT / "docs" / "faults.json"
BIN = Path(sys.executable).parent
VICTIMS = ("stage", "dvc", "all")
TIMED = {"promotions.csv", ".gitignore"}  # when a decision was made; what DVC wrote
# A file that appears just before a write that matters, and the stage that makes it.
WRITES = {
    "prepare": "build/*/tiles.npy.part",
    "pretrain": ".cache/checkpoints/*/*.part",
    "embed": "models/*/*/features.npy.part",
    "evaluate": "results/*/*/metrics.json",  # publishing to MLflow follows
    "register": "reports/*/champion.json",
}


@dataclass(frozen=True)
class Project:
    """A scratch copy of this project under git and DVC."""

    root: Path
    targets: tuple[str, ...] = ()  # of `dvc repro`; all stages if empty

    @property
    def log(self) -> Path:
        """What the last command printed."""
        return self.root.with_suffix(".log")

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Run a command of the project's environment in a session of its own."""
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            "DVC_NO_ANALYTICS": "1",
            "SATCLR_CHECKPOINT_AFTER_S": "0",  # a checkpoint after every epoch
            "OMP_NUM_THREADS": "1",
        }
        with self.log.open("wb") as out:
            return subprocess.Popen(
                [BIN / command[0], *command[1:]],
                cwd=self.root, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, *command: str) -> str:
        """Run a command to its end and return what it printed. Raises `RuntimeError` with that if it fails."""
        code = self.start(*command).wait()
        printed = self.log.read_text(errors="replace")
        if code:
            raise RuntimeError(f"{' '.join(command)} in {self.root} ended with {code}:\n{printed}")
        return printed

    def repro(self) -> str:
        return self.run("dvc", "repro", *self.targets)

    def stages(self) -> list[str]:
        """The stages that the current `dvc repro` has started, by its log."""
        return re.findall(r"Running stage '([^']+)'", self.log.read_text(errors="replace"))

    def outputs(self) -> dict[str, str]:
        """The digest of every file that the stages wrote."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("build", "models", "results", "reports")
            for path in sorted((self.root / folder).rglob("*"))
            if path.is_file() and path.name not in TIMED
        }

    def processes(self) -> list[psutil.Process]:
        """Stages that still run in the project's folder."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, FileNotFoundError):
                if Path(process.cwd()) == self.root and is_stage(process):
                    found.append(process)
        return found

    def tracked(self) -> dict[str, Any]:
        """What MLflow's database holds: runs left open, current metrics, versions and aliases."""
        with closing(sqlite3.connect(self.root / "mlruns" / "mlflow.db")) as db:
            running = db.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING' AND lifecycle_stage = 'active'")
            metrics = db.execute(
                "SELECT kind.value, arm.value, m.key, m.value FROM latest_metrics m"
                " JOIN tags state ON state.run_uuid = m.run_uuid AND state.key = 'satclr.state'"
                " AND state.value = 'current'"
                " JOIN tags kind ON kind.run_uuid = m.run_uuid AND kind.key = 'satclr.kind'"
                " LEFT JOIN tags arm ON arm.run_uuid = m.run_uuid AND arm.key = 'satclr.arm'"
            )
            aliases = db.execute("SELECT alias, version FROM registered_model_aliases")
            return {
                "running": running.fetchone()[0],
                "metrics": sorted(metrics.fetchall(), key=str),
                "aliases": sorted(aliases.fetchall()),
            }


def make(folder: Path, *, tree: Mapping[str, Any], data: Path, targets: tuple[str, ...] = ()) -> Project:
    """Copy code, stages and data into `folder`, with `tree` as its params.yaml."""
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(data, folder / "data" / str(tree["profile"]))
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", ".gitignore", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    who = ("-c", "user.name=faults", "-c", "user.email=faults@localhost")
    for command in (["init"], ["add", "."], [*who, "commit", "-m", "start"]):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return Project(folder, targets)


@dataclass(frozen=True)
class Moment:
    """Kill once `stage` runs (and, if given, a file like `pattern` is there), after `wait_s` more."""

    stage: str
    wait_s: float = 0.0
    victim: str = "all"
    pattern: str = ""

    def reached(self, project: Project, order: Sequence[str], since: float) -> bool:
        at = max((order.index(stage) for stage in project.stages() if stage in order), default=-1)
        if at != order.index(self.stage):
            return at > order.index(self.stage)  # too late for this stage: take the next
        if not self.pattern:
            return True
        with suppress(FileNotFoundError):
            return any(path.stat().st_mtime >= since for path in project.root.glob(self.pattern))
        return False


@dataclass(frozen=True)
class Kill:
    """What one kill hit."""

    victim: str
    hit: str
    orphan_s: float = 0.0  # how long a stage outlived its DVC


def is_stage(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        running = process.status() != psutil.STATUS_ZOMBIE
        return running and any(Path(word).name == "satclr" for word in process.cmdline()[:2])
    return False


def kill(project: Project, moment: Moment, order: Sequence[str]) -> Kill | None:
    """Run `dvc repro` and kill it at `moment`; None if it ended before. Raises `RuntimeError` if it fails."""
    since = time.time()
    process = project.start("dvc", "repro", *project.targets)
    while process.poll() is None and not moment.reached(project, order, since):
        time.sleep(0.004)
    deadline = time.monotonic() + moment.wait_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.004)
    if process.poll() is None:
        return strike(project, process, moment)
    if process.returncode:
        said = project.log.read_text(errors="replace")
        if "Unable to read RWLock-file" not in said:
            raise RuntimeError(said)
        (project.root / ".dvc" / "tmp" / "rwlock").unlink()  # DVC was killed while it wrote it (docs/reliability.md)
    return None


def strike(project: Project, process: subprocess.Popen[bytes], moment: Moment) -> Kill:
    workers = []
    with suppress(psutil.Error):
        workers = [child for child in psutil.Process(process.pid).children(recursive=True) if is_stage(child)]
    victim = moment.victim if workers else "dvc"
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "dvc":
        process.kill()
    else:
        with suppress(psutil.Error):
            workers[-1].kill()
    process.wait()
    if not workers:
        return Kill("dvc", "dvc")
    hit = project.stages()[-1].partition("@")[0]
    if victim != "dvc":
        return Kill(victim, hit)
    began = time.monotonic()
    psutil.wait_procs(workers, timeout=30)
    return Kill(victim, hit, time.monotonic() - began)


def moments(order: Sequence[str], seconds: Mapping[str, float], count: int, rng: random.Random) -> list[Moment]:
    """Kills during the writes that matter, then anywhere in each stage, in the order of the stages."""
    plan = [Moment(order[0], 0.0, "dvc")]
    for stage in order:
        pattern = WRITES.get(stage.partition("@")[0])
        plan += [Moment(stage, rng.random() * 0.3, victim, pattern) for victim in VICTIMS if pattern]
        plan.append(Moment(stage, rng.random() * seconds[stage], rng.choice(VICTIMS)))
    while len(plan) < count:
        stage = rng.choice(order)
        plan.append(Moment(stage, rng.random() * seconds[stage], rng.choice(VICTIMS)))
    return sorted(plan, key=lambda moment: order.index(moment.stage))


def durations(project: Project) -> dict[str, float]:
    """Run `dvc repro` undisturbed; how long each stage takes."""
    process = project.start("dvc", "repro")
    began: dict[str, float] = {}
    while process.poll() is None:
        for stage in project.stages():
            began.setdefault(stage, time.monotonic())
        time.sleep(0.05)
    if process.returncode:
        raise RuntimeError(project.log.read_text(errors="replace"))
    ends = [*list(began.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}


def stops(project: Project, order: Sequence[str], rng: random.Random) -> Iterator[list[Any]]:
    """Stop each kind of stage by SIGTERM and SIGINT at a random moment: these, exit code, seconds, its last line."""
    tree = yaml.safe_load((project.root / "params.yaml").read_text())
    tree["arms"]["simclr"]["pretrain"] |= {"temperature": 0.3, "epochs": 500}
    (project.root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    for stage in dict.fromkeys(name.partition("@")[0] for name in order):
        arm = ("--arm", "simclr") if stage not in ("prepare", "compare", "report", "register") else ()
        for number in (signal.SIGTERM, signal.SIGINT):
            process = project.start("satclr", stage, *arm)
            time.sleep(1.0 + 3 * rng.random() + 5 * (stage == "pretrain"))
            began = time.monotonic()
            process.send_signal(number)
            code, seconds = process.wait(), round(time.monotonic() - began, 2)
            yield [stage, number.name, code, seconds, *project.log.read_text().splitlines()[-1:]]


def harness(folder: Path, *, seed: int, kills: int) -> dict[str, Any]:
    """Run all of it; returns the figures."""
    began, rng = time.monotonic(), random.Random(seed)
    tree = tiny_params()
    tree["profiles"]["tiny"] = merge(tree["profiles"]["tiny"], {"pretrain": {"epochs": 6, "batch_size": 64}})
    write_data(folder / "data", tiles_per_category=100)
    reference, twin = (make(folder / name, tree=tree, data=folder / "data") for name in ("reference", "twin"))
    seconds = durations(reference)
    print(f"reference: {len(seconds)} stages in {sum(seconds.values()):.0f} s", flush=True)
    done: list[Kill] = []
    for moment in moments(list(seconds), seconds, kills, rng):
        if found := kill(twin, moment, list(seconds)):
            done.append(found)
            print(f"{len(done):3} {found}", flush=True)
    twin.repro()
    outputs, expected = twin.outputs(), reference.outputs()
    ours, theirs = twin.tracked(), reference.tracked()
    return {
        "seed": seed,
        "kills": len(done),
        "hit": dict(Counter(f"{one.hit}: {one.victim}" for one in done)),
        "files": len(expected),
        "different": sorted(name for name in outputs.keys() | expected if outputs.get(name) != expected.get(name)),
        "mlflow_equal": ours["metrics"] == theirs["metrics"] and ours["aliases"] == theirs["aliases"],
        "runs_left_open": ours["running"],
        "processes_left": len(twin.processes()),
        "longest_orphan_s": round(max((one.orphan_s for one in done), default=0.0), 1),
        "up_to_date": "up to date" in twin.run("dvc", "status", *twin.targets),
        "stops": list(stops(twin, list(seconds), rng)),
        "minutes": round((time.monotonic() - began) / 60, 1),
    }


def losses(found: Mapping[str, Any]) -> list[str]:
    """What went wrong, if anything."""
    wrong = [f"{name} differs" for name in found["different"]]
    wrong += [f"{found[key]} {key}" for key in ("runs_left_open", "processes_left") if found[key]]
    wrong += [f"not {key}" for key in ("mlflow_equal", "up_to_date") if not found[key]]
    for stage, name, code, seconds, *last in found["stops"]:
        number = getattr(signal, name)
        if code not in (0, 128 + number, -number) or seconds > 6:  # -number: it was done, and Python about to leave
            wrong.append(f"{stage} ended with {code}, {seconds} s after {name}: {' '.join(last)}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=40)
    chosen = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it, and so do its children
    with tempfile.TemporaryDirectory(prefix="satclr-faults-") as folder:
        found = harness(Path(folder), seed=chosen.seed, kills=chosen.kills)
    print(json.dumps(found, indent=1))
    if wrong := losses(found):
        sys.exit("LOST:\n" + "\n".join(wrong))
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
