"""BigEarthNet v2 in its published layout, in small."""

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from PIL import Image, TiffImagePlugin
from pyarrow import parquet

from satclr.data import importing, labels, splits
from satclr.data.importing import bigearthnet

SCENES = ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP", "S2B_MSIL2A_20180525T094029_N9999_R036_T35VNK")
COUNTRIES = ("Austria", "Republic of Ireland")
NAMES = ("Arable land", "Beaches, dunes, sands", "Inland waters", "Marine waters", "Pastures")
SPLITS = ("train", "validation", "test")
OTHER_BANDS = {"B01": 20, "B05": 60, "B08": 120, "B8A": 60}


def geotiff(path: Path, values: npt.NDArray[np.uint16]) -> None:
    """One band as the data set stores it: deflated, with a place on earth (pixel scale, tie point, UTM zone 33 N)."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    place = {33550: (10.0, 10.0, 0.0), 33922: (0.0, 0.0, 0.0, 399960.0, 5300040.0, 0.0)}
    keys = {34735: (1, 1, 0, 2, 1024, 0, 1, 1, 3072, 0, 1, 32633)}
    tags.tagtype = dict.fromkeys(place, 12) | dict.fromkeys(keys, 3)
    for tag, value in (place | keys).items():
        tags[tag] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, "TIFF", compression="tiff_adobe_deflate", tiffinfo=tags)


Download = tuple[Path, list[dict[str, Any]], dict[str, npt.NDArray[np.uint16]]]


@pytest.fixture
def download(tmp_path: Path) -> Download:
    """Twelve patches, three bands and more each: the folder, the metadata, the (120,120,3) reflectances."""
    rng = np.random.default_rng()
    source, pixels = tmp_path / "BigEarthNet", {}
    rows: list[dict[str, Any]] = []
    for i in range(12):
        patch = f"{SCENES[i % 2]}_{i:02}_{40 + i}"
        chosen = rng.choice(len(NAMES), rng.integers(1, 4), replace=False)
        shown = [NAMES[k] for k in (chosen if i else range(5))]
        row = {"patch_id": patch, "labels": shown, "split": SPLITS[i % 3], "country": COUNTRIES[i % 2]}
        rows.append(row | {"s1_name": "S1B_IW_GRDH_1SDV", "contains_seasonal_snow": False})
        pixels[patch] = rng.integers(0, 6000, (120, 120, 3), dtype=np.uint16)
        folder = source / "BigEarthNet-S2" / SCENES[i % 2] / patch
        for k, band in enumerate(("B04", "B03", "B02")):
            geotiff(folder / f"{patch}_{band}.tif", pixels[patch][:, :, k])
        for band, side in OTHER_BANDS.items():
            geotiff(folder / f"{patch}_{band}.tif", np.zeros((side, side), dtype=np.uint16))
    parquet.write_table(pa.Table.from_pylist(rows), source / "metadata.parquet")
    return source, rows, pixels


def test_patches_become_rgb_tiles_with_their_labels_and_split(download: Download, tmp_path: Path) -> None:
    source, rows, pixels = download
    target = tmp_path / "data" / "bigearthnet"
    plan = importing.run(source, target)
    assert plan.splits == {"train": 4, "val": 4, "test": 4}
    read = labels.read(target / "Labels")
    assert read.names == NAMES
    assert Counter(read.categories) == {"Austria": 6, "Republic_of_Ireland": 6}
    drawn = splits.from_file(target / "split.csv", read.tiles)
    by_name = {row["patch_id"]: row for row in rows}
    for tile, category, hot, which in zip(read.tiles, read.categories, read.targets, drawn, strict=True):
        row = by_name[tile.removesuffix(".png")]
        assert [name for name, value in zip(read.names, hot, strict=True) if value] == sorted(row["labels"])
        assert which == {"train": "train", "validation": "val", "test": "test"}[row["split"]]
        with Image.open(target / "Images" / category / tile) as image:
            values = np.asarray(image)
        reflectance = pixels[row["patch_id"]].astype(float) / 10_000
        np.testing.assert_array_equal(values, np.floor(np.clip(reflectance / 0.3, 0, 1) * 255 + 0.5))


def test_the_scale_is_monotonic_and_meets_its_ends() -> None:
    every = np.arange(2**16, dtype=np.uint16)
    scaled = bigearthnet.to_rgb(every).astype(int)
    assert (scaled[0], scaled[3_000]) == (0, 255)
    assert set(np.diff(scaled)) == {0, 1}
    assert (scaled[3_000:] == 255).all()


def test_some_acquisitions_are_enough(download: Download, tmp_path: Path) -> None:
    source, _, _ = download
    shutil.rmtree(source / "BigEarthNet-S2" / SCENES[1])
    plan = importing.run(source, tmp_path / "part")
    assert len(plan.tiles) == 6
    assert plan.notes == ["6 of 12 patches are missing"]
    assert set(labels.read(tmp_path / "part" / "Labels").names) == set(NAMES)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's first word on a truncated file
def test_what_is_damaged_is_named(download: Download, tmp_path: Path) -> None:
    source, rows, _ = download
    patch = rows[3]["patch_id"]
    for other in ({"labels_source": source}, {"labels_from": "folders"}):
        with pytest.raises(importing.SourceError, match="has labels of its own"):
            importing.look(source, **other)
    band = source / "BigEarthNet-S2" / SCENES[1] / patch / f"{patch}_B03.tif"
    whole = band.read_bytes()
    for content in (whole[:-5000], b"no tiff", None):
        band.unlink() if content is None else band.write_bytes(content)
        with pytest.raises(importing.SourceError, match=f"{patch}_B03.tif: not a readable GeoTIFF"):
            importing.run(source, tmp_path / "mine")
    geotiff(band, np.zeros((60, 60), dtype=np.uint16))
    with pytest.raises(importing.SourceError, match=r"B03.tif.*\(60, 60\)"):
        importing.run(source, tmp_path / "mine")
    band.write_bytes(whole)
    metadata = source / "metadata.parquet"
    metadata.write_bytes(b"PAR1")
    with pytest.raises(importing.SourceError, match=r"metadata.parquet.*not a readable parquet"):
        importing.run(source, tmp_path / "mine")
    for row, said in (
        ({"patch_id": "a"}, "no column 'labels'"),
        (rows[0] | {"patch_id": "a"}, "none of the 1 patches"),
    ):
        parquet.write_table(pa.Table.from_pylist([row]), metadata)
        with pytest.raises(importing.SourceError, match=said):
            importing.run(source, tmp_path / "mine")
    assert not (tmp_path / "mine").exists()
