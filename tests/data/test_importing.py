"""Data sets as they are downloaded, in small: what an import makes of them."""

import errno
import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image

from satclr.data import importing, labels, prepare
from satclr.data.importing import archives, layout
from satclr.data.importing import plan as plans
from tests.conftest import make_run

from .downloads import KINDS, NAMES, STEMS, Files, folder_of, make, multi_hot, pack, picture, tables, tiles


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check(target: Path, images: Files) -> None:
    """The target has every tile in its category with its labels and the image's pixels, and nothing is left over."""
    read = labels.read(target / "Labels")
    hot = multi_hot()
    assert read.names == tuple(sorted(NAMES))
    for tile, category, row in zip(read.tiles, read.categories, read.targets.tolist(), strict=True):
        assert tile.startswith(category)
        assert dict(zip(read.names, row, strict=True)) == dict(zip(NAMES, hot.pop(Path(tile).stem), strict=True))
    assert not hot
    made = tree(target / "Images")
    assert made.keys() == {f"{c}/{t}" for t, c in zip(read.tiles, read.categories, strict=True)}
    by_stem = {Path(name).stem: (Path(name).suffix, content) for name, content in made.items()}
    for name, content in images.items():
        suffix, copied = by_stem[Path(name).stem]
        if name.endswith(".jpg"):
            assert copied == content
        else:
            assert suffix == ".png"
            found, expected = (np.asarray(Image.open(io.BytesIO(raw))) for raw in (copied, content))
            np.testing.assert_array_equal(found, expected)
    assert [p.name for p in target.parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_download_is_imported_and_prepared(tmp_path: Path, kind: str) -> None:
    source, images = make(kind, tmp_path)
    before = tree(source) if source.is_dir() else source.read_bytes()
    target = tmp_path / "data" / "mine"
    plan = importing.run(source, target)
    check(target, images)
    assert (len(plan.tiles), plan.images_without_row) == (len(images), [])
    assert not [note for note in plan.notes if "rows differ" in note]
    assert (tree(source) if source.is_dir() else source.read_bytes()) == before
    prepare.write_store(target, tmp_path / "build", make_run(data={"tile_px": 12}).settings.data)
    pixels = np.load(tmp_path / "build" / "tiles.npy")
    read = labels.read(target / "Labels")
    for tile, category, stored in zip(read.tiles, read.categories, pixels, strict=True):
        np.testing.assert_array_equal(stored, np.asarray(Image.open(target / "Images" / category / tile)))


def test_labels_may_come_from_another_place(tmp_path: Path) -> None:
    wrong = {name: data.replace(b"1", b"0") for name, data in tables("Labels").items()}
    images = tiles("Images/{category}/{name}")
    archive = pack(tmp_path / "images.zip", images | wrong)
    checkout = folder_of(tmp_path / "MLRSNet", tables("labels") | {"Categories_names.xlsx": b"not read here"})
    importing.run(archive, tmp_path / "data" / "mine", labels_source=checkout)
    check(tmp_path / "data" / "mine", images)
    assert (tmp_path / "data" / "mine" / "Categories_names.xlsx").read_bytes() == b"not read here"


def test_a_folder_of_folders_is_labelled_by_its_folders(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": picture("PNG", np.random.default_rng()) for c in ("farm", "pond") for i in range(3)}
    others = {"LICENCE": b"", "farm/0.tags": b"barn", "pond/1.tags": b"reeds"}
    plan = importing.run(folder_of(tmp_path / "set", files | others), tmp_path / "mine")
    read = labels.read(tmp_path / "mine" / "Labels")
    assert read.names == ("farm", "pond")
    assert sorted(read.tiles) == sorted(name.replace("/", "_") for name in files)  # unique across folders
    assert read.targets.tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    told = "no label table (other files: 1 LICENCE, 2 .tags): each tile's only label is its folder"
    assert plan.notes == [told]


def split_of(target: Path) -> dict[str, str]:
    return dict(row.split(",") for row in (target / "split.csv").read_text().splitlines()[1:])


def test_an_official_split_is_kept(tmp_path: Path) -> None:
    images = tiles("{category}/{name}")
    split = {Path(name).name: ("train", "val", "test")[i % 3] for i, name in enumerate(images)}
    text = "image,split\n" + "".join(f"{name},{which}\n" for name, which in split.items())
    files = images | tables("Labels") | {"aitlas_split.csv": text.encode()}
    plan = importing.run(folder_of(tmp_path / "set", files), tmp_path / "mine")
    assert split_of(tmp_path / "mine") == split
    assert plan.splits == {"train": 4, "val": 4, "test": 4}


def test_folders_named_after_splits_are_one(tmp_path: Path) -> None:
    source, images = make("aid", tmp_path)
    importing.run(source, tmp_path / "mine")
    split = split_of(tmp_path / "mine")
    assert {n for n, which in split.items() if which == "test"} == {Path(n).name for n in list(images)[::3]}
    assert list(split.values()).count("val") == 1


def test_what_does_not_match_is_skipped_and_listed(tmp_path: Path) -> None:
    images = tiles("Images/{category}/{name}")
    files = images | tables("Labels")
    del files["Images/beach/beach_01.jpg"]
    files["Images/beach/extra.jpg"] = picture("JPEG", np.random.default_rng())
    plan = importing.run(folder_of(tmp_path / "set", files), tmp_path / "mine")
    assert plan.rows_without_image == ["beach.csv: beach_01.jpg"]
    assert plan.images_without_row == ["Images/beach/extra.jpg"]
    written = json.loads((tmp_path / "mine" / "import.json").read_text())
    assert written["images_without_row"] == plan.images_without_row
    assert len(labels.read(tmp_path / "mine" / "Labels").tiles) == len(images) - 1
    assert not (tmp_path / "mine" / "Images" / "beach" / "extra.jpg").exists()
    assert "images without row: 1" in str(plan)
    files |= {f"Images/sea/sea_{i}.jpg": files["Images/beach/extra.jpg"] for i in range(20)}  # most have no row
    source = folder_of(tmp_path / "unlabelled", files)
    with pytest.raises(archives.SourceError, match="images have no row"):
        importing.run(source, tmp_path / "more")
    plan = importing.run(source, tmp_path / "more", unlabelled=True)
    assert (len(plan.unlabelled), plan.images_without_row) == (21, [])
    kept = tree(tmp_path / "more" / "Unlabelled")
    assert kept.keys() == {"beach/extra.jpg", *(f"sea/sea_{i}.jpg" for i in range(20))}
    assert set(kept.values()) == {files["Images/beach/extra.jpg"]}
    assert tree(tmp_path / "more" / "Images") == tree(tmp_path / "mine" / "Images")


def test_a_full_disk_is_noticed_and_another_source_does_not_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, _ = make("ucmerced", tmp_path)
    target = tmp_path / "data" / "mine"
    usage, save, written = shutil.disk_usage(tmp_path), Image.Image.save, iter(range(5))

    def fill(*arguments: Any, **keywords: Any) -> None:
        if next(written, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        save(*arguments, **keywords)

    for module, name, broken, said in (
        (shutil, "disk_usage", lambda _: usage._replace(free=1000), "GB are needed"),
        (Image.Image, "save", fill, "No space left"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with pytest.raises(OSError, match=f"{said}.*free some space"):
                importing.run(source, target)
    assert not target.exists()
    other, images = make("tar with one table", tmp_path)
    importing.run(other, target)
    check(target, images)


def test_an_import_killed_halfway_resumes_and_ends_the_same(tmp_path: Path) -> None:
    count, rng = 600, np.random.default_rng()
    files = {f"{'farm' if i % 2 else 'pond'}/tile_{i}.tif": picture("TIFF", rng) for i in range(count)}
    source = pack(tmp_path / "set.zip", files)
    importing.run(source, tmp_path / "whole")
    target = tmp_path / "data" / "mine"
    code = "import sys, pathlib; from satclr.data import importing; importing.run(*map(pathlib.Path, sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(source), str(target)]
    images = target.with_name(".mine.importing") / "made" / "Images"
    deadline = time.monotonic() + 60
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and time.monotonic() < deadline and len(list(images.rglob("*.png"))) < 20:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    done = {path.relative_to(images): path.stat().st_mtime_ns for path in images.rglob("*.png")}
    assert 20 <= len(done) < count
    importing.run(source, target)
    again = {name: (target / "Images" / name).stat().st_mtime_ns for name in done}
    assert again == done  # nothing was written twice
    mine, whole = tree(target), tree(tmp_path / "whole")
    mine.pop("import.json"), whole.pop("import.json")
    assert mine == whole
    assert [p.name for p in target.parent.iterdir()] == ["mine"]


def test_nothing_is_unpacked_twice(tmp_path: Path) -> None:
    source, stamps = pack(tmp_path / "a.rar", tiles("{category}/{name}")), []
    for _ in range(2):
        assert len(archives.members(source, tmp_path / "scratch")) == len(STEMS)
        stamps.append({p: p.stat().st_mtime_ns for p in (tmp_path / "scratch").rglob("*")})
    assert stamps[0] == stamps[1]


@pytest.mark.parametrize(
    ("paths", "categories"),
    [
        ("images_tr/airport_1.jpg images_test/airport_2.jpg", "airport airport"),
        ("images/agricultural00.tif images/agricultural01.tif", "agricultural agricultural"),
        ("images/a7f.jpg images/b9.jpg", "tiles tiles"),
        ("train/pond/1.jpg test/farm/2.jpg", "pond farm"),
    ],
)
def test_a_category_comes_from_the_name_where_folders_are_none(paths: str, categories: str) -> None:
    assert layout._categories(list(map(PurePosixPath, paths.split()))) == categories.split()


@pytest.mark.parametrize("category", ["../b", "a/z"])
def test_a_category_is_a_folders_name(category: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tile = plans.Tile(category, "1.png", PurePosixPath("1.png"), 1, lambda path: path.touch())
    plan = plans.Plan([tile], {category: (("water",), [("1.png", ["water"])])})
    monkeypatch.setattr(importing, "_plan", lambda *_, **__: plan)
    with pytest.raises(archives.SourceError, match="is not a folder's name"):
        importing.run(tmp_path, tmp_path / "out" / "mine")
    assert not list((tmp_path / "out").rglob("*"))
