"""The command line: one runner for all stages, and the commands that serve people.

    satclr --help

Exit code 1: a run failed; 2: bad input. Heavy imports are inside the commands, so that help is instant.
"""

from __future__ import annotations

import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from satclr.project import Run

app = typer.Typer(
    help="Does contrastive pretraining help multi-label tagging of overhead images, by how much, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Profile = Annotated[str | None, typer.Option(help="A profile of params.yaml; by default the one it names.")]
ArmName = Annotated[str, typer.Option("--arm", help="An arm of params.yaml.")]
Seed = Annotated[int | None, typer.Option(help="The seed; by default the first of params.yaml.")]
Log = Callable[[int, Mapping[str, float]], None]

MLFLOW = {"mlflow", "sqlalchemy", "sqlite3"}  # packages whose exceptions mean that the store failed
WAIT_S = 10.0  # between two attempts to take a lock


# Stages, as dvc.yaml calls them.


@app.command()
def prepare(profile: Profile = None) -> None:
    """Decode every tile once: data/<profile> → build/<profile>."""
    _profile_stage("data.prepare", profile)


@app.command()
def pretrain(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Pretrain an arm's encoder (`objective: none` writes the initial one)."""
    _arm_stage("pretrain.train", arm, profile, seed, shared=True, live=True)


@app.command()
def embed(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Encode every tile once with an arm's frozen encoder."""
    _arm_stage("evaluation.embed", arm, profile, seed, shared=True)


@app.command()
def probe(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Train the linear probe on an arm's features."""
    _arm_stage("evaluation.probe", arm, profile, seed, live=True)


@app.command()
def evaluate(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Test an arm's probe and publish its run to MLflow."""
    _arm_stage("evaluation.evaluate", arm, profile, seed, publish=True)


@app.command()
def robustness(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Test an arm on corrupted tiles: haze, clouds, snow, noise and more."""
    _arm_stage("evaluation.robustness", arm, profile, seed)


@app.command()
def maps(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Map an arm's test tiles to the plane: UMAP, t-SNE, PCA."""
    _arm_stage("evaluation.maps", arm, profile, seed)


@app.command()
def compare(profile: Profile = None) -> None:
    """Compare the arms: table, intervals, figures in reports/<profile>."""
    _profile_stage("study.compare", profile)


@app.command()
def report(profile: Profile = None) -> None:
    """Write the study as one page, reports/<profile>/report.html, and publish it to MLflow."""
    from satclr import project
    from satclr.tracking import runs

    _profile_stage("study.report.page", profile)
    runs.publish_report(project.find(profile))


@app.command()
def register(profile: Profile = None) -> None:
    """Register the probe with the best validation mAP; make it champion if it passes the gate."""
    _profile_stage("tracking.registry", profile)


def _profile_stage(module: str, profile: str | None) -> None:
    from satclr import project

    chosen = project.find(profile)
    with _lock(chosen.root, f"{chosen.profile}-{module}"):
        import_module(f"satclr.{module}").run(chosen)


def _arm_stage(
    module: str,
    arm: str,
    profile: str | None,
    seed: int | None,
    *,
    shared: bool = False,  # among the processes that params.yaml asks for
    live: bool = False,  # log to MLflow while it runs
    publish: bool = False,  # to MLflow once its files are written
) -> None:
    """Run one stage of an arm: alone on its files, with what it logs and publishes."""
    from satclr import project

    name = module.rpartition(".")[2].replace("train", "pretrain")
    run = project.find(profile).run(arm, seed)
    if publish:
        from satclr.tracking import runs

        runs.preload()  # MLflow is imported on a thread while the stage computes
    stage = import_module(f"satclr.{module}")
    fingerprint = stage.fingerprint(run) if live else ""
    with _lock(run.root, f"{name}-{fingerprint[:16]}" if fingerprint else f"{run.profile}-{name}-{run.key}"):
        if shared and run.processes > 1 and "RANK" not in os.environ:
            _torchrun(name, run)
            return
        with _live(run, name, fingerprint) if live and _trains(run, name) else nullcontext(_quiet) as log:
            stage.run(run, log)
        if publish:
            runs.publish(run)


def _trains(run: Run, name: str) -> bool:
    idle = name == "pretrain" and run.settings.pretrain.objective == "none"
    return not idle and os.environ.get("RANK", "0") == "0"


def _live(run: Run, name: str, fingerprint: str) -> Any:
    from satclr.tracking import live

    return live.live(run, name, fingerprint)


def _quiet(_step: int, _metrics: Mapping[str, float]) -> None:
    """A log for stages that have nothing to show while they run."""


@contextmanager
def _lock(root: Path, name: str) -> Iterator[None]:
    """Wait for a concurrent run of the same stage and print its PID."""
    import filelock

    from satclr import progress

    if os.environ.get("SATCLR_LOCKED") or os.environ.get("RANK", "0") != "0":  # another process of ours holds it
        yield
        return
    path = root / ".cache" / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(path)
    holder = path.with_name(f"{name}.pid")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        pid = holder.read_text(encoding="utf-8") if holder.is_file() else "unknown"
        progress.say(f"waiting for another run of this stage (PID {pid})")
        lock.acquire()
    try:
        holder.write_text(str(os.getpid()), encoding="utf-8")
        yield
    finally:
        lock.release()


def _torchrun(name: str, run: Run) -> None:
    """Run a stage in several processes of this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={run.processes}"]
    command += ["-m", "satclr", name, "--profile", run.profile, "--arm", run.arm, "--seed", str(run.seed)]
    threads = max(1, (os.cpu_count() or 1) // run.processes)
    environment = {"OMP_NUM_THREADS": str(threads)} | os.environ | {"SATCLR_LOCKED": "1"}
    with subprocess.Popen(command, env=environment) as child:
        try:
            code = child.wait()
        finally:
            child.terminate()
    if code:
        fail(f"{name} failed in one of {run.processes} processes; the same command resumes it", code=1)


# Commands that serve people.


@app.command()
def arms(profile: Profile = None) -> None:
    """Show the resolved arms: every setting of the first that runs, and what each other arm changes."""
    from satclr import project

    chosen = project.find(profile)
    running = chosen.params.run
    reference, *others = dict.fromkeys([*running, *chosen.params.arms])
    settings = {name: chosen.run(name).settings.flat() for name in (reference, *others)}
    print_table(list(settings[reference].items()), header=(f"profile {chosen.profile}", reference))
    typer.echo()
    rows: list[tuple[str, ...]] = [(reference, "yes" if reference in running else "no", "")]
    for name in others:
        changes = [f"{k} {v}" for k, v in settings[name].items() if settings[reference].get(k, v) != v]
        rows.append((name, "yes" if name in running else "no", "\n".join(changes)))
    print_table(rows, header=("arm", "runs", f"changes to {reference}"))


@app.command()
def views(
    tiles: Annotated[list[Path], typer.Argument(help="Image files of tiles.")],
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    profile: Profile = None,
    seed: Annotated[int, typer.Option(help="Seed of the random views.")] = 0,
) -> None:
    """Draw a contact sheet of tiles' views: one row per augmentation, as pretraining sees them."""
    from satclr import project
    from satclr.pretrain.views import sheet

    sheet.write(tiles, out, project.find(profile).settings, seed=seed)
    typer.echo(f"{out}: {len(tiles)} tiles")


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
    from satclr.data import labels

    findings = auditing.audit(labels.read(labels_dir), labels_dir, images=images)
    Console().print(auditing.render(findings))
    if json is not None:
        files.write_json(json, findings.to_dict())


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="The downloaded archive or folder.")],
    name: Annotated[str, typer.Argument(help="The data set's name; it becomes data/NAME.")],
    labels: Annotated[Path | None, typer.Option(help="Label tables, if apart from the images.")] = None,
) -> None:
    """Convert a downloaded data set to the layout that `prepare` reads: data/NAME."""
    import re

    from satclr import project
    from satclr.data import importing

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        fail(f"invalid data set name {name!r}; use lower-case letters, digits and _, as for a profile", code=2)
    chosen = project.find()
    typer.echo(str(importing.run(source, chosen.root / "data" / name, labels_source=labels)))
    profile = "" if name in chosen.params.profiles else f"add a profile {name!r} to params.yaml, then "
    typer.echo(f"next: `dvc add data`, then {profile}`dvc exp run -S profile={name}`")


@app.command()
def predict(
    tiles: Annotated[list[str], typer.Argument(help="Tiles, folders, globs, or GeoTIFF scenes, which are cut up.")],
    profile: Profile = None,
    top: Annotated[int, typer.Option(help="How many probabilities to show per tile.", min=1)] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object per tile.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV with every label's probability.")] = False,
    scene_tile_px: Annotated[int, typer.Option(help="Side of the tiles that a scene is cut into.", min=8)] = 256,
) -> None:
    """Label tiles with the registered champion."""
    from satclr import project
    from satclr.tracking import predict as serving

    form = "json" if json else "csv" if csv else "table"
    failed = serving.run(project.find(profile), tiles, form=form, top=top, scene_tile_px=scene_tile_px)
    sys.exit(1 if failed else 0)


@app.command()
def export(target: Annotated[Path, typer.Argument(help="The ONNX file to write.")], profile: Profile = None) -> None:
    """Write the champion as ONNX (optional packages: `uv sync --group onnx`)."""
    from satclr import project
    from satclr.tracking import export as onnx

    typer.echo(str(onnx.export(project.find(profile), target)))


@app.command()
def promote(version: str, profile: Profile = None) -> None:
    """Make a registered version champion, whatever the gate decided."""
    from satclr import project
    from satclr.tracking import registry

    typer.echo(registry.promote(project.find(profile), version).reason)


@app.command()
def rollback(profile: Profile = None) -> None:
    """Make the former champion champion again."""
    from satclr import project
    from satclr.tracking import registry

    typer.echo(registry.rollback(project.find(profile)).reason)


@app.command()
def ui(
    profile: Profile = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = False,
) -> None:
    """Serve this project's MLflow store on 127.0.0.1."""
    from satclr import project
    from satclr.tracking import ui as server

    sys.exit(server.serve(project.find(profile, or_ours=True), port=port, browser=browser))


@app.command()
def sync(profile: Profile = None) -> None:
    """Publish to MLflow whatever its store lacks of the DVC outputs (after `dvc pull` or a move)."""
    from satclr import project
    from satclr.tracking import registry, runs

    chosen = project.find(profile)
    published, missing = runs.publish_all(chosen)
    typer.echo(f"{len(published)} arm runs in the store")
    for line in missing:
        typer.echo(f"skipped: {line}", err=True)
    restored = registry.restore(chosen)
    if restored is not None:
        typer.echo(f"champion restored: version {restored.version}, {restored.arm}-s{restored.seed}")


# How a command ends.


def main() -> None:
    """Run a command; an error that a person can correct is one message, not a traceback.

    Under torchrun a failed process exits at once: gloo would wait 30 s for the others at Python's own exit.
    """
    from satclr import machine

    machine.stop.listen()
    try:
        app()
    except BaseException as error:
        code = _end(error)
        sys.stdout.flush()
        sys.stderr.flush()
        if "RANK" in os.environ and code:
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
    code = exit_code(error)
    if code is None or os.environ.get("SATCLR_TRACEBACK"):
        traceback.print_exception(error)
    else:
        print_error(sentence(error))
    return code or 1


def exit_code(error: BaseException) -> int | None:
    """2 for bad input, 1 for a failed run, None for a bug of ours.

    A `ValueError` of ours is bad input, a `RuntimeError` of ours a failed run; so is what the MLflow store raises.
    """
    package = type(error).__module__.partition(".")[0]
    if package == "satclr" and isinstance(error, ValueError):
        return 2
    failed = isinstance(error, OSError) or (package == "satclr" and isinstance(error, RuntimeError))
    return 1 if failed or package in MLFLOW else None


def sentence(error: BaseException) -> str:
    """What happened and what to do, in one sentence."""
    from satclr import files

    if type(error).__module__.partition(".")[0] in MLFLOW:
        lines = [line for line in str(error).splitlines() if not line.startswith("(raised as a result of")]
        text = f"the MLflow store failed: {(lines or [type(error).__name__])[0]}"
    elif isinstance(error, OSError):
        text = str(files.explain(error, Path(error.filename or Path.cwd())))
    else:
        text = str(error)
    return f"{text}; free some space and run the same command again" if "is full" in text else text  # SQLite


def print_error(message: str) -> None:
    rank = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""
    typer.secho(f"error{rank}: {message}", fg=typer.colors.RED, err=True)


def fail(message: str, *, code: int) -> NoReturn:
    """End with one message."""
    print_error(message)
    sys.exit(code)


def print_table(rows: Sequence[tuple[str, ...]], *, header: tuple[str, ...]) -> None:
    """Print rows under `header`."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # not markup: [/] may be in a setting or a file's name
    Console().print(table)
