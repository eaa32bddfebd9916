"""Files from outside: they run nothing, write nowhere else, and take no memory for what they claim."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import resource
import shutil
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from safetensors.torch import save_file
<<<<<<< HEAD
from satclr.pretrain.stage import checkpoint

from satclr import tensorfile, tracking
from satclr.data import importing, labels, tiles
from satclr.data.importing import SourceError, archives
from satclr.pretrain import encoder
from satclr.pretrain import stage as pretrain
from satclr.tracking import register
=======

from satclr.data import importing, labels, tiles
from satclr.tracking import register
from satclr import tensorfile, tracking
from satclr.data.importing import SourceError, archives
>>>>>>> pretrain
from satclr.tracking.register import gate, sources
from satclr.tracking.ui import _command

from . import made_up

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::PendingDeprecationWarning"),
]

HUGE = 10**12


class Planted:
    """Unpickled, it leaves a file behind."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def claiming(shape: list[int], **metadata: str) -> bytes:
    """A safetensors file of a few bytes whose header claims a tensor of that shape."""
    size = int(np.prod(shape, dtype=object)) * 4
    header = {"x": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}, "__metadata__": metadata}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


def test_pickles_are_refused_wherever_they_are_planted(tmp_path: Path, store: tiles.TileStore) -> None:
    planted = tmp_path / "planted"
    raw = pickle.dumps(Planted(planted))
    objects = np.array([Planted(planted)], dtype=object)
    names = ("features.npy", "scores.npz", "tiles.npy")
    for name in names:
        (tmp_path / name).write_bytes(raw)
    np.save(tmp_path / "objects.npy", objects)
    np.savez(tmp_path / "objects.npz", test_scores=objects)
    for name in ("features.npy", "objects.npy"):
        with pytest.raises(tiles.TileError, match="damaged"):
            tiles.load_features(tmp_path / name, store)
    for name in ("scores.npz", "objects.npz"):
        with pytest.raises(tensorfile.TensorFileError, match=name):
            gate.read_split(tmp_path / name)
    for name in ("index.csv", "stats.json"):
        shutil.copy(store.folder / name, tmp_path)
    with pytest.raises(tiles.TileError, match="damaged"):
        tiles.open_store(tmp_path)
    assert not planted.exists()
    pickle.loads(raw)  # noqa: S301 - what was planted does go off
    assert planted.exists()


def test_a_pickle_in_an_archive_is_neither_run_nor_imported(tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as file:
        for i in range(4):
            file.writestr(f"set/sea/{i}.jpg", made_up.jpeg(i))
        file.writestr("set/labels.csv", "image,sea,ice\n" + "".join(f"{i}.jpg,1,{i % 2}\n" for i in range(4)))
        for name in ("model.pkl", "labels.pkl.csv", "0.npy", "x.pt", "book.xlsx"):
            file.writestr(f"set/{name}", pickle.dumps(Planted(planted)))
    importing.run(tmp_path / "set.zip", tmp_path / "data" / "set")
    assert not planted.exists()
    made = sorted(path.suffix for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert made == [".csv", ".jpg", ".jpg", ".jpg", ".jpg", ".json"]


def test_tables_and_archives_that_claim_more_than_they_are_take_no_memory(tmp_path: Path) -> None:
    before = peak_kb()
    for name, sheet in (
        ("claim", '<dimension ref="A1:XFD1048576"/><sheetData><row r="1"><c r="A1"><v>1</v></c></row></sheetData>'),
        ("far", '<sheetData><row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'),
    ):
        (tmp_path / f"{name}.xlsx").write_bytes(spreadsheet(sheet))
    assert labels.sheets((tmp_path / "claim.xlsx").read_bytes(), "claim.xlsx") == [[["1"]]]
    assert len(labels.sheets((tmp_path / "far.xlsx").read_bytes(), "far.xlsx")[0]) == 1
    wide = '<row r="{0}"><c r="XFD{0}"><v>1</v></c></row>'
    rows = "".join(wide.format(i) for i in range(1, 3000))
    with pytest.raises(labels.LabelError, match=r"wide\.xlsx: over 20,000,000 cells"):
        labels.sheets(spreadsheet(f"<sheetData>{rows}</sheetData>"), "wide.xlsx")

    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 4 << 30
    with gzip.open(tmp_path / "bomb.tar.gz", "wb") as file:  # a header of 4 GB, of which 64 MB are there
        file.write(header.tobuf(tarfile.PAX_FORMAT))
        file.write(bytes(64 << 20))
    with pytest.raises(SourceError, match="a header of"):
        archives.Download(tmp_path / "bomb.tar.gz", tmp_path / "scratch")
    assert peak_kb() - before < 900_000  # the 20 million cells are references to one None


def spreadsheet(sheet: str) -> bytes:
    """An .xlsx whose only sheet has this XML."""
    import openpyxl

    book, buffer, result = openpyxl.Workbook(), io.BytesIO(), io.BytesIO()
    book.save(buffer)
    space = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(result, "w", zipfile.ZIP_DEFLATED) as new:
        for info in old.infolist():
            content = old.read(info)
            if info.filename == "xl/worksheets/sheet1.xml":
                content = f'<worksheet xmlns="{space}">{sheet}</worksheet>'.encode()
            new.writestr(info.filename, content)
    return result.getvalue()


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        root = made_up.empty_store(tmp_path_factory.mktemp("hostile"))
        made_up.write(root, arm="simclr")
        tracking.publish(root, profile="sample", arm="simclr", seed=0, params={}, fingerprint="f")
        register.run(root, profile="sample", runs=[("simclr", 0)])
    return root


@pytest.fixture
def model_folder(registered: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the champion in the artifact store, where an outsider has changed them."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (probe,) = registered.glob("mlruns/**/artifacts/probe.safetensors")
    return probe.parents[1]


def test_a_registered_models_code_and_pickles_are_not_run(registered: Path, model_folder: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    assert next(register.predict(registered, "sample", [_tile(tmp_path)])).probabilities
    code = f"import pathlib\npathlib.Path({str(planted)!r}).touch()\n"
    served = [path for path in model_folder.rglob("*.py") if path.name == "serving.py" or path.parent.name == "satclr"]
    before = {path: path.read_bytes() for path in served}
    assert before
    for path in served:
        path.write_text(code)
    assert next(register.predict(registered, "sample", [_tile(tmp_path)])).probabilities
    assert not planted.exists()
    for path, content in before.items():
        path.write_bytes(content)
    (model_folder / "python_model.pkl").write_bytes(pickle.dumps(Planted(planted)))
    with pytest.raises(tracking.TrackingError, match=r"python_model\.pkl, which may run code"):
        list(register.predict(registered, "sample", [_tile(tmp_path)]))
    assert not planted.exists()
    (model_folder / "python_model.pkl").unlink()


def test_a_registered_model_that_is_no_probe_is_refused(registered: Path, model_folder: Path, tmp_path: Path) -> None:
    probe = model_folder / "artifacts" / "probe.safetensors"
    before = probe.read_bytes()
    for raw, says in (
        (claiming([HUGE], labels="[]"), "safetensors"),
        (pickle.dumps(Planted(tmp_path / "planted")), "safetensors"),
        (
            safetensors.torch.save({"weight": torch.zeros(3, 9), "bias": torch.zeros(3)}, {"labels": '["a"]'}),
            "no probe",
        ),
        (safetensors.torch.save({"weight": torch.zeros(3, 9)}, {"labels": "["}), "labels"),
    ):
        probe.write_bytes(raw)
        with pytest.raises(ValueError, match=says):
            list(register.predict(registered, "sample", [_tile(tmp_path)]))
    probe.unlink()
    with pytest.raises(tracking.TrackingError, match="lacks an encoder or a probe"):
        register.champion(registered, "sample")
    probe.write_bytes(before)
    assert not (tmp_path / "planted").exists()


def _tile(folder: Path) -> Path:
    (folder / "tile.jpg").write_bytes(made_up.jpeg(1))
    return folder / "tile.jpg"


def test_a_scene_that_claims_endless_pixels_or_names_other_files_is_refused(tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(
        tmp_path / "endless.tif", "w", driver="GTiff", width=2_000_000, height=2_000_000, count=1, dtype="uint8",
        SPARSE_OK=True, BIGTIFF=True, tiled=True, blockxsize=16384, blockysize=16384,
    ):  # fmt: skip
        pass
    with pytest.raises(tracking.TrackingError, match="2000000×2000000 pixels"):
        sources.find([tmp_path / "endless.tif"])
    part = f"<SimpleSource><SourceFilename>{tmp_path}/endless.tif</SourceFilename></SimpleSource>"
    band = f'<VRTRasterBand dataType="Byte" band="1">{part}</VRTRasterBand>'
    secret = f'<VRTDataset rasterXSize="9" rasterYSize="9">{band}</VRTDataset>'
    (tmp_path / "virtual.tif").write_text(secret)
    (source,) = sources.find([tmp_path / "virtual.tif"])
    with pytest.raises(tiles.TileError, match="not an image"):
        tiles.decode(source.read(), 64)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.5])
@pytest.mark.parametrize("bands", [1, 3])
def test_a_float_geotiff_is_refused_where_it_is_imported_or_tagged(value: float, bands: int, tmp_path: Path) -> None:
    rasterio = pytest.importorskip("rasterio")
    path = tmp_path / "set" / "sea" / "a.tif"
    path.parent.mkdir(parents=True)
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(
        path, "w", driver="GTiff", width=48, height=48, count=bands, dtype="float32"
    ) as scene:  # fmt: skip
        scene.write(np.full((bands, 48, 48), value, np.float32))
    (source,) = sources.find([path])
    with pytest.raises(ValueError, match="float32 pixels: 8 bits"):
        source.read()
    (tmp_path / "set" / "labels.csv").write_text("image,sea\na.tif,1\n")
    with pytest.raises(SourceError, match=r"sea/a\.tif: (mode F|not an image)"):
        importing.run(tmp_path / "set", tmp_path / "data" / "set")


def test_servers_listen_on_loopback_unless_told_otherwise(tmp_path: Path) -> None:
    from mlflow.models.cli import commands

    command = _command(tmp_path, tracking.tracking_uri(tmp_path), 5000)
    assert command[command.index("--host") + 1] == "127.0.0.1"
    (host,) = (option for option in commands.commands["serve"].params if option.name == "host")
    assert host.default == "127.0.0.1"


def test_a_probe_with_nan_is_named_before_it_tags_anything(tmp_path: Path) -> None:
    made_up.write(tmp_path, arm="baseline")
    folder = tmp_path / "models/sample/baseline-s0"
    tensors, facts = tensorfile.load(folder / "probe.safetensors")
    save_file(tensors | {"bias": tensors["bias"] * torch.inf}, folder / "probe.safetensors", facts)
    with warnings.catch_warnings(action="ignore"):  # MLflow's, about its own types
        from satclr.tracking.serving import Tagger
    with pytest.raises(tensorfile.TensorFileError, match=r"probe\.safetensors is not finite in bias"):
        Tagger().read(folder / "encoder.safetensors", folder / "probe.safetensors")
