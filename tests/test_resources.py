"""Too little disk, too little memory: said in one sentence, nothing harmed, and done when there is enough."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from satclr import files

from .conftest import ROOT, mounted, tiny_params, write_data

BY_ARM = ("pretrain", "embed", "probe", "evaluate", "robustness", "maps")
STAGES = ("prepare", *BY_ARM, "compare", "report", "register")


class Disk:
    """A project on a small disk of its own."""

    def __init__(self, root: Path, tracking: Path) -> None:
        self.root = root
        self.tracking = f"sqlite:///{tracking}"
        write_data(root / "data" / "tiny")
        shutil.copy(ROOT / "dvc.yaml", root)
        self.change()

    def change(self, **pretrain: Any) -> None:
        tree = tiny_params()
        tree["run"] = ["simclr"]
        tree["profiles"]["tiny"]["pretrain"] |= pretrain
        (self.root / "params.yaml").write_text(yaml.safe_dump(tree))

    def start(self, stage: str) -> subprocess.Popen[str]:
        options = ["--arm", "simclr"] if stage in BY_ARM else []
        command = [sys.executable, "-m", "satclr", stage, *options]
        environment = {**os.environ, "MLFLOW_TRACKING_URI": self.tracking, "SATCLR_CHECKPOINT_AFTER_S": "0"}
        return subprocess.Popen(command, cwd=self.root, env=environment, stderr=subprocess.PIPE, text=True)

    def run(self, stage: str) -> tuple[int, str]:
        """Exit code and the last line of standard error."""
        process = self.start(stage)
        said = process.communicate()[1].strip().splitlines()
        return process.returncode, said[-1] if said else ""

    @contextmanager
    def filled(self, *, leave_kb: int = 0) -> Iterator[None]:
        """Inside, the disk is full."""
        filler = self.root / "filler"
        try:
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(1 << 16))
            os.truncate(filler, max(0, filler.stat().st_size - leave_kb * 1024))
            yield
        finally:
            filler.unlink()

    def outputs(self) -> dict[str, str]:
        folders = [self.root / name for name in ("build", "models", "results", "reports")]
        found = [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path): files.sha256(path) for path in found}


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """All stages have run; MLflow's store is on another disk."""
    folder = tmp_path_factory.mktemp("full")
    with mounted(folder / "disk", size="96m") as root:
        made = Disk(root, folder / "mlflow.db")
        for stage in STAGES:
            code, said = made.run(stage)
            assert code == 0, said
        yield made


def told(said: str) -> bool:
    return said.startswith("error: ") and "free some space and run the same command again" in said


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_full_disk_stops_a_stage_in_one_sentence_and_harms_nothing(stage: str, disk: Disk) -> None:
    before = disk.outputs()
    with disk.filled():
        code, said = disk.run(stage)
        assert (code, told(said)) == (1, True), said
        assert disk.outputs() == before
    code, said = disk.run(stage)
    assert code == 0, said
    after = disk.outputs()
    assert after.keys() == before.keys()
    # When the report was made, and that the champion was one already, are not what they said the first time.
    changed = {name for name in before if after[name] != before[name]}
    assert all(name.endswith((".html", "champion.json")) for name in changed)


@pytest.mark.slow
def test_a_disk_that_fills_while_it_trains_keeps_the_last_checkpoint(disk: Disk) -> None:
    before = disk.outputs()
    disk.change(temperature=0.3, epochs=40)
    process = disk.start("pretrain")
    folder = disk.root / ".cache" / "checkpoints"
    while not (found := list(folder.glob("*/checkpoint.safetensors"))):
        assert process.poll() is None
        time.sleep(0.01)
    with disk.filled():
        said = process.communicate()[1].strip().splitlines()[-1]
        assert (process.returncode, told(said)) == (1, True), said
        assert "checkpoint.safetensors" in said
        assert found[0].is_file()
        assert disk.outputs() == before
    again = disk.start("pretrain")
    assert "resuming" in again.communicate()[1]
    assert again.returncode == 0
    disk.change()
    assert disk.run("pretrain")[0] == 0
    assert disk.outputs() == before


@pytest.mark.slow
def test_a_full_disk_under_mlflow_is_said_too(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", size="64m") as root:
        made = Disk(root, root / "mlruns" / "mlflow.db")
        for stage in STAGES[: STAGES.index("evaluate")]:
            assert made.run(stage)[0] == 0
        with made.filled(leave_kb=300):  # for the results; not for the model that is logged
            code, said = made.run("evaluate")
            assert (code, told(said)) == (1, True), said
        assert made.run("evaluate")[0] == 0


FLAT = """
import resource, sys
from pathlib import Path
import numpy as np
from satclr.data import prepare, tiles
from satclr.evaluation import embed
from satclr.pretrain import encoder
from tests.conftest import make_run

data, root = map(Path, sys.argv[1:])
run = make_run(root, data={"tile_px": 256})
model, width = encoder.initial("shufflenet_v2_x0_5", "none", seed=0, root=root)
facts = {"mean": (0.4,) * 3, "std": (0.2,) * 3, "crop_px": 32, "tile_px": 256}
encoder.save(model, run.encoder, arch="shufflenet_v2_x0_5", width=width, **facts)
embed.BATCH_SIZE = 64
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
limit = int(status["VmData"].split()[0]) * 1024 + (256 << 20)  # what the process has now, and some room
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
prepare.write_store(data, run.store, run.settings.data)
store = tiles.open_store(run.store)
embed.run(run, lambda *_: None)
assert np.load(run.features, mmap_mode="r").shape == (len(store.names), width)
print(store.pixels.nbytes >> 20)
try:
    np.array(store.pixels)
except MemoryError:
    print("the limit holds")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit on memory is Linux's")
def test_prepare_and_embed_of_a_set_larger_than_memory(tmp_path: Path) -> None:
    """2,400 tiles of 256 px, 450 MB as a store, with room for 256 MB."""
    data = tmp_path / "data"
    write_data(data)
    copies = [f"c{i}_" for i in range(1, 50)]  # each tile fifty times, under other names
    for image in list(data.rglob("*.jpg")):
        for copy in copies:
            image.with_name(copy + image.name).hardlink_to(image)
    for table in (data / "Labels").iterdir():
        header, *rows = table.read_text().splitlines()
        table.write_text("\n".join([header, *(copy + row for copy in ["", *copies] for row in rows)]))
    command = [sys.executable, "-c", FLAT, str(data), str(tmp_path / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "MALLOC_ARENA_MAX": "2"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["450", "the limit holds"]
