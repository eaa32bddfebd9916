"""What the stages wrote for one arm and seed, as MLflow wants it: parameters, points, tags, a description."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from satclr.tracking.store import TrackingError

RESULTS = ("pretrain.csv", "probe.csv", "metrics.json", "per_class_ap.csv", "scores.npz")
MODELS = ("encoder.safetensors", "probe.safetensors")
POINT = tuple[str, float, int]  # key, value, step


@dataclass(frozen=True)
class Outputs:
    """The files of one arm and seed, read."""

    profile: str
    arm: str
    seed: int
    results: Path
    models: Path
    metrics: dict[str, Any]  # metrics.json
    files: str  # digest of every file
    digest: str  # of every file and parameter

    @property
    def name(self) -> str:
        return f"{self.arm}-s{self.seed}"


def read(root: Path, *, profile: str, arm: str, seed: int, params: Mapping[str, Any] | None = None) -> Outputs:
    """Read the outputs of one arm and seed. Raises `TrackingError` naming a file that is missing."""
    results = root / "results" / profile / f"{arm}-s{seed}"
    models = root / "models" / profile / f"{arm}-s{seed}"
    files = [results / name for name in RESULTS] + [models / name for name in MODELS]
    digest = hashlib.sha256(f"{profile}/{arm}-s{seed}".encode())
    for file in files:
        if not file.is_file():
            raise TrackingError(f"{file.relative_to(root)} does not exist; run dvc repro, or dvc pull")
        digest.update(file.name.encode() + _digest(file))
    files_digest = digest.hexdigest()
    digest.update(json.dumps(params, sort_keys=True, default=str).encode())
    metrics = json.loads((results / "metrics.json").read_text(encoding="utf-8"))
    return Outputs(profile, arm, seed, results, models, metrics, files_digest, digest.hexdigest())


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if file.suffix == ".safetensors":  # the order of its metadata differs from writing to writing
            header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
            digest.update(json.dumps(header, sort_keys=True).encode())
        digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.digest()


def points(outputs: Outputs) -> list[POINT]:
    """Return every number: curves by epoch, `test/mAP` and its like, `test_ap/<label>`."""
    rows: list[POINT] = []
    for stage in ("pretrain", "probe"):
        for row in table(outputs.results / f"{stage}.csv"):
            epoch = int(row.pop("epoch"))
            rows += [(f"{stage}/{key}", float(value), epoch) for key, value in row.items() if value]
    for key, value in _flat(outputs.metrics):
        if key == "seed":
            continue
        name = re.sub(r"^(test|val)_", r"\1/", metric_name(key))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append((name, float(value), 0))
        elif key.endswith("_ci95") and value:
            low, high = value
            rows += [(f"{name.removesuffix('_ci95')}_lo", low, 0), (f"{name.removesuffix('_ci95')}_hi", high, 0)]
    classes = [row for row in table(outputs.results / "per_class_ap.csv") if row["AP"]]
    names = metric_names([row["label"] for row in classes])
    rows += [(f"test_ap/{name}", float(row["AP"]), 0) for name, row in zip(names, classes, strict=True)]
    return rows


def _flat(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What metrics.json holds, {"sweep": {"learning_rate": r}} as ("sweep_learning_rate", r)."""
    for key, value in metrics.items():
        if isinstance(value, dict):
            yield from ((f"{key}_{inner}", number) for inner, number in value.items())
        else:
            yield key, value


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def metric_name(text: str) -> str:
    """Return the text with what MLflow forbids in a metric's name replaced by `_`."""
    return re.sub(r"[^\w\-. ]", "_", text).strip(" .") or "_"


def metric_names(labels: Sequence[str]) -> list[str]:
    """Like `metric_name` for each; names that would fall together are numbered."""
    seen: dict[str, int] = {}
    names = []
    for label in labels:
        name = metric_name(label)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return names


def headline(outputs: Outputs) -> str:
    """Return the result in one line of Markdown: test mAP with its interval, and on what."""
    m = outputs.metrics
    low, high = m["test_mAP_ci95"]
    return (
        f"**{outputs.name}: test mAP {m['test_mAP']:.4f}** (95% interval {low:.4f} to {high:.4f},"
        f" {m['test_tiles']} tiles, {m['labels']} labels);"
        f" validation mAP {m['val_mAP']:.4f} at epoch {m['best_epoch']}"
    )


def data_md5(root: Path, profile: str) -> str | None:
    """Return DVC's md5 of data/<profile> as `prepare` last read it, or that of the whole data folder."""
    lock = _yaml(root / "dvc.lock")
    for name in (f"prepare@{profile}", "prepare"):
        for dep in lock.get("stages", {}).get(name, {}).get("deps", []):
            if dep.get("path") == f"data/{profile}":
                return str(dep.get("md5"))
    outs = _yaml(root / "data.dvc").get("outs", [])
    return str(outs[0]["md5"]) if outs else None


@dataclass(frozen=True)
class Audit:
    """The audit of a profile's data that `prepare` made: its file, numbers, and the finding that stands first."""

    file: Path
    numbers: dict[str, int]
    worst: str


def audit(root: Path, profile: str) -> Audit | None:
    """Read build/<profile>/audit.json; None where it is not here."""
    file = root / "build" / profile / "audit.json"
    if not file.is_file():
        return None
    tree = json.loads(file.read_text(encoding="utf-8"))
    levels = [finding["level"] for finding in tree["findings"]]
    numbers = {
        "tiles": tree["tiles"],
        "tiles_flagged": len(tree["flagged"]),
        "errors": levels.count("error"),
        "suspects": levels.count("suspect"),
        "near_duplicates_across_splits": tree["near_duplicates"]["groups_across_splits"],
    }
    return Audit(file, numbers, tree["findings"][0]["title"] if levels else "nothing found")


def git(root: Path) -> tuple[str | None, bool]:
    """Return the commit and whether tracked files differ from it; dvc.lock does, while DVC runs."""
    commit = _git(root, "rev-parse", "HEAD")
    changes = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", ":!dvc.lock")
    return commit, bool(changes)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    except OSError:  # no git here
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def _yaml(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tree if isinstance(tree, dict) else {}
