"""Pretraining on a GPU: images/s against the limit, peak memory, and what bounds it. Runs on a CPU too.

    python benchmarks/gpu.py [--quick] [--out gpu.json] [--arch resnet50] [--crop-px 224] [--batch-size 128]

ResNet-50, 224 px, batch 128, bf16 by default, through the product's own loop. The limit is the same step on
views already on the device. Needs satclr's numerical core alone: neither mlflow nor dvc is imported. Tiles
are UC Merced's where SATCLR_DATA has them, else smooth random ones. Shares are of the time on the device, by
torch.profiler; on a CPU of the time on the host.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from satclr.pretrain import caching, train, views
from satclr.pretrain import encoder as enc
from satclr.pretrain import loss as objectives
from satclr.pretrain import optimizer as optimizers
from satclr.pretrain.convolution import speed_up_small_maps

WARM_UP = 1  # epochs that are not counted
PARTS = ("gather", "draw", "render", "backward", "optimizer")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    arguments.add_argument("--arch", default="resnet50")
    arguments.add_argument("--crop-px", type=int, default=224)
    arguments.add_argument("--tile-px", type=int, default=256)
    arguments.add_argument("--batch-size", type=int, default=128)
    arguments.add_argument("--steps", type=int, default=30, help="steps a turn")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--compile", action="store_true")
    arguments.add_argument("--quick", action="store_true", help="a tiny run that only shows it works")
    arguments.add_argument("--out", type=Path)
    given = arguments.parse_args()
    if given.quick:
        given.arch, given.crop_px, given.tile_px = "resnet18", 64, 96
        given.batch_size, given.steps, given.rounds = 8, 2, 1
    found = measure(given)
    loaded = {"mlflow", "dvc"} & set(sys.modules)
    if loaded:
        raise SystemExit(f"{', '.join(loaded)} was imported; the numerical core should run without")
    text = json.dumps(found, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The row, the peak of memory, and each part's share of the time."""
    run = common.run("simclr", {
        "data": {"tile_px": given.tile_px},
        "views": {"crop_px": given.crop_px},
        "pretrain": {"arch": given.arch, "weights": "none", "precision": "bfloat16", "compile": given.compile,
                     "batch_size": given.batch_size, "epochs": given.rounds + WARM_UP + 1},
    })  # fmt: skip
    images = given.batch_size * given.steps
    device = machine.device()
    ours: list[float] = []
    theirs: list[float] = []
    peaks: list[int] = []
    limit = limit_of(run.settings, given.steps, device)
    profiler = profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * (device.type == "cuda")])

    def log(epoch: int, measured: Mapping[str, float]) -> None:
        if epoch > given.rounds + WARM_UP:
            profiler.stop()
            return
        if device.type == "cuda":
            peaks.append(torch.cuda.max_memory_allocated())
        rival = common.seconds(limit)
        if epoch > WARM_UP:
            ours.append(measured["tiles_per_s"])
            theirs.append(images / rival)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        if epoch == given.rounds + WARM_UP:  # the last epoch is profiled, not timed
            profiler.start()

    with tempfile.TemporaryDirectory() as name, annotated():
        folder = Path(name)
        decoded = np.stack([decode(jpeg, given.tile_px) for jpeg in transforms.jpegs()])
        shape = (images, given.tile_px, given.tile_px, 3)
        pixels = np.lib.format.open_memmap(folder / "tiles.npy", "w+", np.uint8, shape)
        for i in range(images):
            pixels[i] = decoded[i % len(decoded)]
        store = common.made_store(pixels)
        encoder, width = enc.build(given.arch, given.crop_px)
        statistics = store.statistics("train")
        train.train(store, encoder.to(device), width, statistics=statistics, run=run, folder=folder, log=log)
    row = common.rate_row(
        f"pretraining {given.arch} {given.crop_px} px against the limit, {device.type}",
        ours, theirs, "images/s",
    )  # fmt: skip
    return row | {
        "batch_size": given.batch_size,
        "precision": "bfloat16",
        "compile": given.compile,
        "peak_GiB": round(max(peaks) / 2**30, 2) if peaks else None,
        "share": shares(profiler, device),
        "machine": common.machine(),
    }


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
    x = torch.randn(2 * how.batch_size, 3, side_px, side_px, device=device, dtype=torch.bfloat16)
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
    backward, render, stream, draw = caching.backward, views.render, tiles.stream, views.draw

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
        mock.patch.object(caching, "backward", named("backward", backward)),
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
