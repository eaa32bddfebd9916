"""The benchmarks still run with the product as it is; what they measure is for a quiet machine."""

import importlib
import json
import os
import re
import runpy
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "benchmarks"


def run(*command: str) -> str:
    line = [sys.executable, *command]
    no_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(line, check=False, cwd=FOLDER.parent, capture_output=True, text=True, env=no_gpu)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_without_one(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    run(str(FOLDER / "gpu.py"), "--quick", "--out", str(out))
    found = json.loads(out.read_text())
    assert [row["case"] for row in found["rows"]] == [
        "float32", "TF32", "bfloat16", "batch 512 in micro-batches of 128", "batch 2048 in micro-batches of 128",
    ]  # fmt: skip
    for row in found["rows"]:
        assert min(row["ours"], row["theirs"]) > 0
        assert set(row["share"]) == {"gather", "views", "forward_backward", "optimizer"}
        assert all(row["share"][part] > 0 for part in ("views", "forward_backward", "optimizer"))
    for part in ("tiles_per_s_alone", "mlrsnet_minutes_in_bfloat16"):
        assert min(found[part].values()) > 0


def test_the_docs_show_the_committed_coverage() -> None:
    """And a round of the simulation gives what its table needs."""
    coverage = runpy.run_path(str(FOLDER / "coverage.py"))
    committed = json.loads((FOLDER.parent / "docs" / "runs" / "coverage.json").read_text())
    assert coverage["table"](committed["rows"]) in (FOLDER.parent / "docs" / "evaluation.md").read_text()
    found = coverage["row"](120, 3, [coverage["round_of"](0, 120, 3)])
    assert found.keys() == committed["rows"][0].keys()
    assert found["coverage_over_tiles"].keys() == committed["rows"][0]["coverage_over_tiles"].keys()


@pytest.mark.parametrize(
    ("name", "doc"),
    [("growth", "docs/scale.md"), ("jobs", "docs/scale.md"), ("shards", "docs/scale.md"), ("clone", "README.md")],
)
def test_the_docs_show_the_committed_tables(name: str, doc: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    benchmark = importlib.import_module(name)
    committed = json.loads(benchmark.OUT.read_text())
    assert committed.get("same_results", True)
    assert benchmark.table(committed) in (FOLDER.parent / doc).read_text()


@pytest.mark.slow
def test_the_quick_way_of_all_that_have_one() -> None:
    pytest.importorskip("lightly", reason="uv sync --group bench")
    shown = run(str(FOLDER / "run.py"), "--quick")
    limits = ("against the limit", "against lightly's recipe", "whole ablation", "processes", "torch's convolutions")
    assert [name for name in limits if name not in shown] == []


@pytest.mark.slow
def test_two_jobs_of_dvcs_queue_share_one_store_and_give_the_results_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(FOLDER)
    jobs = importlib.import_module("jobs")
    sections = jobs.SECTIONS | {"pretrain": jobs.SECTIONS["pretrain"] | {"epochs": 1}}
    copies = {count: jobs.make(tmp_path / f"jobs{count}", sections, tiles=128) for count in (1, 2)}
    for count, copy in copies.items():
        jobs.work_off(copy, [f"seeds=[{seed}]" for seed in range(4)], jobs=count)
    one, two = map(jobs.results, copies.values())
    assert len(one) == 4
    assert len(set(map(str, one.values()))) == 4
    assert one == two
    with closing(sqlite3.connect(copies[2] / "mlruns" / "mlflow.db")) as db:
        runs = db.execute("SELECT name, status FROM runs WHERE name LIKE 'simclr-s_ (%' ORDER BY name").fetchall()
        reasons = db.execute("SELECT value FROM model_version_tags WHERE key = 'satclr.reason'").fetchall()
    assert [(name[:9], status) for name, status in runs] == [(f"simclr-s{seed}", "FINISHED") for seed in range(4)]
    assert [reason for (reason,) in reasons].count("the first version") == 1
    assert len(reasons) == 4
    # With all seeds in params.yaml, DVC restores what the experiments computed and runs what compares them.
    path = copies[2] / "params.yaml"
    path.write_text(path.read_text().replace("seeds:\n- 0\n", "seeds: [0, 1, 2, 3]\n"))
    ran = jobs.command(copies[2], "dvc", "repro", "compare")
    assert re.findall(r"Running stage '(\w+)", ran) == ["compare"]
    compared = json.loads((copies[2] / "reports" / "bench" / "compare.json").read_text())
    assert len(compared["arms"]["simclr"]["seeds"]) == 4
