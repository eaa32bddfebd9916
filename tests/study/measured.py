"""Two arms measured by the stages themselves, on the tiny data set, in a project's own layout."""

from __future__ import annotations

from pathlib import Path

from satclr.study import compare, figures
from satclr.evaluation import embed, evaluate, maps, probe, robustness
from satclr import params
from satclr.pretrain import stage as pretrain
from satclr.data import tiles

from .conftest import resolve

ARMS = ("baseline", "simclr", "baseline_by_group")
PALETTE = figures.Palette(list(ARMS))
QUICK = {"labels": {"fractions": [0.1, 0.5], "subsets": 2}, "sweep": {"epochs": 2}}


def arms() -> list[params.Arm]:
    return [resolve(name, evaluate=QUICK) for name in ARMS]


def models(store: tiles.TileStore, root: Path) -> None:
    """Pretrain, embed and probe both arms: models/tiny/<arm>-s0 and the curves below `root`."""
    for arm in arms():
        model, result = root / "models" / "tiny" / arm.key, root / "results" / "tiny" / arm.key
        log = lambda *_: None  # noqa: E731
        pretrain.run(
            store, settings=arm.settings, seed=0, root=root, out=model / "encoder.safetensors",
            curve=result / "pretrain.csv", log=log,
        )  # fmt: skip
        embed.run(
            store, encoder=model / "encoder.safetensors", out=model / "features.npy", settings=arm.settings
        )
        probe.run(
            store, features=model / "features.npy", encoder=model / "encoder.safetensors",
            out=model / "probe.safetensors", curve=result / "probe.csv", settings=arm.settings, seed=0, log=log,
        )  # fmt: skip


def evaluation(store: tiles.TileStore, root: Path) -> None:
    """Evaluate both arms, on corrupted tiles too, map and compare them: results/tiny and reports/tiny."""
    for arm in arms():
        model, result = root / "models" / "tiny" / arm.key, root / "results" / "tiny" / arm.key
        evaluate.run(
            store, features=model / "features.npy", probe=model / "probe.safetensors", out=result, arm=arm
        )
        robustness.run(
            store, encoder_file=model / "encoder.safetensors", probe=model / "probe.safetensors",
            out=result / "robustness.json", arm=arm,
        )  # fmt: skip
        maps.run(store, features=model / "features.npy", out=result / "maps.json", arm=arm)
    compare.run(
        root / "results" / "tiny", root / "reports" / "tiny", arms=[[arm] for arm in arms()],
        rungs=("baseline", "simclr"), palette=PALETTE,
    )  # fmt: skip
