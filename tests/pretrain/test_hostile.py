"""Checkpoints, weights and encoders from outside: they run nothing and take no memory for what they claim."""

import io
import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from satclr.pretrain import checkpoint, encoder

HUGE = 10**12
STATE = {"state": '{"epoch": 1}'}
WEIGHTS = {"model.weight": torch.zeros(2, 3), "model.bias": torch.zeros(2)}


class Planted:
    """Unpickled, it leaves a file in the working folder."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("planted"),)


@pytest.fixture(autouse=True)
def nothing_runs_or_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 300_000
    assert not Path("planted").exists()


def claiming_huge() -> bytes:
    """A safetensors file of a few bytes whose header claims a tensor of 4 TB."""
    header = {"x": {"dtype": "F32", "shape": [HUGE], "data_offsets": [0, 4 * HUGE]}, "__metadata__": STATE}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def trainer() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.Adam(model.parameters())


@pytest.mark.parametrize(
    "raw",
    [
        pickle.dumps(Planted()),
        claiming_huge(),
        save(WEIGHTS | {"model.bias": torch.full((2,), torch.nan)}, STATE),
        save(WEIGHTS | {"optimizer.7.exp_avg": torch.zeros(9)}, STATE),
        save(WEIGHTS, {"state": '{"epoch": "x", "partial": 3}'}),
    ],
)
def test_a_hostile_checkpoint_is_refused(raw: bytes, tmp_path: Path) -> None:
    (tmp_path / checkpoint.FILE).write_bytes(raw)
    with pytest.raises(checkpoint.RunError, match=r"safetensors is not a checkpoint of this run.*delete it"):
        checkpoint.resume(tmp_path, *trainer())


def test_hostile_weights_are_refused_run_nothing_and_take_no_memory(tmp_path: Path) -> None:
    """Pickles, a tensor of one number seen as 10^12, a tensor cut short, and zeros packed a thousand to one."""
    (tmp_path / "pickle.pth").write_bytes(pickle.dumps(Planted()))
    torch.save({"fc": Planted()}, tmp_path / "object.pth")
    torch.save({"conv1.weight": torch.zeros(1).expand(HUGE)}, tmp_path / "expanded.pth")
    torch.save({"conv1.weight": torch.zeros(10_000_000)}, plain := io.BytesIO())
    with (
        zipfile.ZipFile(plain) as members,
        zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as packed,
        zipfile.ZipFile(tmp_path / "cut.pth", "w") as cut,
    ):
        for name in members.namelist():
            content = members.read(name)
            packed.writestr(name, content)
            cut.writestr(name, content[:64] if "/data/" in name else content)
    (tmp_path / "header.safetensors").write_bytes(claiming_huge())
    for path in tmp_path.iterdir():
        with pytest.raises(encoder.EncoderError, match=path.name):
            encoder.initial("resnet18", path.name, seed=0, root=tmp_path)


def test_an_encoder_that_names_a_large_architecture_takes_no_memory(tmp_path: Path) -> None:
    facts = {"arch": '"vit_h_14"', "mean": "[0, 0, 0]", "std": "[1, 1, 1]", "crop_px": "224"}
    save_file({"conv_proj.weight": torch.zeros(1)}, tmp_path / "e.safetensors", facts)
    with pytest.raises(encoder.EncoderError, match="do not fit"):  # vit_h_14 is 2.5 GB
        encoder.load(tmp_path / "e.safetensors")


@pytest.mark.parametrize("facts", [{"crop_px": HUGE}, {"mean": [0.5]}, {"std": [0, 0, 0]}, {"std": [np.nan] * 3}])
def test_an_encoder_that_claims_an_impossible_view_is_refused(facts: dict[str, Any]) -> None:
    sound = {"mean": [0.5] * 3, "std": [0.2] * 3, "crop_px": 32}
    with pytest.raises(encoder.EncoderError, match="claimed"):
        encoder.recorded_input(sound | facts, "claimed")


def test_weights_that_become_infinite_stop_the_run_and_keep_the_last_checkpoint(tmp_path: Path) -> None:
    model, optimizer = trainer()
    checkpoint.Writer(tmp_path, model, optimizer, checkpoint.State(epoch=1)).write()
    with torch.no_grad():
        next(model.parameters())[0, 1] = torch.inf
    with pytest.raises(checkpoint.RunError, match=r"not finite in model\.weight after epoch 2, step 3.*is kept"):
        checkpoint.Writer(tmp_path, model, optimizer, checkpoint.State(epoch=2, step=3)).write()
    assert checkpoint.resume(tmp_path, *trainer()).epoch == 1
