"""How far a probe has come: test mAP of the frozen encoder after each number of epochs, mean of three seeds.

    python benchmarks/probe_epochs.py WEIGHTS [TILE_PX]      a ResNet-18 state dict; tiles stored at 72 px, say

The `baseline` arm of UC Merced at 64 px (docs/reproduction.md). The first `e` epochs of a longer probe are those of a
probe of `e` epochs, so one probe a seed gives every number.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path

import common
import torch

from satclr import params
from satclr.data import prepare, tiles
from satclr.evaluation import embed, metrics, probe
from satclr.pretrain import stage as pretrain

SEEDS, EPOCHS = (0, 1, 2), 24


def main(weights: Path, tile_px: int) -> None:
    loaded = params.load(common.ROOT / "params.yaml")
    changes = {
        "data": {"tile_px": tile_px},
        "pretrain": {"weights": str(weights.absolute())},
        "probe": {"epochs": EPOCHS},
    }
    profile = params.merge(loaded.profiles["ucmerced"], changes)
    loaded = loaded.model_copy(update={"profiles": {**loaded.profiles, "ucmerced": profile}})
    arms = [params.resolve(loaded, "ucmerced", "baseline", seed) for seed in SEEDS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = arms[0].settings
        prepare.run(common.data(), folder / "build", settings.data)
        store = tiles.open_store(folder / "build")
        pretrain.train(store, settings=settings, seed=0, root=folder, folder=folder, log=lambda *_: None)
        encoder, features = folder / "encoder.safetensors", folder / "features.npy"
        embed.run(store, encoder=encoder, out=features, settings=settings)
        curves = [test_curve(store, features, arm) for arm in arms]
    print("epochs  test mAP  sd over seeds")
    for epoch, values in enumerate(zip(*curves, strict=True), 1):
        print(f"{epoch:6}  {statistics.mean(values):.4f}    {statistics.stdev(values):.4f}")


def test_curve(store: tiles.TileStore, features: Path, arm: params.Arm) -> list[float]:
    """Test mAP after each epoch of the arm's probe."""
    cached = tiles.load_features(features, store)
    rows = store.rows("test")
    test, targets = torch.from_numpy(cached[rows]), store.targets[rows]
    layer = probe.new_layer(cached.shape[1], len(store.labels), seed=arm.seed)
    found = []
    for _ in probe.train(
        layer,
        store,
        lambda some: torch.from_numpy(cached[some]),
        cached,
        settings=arm.settings,
        seed=arm.seed,
    ):
        with torch.inference_mode():
            ap = metrics.average_precision(layer(test).numpy(), targets)
        found.append(metrics.mean_average_precision(ap))
    return found


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 72)
