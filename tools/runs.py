"""The runs behind the numbers in the docs: docs/runs/<name>/run.yaml → compare.json and machine.json beside it.

    python -m tools.runs docs/runs/ladder-resnet18        run every arm and seed that run.yaml lists, and compare
    dvc repro && python -m tools.runs docs/runs/sample    without a run.yaml: take the finished profile `sample`
    python -m tools.runs --tables                         write the tables of the docs from the compare.json files

run.yaml holds a profile, arms, seeds and what it changes in params.yaml; `$DATA` in a value is the folder SATCLR_DATA,
which holds the data set and the weights. The images of splits that it lists as `unlabelled` are in `Unlabelled` too, in
a copy of the data set: pretraining may then see them. All stages run in one process, so nothing is spent on starting
them; what is done already, in build/runs/<name>, is not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from satclr import files, machine, settings
from satclr.project import Project, Run

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"(<!-- table: (?P<run>[\w-]+) (?P<kind>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, nargs="?", help="a folder with a run.yaml")
    parser.add_argument("--tables", action="store_true", help="write the tables of the docs")
    chosen = parser.parse_args()
    if chosen.folder and (chosen.folder / "run.yaml").exists():
        run(chosen.folder)
    elif chosen.folder:
        chosen.folder.mkdir(exist_ok=True)
        shutil.copy(Project(ROOT, chosen.folder.name).reports / "compare.json", chosen.folder)
        write_machine(chosen.folder, Project(ROOT, chosen.folder.name))
    if chosen.tables:
        for doc in documents():
            doc.write_text(with_tables(doc.read_text(encoding="utf-8")), encoding="utf-8")


def run(folder: Path) -> None:
    """Run what `folder`/run.yaml lists and write compare.json and machine.json."""
    from satclr.data import prepare
    from satclr.evaluation import embed, evaluate, probe
    from satclr.pretrain import train
    from satclr.study import compare

    probe.train = _remembering(probe.train)
    stages = (train.run, _sharing(embed.run), probe.run, evaluate.run)
    spec = yaml.safe_load((folder / "run.yaml").read_text(encoding="utf-8"))
    project = _project(ROOT / "build" / "runs" / folder.name, spec)
    began, computed = time.monotonic(), 0
    if not (project.store / "audit.json").exists():
        prepare.run(project)
    for seed in spec["seeds"]:
        for arm in spec["arms"]:
            one = project.run(arm, seed)
            if not (one.results / "metrics.json").exists():
                for stage in stages:
                    stage(one, lambda _epoch, _metrics: None)
                computed += 1
    compare.run(project)
    shutil.copy(project.reports / "compare.json", folder)
    if computed:
        whole = computed == len(spec["seeds"]) * len(spec["arms"])  # else part of it was done before
        write_machine(folder, project, **({"seconds": round(time.monotonic() - began)} if whole else {}))


def write_machine(folder: Path, project: Project, **facts: int) -> None:
    """Write machine.json: what computed the numbers, and at which commit."""
    from satclr.study import results

    precision = {"precision": machine.precision(project.settings.pretrain.precision)[0]}
    commit = {"commit": results.git_state(ROOT)[0]}
    files.write_json(folder / "machine.json", _benchmark("common").machine() | precision | commit | facts)


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


def _project(root: Path, spec: dict[str, Any]) -> Project:
    data = Path(os.environ.get("SATCLR_DATA", ROOT.parent / "shared" / "data")).resolve()
    tree = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    changes = json.loads(json.dumps(spec.get("params", {})).replace("$DATA", str(data)))
    tree = settings.merge(tree, changes) | {"profile": spec["profile"], "run": spec["arms"], "seeds": spec["seeds"]}
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
    shutil.copy(ROOT / "dvc.yaml", root)
    project, source = Project(root), data / spec["profile"]
    if project.data.exists():
        return project
    if "unlabelled" in spec:
        _copy(source, project.data, project.settings.data.split.file, spec["unlabelled"])
    else:
        project.data.symlink_to(source)
    return project


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


def documents() -> list[Path]:
    """The README and the docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def with_tables(text: str) -> str:
    """`text` with each `<!-- table: RUN KIND --> … <!-- end -->` filled from docs/runs/RUN/compare.json.

    Where RUN is `benchmarks`, from a benchmark's results.
    """

    def table(match: re.Match[str]) -> str:
        if match["run"] == "benchmarks":
            return match[1] + str(_benchmark("run").markdown(match["kind"])) + match[4]
        report = json.loads((ROOT / "docs" / "runs" / match["run"] / "compare.json").read_text(encoding="utf-8"))
        header, *rows = TABLES[match["kind"]](report)
        lines = [header, ("---",) * len(header), *rows]
        return match[1] + "".join(f"| {' | '.join(line)} |\n" for line in lines) + match[4]

    return TABLE.sub(table, text)


def arms(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """Each arm with its spread over seeds, interval, and difference to the first."""
    reference = next(iter(report["arms"]))
    against = {c["arm"]: c for c in report["contrasts"] if c["against"] == reference}
    rows: list[tuple[str, ...]] = [
        ("arm", "test mAP", "sd over seeds", "95% interval", f"against `{reference}`", "95% interval")
    ]
    for name, arm in report["arms"].items():
        c = against.get(name)
        sd = "" if arm["test_mAP_sd"] is None else f"{arm['test_mAP_sd']:.4f}"
        difference = (f"{c['delta_mAP']:+.4f}", _span(c["ci95"], "+")) if c else ("", "")
        rows.append((f"`{name}`", f"{arm['test_mAP']:.4f}", sd, _span(arm["test_mAP_ci95"]), *difference))
    return rows


def ladder(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The rungs of the ladder, each with its change from the one above."""
    rows: list[tuple[str, ...]] = [("rung", "test mAP", "95% interval", "change from the rung above", "95% interval")]
    for step in report["ladder"]:
        change = (f"{step['delta_mAP']:+.4f}", _span(step["delta_ci95"], "+")) if "against" in step else ("", "")
        rows.append((f"`{step['arm']}`", f"{step['test_mAP']:.4f}", _span(step["ci95"]), *change))
    return rows


def factorial(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """What each departure of the released code contributes to the difference that all make."""
    rows: list[tuple[str, ...]] = [("departure", "alone", "after the others", "Shapley value", "95% interval")]
    for found in report["factorial"]:
        for row in found["departures"]:
            values = (f"{row[key]:+.3f}" for key in ("alone", "last", "shapley"))
            rows.append((row["departure"], *values, _span(row["ci95"], "+")))
        rows.append(("all three", "", "", f"{found['delta_mAP']:+.3f}", _span(found["ci95"], "+")))
    return rows


def labels(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """The converged probe on shares of the training labels: mean ± standard deviation over subsets and seeds."""
    shares = next(iter(report["arms"].values()))["label_efficiency"]
    rows: list[tuple[str, ...]] = [("arm", *(f"{row['fraction']:.0%}: {row['tiles']:,} tiles" for row in shares))]
    for name, arm in report["arms"].items():
        cells = ((row["test_mAP"], row["sd"]) for row in arm["label_efficiency"])
        rows.append((f"`{name}`", *(f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}") for mean, sd in cells)))
    return rows


TABLES = {"arms": arms, "ladder": ladder, "factorial": factorial, "labels": labels}


def _benchmark(name: str) -> Any:
    """A module of benchmarks/, whose modules import each other by name."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def _span(ends: list[float], sign: str = "") -> str:
    return f"{ends[0]:{sign}.3f} to {ends[1]:{sign}.3f}"


if __name__ == "__main__":
    main()
