"""The tables in the docs are those of the committed runs."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path

import numpy as np
import pytest

from satclr.data import prepare, tiles
from tests.conftest import write_data
from tools import runs, tables


def test_the_tables_of_the_docs_equal_the_committed_runs() -> None:
    for doc in tables.documents():
        text = doc.read_text(encoding="utf-8")
        assert tables.with_tables(text) == text, f"{doc.name}: run `python -m tools.tables`"


def test_the_readme_shows_the_committed_experiments() -> None:
    shown = (runs.ROOT / "docs" / "runs" / "sample" / "experiments.txt").read_text(encoding="utf-8")
    assert textwrap.indent(shown, "    ") in (runs.ROOT / "README.md").read_text(encoding="utf-8")


def test_a_table_is_filled_from_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"ladder": [{"arm": "baseline", "test_mAP": 0.5, "ci95": [0.4, 0.6]}]}
    monkeypatch.setattr(Path, "read_text", lambda _self, **_: json.dumps(report))
    text = "before\n<!-- table: some-run ladder -->\nold\n<!-- end -->\nafter"
    filled = tables.with_tables(text)
    assert "| `baseline` | 0.5000 | 0.400 to 0.600 |" in filled
    assert "old" not in filled
    assert tables.with_tables(filled) == filled


def test_splits_may_be_unlabelled_tiles_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data" / "ucmerced"
    write_data(data)
    names = sorted(path.name for path in data.glob("Images/*/*"))
    with (data / "aitlas_split.csv").open("w", newline="") as file:
        splits = ("train", "train", "val", "test")
        csv.writer(file).writerows([("image", "split"), *((name, splits[i % 4]) for i, name in enumerate(names))])
    monkeypatch.setenv("SATCLR_DATA", str(data.parent))
    spec = {"profile": "ucmerced", "arms": ["simclr"], "seeds": [0], "unlabelled": ["val", "test"]}
    project, _ = runs._project(tmp_path / "run", spec)
    assert runs._project(tmp_path / "run", spec)[0].data == project.data
    prepare.run(project)
    store = tiles.open_store(project.store)
    assert (store.labelled, len(store.rows("unlabelled"))) == (48, 24)
    tested = np.flatnonzero(np.isin(store.splits, ("val", "test")))
    known, seen = ({store.pixels[row].tobytes() for row in rows} for rows in (tested, store.rows("unlabelled")))
    assert known == seen
    assert len(store.learning("keep", tiles="both").rows("train")) == 48
    assert len(store.learning("leave_out", tiles="both").rows("train")) == 24
    assert not (data / "Unlabelled").exists()
