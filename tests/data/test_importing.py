"""Data sets as they are downloaded, in small: what becomes of them, and what is refused."""

import errno
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import openpyxl
import pytest
from PIL import Image

from satclr.data import importing, labels, prepare
from satclr import params, progress
from satclr.data.importing import archives, layout, programs
from satclr.data.importing.rar import files as files_in
from tests import rar

ROOT = Path(__file__).parents[2]
CATEGORIES = ("airplane", "storage_tank", "beach")
NAMES = ("airplane", "tanks", "sand", "grass")
TILES = 4
Files = dict[str, bytes]


def picture(form: str, rng: np.random.Generator) -> bytes:
    """A picture of 12 px; what is in it does not matter, so long as each differs."""
    pixels = rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def stem(category: str, i: int, sep: str = "_") -> str:
    return f"{category}{sep}{i:02}"


def tiles(where: str, suffix: str = "jpg", form: str = "JPEG", sep: str = "_") -> Files:
    """Images at `where`, a pattern of {category} and {name}."""
    rng = np.random.default_rng()
    return {
        where.format(category=c, name=f"{stem(c, i, sep)}.{suffix}"): picture(form, rng)
        for c in CATEGORIES
        for i in range(TILES)
    }


def multi_hot(sep: str = "_") -> dict[str, list[int]]:
    """The labels of each tile, by its name without suffix."""
    rng = np.random.default_rng(4)
    hot = {stem(c, i, sep): rng.integers(0, 2, len(NAMES)).tolist() for c in CATEGORIES for i in range(TILES)}
    hot[stem("beach", 0, sep)] = [0, 1, 1, 0]
    return hot


def table(rows: Mapping[str, list[int]], *, key: str = "image", suffix: str = "", comma: str = ",") -> bytes:
    lines = [[key, *NAMES], *([name + suffix, *map(str, hot)] for name, hot in rows.items())]
    return "".join(comma.join(line) + "\r\n" for line in lines).encode()


def tables(folder: str) -> Files:
    """MLRSNet's form: a table a category, file names with their suffix."""
    hot = multi_hot()
    return {
        f"{folder}/{c}.csv": table({stem(c, i): hot[stem(c, i)] for i in range(TILES)}, suffix=".jpg")
        for c in CATEGORIES
    }


def xlsx(rows: Mapping[str, list[int]]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    sheet.append(["IMAGE\\LABEL", *NAMES])
    for name, hot in rows.items():
        sheet.append([name, *hot])
    buffer = io.BytesIO()
    book.save(buffer)
    return buffer.getvalue()


def folder_of(path: Path, files: Files) -> Path:
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


def zip_of(path: Path, files: Files) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return path


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def rar_of(path: Path, files: Files) -> bytes:
    rar.write(path, files)
    content = path.read_bytes()
    path.unlink()
    return content


def unpacker() -> None:
    if not programs.installed():
        pytest.skip("bsdtar (package libarchive-tools), unar or 7z is needed to unpack a rar")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def check(target: Path, *, suffix: str = "jpg", sep: str = "_", sources: Files | None = None) -> None:
    """The target holds every tile in its category with its labels, and nothing beside it is left over."""
    read = labels.read(target / "Labels")
    hot = multi_hot(sep)
    assert read.names == tuple(sorted(NAMES))
    rows = zip(read.tiles, read.categories, read.targets.tolist(), strict=True)
    for tile, category, row in rows:
        assert tile == f"{Path(tile).stem}.{suffix}"
        assert Path(tile).stem.startswith(category)
        assert dict(zip(read.names, row, strict=True)) == dict(zip(NAMES, hot[Path(tile).stem], strict=True))
    assert len(read.tiles) == len(hot)
    images = {p.relative_to(target / "Images").as_posix() for p in (target / "Images").rglob("*.*")}
    assert images == {f"{c}/{t}" for t, c in zip(read.tiles, read.categories, strict=True)}
    for name, content in (sources or {}).items():
        if Path(name).suffix in {".jpg", ".tif"}:
            made = target / "Images" / Path(name).stem.rstrip("0123456789").rstrip("_") / Path(name).name
            made = made.with_suffix(f".{suffix}")
            if suffix == "jpg":
                assert made.read_bytes() == content
            else:
                np.testing.assert_array_equal(
                    np.asarray(Image.open(made)), np.asarray(Image.open(io.BytesIO(content)))
                )
    assert [p.name for p in target.parent.iterdir() if p.name.startswith(".")] == []


def make(kind: str, where: Path) -> tuple[Path, dict[str, Any], Files]:
    """A download of each kind: its path, what `check` should know, and the images in it."""
    known: dict[str, Any] = {}
    if kind == "mlrsnet zip of folders":
        images = tiles("MLRSNet/Images/{category}/{name}")
        return zip_of(where / "mlrsnet.zip", images | tables("MLRSNet/Labels")), known, images
    if kind in {"mlrsnet zip of rars", "mlrsnet zip of both"}:
        unpacker()
        images = tiles("{category}/{name}")
        files = tables("MLRSNet A Multi-label Dataset/Labels")
        for category in CATEGORIES:
            mine = {name: data for name, data in images.items() if name.startswith(category)}
            if kind.endswith("both") and category == "beach":
                files |= {f"MLRSNet A Multi-label Dataset/Images/{name}": data for name, data in mine.items()}
            else:
                packed = rar_of(where / "one.rar", mine)
                files[f"MLRSNet A Multi-label Dataset/Images/{category}.rar"] = packed
        return zip_of(where / "mlrsnet.zip", files), known, images
    if kind == "mlrsnet folder of zips":
        images = tiles("{name}")
        files = tables("Labels")
        for category in CATEGORIES:
            files[f"Images/{category}.zip"] = zipped(
                {n: d for n, d in images.items() if n.startswith(category)}
            )
        return folder_of(where / "mlrsnet", files), known, images
    if kind == "mlrsnet checkout with images":
        images = tiles("Images/{category}/{name}")
        files = (
            images
            | tables("labels")
            | {".git/HEAD": b"ref: x", "README.md": b"# MLRSNet", "Models/a.h5": b"\0"}
        )
        return folder_of(where / "MLRSNet", files), known, images
    if kind.startswith("ucmerced"):
        images = tiles("UCMerced_LandUse/Images/{category}/{name}", "tif", "TIFF", sep="")
        files = images | {"UCMerced_LandUse/readme.txt": b"UC Merced Land Use Dataset,\nairplane00 is one\n"}
        hot = multi_hot(sep="")
        for form in kind.split()[1:]:
            files[f"multilabels/LandUse_Multilabeled.{form}"] = (
                xlsx(hot)
                if form == "xlsx"
                else table(hot, key="IMAGE\\LABEL", comma="\t" if form == "txt" else ",")
            )
        return zip_of(where / "UCMerced_LandUse.zip", files), {"suffix": "png", "sep": ""}, images
    if kind == "aid":
        images = tiles("{name}")
        files = {
            f"AID_multilabel/images_{'tr' if i % 3 else 'test'}/{n}": d
            for i, (n, d) in enumerate(images.items())
        }
        files["AID_multilabel/multilabel.csv"] = table(multi_hot(), key="IMAGE\\LABEL")
        return folder_of(where / "AID", files), known, images
    if kind == "tar with one table":
        images = tiles("pictures/{category}/{name}")
        with tarfile.open(where / "set.tar.gz", "w:gz") as file:
            for name, data in (images | {"labels.csv": table(multi_hot(), suffix=".jpg")}).items():
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
        return where / "set.tar.gz", known, images
    assert kind == "one table with paths"
    images = tiles("{category}/{name}")
    rows = {f"{name.rpartition('_')[0]}\\{name}": hot for name, hot in multi_hot().items()}
    return (
        folder_of(where / "set", images | {"all.csv": table(rows, key="path", suffix=".jpg")}),
        known,
        images,
    )


KINDS = (
    "mlrsnet zip of folders",
    "mlrsnet zip of rars",
    "mlrsnet zip of both",
    "mlrsnet folder of zips",
    "mlrsnet checkout with images",
    "ucmerced txt",
    "ucmerced xlsx",
    "ucmerced csv txt xlsx",
    "aid",
    "tar with one table",
    "one table with paths",
)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_download_is_imported(tmp_path: Path, kind: str) -> None:
    source, known, images = make(kind, tmp_path)
    before = tree(source) if source.is_dir() else source.read_bytes()
    report = importing.run(source, tmp_path / "data" / "mine")
    check(tmp_path / "data" / "mine", sources=images, **known)
    assert report.tiles == len(images)
    assert report.images_without_row == []
    assert (tree(source) if source.is_dir() else source.read_bytes()) == before


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_import_of_each_kind_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    source, _, _ = make(kind, tmp_path)
    importing.run(source, tmp_path / "whole" / "mine")

    @contextmanager
    def broken_off(*_: Any) -> Iterator[Callable[[int], None]]:
        left = iter(range(5))

        def advance(_: int) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt

        yield advance

    with monkeypatch.context() as patch:
        patch.setattr(progress, "bar", broken_off)
        with pytest.raises(KeyboardInterrupt):
            importing.run(source, tmp_path / "data" / "mine")
    assert not (tmp_path / "data" / "mine").exists()
    assert importing.staging(tmp_path / "data" / "mine").is_dir()
    importing.run(source, tmp_path / "data" / "mine")
    assert tree(tmp_path / "data" / "mine") == tree(tmp_path / "whole" / "mine")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["mine"]


@pytest.mark.parametrize("kind", KINDS)
def test_prepare_accepts_what_was_imported(tmp_path: Path, kind: str) -> None:
    source, known, _ = make(kind, tmp_path)
    importing.run(source, tmp_path / "data" / "mine")
    arm = params.resolve(params.load(ROOT / "params.yaml"), "sample", "simclr", 0)
    settings = arm.settings.data.model_copy(update={"tile_px": 12})
    prepare.run(tmp_path / "data" / "mine", tmp_path / "build", settings)
    packed = np.load(tmp_path / "build" / "tiles.npy")
    read = labels.read(tmp_path / "data" / "mine" / "Labels")
    assert len(packed) == len(read.tiles)
    if known:
        for tile, category, pixels in zip(read.tiles, read.categories, packed, strict=True):
            path = tmp_path / "data" / "mine" / "Images" / category / tile
            np.testing.assert_array_equal(pixels, np.asarray(Image.open(path)))


def test_labels_may_come_from_another_place(tmp_path: Path) -> None:
    wrong = {name: data.replace(b"1", b"0") for name, data in tables("Labels").items()}
    images = tiles("Images/{category}/{name}")
    archive = zip_of(tmp_path / "images.zip", images | wrong)
    checkout = folder_of(tmp_path / "MLRSNet", tables("labels") | {"Categories_names.xlsx": b"not read here"})
    importing.run(archive, tmp_path / "data" / "mine", labels_source=checkout)
    check(tmp_path / "data" / "mine", sources=images)
    assert (tmp_path / "data" / "mine" / "Categories_names.xlsx").is_file()


def test_a_folder_of_folders_is_labelled_by_its_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    files = {f"{c}/{i}.png": picture("PNG", rng) for c in ("farm", "pond") for i in range(3)}
    report = importing.run(folder_of(tmp_path / "set", files), tmp_path / "mine")
    read = labels.read(tmp_path / "mine" / "Labels")
    assert read.names == ("farm", "pond")
    assert sorted(read.tiles) == sorted(name.replace("/", "_") for name in files)  # unique across folders
    assert read.targets.tolist() == [[1, 0]] * 3 + [[0, 1]] * 3
    assert any("folder" in note for note in report.notes)


def test_an_official_split_is_kept(tmp_path: Path) -> None:
    images = tiles("{category}/{name}")
    names = [Path(name).name for name in images]
    split = {name: ("train", "val", "test")[i % 3] for i, name in enumerate(names)}
    text = "image,split\n" + "".join(f"{name},{which}\n" for name, which in split.items())
    files = images | tables("Labels") | {"aitlas_split.csv": text.encode()}
    report = importing.run(folder_of(tmp_path / "set", files), tmp_path / "mine")
    rows = (tmp_path / "mine" / "split.csv").read_text().splitlines()
    assert dict(row.split(",") for row in rows[1:]) == split
    assert report.split == {"train": 4, "val": 4, "test": 4}


def test_folders_named_after_splits_are_one(tmp_path: Path) -> None:
    source, _, images = make("aid", tmp_path)
    importing.run(source, tmp_path / "mine")
    rows = dict(row.split(",") for row in (tmp_path / "mine" / "split.csv").read_text().splitlines()[1:])
    official = {Path(name).name: "train" if i % 3 else "test" for i, name in enumerate(images)}
    assert {name for name, which in rows.items() if which == "test"} == {
        name for name, which in official.items() if which == "test"
    }
    assert list(rows.values()).count("val") == 1


def test_what_does_not_match_is_left_out_and_listed(tmp_path: Path) -> None:
    images = tiles("Images/{category}/{name}")
    files = images | tables("Labels")
    del files["Images/beach/beach_01.jpg"]
    files["Images/beach/extra.jpg"] = picture("JPEG", np.random.default_rng())
    report = importing.run(folder_of(tmp_path / "set", files), tmp_path / "mine")
    assert report.rows_without_image == ["beach.csv: beach_01.jpg"]
    assert report.images_without_row == ["Images/beach/extra.jpg"]
    assert (
        json.loads((tmp_path / "mine" / "import.json").read_text())["images_without_row"]
        == report.images_without_row
    )
    assert len(labels.read(tmp_path / "mine" / "Labels").tiles) == len(images) - 1
    assert not (tmp_path / "mine" / "Images" / "beach" / "extra.jpg").exists()
    assert "images without a row: 1" in str(report)


def refused(tmp_path: Path, source: Path, *said: str, goes_on: bool = False) -> None:
    """The import fails with one message, and leaves no file, or (goes_on) only what it can go on from."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as caught:
        importing.run(source, tmp_path / "data" / "mine")
    for part in said:
        assert part in str(caught.value)
    made = set(tmp_path.rglob("*")) - before
    assert {p.name for p in made if not goes_on or ".mine.importing" not in p.parts} <= {"data"}


@pytest.mark.parametrize(
    "name", ["../evil.jpg", "/evil.jpg", "Images/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"]
)
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_a_path_that_leaves_the_target_is_refused(tmp_path: Path, name: str, form: str) -> None:
    files = tiles("Images/{category}/{name}") | tables("Labels") | {name: b"evil"}
    source = tmp_path / f"evil.{form}"
    if form == "zip":
        zip_of(source, files)
    else:
        with tarfile.open(source, "w") as file:
            for path, data in files.items():
                info = tarfile.TarInfo(path)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))
    refused(tmp_path, source, "evil.jpg", "outside")


@pytest.mark.parametrize("write", [rar.write, rar.write_4])
def test_a_rar_that_leaves_the_target_is_refused(
    tmp_path: Path, write: Callable[[Path, Files], None]
) -> None:
    write(tmp_path / "evil.rar", {"../../evil.jpg": b"evil"} | tiles("Images/{category}/{name}"))
    refused(tmp_path, tmp_path / "evil.rar", "evil.jpg", "outside")
    assert not list(tmp_path.rglob("evil.jpg"))


@pytest.mark.parametrize("program", programs.PROGRAMS, ids=lambda program: program.name)
@pytest.mark.parametrize("write", [rar.write, rar.write_4])
def test_each_program_unpacks_and_tells_damage(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    program: programs.Program,
    write: Callable[[Path, Files], None],
) -> None:
    if not shutil.which(program.name):
        pytest.skip(f"{program.name} is not installed (package {program.package})")
    monkeypatch.setattr(programs, "PROGRAMS", (program,))
    files = tiles("{category}/{name}")
    write(tmp_path / "a.rar", files | tables("Labels"))
    importing.run(tmp_path / "a.rar", tmp_path / "whole" / "mine")
    check(tmp_path / "whole" / "mine", sources=files)
    whole = (tmp_path / "a.rar").read_bytes()
    at = whole.index(files["airplane/airplane_02.jpg"]) + 50
    (tmp_path / "a.rar").write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    refused(tmp_path, tmp_path / "a.rar", "a.rar", "download it again")


def test_where_one_program_fails_another_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacker()
    broken = programs.Program("sh", "dash", ("-c", "touch {folder}/rest; echo no such method >&2; exit 3"))
    files = tiles("{category}/{name}")
    rar.write(tmp_path / "a.rar", files | tables("Labels"))
    monkeypatch.setattr(programs, "PROGRAMS", (broken, *programs.PROGRAMS))
    importing.run(tmp_path / "a.rar", tmp_path / "whole" / "mine")
    check(tmp_path / "whole" / "mine", sources=files)
    monkeypatch.setattr(programs, "PROGRAMS", (broken,))
    refused(tmp_path, tmp_path / "a.rar", "sh: no such method", "download it again")


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    source = zip_of(tmp_path / "links.zip", tiles("Images/{category}/{name}"))
    info = zipfile.ZipInfo("Images/beach/link.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as file:
        file.writestr(info, "/etc/passwd")
    refused(tmp_path, source, "link.jpg", "link")
    with tarfile.open(tmp_path / "links.tar", "w") as file:
        link = tarfile.TarInfo("beach/link.jpg")
        link.type = tarfile.SYMTYPE
        link.linkname = "/etc/passwd"
        file.addfile(link)
    refused(tmp_path, tmp_path / "links.tar", "link.jpg", "link")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, *, nested: bool
) -> None:
    monkeypatch.setattr(archives, "SLACK_BYTES", 1 << 20)
    bomb = bytes(8 << 20)
    if form == "zip":
        source = zip_of(tmp_path / "bomb.zip", {"beach/a.jpg": bomb})
    else:
        source = tmp_path / "bomb.tar.gz"
        with tarfile.open(source, "w:gz") as file:
            info = tarfile.TarInfo("beach/a.jpg")
            info.size = len(bomb)
            file.addfile(info, io.BytesIO(bomb))
    if nested:
        outer = {f"{i}/{source.name}": source.read_bytes() for i in range(3)}
        source = zip_of(tmp_path / "outer.zip", outer)
    refused(tmp_path, source, "bomb")


def test_archives_without_end_are_refused(tmp_path: Path) -> None:
    inner = zipped(tiles("{category}/{name}"))
    for _ in range(5):
        inner = zipped({"again.zip": inner})
    (tmp_path / "deep.zip").write_bytes(inner)
    refused(tmp_path, tmp_path / "deep.zip", "archives deep")


def test_names_that_clash_are_refused(tmp_path: Path) -> None:
    files = tiles("{category}/{name}") | tables("Labels")
    files["Beach/BEACH_00.JPG"] = files["beach/beach_00.jpg"]
    refused(tmp_path, zip_of(tmp_path / "clash.zip", files), "clash", "beach_00.jpg")
    files = tiles("{category}/{name}", "tif", "TIFF") | {"labels.csv": table(multi_hot())}
    files["beach/beach_00.png"] = picture("PNG", np.random.default_rng())
    refused(tmp_path, zip_of(tmp_path / "both.zip", files), "beach_00.png")


def test_damaged_and_locked_archives_are_refused(tmp_path: Path) -> None:
    source = zip_of(tmp_path / "short.zip", tiles("{category}/{name}") | tables("Labels"))
    whole = source.read_bytes()
    source.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, source, "short.zip", "download it again")
    for spoilt in ("airplane/airplane_01.jpg", "Labels/beach.csv"):
        at = whole.index(spoilt.encode()) + len(spoilt) + 30
        source.write_bytes(whole[:at] + bytes(byte ^ 0xFF for byte in whole[at : at + 8]) + whole[at + 8 :])
        refused(tmp_path, source, spoilt, "damaged", "download it again")
    (tmp_path / "no.tar.gz").write_bytes(b"nothing")
    refused(tmp_path, tmp_path / "no.tar.gz", "no.tar.gz", "download it again")
    flagged = bytearray(whole)
    at = flagged.index(b"PK\x01\x02")
    flagged[at + 8] |= 1
    source.write_bytes(bytes(flagged))
    refused(tmp_path, source, "encrypted")


def test_a_rar_without_a_program_names_the_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rar.write(tmp_path / "a.rar", tiles("{category}/{name}"))
    monkeypatch.setenv("PATH", str(tmp_path))
    refused(tmp_path, tmp_path / "a.rar", "bsdtar (package libarchive-tools)", "unar", "7z", "apt install")


@pytest.mark.parametrize("write", [rar.write, rar.write_4])
def test_a_rar_is_read_only_if_it_is_whole(tmp_path: Path, write: Callable[[Path, Files], None]) -> None:
    files = {name: data[:40] for name, data in tiles("{category}/{name}").items()}
    write(tmp_path / "a.rar", files)
    sep = "\\" if write is rar.write_4 else "/"
    every = [(name.replace("/", sep), zlib.crc32(data)) for name, data in files.items()]
    assert files_in(tmp_path / "a.rar") == every
    whole = (tmp_path / "a.rar").read_bytes()
    last = whole.rindex(b"beach_03.jpg") + len("beach_03.jpg") + 40  # where the last member ends
    for cut in range(last):
        (tmp_path / "a.rar").write_bytes(whole[:cut])
        left = files_in(tmp_path / "a.rar")
        # Without its optional end, a version 4 archive cut between two members looks whole.
        assert left is None or (write is rar.write_4 and left == every[: len(left)] != every)


@pytest.mark.parametrize("write", [rar.write, rar.write_4])
def test_half_a_rar_is_refused(tmp_path: Path, write: Callable[[Path, Files], None]) -> None:
    write(tmp_path / "a.rar", tiles("{category}/{name}") | tables("Labels"))
    whole = (tmp_path / "a.rar").read_bytes()
    (tmp_path / "a.rar").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, tmp_path / "a.rar", "a.rar", "not a whole rar")


def test_sources_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "nowhere.zip", "no such file")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    refused(tmp_path, tmp_path / "notes.pdf", "neither")
    refused(tmp_path, folder_of(tmp_path / "checkout", tables("labels")), "no image", "only labels")
    flat = {f"{i}.jpg": picture("JPEG", np.random.default_rng()) for i in range(3)}
    refused(tmp_path, folder_of(tmp_path / "flat", flat), "no table labels")
    odd = tiles("{category}/{name}") | tables("Labels")
    odd["Labels/beach.csv"] = odd["Labels/beach.csv"].replace(b",0,1,1,0", b",0,7,1,0")
    refused(tmp_path, folder_of(tmp_path / "odd", odd), "beach.csv, line 2", "'tanks'", "'7'")


def test_a_tile_of_another_depth_is_refused(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(144, dtype=np.uint16).reshape(12, 12)).save(buffer, "TIFF")
    files = {"farm/a.tif": buffer.getvalue(), "pond/b.jpg": picture("JPEG", np.random.default_rng())}
    refused(tmp_path, folder_of(tmp_path / "deep", files), "a.tif", "8 bits")
    files["farm/a.tif"] = b"no tiff at all"
    refused(tmp_path, folder_of(tmp_path / "broken", files), "a.tif", "not an image")


def test_an_existing_target_is_left_alone(tmp_path: Path) -> None:
    source, _, _ = make("one table with paths", tmp_path)
    (tmp_path / "data" / "mine").mkdir(parents=True)
    refused(tmp_path, source, "exists")


def test_a_disk_without_room_is_told_before_and_when_it_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, known, _ = make("ucmerced csv", tmp_path)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        refused(tmp_path, source, "GB are needed", "free some space", goes_on=True)
    with monkeypatch.context() as patch:
        written = iter(range(5))

        def fill(*arguments: Any, **keywords: Any) -> None:
            if next(written, None) is None:
                raise OSError(errno.ENOSPC, "No space left on device")
            save(*arguments, **keywords)

        save = Image.Image.save
        patch.setattr(Image.Image, "save", fill)
        refused(tmp_path, source, "disk is full", "goes on here", goes_on=True)
    importing.run(source, tmp_path / "data" / "mine")
    check(tmp_path / "data" / "mine", **known)


def test_two_imports_do_not_mix(tmp_path: Path) -> None:
    first, _, _ = make("ucmerced csv", tmp_path)
    (tmp_path / "data").mkdir()
    staging = importing.staging(tmp_path / "data" / "mine")
    importing._begin(staging, [first])
    (staging / "made" / "Images" / "beach").mkdir(parents=True)
    (staging / "made" / "Images" / "beach" / "beach_00.jpg").write_bytes(b"of the first source")
    second, known, images = make("one table with paths", tmp_path)
    importing.run(second, tmp_path / "data" / "mine")
    check(tmp_path / "data" / "mine", sources=images, **known)


@pytest.mark.parametrize("kind", ["zip", "rar"])
def test_an_import_killed_halfway_goes_on_and_ends_the_same(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng()
    count = 600
    files = {f"{'farm' if i % 2 else 'pond'}/tile_{i}.tif": picture("TIFF", rng) for i in range(count)}
    if kind == "rar":
        unpacker()
        rar.write(tmp_path / "set.rar", files)
        source = tmp_path / "set.rar"
    else:
        source = zip_of(tmp_path / "set.zip", files)
    importing.run(source, tmp_path / "whole")
    target = tmp_path / "data" / "mine"
    code = (
        "import sys, pathlib; from satclr import importing; importing.run(*map(pathlib.Path, sys.argv[1:]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(source), str(target)], stderr=subprocess.DEVNULL
    )
    images = importing.staging(target) / "made" / "Images"
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline and len(list(images.rglob("*.png"))) < 20:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL
    assert not target.exists()
    done = {path: path.stat().st_mtime_ns for path in images.rglob("*.png")}
    assert 20 <= len(done) < count
    kept = {path.relative_to(images): stamp for path, stamp in done.items()}
    importing.run(source, target)
    again = {k: (target / "Images" / k).stat().st_mtime_ns for k in kept}
    assert again == kept  # what was there was not written again
    mine, whole = tree(target), tree(tmp_path / "whole")
    mine.pop("import.json"), whole.pop("import.json")
    assert mine == whole
    assert [p.name for p in target.parent.iterdir()] == ["mine"]


def test_a_category_comes_from_the_name_where_folders_say_nothing() -> None:
    def categories(*paths: str) -> list[str]:
        return layout._categories([PurePosixPath(path) for path in paths])

    assert categories("images_tr/airport_1.jpg", "images_test/airport_2.jpg") == ["airport", "airport"]
    assert categories("images/agricultural00.tif", "images/agricultural01.tif") == ["agricultural"] * 2
    assert categories("images/a7f.jpg", "images/b9.jpg") == ["tiles", "tiles"]
    assert categories("train/pond/1.jpg", "test/farm/2.jpg") == ["pond", "farm"]


def test_nothing_is_unpacked_twice(tmp_path: Path) -> None:
    unpacker()
    rar.write(tmp_path / "a.rar", tiles("{category}/{name}"))
    for _ in range(2):
        with archives.Download(tmp_path / "a.rar", tmp_path / "scratch") as download:
            assert len(download.members) == len(CATEGORIES) * TILES
        stamps = {p: p.stat().st_mtime_ns for p in (tmp_path / "scratch").rglob("*")}
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "scratch").rglob("*")} == stamps
    assert [p.name for p in (tmp_path / "scratch").iterdir()] == ["0000000-a"]
