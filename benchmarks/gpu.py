"""Pretraining on a GPU: speed against the limit, peak memory, what bounds it, and the time of the mlrsnet profile.

    python benchmarks/gpu.py                            all cases, within ten minutes, into docs/runs/gpu.json
    python benchmarks/gpu.py --case bfloat16            one of them
    python benchmarks/gpu.py --quick --out FILE         tiny sizes, on a CPU too, to see that it works

ResNet-50 at 224 px through the product's own loop; each case is a process of its own. The limit is the same step on
views already on the device; with micro-batches it is one forward and backward pass of each, without the second
forward pass that gradient caching takes. Needs satclr's numerical core alone: neither mlflow nor dvc is
imported. Tiles are UC Merced's where SATCLR_DATA has them, else smooth random ones. Shares are of the time on the
device, by torch.profiler; on a CPU of the time on the host. The estimate is of a seed of `simclr`, in
bfloat16 where the profile has float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import common
import numpy as np
import torch
import views as transforms
from torch.profiler import ProfilerActivity, profile, record_function

from satclr import machine
from satclr.data import tiles
from satclr.data.pixels import decode
from satclr.params import Settings
from satclr.pretrain import encoder as enc
from satclr.pretrain import loss as objectives
from satclr.pretrain import optimizer as optimizers
from satclr.pretrain import train, views
from satclr.pretrain.convolution import speed_up_small_maps

OUT = common.ROOT / "docs" / "runs" / "gpu.json"
WARM_UP = 1  # epochs that are not counted
PARTS = ("gather", "draw", "render", "backward", "optimizer")
TILES, TRAIN_TILES = 109_161, 76_412  # of MLRSNet, 70% of them for training


@dataclass(frozen=True)
class Case:
    precision: str = "bfloat16"
    tf32: bool = True
    batch_size: int = 128
    micro_batch_size: int | None = None
    compile: bool = False


@dataclass(frozen=True)
class Size:
    arch: str
    crop_px: int
    tile_px: int
    tiles: int  # in an epoch
    rounds: int
    divide: int = 1  # batches by it


CASES = {
    "float32": Case(precision="float32", tf32=False),
    "TF32": Case(precision="float32"),
    "bfloat16": Case(),
    "bfloat16, compiled": Case(compile=True),
    "batch 512 in micro-batches of 128": Case(batch_size=512, micro_batch_size=128),
    "batch 2048 in micro-batches of 128": Case(batch_size=2048, micro_batch_size=128),
}
FULL = Size("resnet50", 224, 256, tiles=4096, rounds=2)
QUICK = Size("resnet18", 64, 96, tiles=128, rounds=1, divide=16)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--case", choices=CASES)
    arguments.add_argument("--quick", action="store_true")
    arguments.add_argument("--out", type=Path, help=f"instead of {OUT.relative_to(common.ROOT)}")
    given = arguments.parse_args()
    if given.quick and not (given.case or given.out):
        arguments.error("--quick needs --out: its numbers mean nothing")
    if given.case:
        print(json.dumps(measure(given.case, QUICK if given.quick else FULL)))
        loaded = {"mlflow", "dvc"} & set(sys.modules)
        if loaded:
            raise SystemExit(f"{', '.join(loaded)} was imported; the numerical core should run without")
        return
    size, out = QUICK if given.quick else FULL, given.out or OUT
    found: dict[str, Any] = {"machine": common.machine(), "rows": []}
    for name in [case for case in CASES if not (given.quick and CASES[case].compile)]:
        command = [sys.executable, __file__, "--case", name, *["--quick"] * given.quick]
        done = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
        row = {"case": name, "failed": done.returncode} if done.returncode else json.loads(done.stdout.splitlines()[-1])
        print(json.dumps(row), flush=True)
        found["rows"].append(row)
        out.write_text(json.dumps(found, indent=1) + "\n")  # what is measured is kept if a later case is stopped
    alone = {"views": views_alone(size), "embed": embedding(size)}
    best = next(row for row in found["rows"] if row["case"] == "bfloat16")
    minutes = {"pretrain, 10 epochs": 10 * TRAIN_TILES / best["ours"], "embed": TILES / alone["embed"]}
    found |= {"tiles_per_s_alone": alone}
    found |= {"mlrsnet_minutes_in_bfloat16": {stage: round(seconds / 60, 1) for stage, seconds in minutes.items()}}
    out.write_text(json.dumps(found, indent=1) + "\n")


def measure(which: str, size: Size) -> dict[str, Any]:
    """The row, the peak of memory, and each part's share of the time."""
    case, device = CASES[which], machine.device()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = case.tf32
    batch_size = case.batch_size // size.divide
    micro = case.micro_batch_size and case.micro_batch_size // size.divide
    config = {"arch": size.arch, "weights": "none", "precision": case.precision, "compile": case.compile}
    config |= {"batch_size": batch_size, "micro_batch_size": micro, "epochs": size.rounds + WARM_UP + 1}
    run = settings_of(size, config)
    ours: list[float] = []
    theirs: list[float] = []
    peaks: list[int] = []
    limit = limit_of(run.settings, size.tiles // (micro or batch_size), device)
    profiler = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")])

    def log(epoch: int, measured: Mapping[str, float]) -> None:
        if epoch > size.rounds + WARM_UP:
            profiler.stop()
            return
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())
        rival = common.seconds(limit)
        if epoch > WARM_UP:
            ours.append(measured["tiles_per_s"])
            theirs.append(size.tiles / rival)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if epoch == size.rounds + WARM_UP:  # the last epoch is profiled, not timed
            profiler.start()

    with tempfile.TemporaryDirectory() as name, annotated():
        pixels = np.lib.format.open_memmap(Path(name) / "tiles.npy", "w+", np.uint8, decoded(size).shape)
        pixels[:] = decoded(size)
        store = common.made_store(pixels)
        encoder, width = enc.build(size.arch, size.crop_px)
        train.train(store, encoder.to(device), width, run=run, folder=Path(name), log=log)
    row = common.rate_row(
        f"pretraining {size.arch} {size.crop_px} px against the limit, {device.type}", ours, theirs, "tiles/s"
    )
    peak = round(max(peaks) / 2**30, 2) if peaks else None
    return {"case": which, **row, "peak_GiB": peak, "share": shares(profiler, device)}


def settings_of(size: Size, pretrain: dict[str, Any]) -> Any:
    sections = {"data": {"tile_px": size.tile_px}, "views": {"crop_px": size.crop_px}, "pretrain": pretrain}
    return common.run("simclr", sections)


@cache
def decoded(size: Size) -> Any:
    """The tiles of an epoch, (N,H,H,3)."""
    found = np.stack([decode(jpeg, size.tile_px) for jpeg in transforms.jpegs()])
    return found[np.arange(size.tiles) % len(found)]


def views_alone(size: Size) -> float:
    """Tiles/s, two views each, from tiles on the device to views on the device."""
    device, settings, count = machine.device(), settings_of(size, {}).settings, 128 // size.divide
    batch = torch.from_numpy(decoded(size)[:count]).to(device)

    def work() -> None:
        for step in range(size.tiles // count):
            generator = torch.Generator().manual_seed(step)
            drawn = views.draw(generator, 2 * count, settings.views, tile_px=size.tile_px)
            views.render(batch, drawn, crop_px=size.crop_px, mean=(0.5,) * 3, std=(0.25,) * 3, dtype=torch.bfloat16)

    work()
    return round(size.tiles / common.seconds(work), 1)


def embedding(size: Size) -> float:
    """Tiles/s of the frozen encoder in bfloat16, from the map to features."""
    encoder, width = enc.build(size.arch, size.crop_px)
    facts: dict[str, Any] = {
        "mean": [0.5] * 3, "std": [0.25] * 3, "crop_px": size.crop_px, "tile_px": size.tile_px,
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "encoder.safetensors"
        enc.save(encoder, path, arch=size.arch, width=width, **facts)
        frozen, pixels = enc.Frozen(path, precision="bfloat16"), decoded(size)

    def work() -> None:
        store = common.made_store(pixels)
        for _, batch in tiles.stream(store, tiles.split_batches(np.arange(size.tiles), 128), machine.device()):
            frozen(batch)

    work()
    return round(size.tiles / common.seconds(work), 1)


def limit_of(settings: Settings, steps: int, device: torch.device) -> Callable[[], None]:
    """The same step on views that lie on the device."""
    how = settings.pretrain
    encoder, width = enc.build(how.arch)
    model = torch.nn.Sequential(encoder, enc.projection_head(width, **how.projection.model_dump()))
    model.train().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        speed_up_small_maps(model)
    forward = torch.compile(model) if how.compile else model
    optimizer = optimizers.build(model, how)
    side_px = settings.views.crop_px
    count = how.micro_batch_size or how.batch_size
    dtype = torch.bfloat16 if how.precision == "bfloat16" else torch.float32
    x = torch.randn(2 * count, 3, side_px, side_px, device=device, dtype=dtype)
    x = x.to(memory_format=torch.channels_last)

    def run() -> None:
        for _ in range(steps):
            with machine.autocast(device, how.precision):
                z = forward(x)
            loss = objectives.nt_xent(z.float(), how.temperature)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        loss.item()

    return run


@contextmanager
def annotated() -> Iterator[None]:
    """Name the parts of the product's step for the profiler."""
    backward, render, stream, draw = optimizers.backward, views.render, tiles.stream, views.draw

    def named(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            with record_function(part):
                return function(*args, **kwargs)

        return run

    def gathered(*args: Any) -> Iterator[Any]:
        batches = stream(*args)
        while True:
            with record_function("gather"):
                item = next(batches, None)
            if item is None:
                return
            yield item

    with (
        mock.patch.object(optimizers, "backward", named("backward", backward)),
        mock.patch.object(views, "render", named("render", render)),
        mock.patch.object(views, "draw", named("draw", draw)),
        mock.patch.object(tiles, "stream", gathered),
    ):
        yield


def shares(profiler: profile, device: torch.device) -> dict[str, float]:
    """Part of the profiled epoch's time: gather, views, forward and backward with the loss, optimizer."""
    spent = dict.fromkeys(PARTS, 0.0)
    whole = 0.0
    for event in profiler.key_averages():
        if getattr(event, "is_user_annotation", False) and event.device_type.name == "CUDA":
            continue  # the parts' own bars over the kernels
        part = "optimizer" if event.key.startswith("Optimizer.step") else event.key
        if device.type == "cuda":
            whole += event.self_device_time_total if event.device_type.name == "CUDA" else 0
        if part in spent and event.device_type.name == "CPU":
            spent[part] += event.device_time_total if device.type == "cuda" else event.cpu_time_total
    drawn = spent["draw"] + spent["render"]
    if device.type == "cpu":
        whole = spent["gather"] + spent["draw"] + spent["backward"] + spent["optimizer"]
    # What is left, on a GPU too, whose backward kernels are launched by a thread of its own, outside the named part.
    rest = whole - spent["gather"] - drawn - spent["optimizer"]
    parts = {"gather": spent["gather"], "views": drawn, "optimizer": spent["optimizer"], "forward_backward": rest}
    return {part: round(time / whole, 4) for part, time in parts.items()}


if __name__ == "__main__":
    main()
