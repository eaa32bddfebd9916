"""Six experiments in DVC's queue, worked off by one job and by two: the time, and whether the results are the same.

    python benchmarks/jobs.py                           into docs/runs/jobs.json

SimCLR with a small encoder, one experiment a seed, from pretraining to the registry. Each number of jobs has its own
scratch copy of the project, so that none takes the other's results from DVC's cache.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import common
import yaml

from satclr import files

OUT = common.ROOT / "docs" / "runs" / "jobs.json"
EXPERIMENTS, LIMIT_S = 6, 3600
SECTIONS: dict[str, Any] = {
    "data": {"tile_px": 48},
    "views": {"crop_px": 32},
    "pretrain": {"arch": "shufflenet_v2_x0_5", "weights": "none", "epochs": 8, "batch_size": 64},
    "evaluate": {"labels": {"subsets": 1}},
    "robustness": {"corruptions": []},
    "maps": {"projections": ["pca"]},
}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        copies = {jobs: make(Path(folder) / f"jobs{jobs}", SECTIONS, tiles=512) for jobs in (1, 2)}
        overrides = [f"seeds=[{seed}]" for seed in range(EXPERIMENTS)]
        seconds = {jobs: work_off(copy, overrides, jobs=jobs) for jobs, copy in copies.items()}
        one, two = (results(copy) for copy in copies.values())
    found = {
        "machine": common.machine(),
        "experiments": EXPERIMENTS,
        "seconds": {files.counted(jobs, "job"): round(value) for jobs, value in seconds.items()},
        "ratio": round(seconds[2] / seconds[1], 3),
        "same_results": one == two,
    }
    OUT.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def table(found: dict[str, Any]) -> str:
    """The numbers as they stand in docs/scale.md."""
    lines = ["| six experiments by | seconds |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| {jobs} | {seconds:,} |" for jobs, seconds in found["seconds"].items())])


def make(folder: Path, sections: Mapping[str, Any], *, tiles: int) -> Path:
    """A copy of the project under git and DVC, with a profile `bench` that has been prepared."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(common.ROOT / "src", folder / "src", ignore=ignored)
    project = common.project(folder, sections, count=tiles)
    tree = yaml.safe_load((folder / "params.yaml").read_text())
    (folder / "params.yaml").write_text(yaml.safe_dump(tree | {"run": ["simclr"]}, sort_keys=False))
    (folder / ".dvc").mkdir()
    for name in (".dvcignore", ".dvc/config", ".dvc/.gitignore"):
        shutil.copyfile(common.ROOT / name, folder / name)
    (folder / ".gitignore").write_text("/build\n/models\n/mlruns\n.cache\n")
    command(project.root, "git", "init", "--quiet")
    command(project.root, "dvc", "add", "--quiet", "data")
    command(project.root, "dvc", "repro", "--quiet", "prepare")
    command(project.root, "git", "add", ".")
    identity = ("-c", "user.name=bench", "-c", "user.email=bench@localhost")
    command(project.root, "git", *identity, "commit", "--quiet", "-m", "start")
    return project.root


def work_off(project: Path, overrides: Sequence[str], *, jobs: int) -> float:
    """Queue an experiment per override, `dvc queue start --jobs`; seconds until the last has ended."""
    for number, override in enumerate(overrides):
        command(project, "dvc", "exp", "run", "--queue", "--quiet", "-n", f"queued-{number}", "-S", override)
    started = time.perf_counter()
    command(project, "dvc", "queue", "start", "--jobs", str(jobs))
    try:
        while (status := command(project, "dvc", "queue", "status")).count("Success") < len(overrides):
            if "Failed" in status or time.perf_counter() - started > LIMIT_S:
                raise RuntimeError(status)
            time.sleep(1)
        return time.perf_counter() - started
    finally:
        command(project, "dvc", "queue", "stop", "--kill")


def results(project: Path) -> dict[str, dict[str, str]]:
    """The digest of every output of the arm stages, by experiment, from the dvc.lock that DVC committed for it."""
    refs = command(project, "git", "for-each-ref", "--format=%(refname)", "refs/exps").split()
    found = {}
    for ref in (ref for ref in refs if "/queued-" in ref):
        stages = yaml.safe_load(command(project, "git", "show", f"{ref}:dvc.lock"))["stages"]
        outs = [out for stage in stages.values() for out in stage.get("outs", [])]
        found[ref.rsplit("/", 1)[1]] = {o["path"]: o["md5"] for o in outs if not o["path"].startswith("reports/")}
    return found


def command(project: Path, *line: str) -> str:
    paths = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}
    environment = os.environ | paths | {"PYTHONPATH": str(project / "src")}
    done = subprocess.run(line, check=False, cwd=project, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(line)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
