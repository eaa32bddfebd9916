"""The project folder, and `Run`: one arm at one scale with one seed, and where its files are.

Only this module knows which file goes where; stages are handed a `Run` or a `Project`.
"""

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from satclr import settings as reading
from satclr.params import Params, Settings

PACKAGE = Path(__file__).parent


class ProjectError(ValueError):
    """No project here, or files of it are missing: what, and the command that makes them."""


class Below:
    """A path of a run or a project, below its root."""

    def __init__(self, template: str) -> None:
        self.template = template

    def __get__(self, owner: "Run | Project", _type: type) -> Path:
        return owner.root / self.template.format(owner)


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

    store = Below("build/{0.profile}")
    results = Below("results/{0.profile}/{0.key}")
    models = Below("models/{0.profile}/{0.key}")
    encoder = Below("models/{0.profile}/{0.key}/encoder.safetensors")
    features = Below("models/{0.profile}/{0.key}/features.npy")
    probe = Below("models/{0.profile}/{0.key}/probe.safetensors")

    @property
    def key(self) -> str:
        """Its folder below models/<profile> and results/<profile>, and its name in MLflow."""
        return f"{self.arm}-s{self.seed}"

    def parameters(self) -> dict[str, str]:
        """Identity and settings as `section.key` → text, as MLflow shows them."""
        return {"profile": self.profile, "arm": self.arm, "seed": str(self.seed), **self.flat()}

    def flat(self) -> dict[str, str]:
        """The settings as `section.key` → text."""
        return {key: str(value) for key, value in leaves(self.settings.model_dump(mode="json", by_alias=True), ".")}


@dataclass(frozen=True)
class Project:
    """The folder that holds params.yaml, and one of its profiles."""

    root: Path
    chosen: str | None = None  # --profile

    data = Below("data/{0.profile}")
    store = Below("build/{0.profile}")
    reports = Below("reports/{0.profile}")

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
        seed = self.params.seeds[0] if seed is None else seed
        return Run(self.root, self.profile, arm, seed, resolved, **self.params.machine.model_dump())

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


def find(profile: str | None = None, *, or_ours: bool = False) -> Project:
    """The project of the working folder: the nearest folder upwards with a params.yaml.

    With `or_ours`, the project that this package is installed from serves elsewhere. Raises `ProjectError`.
    """
    cwd = Path.cwd()
    for folder in (cwd, *cwd.parents, *([PACKAGE.parents[1]] if or_ours else [])):
        if (folder / reading.FILE).is_file():
            return Project(folder, profile)
    raise ProjectError(f"no {reading.FILE} in {cwd} or above it; run satclr inside a satclr project")


def home(root: Path) -> Path:
    """The project that a copy of it belongs to: `dvc exp run --temp` and `--queue` run in its .dvc/tmp/exps."""
    root = root.resolve()
    return next((p.parent for p in root.parents if p.name == ".dvc" and root.is_relative_to(p / "tmp" / "exps")), root)


def experiment(root: Path) -> str | None:
    """The name of the DVC experiment that runs in `root`, if it is a temporary copy of its project."""
    return os.environ.get("DVC_EXP_NAME") if home(root) != root.resolve() else None


def leaves(tree: Any, joint: str, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested dictionaries by their path: `{"haze": {"1": x}}` as `("haze/1", x)` with the joint `/`."""
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from leaves(value, joint, f"{name}{joint}{key}" if name else key)


@cache
def code_digest(root: Path, stage: str) -> str:
    """SHA-256 of the code that a stage depends on: the `src/` dependencies that dvc.yaml lists for it."""
    deps = yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"][stage]["deps"]
    digest = hashlib.sha256()
    for dep in sorted(dep for dep in deps if dep.startswith("src/satclr")):
        path = PACKAGE.parent / Path(dep).relative_to("src")
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()
