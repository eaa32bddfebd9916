from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from satclr import atomic

from .conftest import mounted


def test_a_file_takes_its_place_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    with atomic.replacing(path) as part:
        part.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_what_a_file_held_stands_when_its_writer_stops(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write() -> None:
        with atomic.replacing(path) as part:
            part.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_said_with_the_file_and_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(atomic.WriteError, match=r"a\.txt cannot be written: No space left.*make space"):
        atomic.write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", size="2m") as folder:
        yield folder


def test_a_memory_map_that_the_disk_has_no_room_for_is_an_error_and_not_the_end(small_disk: Path) -> None:
    path = small_disk / "features.npy"

    def write(values: int) -> None:
        with atomic.replacing(path) as part:
            np.lib.format.open_memmap(part, "w+", np.float32, (values,)).flush()
            atomic.reserve(part)

    with pytest.raises(atomic.WriteError, match=r"features\.npy"):
        write(1 << 20)
    assert list(small_disk.iterdir()) == []
    write(1 << 10)
    assert np.load(path).shape == (1 << 10,)


def test_a_reserved_file_has_no_holes(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"x")
    os.truncate(path, 1 << 20)
    assert path.stat().st_blocks * 512 < 1 << 20
    atomic.reserve(path)
    assert path.stat().st_blocks * 512 >= 1 << 20
    assert path.read_bytes() == b"x" + bytes((1 << 20) - 1)
