"""The commands that serve people: look, bring in, predict, promote, keep the MLflow store."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from satclr.cli.entry import app
from satclr.cli.output import fail, print_table
from satclr.cli.project import Profile, project, published


@app.command()
def arms(profile: Profile = None) -> None:
    """Show the resolved arms: every setting of the first that runs, and what each other arm changes."""
    here = project(profile)
    reference, *others = dict.fromkeys([*here.params.run, *here.params.arms])
    identity = ("profile", "arm", "seed")
    settings = {name: here.arm(name, None).flat() for name in (reference, *others)}
    first = {key: value for key, value in settings[reference].items() if key not in identity}
    print_table(list(first.items()), header=(f"profile {here.profile}", reference))
    typer.echo()
    rows: list[tuple[str, ...]] = [(reference, "yes" if reference in here.params.run else "no", "")]
    for name in others:
        changes = [
            f"{key} {value}" for key, value in settings[name].items() if first.get(key, value) != value
        ]
        rows.append((name, "yes" if name in here.params.run else "no", "\n".join(changes)))
    print_table(rows, header=("arm", "runs", f"changes to {reference}"))


@app.command()
def promote(version: str, profile: Profile = None) -> None:
    """Make a registered version champion, whatever the gate said."""
    from satclr import register as stage

    here = project(profile)
    typer.echo(stage.promote(here.root, here.profile, version).reason)


@app.command()
def rollback(profile: Profile = None) -> None:
    """Give `champion` back to the version that had it before."""
    from satclr import register as stage

    here = project(profile)
    typer.echo(stage.rollback(here.root, here.profile).reason)


@app.command()
def predict(
    tiles: Annotated[
        list[str], typer.Argument(help="Tiles, folders, globs, or GeoTIFF scenes, which are cut.")
    ],
    profile: Profile = None,
    top: Annotated[int, typer.Option(help="How many probabilities to show for each tile.", min=1)] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a tile.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV: every label's probability.")] = False,
    scene_tile_px: Annotated[
        int, typer.Option(help="Side of the tiles that a scene is cut into.", min=8)
    ] = 256,
) -> None:
    """Label tiles with the registered champion."""
    from json import dumps

    from satclr import progress
    from satclr import register as stage

    here = project(profile)
    sources = stage.find(tiles, scene_tile_px=scene_tile_px)
    with progress.bar("predict", len(sources)) as advance:
        found = list(stage.predict(here.root, here.profile, sources, done=advance))
    failed = [prediction for prediction in found if prediction.error]
    if csv:
        stage.write_csv(found, sys.stdout)
    elif json:
        for prediction in found:
            best = dict(list(prediction.probabilities.items())[:top])
            typer.echo(dumps({**stage.as_json(prediction), "probabilities": best}, ensure_ascii=False))
    elif len(found) > len(failed):
        rows: list[tuple[str, ...]] = [("tile", "labels", f"top {top}")]
        for p in found:
            shown = ", ".join(f"{label} {value:.2f}" for label, value in list(p.probabilities.items())[:top])
            rows.append((p.tile, ", ".join(p.labels), shown))
        print_table([row for row, p in zip(rows[1:], found, strict=True) if not p.error], header=rows[0])
    for prediction in failed:
        typer.secho(f"{prediction.tile}: {prediction.error}", fg=typer.colors.RED, err=True)
    sys.exit(1 if failed else 0)


@app.command()
def export(
    target: Annotated[Path, typer.Argument(help="The ONNX file to write.")], profile: Profile = None
) -> None:
    """Write the champion as ONNX (optional packages: `uv sync --group onnx`)."""
    from satclr import register as stage

    here = project(profile)
    typer.echo(str(stage.export(here.root, here.profile, target)))


@app.command()
def ui(
    profile: Profile = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = False,
) -> None:
    """Open this project's MLflow store on 127.0.0.1, whatever the folder."""
    from satclr import tracking

    here = project(profile, or_ours=True)
    sys.exit(tracking.ui(here.root, here.profile, port=port, browser=browser))


@app.command()
def sync(profile: Profile = None) -> None:
    """Rebuild MLflow's runs and champion from the DVC outputs that are here (after `dvc pull`)."""
    from satclr import register as registry
    from satclr import tracking

    here = project(profile)
    synced, missing = tracking.sync(
        here.root, [published(here, arm) for seeds in here.arms() for arm in seeds]
    )
    typer.echo(f"{len(synced)} arm runs in the store")
    if (here.reports / "compare.json").is_file():
        tracking.publish_report(here.root, here.profile, here.reports)
    for line in missing:
        typer.echo(f"left out: {line}", err=True)
    restored = registry.restore(here.root, here.profile)
    if restored is not None:
        typer.echo(f"champion restored: version {restored.version}, {restored.arm}-s{restored.seed}")


@app.command()
def mend() -> None:
    """Mend what a killed `dvc repro` left behind: its lock file, its list of who works on what."""
    from satclr import mend as repair

    for line in repair.run(project().root) or ["nothing to mend"]:
        typer.echo(line)


@app.command()
def relocate() -> None:
    """Mend the paths in the MLflow store after the project folder has moved."""
    from satclr import tracking

    typer.echo(f"{tracking.relocate(project().root)} paths mended")


@app.command()
def audit(
    labels_dir: Annotated[Path, typer.Argument(help="A folder of <category>.csv label tables.")],
    images: Annotated[
        Path | None, typer.Option(help="The folder of images, to match rows and tiles.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the findings to this file as JSON.")] = None,
) -> None:
    """Say what is wrong with a data set's labels, worst first."""
    from json import dumps

    from rich.console import Console

    from satclr import labels

    report = labels.audit(labels.read(labels_dir), labels_dir, images=images)
    Console().print(labels.render(report))
    if json is not None:
        json.write_text(dumps(report.to_dict(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="What was downloaded: an archive, or a folder.")],
    name: Annotated[str, typer.Argument(help="The data set's name; it becomes data/NAME.")],
    labels: Annotated[
        Path | None, typer.Option(help="Label tables, where they come apart from the images.")
    ] = None,
) -> None:
    """Bring a downloaded data set into the layout that `prepare` reads: data/NAME."""
    import re

    from satclr import importing

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        fail(f"{name!r} is no name for a data set; use small letters, digits and _, as for a profile", code=2)
    here = project()
    run, known = f"`dvc exp run -S profile={name}`", name in here.params.profiles
    typer.echo(str(importing.run(source, here.root / "data" / name, labels_source=labels)))
    typer.echo(
        f"next: `dvc add data`, then {run if known else f'a profile {name!r} in params.yaml, and {run}'}"
    )


@app.command()
def views(
    tiles: Annotated[list[Path], typer.Argument(help="Image files of tiles.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    profile: Profile = None,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
) -> None:
    """Draw a contact sheet of tiles' views: one row an augmentation, as pretraining sees them."""
    import torch
    from PIL import Image

    from satclr import randomness
    from satclr import tiles as store
    from satclr import views as family

    here = project(profile)
    settings = here.arm(here.params.run[0], None).settings
    sheets = []
    for i, path in enumerate(tiles):
        tile = torch.from_numpy(store.decode(path, settings.data.tile_px).copy())
        generator = randomness.generator(seed, "sheet", i)
        sheets.append(family.contact_sheet(tile, settings.views, generator=generator))
    sheet = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), "white")
    top = 0
    for part in sheets:
        sheet.paste(part, (0, top))
        top += part.height
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
    typer.echo(f"{out}: {len(tiles)} tiles")
