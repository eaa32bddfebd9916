"""The project folder, and `Run`: one arm at one scale with one seed, and where its files are.

Only this module knows which file goes where; stages are handed a `Run` or a `Project`.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import yaml

from satclr import settings as reading
from satclr.params import Params, Settings

PACKAGE = Path(__file__).parent


class ProjectError(ValueError):
    """No project here, or files of it are missing: what, and the command that makes them."""


@dataclass(frozen=True)
class Run:
    """One arm of one profile with one seed: its settings and its files."""

    root: Path
    profile: str
    arm: str
    seed: int
    settings: Settings
    processes: int = 1
    deterministic: bool = False

    @property
    def key(self) -> str:
        """Its folder below models/<profile> and results/<profile>, and its name in MLflow."""
        return f"{self.arm}-s{self.seed}"

    @property
    def store(self) -> Path:
        return self.root / "build" / self.profile

    @property
    def models(self) -> Path:
        return self.root / "models" / self.profile / self.key

    @property
    def results(self) -> Path:
        return self.root / "results" / self.profile / self.key

    @property
    def encoder(self) -> Path:
        return self.models / "encoder.safetensors"

    @property
    def features(self) -> Path:
        return self.models / "features.npy"

    @property
    def probe(self) -> Path:
        return self.models / "probe.safetensors"

    def parameters(self) -> dict[str, str]:
        """Identity and settings as `section.key` → text, as MLflow shows them."""
        return {"profile": self.profile, "arm": self.arm, "seed": str(self.seed), **self.settings.flat()}


@dataclass(frozen=True)
class Project:
    """The folder that holds params.yaml, and one of its profiles."""

    root: Path
    chosen: str | None = None  # --profile

    @cached_property
    def params(self) -> Params:
        loaded = reading.load(self.root / reading.FILE)
        reading.pick(loaded.profiles, self.chosen or loaded.profile, "profile")
        return loaded

    @property
    def profile(self) -> str:
        return self.chosen or self.params.profile

    def run(self, arm: str, seed: int | None = None) -> Run:
        """An arm with a seed (the first of params.yaml)."""
        resolved = reading.resolve(self.params, self.profile, arm)
        machine = self.params.machine
        return Run(
            root=self.root,
            profile=self.profile,
            arm=arm,
            seed=self.params.seeds[0] if seed is None else seed,
            settings=resolved,
            processes=machine.processes,
            deterministic=machine.deterministic,
        )

    @cached_property
    def settings(self) -> Settings:
        """The profile's settings; those of data, maps and register are the same for every arm."""
        return self.run(self.params.run[0]).settings

    def arms(self) -> list[list[Run]]:
        """The arms that params.yaml runs, each with its seeds."""
        return [[self.run(name, seed) for seed in self.params.seeds] for name in self.params.run]

    def all_arms(self) -> tuple[dict[str, Run], dict[str, str]]:
        """Every arm of params.yaml, those that run first; and why others do not go together with the profile."""
        runs, clashes = {}, {}
        for name in dict.fromkeys([*self.params.run, *self.params.arms]):
            try:
                runs[name] = self.run(name)
            except reading.CombinationError as error:
                clashes[name] = str(error)
        return runs, clashes

    @property
    def data(self) -> Path:
        return self.root / "data" / self.profile

    @property
    def store(self) -> Path:
        return self.root / "build" / self.profile

    @property
    def reports(self) -> Path:
        return self.root / "reports" / self.profile


def find(profile: str | None = None, *, or_ours: bool = False) -> Project:
    """The project of the working folder: the nearest folder upwards with a params.yaml.

    With `or_ours`, the project that this package is installed from serves elsewhere. Raises `ProjectError`.
    """
    cwd = Path.cwd()
    ours = [PACKAGE.parents[1]] if or_ours else []
    for folder in (cwd, *cwd.parents, *ours):
        if (folder / reading.FILE).is_file():
            return Project(folder, profile)
    raise ProjectError(f"no {reading.FILE} in {cwd} or above it; run satclr inside a satclr project")


def home(root: Path) -> Path:
    """The project that a copy of it belongs to: `dvc exp run --temp` and `--queue` run in its .dvc/tmp/exps."""
    root = root.resolve()
    return next((p.parent for p in root.parents if p.name == ".dvc" and root.is_relative_to(p / "tmp" / "exps")), root)


@cache
def code_digest(root: Path, stage: str) -> str:
    """SHA-256 of the code that a stage depends on: the `src/` dependencies that dvc.yaml lists for it."""
    stages = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    listed = [dep for dep in stages[stage]["deps"] if str(dep).startswith("src/satclr")]
    digest = hashlib.sha256()
    for dep in sorted(listed):
        path = PACKAGE.parent / Path(dep).relative_to("src")
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
