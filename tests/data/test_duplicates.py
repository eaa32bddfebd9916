"""Near-duplicates: the same pairs as comparing all with all, and the copies people really make."""

import io
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFilter

from satclr.data import duplicates
from satclr.data.duplicates import Rows, Tiles


def groups(pixels: Tiles) -> Rows:
    return duplicates.connected(duplicates.pairs(pixels), len(pixels))


def pictures(count: int, rng: np.random.Generator, side_px: int = 64) -> npt.NDArray[np.uint8]:
    """Unlike pictures with structure at several scales."""
    layers = [rng.integers(0, 256, (count, n, n, 3), dtype=np.uint8) for n in (4, 8, 16)]
    resized = [np.stack([np.asarray(Image.fromarray(x).resize((side_px, side_px))) for x in layer]) for layer in layers]
    return np.asarray(np.mean(resized, axis=0).astype(np.uint8))


def jpeg(tile: npt.NDArray[np.uint8], quality: int) -> npt.NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize(("distance_bits", "block"), [(0, 4096), (1, 29), (5, 4096), (8, 29), (13, 29)])
def test_candidates_are_those_of_all_pairs(distance_bits: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "HASHES_AT_ONCE", block)
    rng = np.random.default_rng()
    found = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for i in range(150, 300):  # relatives at every distance up to 16 bits
        flips = sum(1 << int(bit) for bit in rng.choice(64, rng.integers(0, 17), replace=False))
        found[i] = found[i - 150] ^ np.uint64(flips)
    close = [(i, j) for i, j in combinations(range(300), 2) if int(found[i] ^ found[j]).bit_count() <= distance_bits]
    assert len(close) > 2
    pairs = np.concatenate([np.stack(block, axis=1) for block in duplicates.candidates(found, distance_bits)])
    assert sorted(map(tuple, pairs.tolist())) == close


def test_copies_are_grouped_and_other_pictures_are_not() -> None:
    rng = np.random.default_rng()
    tiles = pictures(40, rng)
    copies = [
        tiles[3],
        jpeg(tiles[5], 50),
        np.asarray(Image.fromarray(tiles[7]).filter(ImageFilter.GaussianBlur(1))),
        np.asarray(np.clip(tiles[9] + rng.normal(0, 5, tiles[9].shape), 0, 255).astype(np.uint8)),
        jpeg(jpeg(tiles[5], 80), 60),
    ]
    group = groups(np.concatenate([tiles, copies]))
    assert group[:40].tolist() == list(range(40))
    assert group[40:].tolist() == [3, 5, 7, 9, 5]


def test_thumbnails_overrule_a_hash_that_collides(monkeypatch: pytest.MonkeyPatch) -> None:
    tiles = pictures(12, np.random.default_rng())
    same = np.zeros(12, dtype=np.uint64)
    monkeypatch.setattr(duplicates, "hashes", lambda _: (np.arange(12, dtype=np.uint64), same))
    assert groups(tiles).tolist() == list(range(12))
    monkeypatch.setattr(duplicates, "CORRELATION_MIN", -1.0)
    assert groups(tiles).tolist() == [0] * 12


def test_ucmerced_shows_one_airplane_twice(external_data: Path) -> None:
    paths = sorted((external_data / "ucmerced" / "Images").glob("*/*.jpg"))
    tiles = np.stack([np.asarray(Image.open(path).convert("RGB").resize((128, 128))) for path in paths])
    group = groups(tiles)
    names = [path.stem for path in paths]
    found = [[names[row] for row in np.flatnonzero(group == first)] for first in np.unique(group)]
    found = [members for members in found if len(members) > 1]
    assert ["airplane01", "airplane02"] in found
    assert len(found) <= 4
