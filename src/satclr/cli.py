"""The command line: one command a stage, and the few that serve people.

    satclr --help

Only this module reads params.yaml and knows which file goes where; stages are handed values and paths.
Exit code 1: a run failed; 2: bad input. Heavy imports stand inside the commands, so that help is instant.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from satclr.params import Arm, Params

app = typer.Typer(
    help="Does contrastive pretraining help multi-label tagging of overhead images, by how much, and why?",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

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

    def result(self, arm: Arm, file: str = "") -> Path:
        return self.results / arm.key / file


def project(profile: str | None = None) -> Project:
    """The project of the working folder: the nearest folder upwards with a params.yaml."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "params.yaml").is_file():
            return Project(folder, profile)
    return fail(f"no params.yaml in {here} or above it; run satclr inside a satclr project", code=2)


def main() -> None:
    """Run a command; an error that a person can mend is one message, not a traceback."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
        fail(str(error), code=code)


def exit_code(error: Exception) -> int | None:
    """2 for bad input, 1 for a run that failed, None for a fault of ours.

    Our own exceptions are the sign: a `ValueError` is bad input, a `RuntimeError` a failed run.
    """
    ours = type(error).__module__.startswith("satclr.")
    if ours and isinstance(error, ValueError):
        return 2
    return 1 if isinstance(error, OSError) or (ours and isinstance(error, RuntimeError)) else None


def fail(message: str, *, code: int) -> NoReturn:
    typer.secho(f"error: {message}", fg=typer.colors.RED, err=True)
    sys.exit(code)


@app.command()
def prepare(profile: Profile = None) -> None:
    """Decode every tile once: data/<profile> → build/<profile>."""
    from satclr import prepare as stage

    here = project(profile)
    arm = here.arm(here.params.run[0], None)  # data settings are the profile's: any arm has them
    stage.run(here.data, here.store, arm.settings.data)


@app.command()
def pretrain(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Pretrain an arm's encoder (`objective: none` writes the initial one)."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import pretrain as stage
    from satclr import tiles

    store = tiles.open_store(here.store)
    fingerprint = stage.fingerprint(chosen.settings, chosen.seed, store.digest)
    with _live(
        here, chosen, "pretrain", fingerprint, enabled=chosen.settings.pretrain.objective != "none"
    ) as log:
        stage.run(
            store,
            settings=chosen.settings,
            seed=chosen.seed,
            root=here.root,
            out=here.model(chosen, "encoder.safetensors"),
            curve=here.result(chosen, "pretrain.csv"),
            log=log,
        )


@app.command()
def embed(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Encode every tile once with an arm's frozen encoder."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import embed as stage
    from satclr import tiles

    stage.run(
        tiles.open_store(here.store),
        encoder=here.model(chosen, "encoder.safetensors"),
        out=here.model(chosen, "features.npy"),
        settings=chosen.settings,
    )


@app.command()
def probe(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Train the linear probe on an arm's features."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import probe as stage
    from satclr import tiles

    store = tiles.open_store(here.store)
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
def evaluate(arm: ArmName, profile: Profile = None, seed: Seed = None) -> None:
    """Test an arm's probe and publish its run to MLflow."""
    here = project(profile)
    chosen = here.arm(arm, seed)
    from satclr import evaluate as stage
    from satclr import tiles

    result = stage.run(
        tiles.open_store(here.store),
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
def compare(profile: Profile = None) -> None:
    """Set the arms side by side: table, intervals, figures in reports/<profile>."""
    here = project(profile)
    from satclr import compare as stage
    from satclr import figures

    palette = figures.Palette(list(here.params.arms))
    _print_table(stage.table(stage.run(here.results, here.reports, arms=here.arms(), palette=palette)))


@app.command()
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
def register(profile: Profile = None) -> None:
    """Register the probe with the best validation mAP, gated, as champion."""
    here = project(profile)
    from satclr import register as stage

    decision = stage.run(
        here.root,
        profile=here.profile,
        runs=[(arm.name, arm.seed) for seeds in here.arms() for arm in seeds],
        minimum_val_mAP=here.arms()[0][0].settings.register_.minimum_val_mAP,
    )
    typer.echo(decision.reason)


@app.command()
def arms(profile: Profile = None) -> None:
    """Show the resolved arms as a table: every setting, arm by arm."""
    here = project(profile)
    names = list(here.params.arms)
    flat = [here.arm(name, None).flat() for name in names]
    runs = ["yes" if name in here.params.run else "no" for name in names]
    rows: list[tuple[str, ...]] = [(f"profile {here.profile}", *names), ("runs", *runs)]
    rows += [
        (key, *(f[key] for f in flat)) for key in flat[0] if key not in ("profile", "arm", "seed")
    ]  # fmt: skip
    _print_table(rows, mark_differences=True)


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
    tiles: Annotated[list[Path], typer.Argument(help="Image files of tiles.")],
    profile: Profile = None,
    top: Annotated[int, typer.Option(help="How many labels to show for each tile.", min=1)] = 5,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object a tile.")] = False,
) -> None:
    """Label tiles with the registered champion."""
    from json import dumps

    from satclr import register as stage

    here = project(profile)
    failed = 0
    rows: list[tuple[str, ...]] = [("tile", "labels", f"top {top}")]
    for found in stage.predict(here.root, here.profile, tiles):
        best = dict(list(found.probabilities.items())[:top])
        failed += bool(found.error)
        if json:
            typer.echo(dumps({**vars(found), "probabilities": best}, ensure_ascii=False))
        elif found.error:
            typer.secho(f"{found.tile}: {found.error}", fg=typer.colors.RED, err=True)
        else:
            shown = ", ".join(f"{label} {p:.2f}" for label, p in best.items())
            rows.append((found.tile, ", ".join(found.labels), shown))
    if not json and len(rows) > 1:
        _print_table(rows)
    sys.exit(1 if failed else 0)


@app.command()
def ui(
    profile: Profile = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 5000,
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = False,
) -> None:
    """Open this project's MLflow store on 127.0.0.1."""
    from satclr import tracking

    here = project(profile)
    sys.exit(tracking.ui(here.root, here.profile, port=port, browser=browser))


@app.command()
def sync(profile: Profile = None) -> None:
    """Rebuild MLflow's runs from the DVC outputs that are here (after `dvc pull`)."""
    from satclr import tracking

    here = project(profile)
    published, missing = tracking.sync(
        here.root, [_published(here, arm) for seeds in here.arms() for arm in seeds]
    )
    typer.echo(f"{len(published)} arm runs in the store")
    for line in missing:
        typer.echo(f"left out: {line}", err=True)


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
        "fingerprint": stage.fingerprint(arm.settings, arm.seed, digest),
    }


def _print_table(rows: list[tuple[str, ...]], *, mark_differences: bool = False) -> None:
    """The first row is the header; a row whose values differ between columns can be marked."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, title in enumerate(rows[0]):
        table.add_column(title, no_wrap=i == 0, overflow="fold")
    for row in rows[1:]:
        differs = mark_differences and len(set(row[1:])) > 1
        table.add_row(*row, style="yellow" if differs else None)
    Console().print(table)
