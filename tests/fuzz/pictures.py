"""Image files: a whole picture of 8 bits a channel is taken as it is, anything else is refused with its reason."""

from __future__ import annotations

import importlib.util
import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image

from satclr.data import pixels, tiles

from . import ACCEPTED, REFUSED, Outcomes, edited, explore

SIDE = 96
STEP = 512  # bytes between two truncations
KINDS = {
    "JPEG": ("RGB", "L", "CMYK", "1"),
    "PNG": ("RGB", "L", "RGBA", "LA", "P", "1"),
    "TIFF": ("RGB", "L", "CMYK", "RGBA", "LA", "P", "1"),
    "BMP": ("RGB", "L", "P", "1"),
    "WEBP": ("RGB", "L", "RGBA"),
    "GIF": ("L", "P"),
}  # fmt: skip
SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "TIFF": ".tif", "BMP": ".bmp", "WEBP": ".webp", "GIF": ".png"}


@dataclass(frozen=True)
class Picture:
    """A file, and what must come of it: pixels, or a reason (part of the refusal)."""

    name: str
    raw: bytes
    pixels: Any = None  # (S,S,3) uint8
    reason: str = ""


def noise(side: int = SIDE, *, seed: int = 0) -> Image.Image:
    """A tile with structure and noise, brighter than black everywhere."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(40, 220, (6, 6, 3), np.uint8)).resize((side, side))
    return Image.fromarray((np.asarray(coarse) + rng.integers(0, 36, (side, side, 3), np.uint8)).astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def whole() -> list[Picture]:
    """Sound files of every kind and mode, with the pixels that Pillow reads from them."""
    found = []
    for kind, modes in KINDS.items():
        for mode in modes:
            raw = encoded(noise().convert(mode), kind)
            found.append(Picture(f"{mode}-{kind}{SUFFIX[kind]}", raw, _pixels(raw)))
    progressive = encoded(noise(), "JPEG", progressive=True, quality=95)
    found.append(Picture("progressive.jpg", progressive, _pixels(progressive)))
    for kind in ("TIFF", "PNG"):
        packed = encoded(noise(), kind, **({"compression": "tiff_lzw"} if kind == "TIFF" else {"optimize": True}))
        found.append(Picture(f"packed{SUFFIX[kind]}", packed, _pixels(packed)))
    png = encoded(noise(), "PNG")
    found.append(Picture("png-named.jpg", png, _pixels(png)))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    turned = encoded(noise(), "JPEG", exif=exif, quality=95)
    found.append(Picture("turned.jpg", turned, np.rot90(_pixels(turned), -1)))
    large = encoded(noise(300), "PNG")
    resized = Image.open(io.BytesIO(large)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return [*found, Picture("larger.png", large, np.asarray(resized)), *only_gdal()]


def only_gdal() -> Iterator[Picture]:
    """TIFFs that Pillow does not read; none without rasterio (`uv sync --group geo`)."""
    if importlib.util.find_spec("rasterio") is None:
        return
    import rasterio

    rgb = np.asarray(noise())
    infrared = np.concatenate([rgb, 255 - rgb[..., :1]], axis=2)
    ways: dict[str, tuple[Any, dict[str, Any]]] = {
        "gray": (rgb, {"photometric": "minisblack"}),
        "infrared": (infrared, {"photometric": "minisblack", "compress": "deflate"}),
        "lerc": (rgb, {"compress": "lerc"}),
        "tiles": (infrared, {"tiled": True, "blockxsize": 32, "blockysize": 32, "photometric": "rgb"}),
    }
    for name, (bands, options) in ways.items():
        with warnings.catch_warnings(action="ignore"), rasterio.MemoryFile() as file:  # it has no place on Earth
            size = {"height": SIDE, "width": SIDE, "count": bands.shape[2], "dtype": "uint8"}
            with file.open(driver="GTiff", **size, **options) as data:
                data.write(np.moveaxis(bands, 2, 0))
            yield Picture(f"{name}.tif", bytes(file.read()), rgb)


def refused() -> list[Picture]:
    """Files that are no tile."""
    frames: dict[str, Any] = {"save_all": True, "append_images": [noise(seed=1)]}
    floats = np.full((SIDE, SIDE), 0.5, np.float32)
    return [
        Picture("empty.jpg", b"", reason="not an image"),
        Picture("text.jpg", b"image,sea\na.jpg,1\n", reason="not an image"),
        Picture("one-pixel.png", encoded(noise(1), "PNG"), reason="1×1 pixels"),
        Picture("bomb.png", png_header(30_000, 30_000), reason="30000×30000 pixels"),
        Picture("bomb.tif", tiff_header(30_000, 30_000), reason="30000×30000 pixels"),
        Picture("bomb.bmp", bmp_header(30_000, 30_000), reason="30000×30000 pixels"),
        Picture("nan.tif", encoded(Image.fromarray(floats * np.nan), "TIFF"), reason="0% of its pixels are valid"),
        Picture("infinity.tif", encoded(Image.fromarray(floats * np.inf), "TIFF"), reason="0% of its pixels are valid"),
        Picture("black.png", encoded(Image.new("RGB", (SIDE, SIDE)), "PNG"), reason="black"),
        Picture("clear.png", encoded(Image.new("RGBA", (SIDE, SIDE)), "PNG"), reason="0% of its pixels are valid"),
        Picture("animation.gif.png", encoded(noise(), "GIF", **frames), reason="2 frames"),
        Picture("animation.webp", encoded(noise(), "WEBP", **frames), reason="2 frames"),
        Picture("animation.png", encoded(noise(), "PNG", **frames), reason="2 frames"),
        Picture("pages.tif", encoded(noise(), "TIFF", **frames), reason="2 frames"),
        Picture("program.jpg", encoded(noise(), "EPS"), reason="not an image"),  # Pillow would run Ghostscript
        Picture("portable.png", encoded(noise(), "PPM"), reason="not an image"),
    ]  # fmt: skip


def png_header(width: int, height: int, *, depth: int = 8, colour: int = 2, data: bytes = b"") -> bytes:
    """A PNG of few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(data or bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    raw = bytearray(encoded(Image.new("RGB", (20, 20)), "TIFF"))
    for tag, value in ((256, width), (257, height)):
        entry = raw.index(struct.pack("<HHI", tag, 3, 1)) if struct.pack("<HHI", tag, 3, 1) in raw else -1
        kind = 3
        if entry < 0:
            entry, kind = raw.index(struct.pack("<HHI", tag, 4, 1)), 4
        raw[entry + 8 : entry + 12] = struct.pack("<HH", value, 0) if kind == 3 else struct.pack("<I", value)
    return bytes(raw)


def bmp_header(width: int, height: int) -> bytes:
    raw = bytearray(encoded(Image.new("RGB", (20, 20)), "BMP"))
    raw[18:26] = struct.pack("<ii", width, height)
    return bytes(raw)


def _pixels(raw: bytes) -> Any:
    with Image.open(io.BytesIO(raw)) as image:
        return np.asarray(image.convert("RGB"))


def _decode(raw: bytes) -> Any:
    with warnings.catch_warnings(action="ignore"):  # Pillow's, about damaged EXIF data
        return pixels.decode(raw, SIDE)


def run_kinds(cases: int, seed: int, folder: Path) -> Outcomes:  # a fixed list
    """Each kind of file is read rightly, or refused with its reason."""
    outcomes: Outcomes = Counter()
    for picture in [*whole(), *refused()]:
        path = folder / picture.name
        path.write_bytes(picture.raw)
        for source in (picture.raw, path):
            try:
                found = pixels.decode(source, SIDE)
            except tiles.TileError as error:
                assert picture.reason and picture.reason in str(error), (picture.name, str(error))
                outcomes[REFUSED] += 1
            else:
                assert not picture.reason, f"{picture.name} was accepted"
                np.testing.assert_array_equal(found, picture.pixels, err_msg=picture.name)
                outcomes[ACCEPTED] += 1
        path.unlink()
    return outcomes


def run_truncated(cases: int, seed: int, folder: Path) -> Outcomes:  # every place is tried
    """A file cut off at any 512th byte, or at its last, is refused or has all its pixels; of `cases` at most."""
    outcomes: Outcomes = Counter()
    cuts = [(picture, end) for picture in whole() for end in (*range(0, len(picture.raw), STEP), len(picture.raw) - 1)]
    for picture, end in cuts[:: -(-len(cuts) // cases)]:
        try:
            found = _decode(picture.raw[:end])
        except tiles.TileError as error:
            assert str(error).strip() and "\n" not in str(error)
            outcomes[REFUSED] += 1
        else:
            np.testing.assert_array_equal(found, picture.pixels, err_msg=f"{picture.name} cut off at {end}")
            outcomes["accepted, all pixels there"] += 1
    return outcomes


def run_edited(cases: int, seed: int, folder: Path) -> Outcomes:
    """A file with damaged bytes is refused in one line, or gives a tile that is not black."""

    def check(raw: bytes) -> str:
        try:
            found = _decode(raw)
        except tiles.TileError as error:
            assert str(error).strip() and "\n" not in str(error)
            return REFUSED
        assert found.shape == (SIDE, SIDE, 3) and found.dtype == np.uint8 and found.any()
        return ACCEPTED

    sources = st.sampled_from([picture.raw for picture in whole()])
    return explore(edited(sources), check, cases=cases, seed=seed)
