from __future__ import annotations

import errno
import os
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from satclr import files

from .conftest import mounted


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_a_file_is_replaced_only_when_it_is_complete(error: type[BaseException] | None, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    files.write_text(path, "old")
    with pytest.raises(error) if error else nullcontext(), files.replacing(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
        if error:
            raise error
    assert path.read_text() == ("old" if error else "new")
    assert list(path.parent.iterdir()) == [path]


def test_a_full_disk_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(files.WriteError, match=r"cannot write .*a\.txt: No space left.*free some space"):
        files.write_text(path, "new")
    assert path.read_text() == "old"


def test_a_memory_map_without_disk_space_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    def write(path: Path, values: int) -> None:
        with files.replacing(path) as part:
            np.lib.format.open_memmap(part, "w+", np.float32, (values,)).flush()
            files.reserve(part)

    with mounted(tmp_path / "disk", size="2m") as disk:
        with pytest.raises(files.WriteError, match=r"features\.npy"):
            write(disk / "features.npy", 1 << 20)
        assert list(disk.iterdir()) == []
        write(disk / "features.npy", 1 << 10)
        assert np.load(disk / "features.npy").shape == (1 << 10,)


def test_tensors_come_back_with_their_facts_and_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    weight = torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last)
    tensors = {"weight": weight, "count": torch.tensor(7), "bias": np.ones(3, np.float32)}
    facts = {"labels": ["a", "é"], "arch": "resnet18", "mean": (0.1, 0.2, 0.3)}
    for name in ("a", "b"):
        files.save_tensors(tmp_path / name, tensors, **facts)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    loaded, text = files.load_tensors(tmp_path / "a")
    np.testing.assert_array_equal(loaded["weight"], weight.numpy())
    assert loaded["count"].shape == ()
    assert text == {"labels": '["a", "é"]', "arch": '"resnet18"', "mean": "[0.1, 0.2, 0.3]"}
    assert files.load_facts(tmp_path / "a") == text
    assert torch.equal(load_file(tmp_path / "a")["weight"], weight)


def test_values_that_are_not_finite_are_named(tmp_path: Path) -> None:
    files.save_tensors(tmp_path / "a", {"good": np.ones(2), "bad": np.array([1, np.nan])})
    with pytest.raises(files.FileError, match="a is not finite in bad;"):
        files.load_tensors(tmp_path / "a")


def test_csv_comes_back(tmp_path: Path) -> None:
    files.write_csv(tmp_path / "a.csv", ["label", "AP"], [["sea, deep", 0.5], ['"x"', ""]])
    assert files.read_csv(tmp_path / "a.csv") == [{"label": "sea, deep", "AP": "0.5"}, {"label": '"x"', "AP": ""}]
