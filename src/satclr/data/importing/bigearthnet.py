"""BigEarthNet v2 (reBEN): Sentinel-2 patches, one GeoTIFF per band, as RGB tiles of 120 px.

In: the unpacked `BigEarthNet-S2/<acquisition>/<patch>/<patch>_B04.tif` (and B03, B02) and `metadata.parquet` (patch_id,
labels, split, country). Out: a `Plan` with one category per country, 19 labels and the official split. Clasen et al.
2025, arXiv:2407.03653.

The patches are level-2A surface reflectance times 10,000. Reflectances from 0 to 0.3 become 0 to 255, rounded; brighter
ones (clouds, snow, roofs) become 255. The scale is the same for every patch and band, so brightness and colour keep
their meaning.
"""

import re
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from satclr.data.importing import tables
from satclr.data.importing.archives import SourceError, complete
from satclr.data.importing.plan import Plan, Table, Tile, split_of

BANDS: Final = ("B04", "B03", "B02")  # red, green, blue
WHITE: Final = 3_000  # reflectance 0.3
SIDE_PX: Final = 120
METADATA: Final = "metadata.parquet"
FOLDER: Final = "BigEarthNet-S2"
COLUMNS: Final = ("patch_id", "labels", "split", "country")


def recognise(source: Path) -> bool:
    """Whether `source` is a folder with BigEarthNet's metadata."""
    return (source / METADATA).is_file()


def plan(source: Path, *, unlabelled: bool = False) -> Plan:
    """Plan the import of those patches that are in `source`: all, or some acquisitions; unlabelled: see `layout.plan`.

    Raises `SourceError` without any patch, and for invalid metadata.
    """
    rows = _metadata(source / METADATA)
    root = source / FOLDER if (source / FOLDER).is_dir() else source
    present = {patch.name for patch in root.glob("*/*") if patch.is_dir()}
    chosen = sorted((row for row in rows if row["patch_id"] in present), key=lambda row: str(row["patch_id"]))
    if not chosen:
        remedy = f"unpack {FOLDER}.tar.zst there"
        raise SourceError(f"{root}: none of the {len(rows):,} patches of {METADATA}; {remedy}")
    names = tuple(sorted({name for row in rows for name in row["labels"]}))
    tiles: list[Tile] = []
    tables: dict[str, Table] = {}
    for row in chosen:
        tile = _tile(root, re.sub(r"\W+", "_", str(row["country"])), row["patch_id"])
        tiles.append(tile)
        tables.setdefault(tile.category, (names, []))[1].append((tile.name, row["labels"]))
    without = sorted(present - {row["patch_id"] for row in rows})
    absent = len(rows) - len(chosen)
    return Plan(
        tiles=tiles,
        tables=tables,
        split={f"{row['patch_id']}.png": split_of(row["split"]) or "" for row in chosen},
        images_without_row=[] if unlabelled else without,
        notes=[f"{absent:,} of {len(rows):,} patches are missing"] if absent else [],
        unlabelled=[_tile(root, "tiles", patch) for patch in without] if unlabelled else [],
        by="country",
    )


def to_rgb(bands: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Scale surface reflectance times 10,000, any shape, to 0 to 255 (see the module)."""
    clipped = np.minimum(bands, WHITE).astype(np.uint32)
    return ((clipped * 255 + WHITE // 2) // WHITE).astype(np.uint8)


def _tile(root: Path, category: str, patch: str) -> Tile:
    place = PurePosixPath(patch.rsplit("_", 2)[0], patch)  # the acquisition is named like it but for the grid position
    return Tile(category, f"{patch}.png", place, 3 * SIDE_PX**2, partial(_write, root / place))


def _metadata(path: Path) -> list[dict[str, Any]]:
    try:
        rows = tables.parquet(path)
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise SourceError(f"{path}: not a readable parquet file ({error}); download it again") from None
    for column in COLUMNS:
        if not rows or column not in rows[0]:
            raise SourceError(f"{path}: no column {column!r}; is it BigEarthNet v2's {METADATA}?")
    for row in rows:
        if not row["patch_id"] or not isinstance(row["labels"], list) or not split_of(str(row["split"])):
            raise SourceError(f"{path}: invalid patch_id, labels or split in {row}; download it again")
    return rows


def _write(folder: Path, target: Path) -> None:
    from PIL import Image

    rgb = to_rgb(np.stack([_band(folder / f"{folder.name}_{band}.tif") for band in BANDS], axis=-1))
    with complete(target) as part:
        Image.fromarray(rgb).save(part, "PNG")


def _band(path: Path) -> npt.NDArray[np.uint16]:
    """One band: (120, 120) uint16."""
    from PIL import Image

    try:
        with Image.open(path, formats=("TIFF",)) as image:
            shape = (image.height, image.width)  # checked before pixels take memory
            values: npt.NDArray[Any] = np.asarray(image) if shape == (SIDE_PX, SIDE_PX) else np.empty(0)
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{path}: not a readable GeoTIFF ({error}); unpack it again") from None
    if values.dtype != np.uint16 or values.shape != (SIDE_PX, SIDE_PX):
        raise SourceError(f"{path}: {values.dtype} {shape}; uint16 ({SIDE_PX}, {SIDE_PX}) is needed")
    return values
