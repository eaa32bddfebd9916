"""Small downloads of every kind that `satclr import` knows."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openpyxl
from PIL import Image

from . import rar

CATEGORIES = ("airplane", "storage_tank", "beach")
NAMES = ("airplane", "tanks", "sand", "grass")
TILES = 4
KINDS = (
    "mlrsnet zip of folders",
    "mlrsnet zip of rars and folders",
    "mlrsnet checkout with images",
    "ucmerced xlsx",
    "ucmerced csv txt xlsx",
    "aid",
    "tar with one table",
    "one table with paths",
)
Files = dict[str, bytes]


def encoded(pixels: Any, form: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def picture(form: str, rng: np.random.Generator) -> bytes:
    """An image of 12 px; no two are alike."""
    return encoded(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8), form)


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
    """MLRSNet's form: one table per category, file names with their suffix."""
    hot = multi_hot()
    return {
        f"{folder}/{c}.csv": table({stem(c, i): hot[stem(c, i)] for i in range(TILES)}, suffix=".jpg")
        for c in CATEGORIES
    }


def xlsx(rows: Mapping[str, list[int]]) -> bytes:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
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


def zipped(files: Files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tarred(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def pack(path: Path, files: Files) -> Path:
    """An archive of the kind that its suffix says."""
    packers = {".zip": zipped, ".gz": tarred, ".rar": rar.packed}
    path.write_bytes(packers[path.suffix](files))
    return path


def make(kind: str, where: Path) -> tuple[Path, dict[str, Any], Files]:
    """A download of each kind: its path, what `check` needs to know, and its images."""
    known: dict[str, Any] = {}
    if kind == "mlrsnet zip of folders":
        images = tiles("MLRSNet/Images/{category}/{name}")
        return pack(where / "mlrsnet.zip", images | tables("MLRSNet/Labels")), known, images
    if kind == "mlrsnet zip of rars and folders":
        images = tiles("{category}/{name}")
        top = "MLRSNet A Multi-label Dataset"
        files = tables(f"{top}/Labels")
        for category in CATEGORIES:
            own = {name: data for name, data in images.items() if name.startswith(category)}
            if category == "beach":
                files |= {f"{top}/Images/{name}": data for name, data in own.items()}
            else:
                files[f"{top}/Images/{category}.rar"] = rar.packed(own)
        return pack(where / "mlrsnet.zip", files), known, images
    if kind == "mlrsnet checkout with images":
        images = tiles("Images/{category}/{name}")
        others = {".git/HEAD": b"ref: x", "README.md": b"# MLRSNet", "Models/a.h5": b"\0"}
        return folder_of(where / "MLRSNet", images | tables("labels") | others), known, images
    if kind.startswith("ucmerced"):
        images = tiles("UCMerced_LandUse/Images/{category}/{name}", "tif", "TIFF", sep="")
        files = images | {"UCMerced_LandUse/readme.txt": b"UC Merced Land Use Dataset,\nairplane00 is one\n"}
        hot = multi_hot(sep="")
        commas = {"csv": ",", "txt": "\t"}
        for form in kind.split()[1:]:
            content = xlsx(hot) if form == "xlsx" else table(hot, key="IMAGE\\LABEL", comma=commas[form])
            files[f"multilabels/LandUse_Multilabeled.{form}"] = content
        return pack(where / "UCMerced_LandUse.zip", files), {"suffix": "png", "sep": ""}, images
    if kind == "aid":
        images = tiles("{name}")
        folders = ["images_test", "images_tr", "images_tr"]
        files = {f"AID_multilabel/{folders[i % 3]}/{n}": d for i, (n, d) in enumerate(images.items())}
        files["AID_multilabel/multilabel.csv"] = table(multi_hot(), key="IMAGE\\LABEL")
        return folder_of(where / "AID", files), known, images
    if kind == "tar with one table":
        images = tiles("pictures/{category}/{name}")
        labels = {"labels.csv": table(multi_hot(), suffix=".jpg")}
        return pack(where / "set.tar.gz", images | labels), known, images
    images = tiles("{category}/{name}")
    rows = {f"{name.rpartition('_')[0]}\\{name}": hot for name, hot in multi_hot().items()}
    files = images | {"all.csv": table(rows, key="path", suffix=".jpg")}
    return folder_of(where / "set", files), known, images
