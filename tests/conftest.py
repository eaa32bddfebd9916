"""A tiny data set and a project around it, for tests that run stages for real."""

import os

# Before NumPy and torch are imported. Training amplifies rounding, which depends on the number of threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from selenium import webdriver

from satclr import files, machine
from satclr.data import prepare, tiles
from satclr.params import Params
from satclr.project import Run
from satclr.settings import merge
from satclr.settings import resolve as resolve_settings
from satclr.tracking.store import load_mlflow

ROOT = Path(__file__).parents[1]
LABELS = ("grass", "road", "water")


@pytest.fixture(scope="session", autouse=True)
def quiet_and_deterministic() -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DVC_NO_ANALYTICS", "1")
    torch.use_deterministic_algorithms(True)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What would reach into later tests: signal handlers, and code that an MLflow model puts on the import path."""
    monkeypatch.setattr(machine.stop, "listen", lambda: None)
    before = sys.path.copy()
    yield
    sys.path[:] = before


@pytest.fixture(scope="session")
def external_data() -> Path:
    """Real tiles, label tables and weights; not part of the project."""
    folder = Path(os.environ.get("SATCLR_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip("real data are not here; set SATCLR_DATA to their folder")
    return folder


@contextmanager
def mounted(folder: Path, *, size: str) -> Iterator[Path]:
    """A disk of its own size at `folder`; the test is skipped where nobody may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small disk needs the right to mount one (root)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def write_tile(path: Path, rng: np.random.Generator, labels: tuple[int, ...], side: int = 40) -> None:
    """A noisy tile in which each label is a patch of its own colour."""
    pixels = rng.integers(70, 120, (side, side, 3))
    for k, present in enumerate(labels):
        if present:
            top, left = rng.integers(0, side - 16, 2)
            pixels[top : top + 16, left : left + 16, k] += 110
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)


def write_data(folder: Path, *, tiles_per_category: int = 16, seed: int = 0) -> None:
    """Three categories in MLRSNet's layout; every tile of a category has its namesake label."""
    rng = np.random.default_rng(seed)
    for k, category in enumerate(LABELS):
        rows: list[tuple[str | int, ...]] = []
        for i in range(tiles_per_category):
            present = tuple(int(j == k or rng.random() < 0.3) for j in range(len(LABELS)))
            name = f"{category}_{i:05d}.jpg"
            rows.append((name, *present))
            write_tile(folder / "Images" / category / name, rng, present)
        files.write_csv(folder / "Labels" / f"{category}.csv", ["image", *LABELS], rows)


def tiny_params() -> dict[str, Any]:
    """The project's own params.yaml with one more profile, small enough for a test."""
    tree: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    tree |= {"profile": "tiny", "seeds": [0], "run": ["baseline", "simclr"]}
    tree["machine"]["deterministic"] = True
    tree["profiles"]["tiny"] = {
        "data": {"tile_px": 40},
        "views": {"crop_px": 32},
        "pretrain": {
            "arch": "shufflenet_v2_x0_5",  # the smallest with BatchNorm
            "weights": "none",
            "epochs": 2,
            "batch_size": 8,
            "precision": "float32",
        },
        "embed": {},
        "probe": {"epochs": 3, "batch_size": 8},
        "evaluate": {},
        "robustness": {"corruptions": ["haze", "rotation"], "strengths": [1, 3]},
        "maps": {"projections": ["pca"]},
        "register": {},
    }
    return tree


def make_run(root: Path = Path(), arm: str = "simclr", seed: int = 0, **changes: Any) -> Run:
    """An arm of the tiny profile below `root`; `changes` are sections, as in params.yaml."""
    tree = tiny_params()
    tree["profiles"]["tiny"] = merge(tree["profiles"]["tiny"], changes)
    settings = resolve_settings(Params.model_validate(tree), "tiny", arm)
    return Run(root, "tiny", arm, seed, settings, deterministic=True)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Chromium, for all tests of a module."""
    chromium, driver = (shutil.which(name) for name in ("chromium", "chromedriver"))
    if not chromium or not driver:
        pytest.skip("no browser here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    off = ("gpu", "dev-shm-usage", "quic", "background-networking", "component-update", "sync")
    for switch in ("headless=new", "no-sandbox", "no-first-run", *(f"disable-{feature}" for feature in off)):
        options.add_argument(f"--{switch}")
    options.add_argument("--window-size=1500,950")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    window = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield window
    window.quit()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "data"
    write_data(folder)
    return folder


@pytest.fixture(scope="session")
def store(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tiles.TileStore:
    out = tmp_path_factory.mktemp("build")
    prepare.write_store(tiny_data, out, make_run().settings.data)
    return tiles.open_store(out)


@pytest.fixture(scope="session")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project folder with the store, models, results and comparison of three arms, all made up."""
    from satclr.study import compare

    from . import made_up

    project = made_up.project(tmp_path_factory.mktemp("measured"))
    compare.run(project)
    return project.root


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes a project folder with params.yaml and tiny data, and enters it."""
    load_mlflow()  # else a thread imports it, and its warnings are errors in the middle of a test

    def make(change: Callable[[dict[str, Any]], None] = lambda _: None, *, data: bool = True) -> Path:
        tree = tiny_params()
        change(tree)
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        shutil.copyfile(ROOT / "dvc.yaml", tmp_path / "dvc.yaml")
        if data:
            write_data(tmp_path / "data" / "tiny")
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make
