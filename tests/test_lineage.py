from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from satclr import cli


def satclr(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> object:
    """Run a command in this process; returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["satclr", *arguments])
    try:
        cli.main()
    except SystemExit as stop:
        return stop.code
    return 0


def family(tree: dict[str, Any]) -> None:
    """jaccard goes on from warm, warm from simclr."""
    tree["arms"] = {arm: tree["arms"][arm] for arm in ("baseline", "simclr", "jaccard")}
    tree["ladder"] = []
    tree["run"] = ["baseline", "simclr", "warm"]
    tree["arms"]["warm"] = {"pretrain": {"from": "simclr", "objective": "nt_xent", "temperature": 0.2}}
    tree["arms"]["jaccard"]["pretrain"]["from"] = "warm"
    tree["profiles"]["tiny"]["pretrain"]["epochs"] = 1


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    tree = yaml.safe_load((root / "params.yaml").read_text())
    change(tree)
    (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))


def test_a_changed_arm_changes_the_files_of_those_that_go_on_from_it_and_no_others(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project(family, data=False)

    def files() -> dict[str, str]:
        satclr("lineage", monkeypatch=monkeypatch)
        return {path.stem: path.read_text() for path in (root / "build/tiny/lineage").iterdir()}

    def changed_by(section: str, key: str, value: object) -> set[str]:
        before = files()
        edit(root, lambda tree: tree["arms"][section].setdefault("pretrain", {}).update({key: value}))
        after = files()
        assert after.keys() == before.keys()
        return {arm for arm in after if after[arm] != before[arm]}

    entries = {arm: len(yaml.safe_load(text)) for arm, text in files().items()}
    assert entries == {"baseline": 0, "simclr": 0, "warm": 1, "jaccard": 2}
    assert changed_by("simclr", "temperature", 0.3) == {"warm", "jaccard"}
    assert changed_by("warm", "epochs", 7) == {"jaccard"}
    assert changed_by("jaccard", "epochs", 7) == set()
    assert changed_by("simclr", "processes", 2) == set()


def test_comparing_stops_when_the_encoder_gone_on_from_is_another_by_now(
    project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = project(family)
    for arguments in (["prepare"], ["pretrain", "--arm", "simclr"], ["pretrain", "--arm", "warm"]):
        assert satclr(*arguments, monkeypatch=monkeypatch) == 0
    satclr("compare", monkeypatch=monkeypatch)
    assert "another encoder" not in capsys.readouterr().err
    edit(root, lambda tree: tree["arms"]["simclr"]["pretrain"].update(temperature=0.3))
    assert satclr("pretrain", "--arm", "simclr", monkeypatch=monkeypatch) == 0
    assert satclr("compare", monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err
    assert "arm 'warm' with seed 0 went on from another encoder" in said
    assert "`dvc repro --force --single-item pretrain@tiny-warm-0`" in said
    assert satclr("pretrain", "--arm", "warm", monkeypatch=monkeypatch) == 0
    satclr("compare", monkeypatch=monkeypatch)
    assert "another encoder" not in capsys.readouterr().err
