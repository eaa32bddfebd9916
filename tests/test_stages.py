"""dvc.yaml against the code: what a stage depends on is what it imports."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from .conftest import ROOT

SRC = ROOT / "src" / "satclr"
# Plumbing whose change cannot change a stage's output: settings enter as DVC parameters, the rest talks to people.
PLUMBING = {"atomic", "locks", "params", "progress", "stopping"}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]


def module_files(name: str) -> list[Path]:
    path = SRC / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [SRC / f"{name}.py"]


def imported(name: str) -> set[str]:
    """The modules of ours (first level) that a module imports, inside functions too."""
    found = set()
    for file in module_files(name):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "satclr":
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("satclr."):
                found.add(str(node.module).split(".")[1])
    return found - {name}


def closure(name: str) -> set[str]:
    seen, waiting = set(), [name]
    while waiting:
        module = waiting.pop()
        if module not in seen and module not in PLUMBING:
            seen.add(module)
            waiting += imported(module)
    return seen


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    declared = {
        Path(dep).stem
        for dep in STAGES[stage]["deps"]
        if isinstance(dep, str) and dep.startswith("src/satclr/")
    }
    needed = closure(stage)
    if stage == "register":  # MLflow's side is no input: it cannot change what was measured
        needed -= {"tracking", "serving", "encoder", "tiles", "views", "tensorfile"}
    assert declared == needed


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_its_files_by_profile_arm_and_seed(stage: str) -> None:
    entry = STAGES[stage]
    matrix = entry["matrix"]
    assert matrix["profile"] == ["${profile}"]
    assert all(f"${{item.{key}}}" in entry["cmd"] for key in matrix)
    for kind in ("outs", "metrics", "plots"):
        for out in entry.get(kind, []):
            path, options = next(iter(out.items()))
            assert all(f"${{item.{key}}}" in path for key in matrix)
            # `cache: false` below outs would disable DVC's run cache.
            assert (options.get("cache") is False) == (kind != "outs")


def test_fingerprints_cover_the_code_that_dvc_watches() -> None:
    from satclr.pretrain import stage as pretrain

    declared = {Path(d).stem for d in STAGES["pretrain"]["deps"] if d.startswith("src/satclr/")}
    assert {Path(name).stem for name in pretrain.CODE} == declared
