"""Archives, tables, images and stores from outside: they run nothing and write nowhere else."""

import io
import pickle
import resource
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
import pytest

from satclr.data import importing, labels, tiles
from satclr.data.importing import archives

from .downloads import PACKERS, Files, folder_of, multi_hot, pack, picture, table, tables, zipped
from .downloads import tiles as tile_files

SOUND = tile_files("{category}/{name}") | tables("Labels")


class Planted:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def refused(tmp_path: Path, source: Path, *said: str) -> None:
    """The import fails with one message and leaves no file."""
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError) as caught:
        importing.run(source, tmp_path / "data" / "mine")
    for part in said:
        assert part in str(caught.value)
    assert {path.name for path in set(tmp_path.rglob("*")) - before} <= {"data"}


@pytest.mark.parametrize("name", ["../evil.jpg", "/evil.jpg", "Images/../../evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
@pytest.mark.parametrize("form", PACKERS)
def test_a_path_that_leaves_the_target_is_refused(tmp_path: Path, name: str, form: str) -> None:
    source = pack(tmp_path / f"evil{form.removesuffix(' 4')}", SOUND | {name: b"evil"}, form)
    refused(tmp_path, source, "evil.jpg", "outside")
    assert not list(tmp_path.rglob("evil.jpg"))


def test_links_in_an_archive_are_refused(tmp_path: Path) -> None:
    source = pack(tmp_path / "links.zip", SOUND)
    info = zipfile.ZipInfo("Images/beach/link.jpg")
    info.external_attr = 0o120777 << 16
    with zipfile.ZipFile(source, "a") as file:
        file.writestr(info, "/etc/passwd")
    refused(tmp_path, source, "link.jpg", "link")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
        with tarfile.open(tmp_path / "links.tar", "w") as tar:
            link = tarfile.TarInfo("beach/link.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
        refused(tmp_path, tmp_path / "links.tar", "link.jpg", "link")


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("form", ["zip", "tar.gz"])
def test_a_decompression_bomb_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, *, nested: bool
) -> None:
    monkeypatch.setattr(archives, "SLACK_BYTES", 1 << 20)
    source = pack(tmp_path / f"bomb.{form}", {"beach/a.jpg": bytes(8 << 20)})
    if nested:
        source = pack(tmp_path / "outer.zip", {f"{i}/{source.name}": source.read_bytes() for i in range(3)})
    refused(tmp_path, source, "bomb")


def test_archives_without_end_are_refused(tmp_path: Path) -> None:
    inner = SOUND
    for _ in range(5):
        inner = {"again.zip": zipped(inner)}
    refused(tmp_path, pack(tmp_path / "deep.zip", inner), "archives deep")


def test_names_that_clash_are_refused(tmp_path: Path) -> None:
    files = SOUND | {"Beach/BEACH_00.JPG": SOUND["beach/beach_00.jpg"]}
    refused(tmp_path, pack(tmp_path / "clash.zip", files), "clash", "beach_00.jpg")
    files = tile_files("{category}/{name}", "tif", "TIFF") | {"labels.csv": table(multi_hot())}
    files["beach/beach_00.png"] = picture("PNG", np.random.default_rng())
    refused(tmp_path, pack(tmp_path / "both.zip", files), "clash", "beach_00.png")


@pytest.mark.parametrize("form", PACKERS)
def test_half_an_archive_is_refused(tmp_path: Path, form: str) -> None:
    source = pack(tmp_path / f"a{form.removesuffix(' 4')}", SOUND, form)
    source.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    refused(tmp_path, source, source.name, "damaged", "download it again")


def test_a_damaged_member_is_named(tmp_path: Path) -> None:
    """In a zip, which has checksums; libarchive ignores those of a rar's stored members."""
    whole = zipped(SOUND)
    for name in ("airplane/airplane_01.jpg", "Labels/beach.csv"):
        at = whole.index(name.encode()) + len(name) + 30
        spoilt = bytes(byte ^ 0xFF for byte in whole[at : at + 8])
        (tmp_path / "a.zip").write_bytes(whole[:at] + spoilt + whole[at + 8 :])
        refused(tmp_path, tmp_path / "a.zip", name, "damaged", "download it again")


def test_what_is_no_archive_or_locked_is_refused(tmp_path: Path) -> None:
    for name in ("no.tar.gz", "no.rar", "no.7z", "no.zip"):
        (tmp_path / name).write_bytes(b"nothing")
        refused(tmp_path, tmp_path / name, name, "download it again")
    (tmp_path / "list.rar").write_text("#mtree\n./a.jpg type=file contents=/etc/passwd\n")
    refused(tmp_path, tmp_path / "list.rar", "list.rar", "neither rar")
    flagged = bytearray(zipped(tables("Labels")))
    flagged[flagged.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(flagged))
    refused(tmp_path, tmp_path / "locked.zip", "encrypted")


def test_a_missing_system_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "libarchive", None)
    refused(tmp_path, pack(tmp_path / "a.rar", SOUND), "a.rar", "apt install libarchive13")


def test_sources_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    refused(tmp_path, tmp_path / "nowhere.zip", "no such file")
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    refused(tmp_path, tmp_path / "notes.pdf", "neither")
    refused(tmp_path, folder_of(tmp_path / "checkout", tables("labels")), "no image", "only labels")
    flat = {f"{i}.jpg": picture("JPEG", np.random.default_rng()) for i in range(3)}
    refused(tmp_path, folder_of(tmp_path / "flat", flat), "no table labels")
    files: Files = {"farm/a.tif": b"no tiff at all", "pond/b.jpg": flat["0.jpg"]}
    refused(tmp_path, folder_of(tmp_path / "deep", files), "farm/a.tif", "not an image")
    (tmp_path / "data" / "mine").mkdir(parents=True)
    refused(tmp_path, folder_of(tmp_path / "sound", SOUND), "exists")


def test_a_pickle_is_neither_run_nor_imported(tmp_path: Path, store: tiles.TileStore) -> None:
    planted = tmp_path / "planted"
    raw = pickle.dumps(Planted(planted))
    files = tile_files("set/{category}/{name}") | {"set/labels.csv": table(multi_hot())}
    names = ("model.pkl", "labels.pkl.csv", "0.npy", "x.pt", "book.xlsx")
    importing.run(pack(tmp_path / "set.zip", files | {f"set/{n}": raw for n in names}), tmp_path / "data" / "set")
    made = {path.suffix for path in (tmp_path / "data").rglob("*") if path.is_file()}
    assert made == {".csv", ".jpg", ".json"}
    (tmp_path / "features.npy").write_bytes(raw)
    np.save(tmp_path / "tiles.npy", np.array([Planted(planted)], dtype=object))
    for name in ("features.npy", "tiles.npy"):
        with pytest.raises(tiles.TileError, match="damaged"):
            tiles.load_features(tmp_path / name, store)
    for name in ("index.csv", "stats.json"):
        shutil.copy(store.folder / name, tmp_path)
    with pytest.raises(tiles.TileError, match="damaged"):
        tiles.open_store(tmp_path)
    assert not planted.exists()
    pickle.loads(raw)  # noqa: S301 - the pickle does work
    assert planted.exists()


def test_spreadsheets_that_claim_more_than_they_hold_take_no_memory(tmp_path: Path) -> None:
    before = peak_kb()
    path = tmp_path / "claim.xlsx"
    cell = '<sheetData><row r="1"><c r="A1"><v>1</v></c></row></sheetData>'
    path.write_bytes(spreadsheet(f'<dimension ref="A1:XFD1048576"/>{cell}'))
    assert labels.sheets(path) == [[["1"]]]
    path.write_bytes(spreadsheet('<sheetData><row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'))
    assert len(labels.sheets(path)[0]) == 1
    wide = '<row r="{0}"><c r="XFD{0}"><v>1</v></c></row>'
    path.write_bytes(spreadsheet(f"<sheetData>{''.join(wide.format(i) for i in range(1, 3000))}</sheetData>"))
    with pytest.raises(labels.LabelError, match=r"claim\.xlsx: over 20,000,000 cells"):
        labels.sheets(path)
    assert peak_kb() - before < 900_000  # the 20 million cells are references to one None


def spreadsheet(sheet: str) -> bytes:
    """An .xlsx whose only sheet has this XML."""
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    book.save(buffer)
    with zipfile.ZipFile(buffer) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    files["xl/worksheets/sheet1.xml"] = f'<worksheet xmlns="{space}">{sheet}</worksheet>'.encode()
    return zipped(files)
