"""The command line: a command per stage, and the commands that serve people.

    satclr --help

Exit code 1: a run failed; 2: bad input. Heavy imports are inside the commands, so that help is instant.
"""

import os
import sys
import traceback
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from satclr import progress, runner
from satclr.runner import find_project

app = typer.Typer(
    help="Does contrastive pretraining help multi-label tagging of overhead images, by how much, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Profile = Annotated[str | None, typer.Option(help="A profile of params.yaml; by default the one it names.")]
ArmName = Annotated[str, typer.Option("--arm", help="An arm of params.yaml.")]
Encoders = Annotated[bool, typer.Option("--encoders", help="Show the encoders' size and input statistics instead.")]
LabelsFrom = Literal["folders", "tables"]
Seed = Annotated[int | None, typer.Option(help="The seed; by default the first of params.yaml.")]


@app.command()
def prepare(profile: Profile = None) -> None:
    """Decode every tile once: data/<profile> → build/<profile>."""
    runner.profile_stage("data.prepare", profile)


def _arm_command(name: str, text: str) -> None:
    def command(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
        runner.arm_stage(name, arm, profile, seed)

    app.command(name, help=text)(command)


for _name, _stage in runner.ARM_STAGES.items():
    _arm_command(_name, _stage.help)


@app.command()
def compare(profile: Profile = None) -> None:
    """Compare the arms: tables with intervals, and reports/<profile>/compare.json."""
    runner.profile_stage("study.compare", profile)


@app.command()
def report(profile: Profile = None) -> None:
    """Draw the figures, write the study as one page in reports/<profile>, and publish both to MLflow."""
    from satclr.tracking import runs

    runner.profile_stage("study.report", profile)
    runs.publish_report(find_project(profile))


@app.command()
def register(profile: Profile = None) -> None:
    """Register the probe with the best validation mAP; make it champion if it passes the gate."""
    runner.profile_stage("tracking.registry", profile)


@app.command()
def arms(profile: Profile = None, encoders: Encoders = False) -> None:
    """Show the resolved arms: every setting of the first that runs, and what each other arm changes."""
    project = find_project(profile)
    runs, clashes = project.all_arms()
    if encoders:
        from satclr.pretrain import architectures

        progress.print_table(architectures.table(runs.values()), header=architectures.COLUMNS)
        return
    running = project.params.run
    reference, first = running[0], runs[running[0]].flat()
    progress.print_table(list(first.items()), header=(f"profile {project.profile}", reference))
    typer.echo()
    changes = {}
    for name, run in runs.items():
        changes[name] = "\n".join(f"{key} {value}" for key, value in run.flat().items() if first[key] != value)
    rows = [(name, "yes" if name in running else "no", text) for name, text in (changes | clashes).items()]
    progress.print_table(rows, header=("arm", "runs", f"changes to {reference}"))
    typer.echo("\nFor the encoders' size and input statistics: satclr arms --encoders")
    typer.echo("To try a value that an arm inherits: dvc exp run --temp -S '+arms.simclr.pretrain.temperature=0.1'")


@app.command()
def views(
    tiles: Annotated[list[Path], typer.Argument(help="Image files of tiles.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    profile: Profile = None,
    seed: Annotated[int, typer.Option(help="Seed of the random views.")] = 0,
) -> None:
    """Draw a contact sheet of tiles' views: a row for each augmentation alone, then all as pretraining sees them."""
    from satclr.pretrain.views import sheet

    sheet.write(tiles, out, find_project(profile).settings, seed=seed)
    typer.echo(str(out))


@app.command()
def audit(
    labels_dir: Annotated[Path, typer.Argument(help="A folder of <category>.csv label tables.")],
    images: Annotated[Path | None, typer.Option(help="The folder of images, to match rows and tiles.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the findings to this file as JSON.")] = None,
) -> None:
    """List what is wrong with a data set's labels, worst first."""
    from rich.console import Console

    from satclr import files
    from satclr.data import audit as auditing

    findings = auditing.audit(labels_dir, images=images)
    Console().print(auditing.render(findings))
    if json is not None:
        files.write_json(json, findings.to_dict())


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The downloaded archive or folder.")],
    name: Annotated[str, typer.Argument(help="The data set's name; it becomes data/NAME.")],
    labels: Annotated[Path | None, typer.Option(help="The label table or tables, if apart from the images.")] = None,
    labels_from: Annotated[LabelsFrom | None, typer.Option(help="Labels from folders only, or tables only.")] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Keep images without a row, for pretraining: in data/NAME/Unlabelled.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be imported; write nothing.")] = False,
) -> None:
    """Convert a downloaded data set to the layout that `prepare` reads: data/NAME."""
    import re

    from satclr.data import importing

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise typer.BadParameter(f"{name!r}: use lower-case letters, digits and _, as for a profile")
    project = find_project()
    given: dict[str, Any] = {"labels_source": labels, "labels_from": labels_from, "unlabelled": unlabelled}
    if dry_run:
        typer.echo(str(importing.look(source, **given)))
        return
    ask = (lambda plan: typer.confirm(f"{plan}\nimport this?")) if sys.stdin.isatty() else None
    with runner.lock(project.root, f"import-{name}"):
        plan = importing.run(source, project.root / "data" / name, **given, confirm=ask)
    typer.echo(f"{plan}\nimported as data/{name}; data/{name}/import.json lists everything that was read and skipped")
    steps = ["run `dvc add data`"] + [f"add a profile {name!r}"] * (name not in project.params.profiles)
    steps += ["set its data.split.file: split.csv"] * (plan.split is not None)
    typer.echo(f"next: {', '.join(steps)}, set `profile: {name}` in params.yaml, and run `dvc repro`")


@app.command()
def predict(
    tiles: Annotated[list[str], typer.Argument(help="Tiles, folders, globs, or GeoTIFF scenes, which are cut up.")],
    profile: Profile = None,
    top: Annotated[int, typer.Option(help="Labels to show at least; in ( ): below their threshold.", min=1)] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per tile.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with every label's probability.")] = False,
    scene_tile_px: Annotated[int, typer.Option(help="Side of the tiles that a scene is cut into.", min=8)] = 256,
) -> None:
    """Label tiles with the registered champion."""
    from satclr.tracking import predict as serving

    if json and csv:
        raise typer.BadParameter("choose --json or --csv")
    form = "json" if json else "csv" if csv else "table"
    failed = serving.run(find_project(profile), tiles, form=form, top=top, scene_tile_px=scene_tile_px)
    sys.exit(1 if failed else 0)


@app.command()
def export(target: Annotated[Path, typer.Argument(help="The ONNX file to write.")], profile: Profile = None) -> None:
    """Write the champion as ONNX (optional packages: `uv sync --group onnx`)."""
    from satclr.tracking import champion

    champion.export(find_project(profile), target)
    typer.echo(str(target))


@app.command()
def promote(version: Annotated[str, typer.Argument(help="The version's number.")], profile: Profile = None) -> None:
    """Make a registered version champion, whatever the gate decided."""
    from satclr.tracking import registry

    typer.echo(registry.promote(find_project(profile), version))


@app.command()
def rollback(profile: Profile = None) -> None:
    """Make the former champion champion again."""
    from satclr.tracking import registry

    typer.echo(registry.rollback(find_project(profile)))


@app.command()
def ui(
    profile: Profile = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = False,
) -> None:
    """Serve this project's MLflow store on 127.0.0.1."""
    from satclr.tracking import runs, store

    project = find_project(profile, or_ours=True)
    runs.publish_all(project)
    sys.exit(store.serve(project, port=port, browser=browser))


@app.command()
def sync(profile: Profile = None) -> None:
    """Publish to MLflow whatever its store lacks of the DVC outputs (after `dvc pull` or a move)."""
    from satclr.tracking import registry, runs

    project = find_project(profile)
    published, missing = runs.publish_all(project)
    typer.echo(f"{len(published)} arm runs of {project.profile} in the store")
    for line in missing:
        typer.echo(f"skipped: {line}", err=True)
    restored = registry.restore(project)
    if restored is not None:
        typer.echo(f"champion restored: version {restored.version}, {restored.arm}-s{restored.seed}")


def main() -> None:
    """Run a command; an error that a person can correct is one message, not a traceback."""
    from satclr import machine

    # torch silences this itself, unless the thread that imports MLflow resets the filters meanwhile.
    warnings.filterwarnings("ignore", "Warning only once for all operators", UserWarning)
    machine.stop.listen()
    try:
        app()
    except BaseException as error:  # noqa: BLE001 - also what only ends Python
        code = _end(error)
        sys.stdout.flush()
        sys.stderr.flush()
        if "RANK" in os.environ and code:  # gloo would wait 30 s for the others at Python's own exit
            os._exit(code)
        sys.exit(code)


def _end(error: BaseException) -> int:
    """Print what `error` says to a person, and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        return 130
    if isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if os.environ.get("SATCLR_TRACEBACK"):
        traceback.print_exception(error)
    rank = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
    typer.secho(f"error{rank}: {runner.sentence(error)}", fg=typer.colors.RED, err=True)
    return runner.exit_code(error)
