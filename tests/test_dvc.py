"""dvc.yaml against the code: a stage depends on the code it imports, and its files are named by its matrix."""

from pathlib import Path
from typing import Any

import grimp
import pytest
import yaml

from satclr import project, runner

from .conftest import ROOT

# Changing these cannot change a stage's output: settings enter as DVC parameters, the rest talks to people.
PLUMBING = {"files", "machine", "params", "progress", "project", "settings"}
STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
MODULES = {"prepare": "data.prepare", "compare": "study.compare", "report": "study.report"}
MODULES |= {name: stage.module for name, stage in runner.ARM_STAGES.items()}


@pytest.fixture(scope="module")
def graph() -> grimp.ImportGraph:
    """The imports of all modules, also inside functions."""
    return grimp.build_graph("satclr", cache_dir=None)


@pytest.mark.parametrize("stage", MODULES)
def test_a_stage_depends_on_the_code_it_imports(stage: str, graph: grimp.ImportGraph) -> None:
    declared = [ROOT / dep for dep in STAGES[stage]["deps"] if str(dep).startswith("src/")]
    assert all(path.exists() for path in declared)
    module = f"satclr.{MODULES[stage]}"
    imported = {module, *graph.find_upstream_modules(module)} - {f"satclr.{name}" for name in PLUMBING}
    files = [(ROOT / "src").joinpath(*name.split(".")).with_suffix(".py") for name in imported]
    undeclared = [str(f) for f in files if f.is_file() and not any(f.is_relative_to(d) for d in declared)]
    assert undeclared == []


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
