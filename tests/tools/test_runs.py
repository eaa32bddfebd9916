"""The tables in the docs are those of the committed runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools import runs


def test_the_tables_of_the_docs_equal_the_committed_runs() -> None:
    for doc in runs.documents():
        text = doc.read_text(encoding="utf-8")
        assert runs.with_tables(text) == text, f"{doc.name}: run `python -m tools.runs --tables`"


def test_a_table_is_filled_from_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    report = {"ladder": [{"arm": "baseline", "test_mAP": 0.5, "ci95": [0.4, 0.6]}]}
    monkeypatch.setattr(Path, "read_text", lambda _self, **_: json.dumps(report))
    text = "before\n<!-- table: some-run ladder -->\nold\n<!-- end -->\nafter"
    filled = runs.with_tables(text)
    assert "| `baseline` | 0.5000 | 0.400 to 0.600 |" in filled
    assert "old" not in filled
    assert runs.with_tables(filled) == filled
