"""The project that a command works on: params.yaml, and which file goes where."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from satclr.cli.output import fail

if TYPE_CHECKING:
    from satclr.params import Arm, Params

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
    ours = [Path(__file__).parents[3]] if or_ours else []
    for folder in (here, *here.parents, *ours):
        if (folder / "params.yaml").is_file():
            return Project(folder, profile)
    return fail(f"no params.yaml in {here} or above it; run satclr inside a satclr project", code=2)


def published(here: Project, arm: Arm) -> dict[str, Any]:
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
