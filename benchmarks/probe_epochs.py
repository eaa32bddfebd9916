"""How far a probe has come: test mAP of the frozen encoder after each number of epochs, mean of three seeds.

    python benchmarks/probe_epochs.py WEIGHTS [TILE_PX]      a ResNet-18 state dict; tiles stored at 72 px, say

The `baseline` arm of UC Merced at 64 px (docs/reproduction.md). The first `e` epochs of a longer probe are those of a
probe of `e` epochs, so one probe a seed gives every number.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import common
import numpy as np
import numpy.typing as npt
import torch
import yaml

from satclr.data import prepare, tiles
from satclr.evaluation import embed, metrics, probe
from satclr.pretrain import train
from satclr.project import Project, Run

SEEDS, EPOCHS = (0, 1, 2), 24


def main(weights: Path, tile_px: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tree = yaml.safe_load((common.ROOT / "params.yaml").read_text())
        profile = tree["profiles"]["ucmerced"]
        for section, change in (("data", {"tile_px": tile_px}), ("probe", {"epochs": EPOCHS})):
            profile[section] |= change
        profile["pretrain"]["weights"] = str(weights.absolute())
        (folder / "params.yaml").write_text(yaml.safe_dump(tree))
        shutil.copy(common.ROOT / "dvc.yaml", folder)
        (folder / "data").mkdir()
        (folder / "data" / "ucmerced").symlink_to(common.data().absolute())
        project = Project(folder, "ucmerced")
        prepare.run(project)
        runs = [project.run("baseline", seed) for seed in SEEDS]
        for stage in (train, embed):
            stage.run(runs[0], lambda _epoch, _metrics: None)
        store = tiles.open_store(project.store)
        features = tiles.load_features(runs[0].features, store)
        curves = [test_curve(store, features, run) for run in runs]
    print("epochs  test mAP  sd over seeds")
    for epoch, values in enumerate(zip(*curves, strict=True), 1):
        print(f"{epoch:6}  {statistics.mean(values):.4f}    {statistics.stdev(values):.4f}")


def test_curve(store: tiles.TileStore, features: npt.NDArray[np.float32], run: Run) -> list[float]:
    """Test mAP after each epoch of the run's probe."""
    rows = store.rows("test")
    test, targets = torch.from_numpy(features[rows]), store.targets[rows]
    layer = probe.new_layer(features.shape[1], len(store.labels), seed=run.seed)
    found = []
    for _ in probe.train(layer, store, features, run=run):
        with torch.inference_mode():
            found.append(metrics.mean_average_precision(layer(test).numpy(), targets))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 72)
