"""Image files: a whole picture of 8 bits a channel is taken as it is, anything else is refused with its reason."""

import io
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
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
}


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


def sound(name: str, raw: bytes) -> Picture:
    """A file with the pixels that Pillow reads from it."""
    with Image.open(io.BytesIO(raw)) as image:
        return Picture(name, raw, np.asarray(image.convert("RGB")))


def whole() -> list[Picture]:
    """Sound files of every kind and mode."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90°
    turned = sound("turned.jpg", encoded(noise(), "JPEG", exif=exif, quality=95))
    large = sound("larger.png", encoded(noise(300), "PNG"))
    resized = Image.fromarray(large.pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return [
        *(sound(f"{m}-{k}.{k.lower()}", encoded(noise().convert(m), k)) for k, modes in KINDS.items() for m in modes),
        sound("progressive.jpg", encoded(noise(), "JPEG", progressive=True, quality=95)),
        sound("packed.tif", encoded(noise(), "TIFF", compression="tiff_lzw")),
        sound("packed.png", encoded(noise(), "PNG", optimize=True)),
        sound("png-named.jpg", encoded(noise(), "PNG")),
        replace(turned, pixels=np.rot90(turned.pixels, -1)),
        replace(large, pixels=np.asarray(resized)),
        *only_gdal(),
    ]


def only_gdal() -> Iterator[Picture]:
    """TIFFs that Pillow does not read."""
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


def png_header(width: int, height: int) -> bytes:
    """A PNG of few bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def tiff_header(width: int, height: int) -> bytes:
    raw = encoded(Image.new("RGB", (20, 20)), "TIFF")
    for tag, value in ((256, width), (257, height)):
        raw = raw.replace(struct.pack("<HHII", tag, 4, 1, 20), struct.pack("<HHII", tag, 4, 1, value))
    return raw


def _decode(raw: bytes) -> Any:
    """The tile of a damaged file, or None if it is refused in one line."""
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, about damaged EXIF data
            return pixels.decode(raw, SIDE)
    except tiles.TileError as error:
        assert str(error).strip() and "\n" not in str(error)
        return None


def run_truncated(cases: int, seed: int, folder: Path) -> Outcomes:  # every place is tried
    """A file cut off at any 512th byte, or at its last, is refused or has all its pixels; of `cases` at most."""
    outcomes: Outcomes = Counter()
    cuts = [(picture, end) for picture in whole() for end in (*range(0, len(picture.raw), STEP), len(picture.raw) - 1)]
    for picture, end in cuts[:: -(-len(cuts) // cases)]:
        found = _decode(picture.raw[:end])
        if found is None:
            outcomes[REFUSED] += 1
        else:
            np.testing.assert_array_equal(found, picture.pixels, err_msg=f"{picture.name} cut off at {end}")
            outcomes["accepted, all pixels there"] += 1
    return outcomes


def run_edited(cases: int, seed: int, folder: Path) -> Outcomes:
    """A file with damaged bytes is refused in one line, or gives a tile that is not black."""

    def check(raw: bytes) -> str:
        found = _decode(raw)
        if found is None:
            return REFUSED
        assert found.shape == (SIDE, SIDE, 3) and found.dtype == np.uint8 and found.any()
        return ACCEPTED

    sources = st.sampled_from([picture.raw for picture in whole()])
    return explore(edited(sources), check, cases=cases, seed=seed)
