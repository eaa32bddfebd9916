"""dvc.yaml against the code: a stage depends on the code it imports, and its files are named by its matrix."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from satclr import project, runner

from .conftest import ROOT

SRC = ROOT / "src"
# Changing these cannot change a stage's output: settings enter as DVC parameters, the rest talks to people.
PLUMBING = {"files", "machine", "params", "progress", "project", "settings"}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = {"prepare": "data.prepare", "compare": "study.compare", "report": "study.report"}
MODULES |= {name: stage.module for name, stage in runner.ARM_STAGES.items()}


def source(module: str) -> Path | None:
    path = SRC.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imports(module: str) -> set[str]:
    """The modules of ours that a module imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((source(module) or Path()).read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("satclr"):
            found.add(str(node.module))
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if source(name)}


def closure(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in seen and name.split(".")[1:2] not in [[p] for p in PLUMBING]:
            seen.add(name)
            waiting += imports(name)
    return seen


@pytest.mark.parametrize("stage", MODULES)
def test_a_stage_depends_on_the_code_it_imports(stage: str) -> None:
    declared = [SRC.parent / dep for dep in STAGES[stage]["deps"] if str(dep).startswith("src/")]
    assert all(path.exists() for path in declared)
    files = {source(name) for name in closure(f"satclr.{MODULES[stage]}")}
    missing = [str(f) for f in files if f and f.read_text().strip() and not any(f.is_relative_to(d) for d in declared)]
    assert [name for name in missing if not name.endswith("__init__.py")] == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_names_its_files_by_its_matrix(stage: str) -> None:
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


def test_the_fingerprint_reads_the_code_list_of_dvc_yaml(tmp_path: Path) -> None:
    text = (ROOT / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(text.replace("      - src/satclr/pretrain\n", "", 1))
    assert project.code_digest(tmp_path, "pretrain") != project.code_digest(ROOT, "pretrain")
