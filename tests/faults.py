"""Kill the ablation at random moments, run `dvc repro` after each, and see that nothing was lost.

    make faults                                   # the whole of it, on a shrunk sample
    python -m tests.faults --seed 1 --kills 60    # other moments, more of them

A reference project runs undisturbed; its twin is killed (SIGKILL: the stage, DVC, or all at once) in every stage
and in the writes that matter. In the end both must hold the same bytes. Needs data/sample (`dvc pull data.dvc`).
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "faults.json"
BIN = Path(sys.executable).parent
ARM_STAGES = ("pretrain", "embed", "probe", "evaluate", "robustness", "maps")
# Not the same twice, or nothing that was measured: when a decision was made, and what DVC wrote about the run.
TIMED = {"promotions.csv"}
# The sample, shrunk so that a stage is mostly its start: kills are many then, and all stages run.
KEPT = 0.25  # of its 1,200 tiles
SHRUNK: dict[str, Any] = {
    "data": {"tile_px": 48},
    "views": {"crop_px": 32},
    "pretrain": {"arch": "shufflenet_v2_x0_5", "weights": "none", "epochs": 6, "batch_size": 64},
    "embed": {},
    "probe": {"epochs": 3},
    "evaluate": {"bootstrap_resamples": 100, "sweep": {"epochs": 2}, "labels": {"subsets": 2}},
    "robustness": {"corruptions": ["haze"], "strengths": [1]},
    "maps": {"projections": ["pca"]},
    "register": {},
}


@dataclass(frozen=True)
class Project:
    """A scratch copy of this project under git and DVC."""

    root: Path
    profile: str
    targets: tuple[str, ...] = ()  # of `dvc repro`; all stages if empty

    def change(self, edit: Callable[[dict[str, Any]], None]) -> None:
        """Edit params.yaml."""
        path = self.root / "params.yaml"
        tree = yaml.safe_load(path.read_text())
        edit(tree)
        path.write_text(yaml.safe_dump(tree, sort_keys=False))

    def start(self, *command: str, log: Path | None = None) -> subprocess.Popen[bytes]:
        """Run a command of the project's environment in a session of its own."""
        environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.root / "src"),
            "DVC_NO_ANALYTICS": "1",
            "SATCLR_CHECKPOINT_AFTER_S": "0",  # a checkpoint at every epoch's end
            "OMP_NUM_THREADS": "1",
        }
        with (log or self.root / "log").open("wb") as out:
            return subprocess.Popen(
                [BIN / command[0], *command[1:]],
                cwd=self.root, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def run(self, *command: str) -> str:
        """Run a command to its end; returns what it printed. Raises `RuntimeError` with that if it fails."""
        log = self.root / "log"
        code = self.start(*command, log=log).wait()
        said = log.read_text(errors="replace")
        if code:
            raise RuntimeError(f"{' '.join(command)} in {self.root} ended with {code}:\n{said}")
        return said

    def outputs(self) -> dict[str, str]:
        """The digest of every file that the stages wrote."""
        return {
            str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest()
            for folder in ("build", "models", "results", "reports")
            for path in sorted((self.root / folder).rglob("*"))
            if path.is_file() and path.name not in TIMED and path.name != ".gitignore"
        }

    def processes(self) -> list[psutil.Process]:
        """Whatever still runs in the project's folder."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, FileNotFoundError):
                if Path(process.cwd()) == self.root and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


def make(folder: Path, *, tree: Mapping[str, Any], data: Path, targets: tuple[str, ...] = ()) -> Project:
    """Copy code, stages and data into `folder`, with params.yaml as `tree` says."""
    profile = str(tree["profile"])
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(data, folder / "data" / profile)
    (folder / ".dvc").mkdir()
    for name in ("dvc.yaml", ".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copyfile(ROOT / name, folder / name)
    (folder / "params.yaml").write_text(yaml.safe_dump(dict(tree), sort_keys=False))
    (folder / ".gitignore").write_text("/data\n/log*\n/build\n/models\n/mlruns\n.cache\n")
    for command in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=faults", "-c", "user.email=faults@localhost", "commit", "--quiet", "-m", "start"],
    ):
        subprocess.run(["git", *command], cwd=folder, check=True, capture_output=True)
    return Project(folder, profile, targets)


Ready = Callable[[Project, float], bool]  # whether it is time, in a run that began then


@dataclass(frozen=True)
class Moment:
    """When to kill: once `ready` in `stage` (DVC's name), after up to `spread_s` more."""

    what: str
    stage: str
    spread_s: float
    ready: Ready = lambda _project, _since: True
    victims: Sequence[str] = ("stage", "dvc", "all")


@dataclass
class Kill:
    """What one kill hit."""

    what: str
    victim: str
    hit: str  # the stage that ran, or "dvc"
    orphans_gone_s: float | None = None


@dataclass
class Tally:
    """What the harness saw."""

    kills: list[Kill] = field(default_factory=list)
    mended: int = 0  # times that DVC's own files had been cut short
    seen: set[int] = field(default_factory=set)  # processes that a kill may have left


def running(project: Project) -> list[str]:
    """The stages that the log of the present `dvc repro` has begun."""
    return re.findall(r"Running stage '([^']+)'", (project.root / "log").read_text(errors="replace"))


def thin_out(source: Path, target: Path, *, keep: float) -> None:
    """Copy the first tiles of each category, a share `keep` of them."""
    for table in sorted((source / "Labels").glob("*.csv")):
        header, *rows = table.read_text(encoding="utf-8").splitlines()
        rows = rows[: round(keep * len(rows))]
        for folder in ("Labels", f"Images/{table.stem}"):
            (target / folder).mkdir(parents=True, exist_ok=True)
        (target / "Labels" / table.name).write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
        for row in rows:
            name = Path("Images") / table.stem / row.split(",")[0]
            shutil.copyfile(source / name, target / name)


def exists(pattern: str) -> Ready:
    """Whether the project has a file like this, younger than the present run: kills leave older ones."""

    def fresh(project: Project, since: float) -> bool:
        for path in project.root.glob(pattern):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime >= since:
                    return True
        return False

    return fresh


def moments(project: Project, order: Sequence[str], seconds: Mapping[str, float]) -> list[Moment]:
    """Two moments in every stage, and one in each write that matters, in the order of the stages."""

    def writes(stage: str) -> list[Moment]:
        kind, _, rest = stage.partition("@")
        arm = rest.removeprefix(f"{project.profile}-")
        models, results = f"models/{project.profile}/{arm}", f"results/{project.profile}/{arm}"
        return {
            "prepare": [
                Moment("tile store's write", stage, 0.3, exists("build/*/tiles.npy.part")),
                Moment("tile store's write", stage, 0.05, exists("build/*/tiles.npy.part"), ("all",)),
            ],
            "pretrain": [
                Moment("MLflow's first use", stage, 1.0, exists("mlruns/mlflow.db.part")),
                Moment("checkpoint's write", stage, 0.02, exists(".cache/checkpoints/*/*.safetensors.part")),
                Moment("checkpoint's write", stage, 0.0, exists(".cache/checkpoints/*/*.safetensors.part"), ("all",)),
            ],
            "embed": [Moment("features' write", stage, 0.5, exists(f"{models}/features.npy.part"))],
            "evaluate": [
                Moment("MLflow publishing", stage, 0.5 * seconds[stage], exists(f"{results}/metrics.json")),
                Moment("MLflow publishing", stage, 0.2, exists(f"{results}/metrics.json"), ("all",)),
            ],
            "report": [Moment("MLflow publishing", stage, 0.5, exists("reports/*/report.html"))],
            "register": [
                Moment("registration", stage, 0.5, exists("mlruns/.register.lock")),
                Moment("registration", stage, 0.1, exists("mlruns/.register.lock"), ("all",)),
                Moment("registration", stage, 0.2, exists("mlruns/.register.lock"), ("stage",)),
            ],
        }.get(kind, [])  # fmt: skip

    plan = [Moment("dvc's start", order[0], 2.0, victims=("dvc",))]
    for stage in order:
        plan += [*writes(stage), *[Moment("anywhere", stage, seconds[stage])] * 2]
    return plan


def durations(project: Project, order: Sequence[str], process: subprocess.Popen[bytes]) -> dict[str, float]:
    """How long each stage of an undisturbed run takes, watched from outside; waits for the run's end."""
    began: dict[str, float] = {}
    while process.poll() is None:
        for stage in running(project):
            began.setdefault(stage, time.monotonic())
        time.sleep(0.05)
    ends = [*list(began.values())[1:], time.monotonic()]
    return {stage: end - start for (stage, start), end in zip(began.items(), ends, strict=True)}


def kill(project: Project, moment: Moment, order: Sequence[str], rng: random.Random, tally: Tally) -> bool:
    """Run `dvc repro` and kill it at `moment`, or soon after if that has passed. False if it ended before."""
    rank = {stage: i for i, stage in enumerate(order)}
    log, before = project.root / "log", len(tally.kills)
    since = time.time()
    process = project.start("dvc", "repro", *project.targets, log=log)
    wait_s = rng.random() * moment.spread_s
    victim = rng.choice(list(moment.victims))
    due = None
    while process.poll() is None:
        at = max((rank.get(stage, -1) for stage in running(project)), default=-1)
        begun, passed = at == rank[moment.stage], at > rank[moment.stage]
        if due is None and (
            moment.what == "dvc's start" or passed or (begun and moment.ready(project, since))
        ):
            due = time.monotonic() + wait_s
        if due is not None and time.monotonic() >= due:
            strike(project, process, moment, victim, rng, tally)
            break
        time.sleep(0.004)
    process.wait()
    struck = len(tally.kills) > before
    if not struck and process.returncode:
        recover(project, tally)
    return struck


def strike(
    project: Project,
    process: subprocess.Popen[bytes],
    moment: Moment,
    victim: str,
    rng: random.Random,
    tally: Tally,
) -> None:
    """SIGKILL the victim, and half of the time see how long what it left behind lives on."""
    children = []
    with suppress(psutil.Error):
        children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if is_stage(child)]
    if victim == "stage" and not workers:
        victim = "dvc"
    hit = (running(project) or ["dvc"])[-1] if workers else "dvc"
    tally.seen |= {child.pid for child in children}
    if victim == "all":
        os.killpg(process.pid, signal.SIGKILL)
    elif victim == "dvc":
        process.kill()
    else:
        with suppress(psutil.Error):
            workers[-1].kill()
    found = Kill(moment.what, victim, hit)
    tally.kills.append(found)
    process.wait()
    if victim == "dvc" and workers and rng.random() < 0.5:  # else the next `dvc repro` meets them
        start = time.monotonic()
        psutil.wait_procs(workers, timeout=30)
        found.orphans_gone_s = time.monotonic() - start


def is_stage(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return any(Path(word).name == "satclr" for word in process.cmdline()[:2])
    return False


def recover(project: Project, tally: Tally) -> None:
    """A `dvc repro` that failed by itself: its own files cut short is the one reason that is allowed."""
    said = (project.root / "log").read_text(errors="replace")
    mended = project.run("satclr", "mend")
    if "nothing to mend" in mended:
        raise RuntimeError(f"dvc repro failed after {tally.kills[-1:]}:\n{said}")
    tally.mended += 1


def finish(project: Project, tally: Tally) -> None:
    """Run what is left, undisturbed."""
    process = project.start("dvc", "repro", *project.targets)
    if process.wait():
        recover(project, tally)
        project.run("dvc", "repro", *project.targets)


def other_parameters(project: Project, arm: str) -> Path:
    """Leave a checkpoint of another temperature behind, killed in the middle; returns it."""
    project.change(lambda tree: tree["arms"][arm]["pretrain"].update(temperature=0.2))
    process = project.start("satclr", "pretrain", "--arm", arm)
    folder = project.root / ".cache" / "checkpoints"
    while process.poll() is None and not list(folder.glob("*/checkpoint.safetensors")):
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    project.change(lambda tree: tree["arms"][arm]["pretrain"].pop("temperature"))
    return next(folder.glob("*/checkpoint.safetensors"))


def tracked(project: Project) -> dict[str, Any]:
    """What MLflow's database holds: run states, current runs with their metrics, versions, aliases."""
    with closing(sqlite3.connect(project.root / "mlruns" / "mlflow.db")) as db:
        states = Counter(
            status for (status,) in db.execute("SELECT status FROM runs WHERE lifecycle_stage = 'active'")
        )
        current = db.execute(
            "SELECT kind.value, arm.value, m.key, m.value FROM latest_metrics m"
            " JOIN tags state ON state.run_uuid = m.run_uuid AND state.key = 'satclr.state' AND state.value = 'current'"
            " JOIN tags kind ON kind.run_uuid = m.run_uuid AND kind.key = 'satclr.kind'"
            " LEFT JOIN tags arm ON arm.run_uuid = m.run_uuid AND arm.key = 'satclr.arm'"
        ).fetchall()
        versions = db.execute("SELECT COUNT(*) FROM model_versions").fetchone()[0]
        aliases = db.execute("SELECT alias, version FROM registered_model_aliases").fetchall()
    return {
        "running": states.get("RUNNING", 0),
        "metrics": sorted(current, key=str),
        "versions": versions,
        "aliases": sorted(aliases),
    }


@dataclass(frozen=True)
class Verdict:
    """The twin against the reference."""

    files: int
    different: list[str]
    left_open: int
    tracked_alike: bool
    orphans: int
    other_checkpoint_untouched: bool
    status: str


def verdict(reference: Project, twin: Project, tally: Tally, planted: tuple[Path, bytes] | None) -> Verdict:
    ours, theirs = twin.outputs(), reference.outputs()
    a, b = tracked(reference), tracked(twin)
    deadline = time.monotonic() + 10
    while (
        left := [p for p in twin.processes() if p.pid in tally.seen or is_stage(p)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)
    return Verdict(
        files=len(theirs),
        different=sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)),
        left_open=b["running"],
        tracked_alike=all(a[key] == b[key] for key in ("metrics", "versions", "aliases")),
        orphans=len(left),
        other_checkpoint_untouched=planted is None or planted[0].read_bytes() == planted[1],
        status=twin.run("dvc", "status", *twin.targets).strip(),
    )


def leave_times(project: Project, rng: random.Random) -> Iterator[tuple[str, str, int, float]]:
    """Ask each stage to leave, by SIGTERM and Ctrl-C, at a random moment: (stage, signal, exit code, seconds)."""
    project.change(lambda tree: tree["arms"]["simclr"]["pretrain"].update(temperature=0.3, epochs=500))
    arm = ("--arm", "simclr")
    commands = dict.fromkeys(ARM_STAGES, arm) | dict.fromkeys(
        ("prepare", "compare", "report", "register"), ()
    )
    for stage, options in commands.items():
        for number in (signal.SIGTERM, signal.SIGINT):
            process = project.start("satclr", stage, *options)
            time.sleep(1.0 + 3 * rng.random() + 5 * (stage == "pretrain"))
            start = time.monotonic()
            process.send_signal(number)
            yield stage, number.name, process.wait(), time.monotonic() - start


def table(rows: Sequence[Sequence[Any]]) -> str:
    """Rows as Markdown; the first is the header."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def by_place(tally: Tally) -> list[list[Any]]:
    """Kills by what they were aimed at and whom they hit."""
    rows: list[list[Any]] = [["aimed at", "kills", "the stage", "dvc", "all at once", "stages that ran"]]
    for what in dict.fromkeys(one.what for one in tally.kills):
        found = [one for one in tally.kills if one.what == what]
        victims = Counter(one.victim for one in found)
        hit = sorted({one.hit.partition("@")[0] for one in found})
        rows.append([what, len(found), victims["stage"], victims["dvc"], victims["all"], ", ".join(hit)])
    return rows


def harness(folder: Path, *, seed: int, kills: int) -> dict[str, Any]:
    """The whole of it; returns the figures."""
    started, rng = time.monotonic(), random.Random(seed)
    tree = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree["profiles"]["sample"] = SHRUNK
    thin_out(ROOT / "data" / "sample", folder / "data", keep=KEPT)
    reference, twin = (make(folder / name, tree=tree, data=folder / "data") for name in ("reference", "twin"))
    process = reference.start("dvc", "repro")
    seconds = durations(reference, [], process)
    order = list(seconds)
    if process.returncode:
        raise RuntimeError((reference.root / "log").read_text())
    say(f"reference: {len(order)} stages in {sum(seconds.values()):.0f} s")
    tally = Tally()
    twin.run("dvc", "repro", f"prepare@{twin.profile}")
    planted = other_parameters(twin, "simclr")
    content = planted.read_bytes()
    tally.kills.append(Kill("a checkpoint of other parameters", "all", "pretrain@sample-simclr-0"))
    for name in ("build", "dvc.lock", ".dvc/cache", "mlruns"):  # from the start, but for that checkpoint
        path = twin.root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    plan = moments(twin, order, seconds)
    while len(plan) < kills:
        plan.append(Moment("anywhere", (stage := rng.choice(order)), seconds[stage]))
    rank = {stage: i for i, stage in enumerate(order)}
    for i, moment in enumerate(sorted(plan, key=lambda one: rank[one.stage])):
        if kill(twin, moment, order, random.Random(f"{seed}/{i}"), tally):
            say(f"{len(tally.kills):3} {tally.kills[-1]}")
    finish(twin, tally)
    found = verdict(reference, twin, tally, (planted, content))
    leaves = list(leave_times(twin, rng))
    orphans_s = [one.orphans_gone_s for one in tally.kills if one.orphans_gone_s is not None]
    return {
        "seed": seed,
        "kills": len(tally.kills),
        "by_place": by_place(tally),
        "verdict": vars(found),
        "dvc_files_mended": tally.mended,
        "longest_orphan_s": max(orphans_s, default=0.0),
        "asked_to_leave": [[*row[:3], round(row[3], 2)] for row in leaves],
        "minutes": (time.monotonic() - started) / 60,
    }


def say(line: str) -> None:
    print(line, flush=True)


def summary(found: Mapping[str, Any]) -> str:
    """The figures as tables."""
    v = found["verdict"]
    rows = [
        ["seen", ""],
        ["kills, each followed by `dvc repro`", found["kills"]],
        ["files of the end result, bit-identical", f"{v['files'] - len(v['different'])} of {v['files']}"],
        ["MLflow's metrics, versions, aliases as undisturbed", "yes" if v["tracked_alike"] else "NO"],
        ["runs left RUNNING", v["left_open"]],
        ["processes left", v["orphans"]],
        ["longest life of a stage whose DVC was killed", f"{found['longest_orphan_s']:.1f} s"],
        ["checkpoint of other parameters untouched", "yes" if v["other_checkpoint_untouched"] else "NO"],
        ["times DVC's own files had to be mended", found["dvc_files_mended"]],
        ["longest leave after SIGTERM or Ctrl-C", f"{max(row[3] for row in found['asked_to_leave']):.1f} s"],
        ["minutes", f"{found['minutes']:.1f}"],
    ]
    return table(rows) + "\n\n" + table(found["by_place"])


def lost(found: Mapping[str, Any]) -> list[str]:
    """What went wrong, if anything."""
    v = found["verdict"]
    wrong = [f"{name} differs" for name in v["different"]]
    wrong += [f"{v['left_open']} runs are left RUNNING"] * bool(v["left_open"])
    wrong += [f"{v['orphans']} processes are left"] * bool(v["orphans"])
    wrong += ["MLflow differs"] * (not v["tracked_alike"])
    wrong += ["a checkpoint of other parameters was touched"] * (not v["other_checkpoint_untouched"])
    wrong += [f"dvc status says {v['status']}"] * ("up to date" not in v["status"])
    for stage, name, code, seconds in found["asked_to_leave"]:
        if code not in (0, 128 + getattr(signal, name)) or seconds > 5:
            wrong.append(f"{stage} left with {code}, {seconds} s after {name}")
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=48, help="how many moments to kill at, 44 at least")
    given = parser.parse_args()
    if not (ROOT / "data" / "sample").is_dir():
        sys.exit("error: data/sample is not here; run `dvc pull data.dvc` first")
    signal.signal(
        signal.SIGINT, signal.default_int_handler
    )  # a shell's background job ignores it, and its children
    with tempfile.TemporaryDirectory(prefix="satclr-faults-") as folder:
        found = harness(Path(folder), seed=given.seed, kills=given.kills)
    say("\n" + summary(found))
    wrong = lost(found)
    if wrong:
        sys.exit("LOST:\n" + "\n".join(wrong))
    FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    say(f"\nnothing lost; figures in {FIGURES.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
