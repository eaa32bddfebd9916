"""The command line: one command a stage, and the few that serve people.

    satclr --help

Only this module reads params.yaml and knows which file goes where; stages are handed values and paths.
Exit code 1: a run failed; 2: bad input. Heavy imports stand inside the commands, so that help is instant.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from satclr import atomic

if TYPE_CHECKING:
    from satclr.params import Arm, Params

app = typer.Typer(
    help="Does contrastive pretraining help multi-label tagging of overhead images, by how much, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

STORE = {"mlflow", "sqlalchemy", "sqlite3"}  # packages whose exceptions mean that the store failed

Profile = Annotated[
    str | None, typer.Option(help="A profile of params.yaml; the file's own `profile` if left out.")
]
ArmName = Annotated[str, typer.Option("--arm", help="An arm of params.yaml.")]
Seed = Annotated[int | None, typer.Option(help="The seed; the first of params.yaml if left out.")]


@dataclass(frozen=True)
class Project:
    """The folder that holds params.yaml, and which file goes where below it."""

    root: Path
    chosen: str | None = None  # --profile

    @cached_property
    def params(self) -> Params:
        from satclr import params

        loaded = params.load(self.root / params.FILE)
        params.pick(loaded.profiles, self.profile_of(loaded), "profile")
        return loaded

    def profile_of(self, loaded: Params) -> str:
        return self.chosen or loaded.profile

    @property
    def profile(self) -> str:
        return self.profile_of(self.params)

    def arm(self, name: str, seed: int | None) -> Arm:
        from satclr import params

        return params.resolve(self.params, self.profile, name, self.params.seeds[0] if seed is None else seed)

    def arms(self) -> list[list[Arm]]:
        """The arms that params.yaml runs, each with its seeds."""
        return [[self.arm(name, seed) for seed in self.params.seeds] for name in self.params.run]

    @property
    def data(self) -> Path:
        return self.root / "data" / self.profile

    @property
    def store(self) -> Path:
        return self.root / "build" / self.profile

    @property
    def results(self) -> Path:
        return self.root / "results" / self.profile

    @property
    def reports(self) -> Path:
        return self.root / "reports" / self.profile

    def model(self, arm: Arm, file: str) -> Path:
        return self.root / "models" / self.profile / arm.key / file

    def start(self, arm: Arm) -> Path | None:
        """The encoder that an arm's pretraining goes on from (`pretrain.from`)."""
        source = arm.settings.pretrain.from_
        if source is None:
            return None
        path = self.model(arm.model_copy(update={"name": source}), "encoder.safetensors")
        if not path.is_file():
            command = f"satclr pretrain --profile {self.profile} --arm {source} --seed {arm.seed}"
            fail(
                f"arm {arm.name!r} goes on from {source!r} (pretrain.from), but {path} does not exist; "
                f"run `{command}` first, or `dvc repro pretrain@{self.profile}-{source}-{arm.seed}`",
                code=2,
            )
        return path

    def check_start(self, arm: Arm) -> None:
        """Stop if the arm that this one went on from has another encoder by now; DVC sees its settings only."""
        from satclr import encoder, tensorfile

        own, start = self.model(arm, "encoder.safetensors"), self.start(arm)
        if start is None or not own.exists():
            return
        if encoder.metadata(own).get("start") != {"sha256": tensorfile.digest(start)}:
            fail(
                f"arm {arm.name!r} with seed {arm.seed} went on from another encoder than {start} is now; run "
                f"`dvc repro --force --single-item pretrain@{self.profile}-{arm.name}-{arm.seed}`, then `dvc repro`",
                code=2,
            )

    def result(self, arm: Arm, file: str = "") -> Path:
        return self.results / arm.key / file


def project(profile: str | None = None, *, or_ours: bool = False) -> Project:
    """The project of the working folder: the nearest folder upwards with a params.yaml.

    Outside of any, with `or_ours`, the one whose source this is.
    """
    here = Path.cwd()
    ours = [Path(__file__).parents[2]] if or_ours else []
    for folder in (here, *here.parents, *ours):
        if (folder / "params.yaml").is_file():
            return Project(folder, profile)
    return fail(f"no params.yaml in {here} or above it; run satclr inside a satclr project", code=2)


def main() -> None:
    """Run a command; under torchrun, end at once when it fails.

    At Python's own end gloo would wait for a process that is gone, until torchrun kills this one after 30 s.
    """
    try:
        _main()
    except BaseException as error:
        code = error.code if isinstance(error, SystemExit) else 1
        if "RANK" not in os.environ or not code:
            raise
        if not isinstance(error, SystemExit):
            traceback.print_exception(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def _main() -> None:
    """Run a command; an error that a person can mend is one message, not a traceback."""
    from satclr import stopping

    stopping.listen()
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        code = exit_code(error)
        if code is None or os.environ.get("SATCLR_TRACEBACK"):
            raise
        fail(sentence(error), code=code)


def exit_code(error: Exception) -> int | None:
    """2 for bad input, 1 for a run that failed, None for a fault of ours.

    Our own exceptions are the sign: a `ValueError` is bad input, a `RuntimeError` a failed run; so is what the
    MLflow store raises.
    """
    package = type(error).__module__.partition(".")[0]
    if package == "satclr" and isinstance(error, ValueError):
        return 2
    failed = isinstance(error, OSError) or (package == "satclr" and isinstance(error, RuntimeError))
    return 1 if failed or package in STORE else None


def sentence(error: Exception) -> str:
    """What an error says to a person: what happened, and what to do where the disk is full."""
    lines = str(error).splitlines() or [type(error).__name__]
    if type(error).__module__.partition(".")[0] in STORE:
        text = f"the MLflow store failed: {lines[0]}"
    elif isinstance(error, OSError):
        text = str(atomic.explained(error, Path(error.filename or Path.cwd())))
    else:
        text = str(error)
    if "is full" in text:  # SQLite's word for it
        text += "; make space and run the same command again"
    return text


def fail(message: str, *, code: int) -> NoReturn:
    rank = f" (process {os.environ['RANK']})" if "RANK" in os.environ else ""  # under torchrun
    typer.secho(f"error{rank}: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


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

    tracking.publish(here.root, **_published(here, chosen))


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
    _print_table(stage.table(report))
    if report["ladder"]:
        typer.echo()
        _print_table(stage.ladder_table(report))
    if report["leakage"]:
        typer.echo()
        _print_table(stage.leakage_table(report))


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


@app.command()
def arms(profile: Profile = None) -> None:
    """Show the resolved arms: every setting of the first that runs, and what each other arm changes."""
    here = project(profile)
    reference, *others = dict.fromkeys([*here.params.run, *here.params.arms])
    identity = ("profile", "arm", "seed")
    settings = {name: here.arm(name, None).flat() for name in (reference, *others)}
    first = {key: value for key, value in settings[reference].items() if key not in identity}
    _print_table(list(first.items()), header=(f"profile {here.profile}", reference))
    typer.echo()
    rows: list[tuple[str, ...]] = [(reference, "yes" if reference in here.params.run else "no", "")]
    for name in others:
        changes = [
            f"{key} {value}" for key, value in settings[name].items() if first.get(key, value) != value
        ]
        rows.append((name, "yes" if name in here.params.run else "no", "\n".join(changes)))
    _print_table(rows, header=("arm", "runs", f"changes to {reference}"))


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
        _print_table([row for row, p in zip(rows[1:], found, strict=True) if not p.error], header=rows[0])
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
    published, missing = tracking.sync(
        here.root, [_published(here, arm) for seeds in here.arms() for arm in seeds]
    )
    typer.echo(f"{len(published)} arm runs in the store")
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


def _published(here: Project, arm: Arm) -> dict[str, Any]:
    """What `tracking.publish` needs to know of an arm."""
    from satclr import pretrain as stage
    from satclr import tiles

    digest = tiles.open_store(here.store).digest
    return {
        "profile": here.profile,
        "arm": arm.name,
        "seed": arm.seed,
        "params": arm.flat(),
        "fingerprint": stage.fingerprint(arm.settings, arm.seed, digest, here.start(arm)),
    }


def _print_table(rows: Sequence[tuple[str, ...]], *, header: tuple[str, ...] = ()) -> None:
    """Print rows under `header`, or under the first of them."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    header, rows = (header, rows) if header else (rows[0], rows[1:])
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(header):
        table.add_column(title, no_wrap=i == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # as it stands: [/] in a setting or a file's name is no markup
    Console().print(table)
