"""BigEarthNet v2 (reBEN): Sentinel-2 patches, one GeoTIFF a band, as RGB tiles of 120 px.

In: the unpacked `BigEarthNet-S2/<acquisition>/<patch>/<patch>_B04.tif` (and B03, B02) and `metadata.parquet`
(patch_id, labels, split, country). Out: a `Plan` with a category a country, 19 labels and the official split.
Clasen et al. 2025, arXiv:2407.03653.

The patches are level-2A surface reflectance times 10,000. Reflectances from 0 to 0.3 become 0 to 255,
rounded; brighter ones (clouds, snow, roofs) become 255. The scale is the same for every patch and band, so
that brightness and colour keep their meaning.
"""

from __future__ import annotations

import re
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from satclr.data.importing.archives import SourceError
from satclr.data.importing.layout import Plan, Table, Tile

BANDS: Final = ("B04", "B03", "B02")  # red, green, blue
WHITE: Final = 3_000  # reflectance 0.3
SIDE_PX: Final = 120
METADATA: Final = "metadata.parquet"
FOLDER: Final = "BigEarthNet-S2"
SPLITS: Final = {"train": "train", "validation": "val", "val": "val", "test": "test"}
ROWS_MAX: Final = 5_000_000  # a few bytes of parquet can claim billions
COLUMNS: Final = ("patch_id", "labels", "split", "country")


def recognise(source: Path) -> bool:
    """Whether `source` is a folder that holds BigEarthNet's metadata."""
    return (source / METADATA).is_file()


def plan(source: Path) -> Plan:
    """Plan the import of the patches of `source` that are there: all, or some acquisitions.

    Raises SourceError without any patch, with unreadable metadata, or where pyarrow is not installed.
    """
    rows = _metadata(source / METADATA)
    root = source / FOLDER if (source / FOLDER).is_dir() else source
    present = {
        patch.name
        for acquisition in root.iterdir() if acquisition.is_dir()
        for patch in acquisition.iterdir() if patch.is_dir()
    }  # fmt: skip
    chosen = sorted((row for row in rows if row["patch_id"] in present), key=lambda row: str(row["patch_id"]))
    if not chosen:
        raise SourceError(
            f"{root}: none of the {len(rows):,} patches of {METADATA}; unpack {FOLDER}.tar.zst there"
        )
    names = sorted({name for row in rows for name in row["labels"]})
    tables: dict[str, Table] = {}
    for row in chosen:
        cells = [str(int(name in row["labels"])) for name in names]
        tables.setdefault(_country(row), (tuple(names), []))[1].append((f"{row['patch_id']}.png", cells))
    return Plan(
        tiles=[
            Tile(
                _country(row),
                f"{row['patch_id']}.png",
                3 * SIDE_PX**2,
                partial(_write, _folder(root, row["patch_id"])),
            )
            for row in chosen
        ],
        tables=tables,
        split={f"{row['patch_id']}.png": SPLITS[row["split"]] for row in chosen},
        images_without_row=sorted(present - {row["patch_id"] for row in rows}),
        notes=[f"{len(rows) - len(chosen):,} of {len(rows):,} patches are not there"]
        if len(rows) > len(chosen)
        else [],
    )


def to_rgb(bands: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint8]:
    """Scale surface reflectance times 10,000, any shape, to 0 to 255 (see the module)."""
    clipped = np.minimum(bands, WHITE).astype(np.uint32)
    return ((clipped * 255 + WHITE // 2) // WHITE).astype(np.uint8)


def _metadata(path: Path) -> list[dict[str, Any]]:
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError:
        raise SourceError(
            f"{path}: pyarrow is needed to read it; `uv sync --group geo` installs it"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            if file.metadata.num_rows > ROWS_MAX:
                raise SourceError(f"{path}: {file.metadata.num_rows:,} rows; BigEarthNet v2 has some 550,000")
            there = [column for column in COLUMNS if column in file.schema_arrow.names]
            rows: list[dict[str, Any]] = file.read(there).to_pylist()
    except SourceError:
        raise
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise SourceError(f"{path}: not a readable parquet file ({error}); download it again") from None
    for column in COLUMNS:
        if not rows or column not in rows[0]:
            raise SourceError(f"{path}: no column {column!r}; is it BigEarthNet v2's {METADATA}?")
    odd = [row for row in rows if not (row["patch_id"] and isinstance(row["labels"], list))]
    if odd:
        raise SourceError(
            f"{path}: {len(odd):,} rows without a patch_id or a list of labels; download it again"
        )
    unknown = sorted({str(row["split"]) for row in rows} - set(SPLITS))
    if unknown:
        raise SourceError(f"{path}: split {unknown[0]!r} is none of {', '.join(SPLITS)}")
    return rows


def _country(row: dict[str, Any]) -> str:
    return re.sub(r"\W+", "_", str(row["country"]))  # it becomes a folder's name


def _folder(root: Path, patch: str) -> Path:
    """The patch's folder lies in its acquisition's, named like it but for the two grid positions."""
    return root / patch.rsplit("_", 2)[0] / patch


def _write(folder: Path, target: Path) -> None:
    if target.exists():
        return
    from PIL import Image

    rgb = to_rgb(np.stack([_band(folder / f"{folder.name}_{band}.tif") for band in BANDS], axis=-1))
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    Image.fromarray(rgb).save(part, "PNG")
    part.replace(target)


def _band(path: Path) -> npt.NDArray[np.uint16]:
    """One band: (120, 120) uint16."""
    from PIL import Image

    try:
        with Image.open(path, formats=("TIFF",)) as image:
            shape = (image.height, image.width)  # before pixels take memory
            values: npt.NDArray[Any] = np.asarray(image) if shape == (SIDE_PX, SIDE_PX) else np.empty(0)
    except (OSError, SyntaxError, ValueError) as error:
        raise SourceError(f"{path}: not a readable GeoTIFF ({error}); unpack it again") from None
    if values.dtype != np.uint16 or values.shape != (SIDE_PX, SIDE_PX):
        raise SourceError(f"{path}: {values.dtype} {shape}; uint16 ({SIDE_PX}, {SIDE_PX}) is needed")
    return values
