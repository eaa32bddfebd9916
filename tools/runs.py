"""The runs behind the numbers in the docs: docs/runs/<name>/run.yaml → compare.json and machine.json beside it.

    python -m tools.runs docs/runs/ladder-resnet18        run every arm and seed that run.yaml lists, and compare
    dvc repro && python -m tools.runs docs/runs/sample    without a run.yaml: take the finished profile `sample`

run.yaml holds a profile, arms, seeds and what it changes in params.yaml; `$DATA` in a value is the folder SATCLR_DATA,
which holds the data set and the weights. The images of splits that it lists as `unlabelled` are in `Unlabelled` too, in
a copy of the data set: pretraining may then see them. With `temperatures`, the first seed of an arm runs at each of
them, validation chooses one, and all seeds run at the first and at the chosen temperature; the seeds that it lists as
`shuffled` run on shuffled labels too, at the first temperature. `maps` lists arms whose features are also laid out in
the plane. All stages run in one process, so nothing is spent on starting them; what is done already, in
build/runs/<name>, is not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from satclr import files, machine, settings
from satclr.params import WITHOUT_LABELS
from satclr.project import Project, Run
from tools import tables

ROOT = Path(__file__).parents[1]
WITHOUT_TEMPERATURE = ("none", "vicreg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="a folder with a run.yaml, or named after a profile")
    folder = parser.parse_args().folder
    if (folder / "run.yaml").exists():
        run(folder)
    else:
        folder.mkdir(exist_ok=True)
        shutil.copy(Project(ROOT, folder.name).reports / "compare.json", folder)
        write_machine(folder, Project(ROOT, folder.name))


def run(folder: Path) -> None:
    """Run what `folder`/run.yaml lists; write compare.json, machine.json and, with temperatures, grid.json."""
    from satclr.data import prepare
    from satclr.evaluation import embed, evaluate, maps, probe
    from satclr.pretrain import train
    from satclr.study import compare
    from satclr.study.results import Results

    probe.train = _remembering(probe.train)
    stages = (train.run, _sharing(embed.run), probe.run, evaluate.run)
    spec = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    root = ROOT / "build" / "runs" / folder.name
    project, at = _project(root, spec)
    began, asked, computed = time.monotonic(), set[str](), 0
    if not (project.store / "audit.json").exists():
        prepare.run(project)

    def measure(arms: list[str], seeds: list[int]) -> dict[str, Any]:
        """Each arm's validation and test mAP, means over the seeds; runs what has not run."""
        nonlocal computed
        for one in (project.run(arm, seed) for seed in seeds for arm in arms):
            asked.add(one.key)
            if not (one.results / "metrics.json").exists():
                for stage in stages:
                    stage(one, lambda _epoch, _metrics: None)
                computed += 1
        known = {arm: [Results(project.run(arm, seed)).metrics for seed in seeds] for arm in arms}
        keys = ("val_mAP", "test_mAP")
        return {arm: {key: sum(m[key] for m in each) / len(each) for key in keys} for arm, each in known.items()}

    seeds, arms = spec["seeds"], list(spec["arms"])
    if at:
        grid = _choose(spec, project, at, measure)
        arms = list(dict.fromkeys(name for facts in grid.values() for name in (facts["first"], facts["chosen"])))
        files.write_json(folder / "grid.json", grid)
    measure(arms, seeds)
    for one in (project.run(arm, seed) for arm in spec.get("maps", []) for seed in seeds):
        if not (one.results / "maps.json").exists():
            maps.run(one, lambda _epoch, _metrics: None)
    project, _ = _project(root, spec, arms)
    compare.run(project)
    shutil.copy(project.reports / "compare.json", folder)
    if computed:
        taken = {"seconds": round(time.monotonic() - began)}
        write_machine(folder, project, **(taken if computed == len(asked) else {}))  # else part of it was done before


def _choose(
    spec: dict[str, Any], project: Project, at: dict[str, dict[float, str]], measure: Callable[..., Any]
) -> dict[str, Any]:
    """For each arm its variant at the first temperature and at the one that validates best on the first seed."""
    grid: dict[str, Any] = {}
    for arm in spec["arms"]:
        if arm not in at:
            grid[arm] = {"first": arm, "chosen": arm}
            continue
        tried = measure(list(at[arm].values()), spec["seeds"][:1])
        _, best = max((tried[name]["val_mAP"], t) for t, name in at[arm].items())
        grid[arm] = {"first": next(iter(at[arm].values())), "chosen": at[arm][best], "temperature": str(best)}
        grid[arm]["temperatures"] = {str(t): tried[name] for t, name in at[arm].items()}
        if (control := f"{arm}_shuffled") in project.params.arms:
            grid[arm]["shuffled"] = measure([control], spec["shuffled"])[control]
    return grid


def write_machine(folder: Path, project: Project, **facts: int) -> None:
    """Write machine.json: what computed the numbers, and at which commit."""
    from satclr.study import results

    precision = {"precision": machine.precision(project.settings.pretrain.precision)[0]}
    commit = {"commit": results.git_state(ROOT)[0]}
    files.write_json(folder / "machine.json", tables.benchmark("common").machine() | precision | commit | facts)


def _sharing(embed: Callable[[Run, Any], None]) -> Callable[[Run, Any], None]:
    """`embed.run`, whose features seeds share where neither the encoder nor the batches depend on the seed."""
    known: dict[str, Path] = {}

    def run(one: Run, log: Any) -> None:
        tensors, facts = files.load_tensors(one.encoder)
        digest = hashlib.sha256(b"".join(tensors[name].tobytes() for name in sorted(tensors)))
        facts.pop("fingerprint")  # the seed's
        batch = one.settings.probe.batch_norm == "batch"
        key = f"{digest.hexdigest()} {sorted(facts.items())} {batch and (one.seed, one.settings.probe.batch_size)}"
        if key in known:
            shutil.copyfile(known[key], one.features)
        else:
            embed(one, log)
            known[key] = one.features

    return run


def _remembering(train: Callable[..., Iterator[dict[str, float]]]) -> Callable[..., Iterator[dict[str, float]]]:
    """`probe.train`, which arms that only select another epoch of the same probe share."""
    known: dict[str, list[tuple[dict[str, float], list[Any]]]] = {}

    def trained(layer: Any, store: Any, features: Any, *, run: Run) -> Iterator[dict[str, float]]:
        config = run.settings.probe.model_dump_json(exclude={"select"})
        key = f"{files.sha256(run.encoder)} {run.seed} {config} {run.settings.evaluate}"
        if key not in known:
            steps = train(layer, store, features, run=run)
            known[key] = [(measured, [p.detach().clone() for p in layer.parameters()]) for measured in steps]
        for measured, values in known[key]:
            for parameter, value in zip(layer.parameters(), values, strict=True):
                parameter.data.copy_(value)
            yield measured

    return trained


def _project(
    root: Path, spec: dict[str, Any], run: list[str] | None = None
) -> tuple[Project, dict[str, dict[float, str]]]:
    """The project folder of a run.yaml whose params.yaml runs the arms `run`.

    Also the names of its arms at each temperature, arm → temperature → name, for arms that have one.
    """
    data = Path(os.environ.get("SATCLR_DATA", ROOT.parent / "shared" / "data")).resolve()
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    changes = json.loads(json.dumps(spec.get("params", {})).replace("$DATA", str(data)))
    tree = settings.merge(tree, changes)
    tree |= {"profile": spec["profile"], "run": run or spec["arms"], "seeds": spec["seeds"]}
    at: dict[str, dict[float, str]] = {}
    for arm in spec["arms"] if "temperatures" in spec else []:
        own, objective = tree["arms"][arm], tree["arms"][arm]["pretrain"]["objective"]
        if objective in WITHOUT_TEMPERATURE:
            continue
        at[arm] = {t: f"{arm}_t{t}".replace(".", "") for t in spec["temperatures"]}
        for t, name in at[arm].items():
            tree["arms"][name] = settings.merge(own, {"pretrain": {"temperature": t}})
        if "shuffled" in spec and objective not in WITHOUT_LABELS:
            control = {"pretrain": {"temperature": spec["temperatures"][0], "shuffle_labels": True}}
            tree["arms"][f"{arm}_shuffled"] = settings.merge(own, control)
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", root)
    project, source = Project(root), data / spec["profile"]
    if project.data.exists():
        return project, at
    if "unlabelled" in spec:
        _copy(source, project.data, project.settings.data.split.file, spec["unlabelled"])
    else:
        project.data.symlink_to(source)
    return project, at


def _copy(source: Path, target: Path, split_file: str | None, unlabelled: list[str]) -> None:
    """Copy a data set, with the images of the splits `unlabelled` once more in `Unlabelled`."""
    split_of = {row["image"]: row["split"] for row in files.read_csv(source / str(split_file))}
    part = target.with_name(f"{target.name}.part")
    for file in (path for path in source.rglob("*") if path.is_file()):
        places = [part / file.relative_to(source)]
        if split_of.get(file.name) in unlabelled:
            places.append(part / "Unlabelled" / split_of[file.name] / file.name)
        for place in places:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    part.rename(target)


if __name__ == "__main__":
    main()
