"""Small downloads of every kind that `satclr import` knows."""

import io
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import openpyxl
from PIL import Image

CATEGORIES = ("airplane", "storage_tank", "beach")
NAMES = ("airplane", "tanks", "sand", "grass")
TILES = 4
STEMS = [f"{category}_{i:02}" for category in CATEGORIES for i in range(TILES)]
KINDS = ("mlrsnet zip of rars and folders", "mlrsnet checkout with images", "ucmerced", "aid", "tar with one table")
Files = dict[str, bytes]


def picture(form: str, rng: np.random.Generator) -> bytes:
    """An image of 12 px; no two are alike."""
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (12, 12, 3), dtype=np.uint8)).save(buffer, form)
    return buffer.getvalue()


def tiles(where: str, suffix: str = "jpg", form: str = "JPEG") -> Files:
    """Images at `where`, a pattern of {category} and {name}."""
    rng = np.random.default_rng()
    return {where.format(category=s[:-3], name=f"{s}.{suffix}"): picture(form, rng) for s in STEMS}


def multi_hot() -> dict[str, list[int]]:
    """The labels of each tile, by its name without suffix."""
    rng = np.random.default_rng(4)
    return {stem: rng.integers(0, 2, len(NAMES)).tolist() for stem in STEMS}


def table(rows: Mapping[str, list[int]], *, key: str = "image", suffix: str = "", comma: str = ",") -> bytes:
    lines = [[key, *NAMES], *([name + suffix, *map(str, hot)] for name, hot in rows.items())]
    return "".join(comma.join(line) + "\r\n" for line in lines).encode()


def tables(folder: str) -> Files:
    """MLRSNet's form: one table per category, file names with their suffix."""
    hot = multi_hot()
    return {
        f"{folder}/{c}.csv": table({stem: hot[stem] for stem in STEMS if stem.startswith(c)}, suffix=".jpg")
        for c in CATEGORIES
    }


def xlsx(rows: Mapping[str, list[int]]) -> bytes:
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    book.worksheets[0].append(["IMAGE\\LABEL", *NAMES])
    for name, hot in rows.items():
        book.worksheets[0].append([name, *hot])
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


def rarred(files: Files) -> bytes:
    """A rar of version 5 with stored members, after RARLAB's technical note."""
    main, file, end, has_data, has_crc, unix = 1, 2, 5, 2, 4, 1
    blocks = [b"Rar!\x1a\x07\x01\x00", _block(_vints(main, 0, 0))]
    for name, data in files.items():
        encoded = name.encode()
        header = _vints(file, has_data, len(data), has_crc, len(data), 0o100644)
        header += zlib.crc32(data).to_bytes(4, "little") + _vints(0, unix, len(encoded)) + encoded
        blocks += [_block(header), data]
    return b"".join([*blocks, _block(_vints(end, 0, 0))])


def rarred_4(files: Files) -> bytes:
    """The same, of version 4."""
    blocks = [b"Rar!\x1a\x07\x00", _block_4(0x73, 0, bytes(6))]
    for name, data in files.items():
        size, crc = len(data).to_bytes(4, "little"), zlib.crc32(data).to_bytes(4, "little")
        encoded = name.replace("/", "\\").encode()
        fields = size + size + b"\x03" + crc + b"\0\0\x21\x50" + b"\x14\x30"
        fields += len(encoded).to_bytes(2, "little") + (0o100644).to_bytes(4, "little") + encoded
        blocks += [_block_4(0x74, 0x8000, fields), data]
    return b"".join([*blocks, _block_4(0x7B, 0x4000, b"")])


def _block_4(kind: int, flags: int, fields: bytes) -> bytes:
    rest = bytes([kind]) + flags.to_bytes(2, "little") + (7 + len(fields)).to_bytes(2, "little") + fields
    return (zlib.crc32(rest) & 0xFFFF).to_bytes(2, "little") + rest


def _block(fields: bytes) -> bytes:
    sized = _vints(len(fields)) + fields
    return zlib.crc32(sized).to_bytes(4, "little") + sized


def _vints(*values: int) -> bytes:
    encoded = bytearray()
    for value in values:
        while value > 0x7F:
            encoded.append(value & 0x7F | 0x80)
            value >>= 7  # noqa: PLW2901
        encoded.append(value)
    return bytes(encoded)


PACKERS = {".zip": zipped, ".tar.gz": tarred, ".rar": rarred, ".rar 4": rarred_4}


def pack(path: Path, files: Files, form: str = "") -> Path:
    """An archive of the kind that its suffix or `form` says."""
    path.write_bytes(PACKERS[form or "".join(path.suffixes)](files))
    return path


def make(kind: str, where: Path) -> tuple[Path, Files]:
    """A download of each kind: its path, and its images."""
    if kind == "mlrsnet zip of rars and folders":
        images = tiles("{category}/{name}")
        top = "MLRSNet A Multi-label Dataset"
        files = tables(f"{top}/Labels")
        for category in CATEGORIES:
            own = {name: data for name, data in images.items() if name.startswith(category)}
            if category == "beach":
                files |= {f"{top}/Images/{name}": data for name, data in own.items()}
            else:
                files[f"{top}/Images/{category}.rar"] = rarred(own)
        return pack(where / "mlrsnet.zip", files), images
    if kind == "mlrsnet checkout with images":
        images = tiles("Images/{category}/{name}")
        others = {".git/HEAD": b"ref: x", "README.md": b"# MLRSNet", "Models/a.h5": b"\0"}
        return folder_of(where / "MLRSNet", images | tables("labels") | others), images
    if kind == "ucmerced":
        images = tiles("UCMerced_LandUse/Images/{category}/{name}", "tif", "TIFF")
        files = images | {"UCMerced_LandUse/readme.txt": b"UC Merced Land Use Dataset,\nairplane_00 is one\n"}
        for form, comma in {"csv": ",", "txt": "\t"}.items():
            content = table(multi_hot(), key="IMAGE\\LABEL", comma=comma)
            files[f"multilabels/LandUse_Multilabeled.{form}"] = content
        files["multilabels/LandUse_Multilabeled.xlsx"] = xlsx(multi_hot())
        return pack(where / "UCMerced_LandUse.zip", files), images
    if kind == "aid":
        images = tiles("{name}")
        folders = ["images_test", "images_tr", "images_tr"]
        files = {f"AID_multilabel/{folders[i % 3]}/{n}": d for i, (n, d) in enumerate(images.items())}
        files["AID_multilabel/multilabel.csv"] = table(multi_hot(), key="IMAGE\\LABEL")
        return folder_of(where / "AID", files), images
    images = tiles("pictures/{category}/{name}")
    return pack(where / "set.tar.gz", images | {"labels.csv": table(multi_hot(), suffix=".jpg")}), images
