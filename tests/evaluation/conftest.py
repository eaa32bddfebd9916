from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satclr import files, randomness
from satclr.data import tiles
from satclr.pretrain import encoder
from satclr.project import Run
from tests.conftest import make_run

MakeRun = Callable[..., Run]

ARCH = "shufflenet_v2_x0_5"
FACTS: dict[str, Any] = {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_px": 64, "tile_px": 40}


@pytest.fixture
def run_of(store: tiles.TileStore, tmp_path: Path) -> MakeRun:
    """Makes a run on the tiny store whose features tell something of the labels; its encoder has facts only."""
    rng = np.random.default_rng()
    mixed = store.targets @ rng.normal(size=(len(store.labels), 8)) + rng.normal(size=(len(store.names), 8))
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "tiny").symlink_to(store.folder)

    def make(arm: str = "simclr", seed: int = 0, **changes: Any) -> Run:
        run = make_run(tmp_path, arm, seed, **changes)
        run.models.mkdir(parents=True, exist_ok=True)
        np.save(run.features, mixed.astype(np.float32))
        files.save_tensors(run.encoder, {"x": np.zeros(1)}, arch="none", **FACTS)
        return run

    return make


def log(_epoch: int, _measured: object) -> None:
    """Tests look at files instead."""


def with_encoder(run: Run) -> Run:
    """`run` with a random encoder."""
    with randomness.seeded(0):
        module, width = encoder.build(ARCH)
    encoder.save(module, run.encoder, arch=ARCH, width=width, **FACTS)
    return run
