"""One command a stage, as dvc.yaml calls them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any

import typer

from satclr.cli.entry import app
from satclr.cli.output import print_table
from satclr.cli.project import ArmName, Profile, Project, Seed, project, published

if TYPE_CHECKING:
    from satclr.params import Arm


def alone(command: Callable[..., None]) -> Callable[..., None]:
    """A stage that waits for another process that runs it on the same files, and says for whom."""

    @functools.wraps(command)
    def waiting(**given: Any) -> None:
        if "RANK" in os.environ:  # the process that started this one holds the lock
            command(**given)
            return
        from satclr import locks

        here = project(given["profile"])
        name = f"{here.profile}-{command.__name__}"
        if "arm" in given:
            name += f"-{here.arm(given['arm'], given['seed']).key}"
        lock = locks.Lock(here.root / ".cache" / "locks" / name, f"runs {command.__name__} on the same files")
        lock.wait()
        try:
            command(**given)
        finally:
            lock.release()

    return waiting


@app.command()
@alone
def prepare(profile: Profile = None) -> None:
    """Decode every tile once: data/<profile> → build/<profile>."""
    from satclr import prepare as stage

    here = project(profile)
    arm = here.arm(here.params.run[0], None)  # data settings are the profile's: any arm has them
    stage.run(here.data, here.store, arm.settings.data)


@app.command()
@alone
def lineage(profile: Profile = None) -> None:
    """Write down what each arm goes on from (`pretrain.from`), for DVC: build/<profile>/lineage."""
    from satclr import lineage as stage

    here = project(profile)
    stage.run(
        here.store / "lineage",
        {name: here.arm(name, None).settings.pretrain for name in here.params.arms},
    )


@app.command()
@alone
def pretrain(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Pretrain an arm's encoder (`objective: none` writes the initial one)."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    start, trains = here.start(chosen), chosen.settings.pretrain.objective != "none"
    if trains and _shared(here, chosen, "pretrain", chosen.settings.pretrain.processes):
        return
    from satclr import distributed, tiles
    from satclr import pretrain as stage

    store = tiles.open_store(here.store).learning(chosen.settings.pretrain.near_duplicates)
    fingerprint = stage.fingerprint(chosen.settings, chosen.seed, store.digest, start)
    logs = trains and distributed.rank() == 0
    with _live(here, chosen, "pretrain", fingerprint, enabled=logs) as log:
        stage.run(
            store,
            settings=chosen.settings,
            seed=chosen.seed,
            root=here.root,
            out=here.model(chosen, "encoder.safetensors"),
            curve=here.result(chosen, "pretrain.csv"),
            log=log,
            start=start,
        )


@app.command()
@alone
def embed(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Encode every tile once with an arm's frozen encoder."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    if _shared(here, chosen, "embed", chosen.settings.embed.processes):
        return
    from satclr import embed as stage
    from satclr import tiles

    stage.run(
        tiles.open_store(here.store),
        encoder=here.model(chosen, "encoder.safetensors"),
        out=here.model(chosen, "features.npy"),
        settings=chosen.settings,
    )


@app.command()
@alone
def probe(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Train the linear probe on an arm's features."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import probe as stage
    from satclr import tiles

    store = tiles.open_store(here.store).learning(chosen.settings.probe.near_duplicates)
    encoder = here.model(chosen, "encoder.safetensors")
    fingerprint = stage.fingerprint(chosen.settings, chosen.seed, encoder)
    with _live(here, chosen, "probe", fingerprint) as log:
        stage.run(
            store,
            features=here.model(chosen, "features.npy"),
            encoder=encoder,
            out=here.model(chosen, "probe.safetensors"),
            curve=here.result(chosen, "probe.csv"),
            settings=chosen.settings,
            seed=chosen.seed,
            log=log,
        )


@app.command()
@alone
def evaluate(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Test an arm's probe and publish its run to MLflow."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import evaluate as stage
    from satclr import tiles

    result = stage.run(
        tiles.open_store(here.store).learning(chosen.settings.probe.near_duplicates),
        features=here.model(chosen, "features.npy"),
        probe=here.model(chosen, "probe.safetensors"),
        out=here.result(chosen),
        arm=chosen,
    )
    low, high = result["test_mAP_ci95"]
    typer.echo(f"{chosen.key}: test mAP {result['test_mAP']:.4f} [{low:.4f}, {high:.4f}]")
    from satclr import tracking

    tracking.publish(here.root, **published(here, chosen))


@app.command()
@alone
def robustness(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Test an arm on corrupted tiles: haze, clouds, snow, noise, and so on."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import robustness as stage
    from satclr import tiles

    result = stage.run(
        tiles.open_store(here.store),
        encoder_file=here.model(chosen, "encoder.safetensors"),
        probe=here.model(chosen, "probe.safetensors"),
        out=here.result(chosen, "robustness.json"),
        arm=chosen,
    )
    if result["corruptions"]:
        clean, left, drop = (result[k] for k in ("clean_mAP", "mean_corruption_mAP", "relative_drop"))
        typer.echo(f"{chosen.key}: test mAP {clean:.4f}, {left:.4f} under corruption, {100 * drop:.1f}% less")


@app.command()
@alone
def maps(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Lay an arm's test tiles out in the plane: UMAP, t-SNE, PCA."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import maps as stage
    from satclr import tiles

    stage.run(
        tiles.open_store(here.store),
        features=here.model(chosen, "features.npy"),
        out=here.result(chosen, "maps.json"),
        arm=chosen,
    )


@app.command()
@alone
def compare(profile: Profile = None) -> None:
    """Set the arms side by side: table, intervals, figures in reports/<profile>."""
    here = project(profile)
    from satclr import compare as stage
    from satclr import figures

    for arm in chain.from_iterable(here.arms()):
        here.check_start(arm)
    palette = figures.Palette(list(here.params.arms))
    report = stage.run(
        here.results, here.reports, arms=here.arms(), rungs=here.params.ladder, palette=palette
    )
    print_table(stage.table(report))
    if report["ladder"]:
        typer.echo()
        print_table(stage.ladder_table(report))
    if report["leakage"]:
        typer.echo()
        print_table(stage.leakage_table(report))


@app.command()
@alone
def report(profile: Profile = None) -> None:
    """Write the whole study as one page, reports/<profile>/report.html, and publish it to MLflow."""
    here = project(profile)
    from satclr import figures, tiles, tracking
    from satclr import report as stage

    path = stage.run(
        here.results,
        here.reports,
        tiles.open_store(here.store),
        arms=here.arms(),
        palette=figures.Palette(list(here.params.arms)),
        commit=stage.commit(here.root),
    )
    typer.echo(f"{path.relative_to(here.root)}: {path.stat().st_size / 1e6:.1f} MB")
    tracking.publish_report(here.root, here.profile, here.reports)


@app.command()
@alone
def register(profile: Profile = None) -> None:
    """Register the probe with the best validation mAP, gated, as champion."""
    here = project(profile)
    from satclr import register as stage

    decision = stage.run(
        here.root,
        profile=here.profile,
        # A probe on batch statistics cannot be served: its score for a tile depends on other tiles.
        runs=[
            (a.name, a.seed)
            for seeds in here.arms()
            for a in seeds
            if a.settings.probe.batch_norm == "frozen"
        ],
        minimum_val_mAP=here.arms()[0][0].settings.register_.minimum_val_mAP,
    )
    typer.echo(decision.reason)


def _shared(here: Project, arm: Arm, command: str, processes: int) -> bool:
    """Run a stage in several processes, if the settings ask for them and this is not one of them."""
    if processes == 1 or "RANK" in os.environ:
        return False
    from satclr import distributed

    options = ("--profile", here.profile, "--arm", arm.name, "--seed", str(arm.seed))
    distributed.launch(processes, "-m", "satclr", command, *options)
    return True


@contextmanager
def _live(
    here: Project, arm: Arm, stage: Any, fingerprint: str, *, enabled: bool = True
) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """A live MLflow run whose `log` the stage is handed."""
    if not enabled:
        yield lambda _step, _metrics: None
        return
    from satclr import tracking

    with tracking.live(
        here.root,
        profile=here.profile,
        arm=arm.name,
        seed=arm.seed,
        stage=stage,
        fingerprint=fingerprint,
        params=arm.flat(),
    ) as run:
        yield run.log
