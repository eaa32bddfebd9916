"""The same commit, data and parameters give the same bits; another number of threads gives nearly the same.

docs/reliability_input.md states the tolerances below.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from satclr import tensorfile
from satclr.data import prepare, tiles
from satclr.evaluation import embed, evaluate, probe
from satclr.pretrain import encoder
from satclr.pretrain import stage as pretrain
from tests.pretrain.conftest import resolve

# Of one and the same encoder, and of what training makes of that: rounding grows with every step.
FEATURES_ATOL = 1e-5
LOSS_ATOL = 0.1  # of pretraining, an epoch (2.7)
WEIGHTS_ATOL = 0.005  # learned ones; twice the learning rate times the steps
SCORES_ATOL = 0.05  # probabilities
MEAN_AP_ATOL = 0.02  # on a test split of 5 tiles


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def line(data: Path, root: Path) -> None:
    """From tiles to metrics, in `root`."""
    arm = resolve()
    prepare.run(data, root / "build", arm.settings.data)
    store = tiles.open_store(root / "build")
    how: dict[str, Any] = {"settings": arm.settings, "seed": arm.seed, "log": lambda *_: None}
    pretrain.run(store, root=root, out=root / "encoder.safetensors", curve=root / "pretrain.csv", **how)
    embed.run(store, encoder=root / "encoder.safetensors", out=root / "features.npy", settings=arm.settings)
    how |= {"features": root / "features.npy", "encoder": root / "encoder.safetensors"}
    probe.run(store, out=root / "probe.safetensors", curve=root / "probe.csv", **how)
    out = root / "results"
    evaluate.run(store, features=how["features"], probe=root / "probe.safetensors", out=out, arm=arm)


@pytest.fixture(scope="module")
def lines(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name, count in (("first", 1), ("again", 1), ("two threads", 2)):
        made[name] = tmp_path_factory.mktemp("line")
        with threads(count):
            line(tiny_data, made[name])
    return made


def test_everything_is_bit_identical_the_second_time(lines: dict[str, Path]) -> None:
    first, again = lines["first"], lines["again"]
    files = [
        p.relative_to(first) for p in sorted(first.rglob("*")) if p.is_file() and ".cache" not in p.parts
    ]
    assert len(files) > 10
    for file in files:
        one, other = ((root / file).read_bytes() for root in (first, again))
        assert one == other, file


def test_two_threads_encode_the_same_but_for_rounding(lines: dict[str, Path]) -> None:
    store = tiles.open_store(lines["first"] / "build")
    frozen = encoder.Frozen(lines["first"] / "encoder.safetensors")
    batch = torch.from_numpy(store.pixels[:32].copy())
    with threads(1):
        one = frozen(batch)
    with threads(2):
        two = frozen(batch)
    np.testing.assert_allclose(one, two, atol=FEATURES_ATOL)


def test_two_threads_train_the_same_within_the_stated_tolerance(lines: dict[str, Path]) -> None:
    one, two = lines["first"], lines["two threads"]
    (a, _), (b, _) = (tensorfile.load(root / "encoder.safetensors") for root in (one, two))
    assert a.keys() == b.keys()
    for key in a:
        if "running" not in key:  # BatchNorm's statistics show in the scores
            assert (a[key] - b[key]).abs().max() <= WEIGHTS_ATOL, key
    curves = [np.loadtxt(root / "pretrain.csv", delimiter=",", skiprows=1) for root in (one, two)]
    np.testing.assert_allclose(curves[0], curves[1], atol=LOSS_ATOL)
    scores = [np.load(root / "results/scores.npz")["test_scores"] for root in (one, two)]
    np.testing.assert_allclose(scores[0], scores[1], atol=SCORES_ATOL)
    found = [json.loads((root / "results/metrics.json").read_text())["test_mAP"] for root in (one, two)]
    assert found[0] == pytest.approx(found[1], abs=MEAN_AP_ATOL)


def test_the_setting_makes_torch_refuse_what_may_differ() -> None:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        with encoder.deterministic(False):
            assert not torch.are_deterministic_algorithms_enabled()
        with encoder.deterministic(True):
            assert torch.are_deterministic_algorithms_enabled()
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("wanted", [True, False])
def test_pretraining_and_embedding_follow_the_setting(
    wanted: bool, store: tiles.TileStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = resolve("baseline", pretrain={"deterministic": wanted}, embed={"deterministic": wanted})
    asked: list[bool] = []
    real = encoder.deterministic

    def noted(enabled: bool) -> Any:
        asked.append(enabled)
        return real(enabled)

    monkeypatch.setattr(encoder, "deterministic", noted)
    out = tmp_path / "encoder.safetensors"
    pretrain.run(
        store,
        settings=arm.settings,
        seed=0,
        root=tmp_path,
        out=out,
        curve=tmp_path / "c.csv",
        log=lambda *_: None,
    )
    embed.run(store, encoder=out, out=tmp_path / "features.npy", settings=arm.settings)
    assert asked == [wanted, wanted]
