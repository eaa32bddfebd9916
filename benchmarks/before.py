"""The same work in another checkout of satclr and in this one, in turns: `python benchmarks/before.py OTHER`.

Each has a .venv. Both run UC Merced, which SATCLR_DATA holds, from `prepare` to `register`: a ResNet-18 from random
weights in float32 at 64 px, without and with two epochs of SimCLR. Stages are timed with their start, for both arms.
Rows go to benchmarks/results/before-<instructions>.json.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import common
import torch
import yaml

from satclr import settings

OUT = Path(__file__).with_name("results") / f"before-{torch.backends.cpu.get_cpu_capability().lower()}.json"
ARMS = ("baseline", "simclr")
SCALE: dict[str, Any] = {
    "views": {"crop_px": 64},
    "pretrain": {"arch": "resnet18", "weights": "none", "epochs": 2, "precision": "float32"},
    "embed": {"precision": "float32"},
    "robustness": {"corruptions": ["haze", "noise"], "strengths": [2]},
    "maps": {"projections": ["tsne", "pca"]},
}
VIEWS = """
import time, types, torch, yaml
try:
    from satclr.pretrain import views
except ImportError:
    from satclr import views
chosen = yaml.safe_load(open("params.yaml"))["defaults"]["views"] | {"crop_px": 64}
source = torch.Generator().manual_seed(0)
tiles = torch.randint(256, (128, 96, 96, 3), dtype=torch.uint8, generator=source)
for turn in range(40):
    if turn == 8:
        began = time.perf_counter()
    drawn = views.draw(source, 256, types.SimpleNamespace(**chosen), tile_px=96)
    views.render(tiles, drawn, crop_px=64, mean=(0.5,) * 3, std=(0.2,) * 3)
print(time.perf_counter() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("other", type=Path, help="another checkout")
    parser.add_argument("--rounds", type=int, default=2)
    chosen = parser.parse_args()
    checkouts = {"ours": common.ROOT, "theirs": chosen.other.resolve()}
    found: dict[str, dict[str, list[float]]] = {}
    for _ in range(chosen.rounds):
        for which, checkout in checkouts.items():
            for name, value in ablation(checkout).items():
                found.setdefault(name, {}).setdefault(which, []).append(value)
    rows = []
    for name, each in found.items():
        ratio = statistics.median(b / a for a, b in zip(each["ours"], each["theirs"], strict=True))
        seconds = {which: round(statistics.median(values), 2) for which, values in each.items()}
        rows.append({"benchmark": "before", "name": name, **seconds, "ratio": round(ratio, 3), "unit": "s"})
    print(json.dumps(rows, indent=1))
    OUT.write_text(json.dumps({"machine": common.machine(), "rounds": chosen.rounds, "rows": rows}, indent=1) + "\n")


def ablation(checkout: Path) -> dict[str, float]:
    """Seconds for each part and for the whole, in a new project of the checkout's own code."""
    bin_ = checkout / ".venv" / "bin"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        tree = yaml.safe_load((checkout / "params.yaml").read_text(encoding="utf-8"))
        tree |= {"profile": "ucmerced", "run": list(ARMS), "seeds": [0]}
        tree["profiles"]["ucmerced"] = settings.merge(tree["profiles"]["ucmerced"], SCALE)
        (root / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        shutil.copy(checkout / "dvc.yaml", root)
        (root / "data").mkdir()
        (root / "data" / "ucmerced").symlink_to(common.data())
        views = subprocess.run((bin_ / "python", "-c", VIEWS), cwd=root, check=True, capture_output=True, text=True)
        result = {"views": float(views.stdout), "pretrain": 0.0, "embed": 0.0, "whole ablation": 0.0}
        for stage, *arguments in commands(root / "dvc.yaml"):
            began = time.perf_counter()
            subprocess.run((bin_ / "satclr", stage, *arguments), cwd=root, check=True, capture_output=True)
            for name in {stage, "whole ablation"} & result.keys():
                result[name] += time.perf_counter() - began
        return result


def commands(pipeline: Path) -> Iterator[tuple[str, ...]]:
    """Each stage of a dvc.yaml as satclr's arguments, once an arm where the stage has arms."""
    for name, stage in yaml.safe_load(pipeline.read_text(encoding="utf-8"))["stages"].items():
        for arm in ARMS if "arm" in stage["matrix"] else (None,):
            yield name, "--profile", "ucmerced", *(("--arm", arm, "--seed", "0") if arm else ())


if __name__ == "__main__":
    main()
