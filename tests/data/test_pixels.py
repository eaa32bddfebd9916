"""One reader for import, prepare and predict: bands, palettes, masks and depths of TIFFs."""

import os
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio
from PIL import Image

from satclr.data import pixels
from satclr.data.tiles import TileError
from satclr.tracking import predict

pytestmark = pytest.mark.filterwarnings("ignore:.*geotransform.*", "ignore::PendingDeprecationWarning")

Array = npt.NDArray[Any]
SIDE = 64
RGB = np.random.default_rng(0).integers(1, 250, (3, SIDE, SIDE), np.uint8)
NIR = RGB[:1] // 2 + 3
GREY = RGB[:1].repeat(3, 0)
VALID = np.arange(SIDE) >= 16
BGR = ("blue", "green", "red", "undefined")


def save(
    path: Path, values: Array, *, colours: tuple[str, ...] = (), names: tuple[str, ...] = (), **facts: Any
) -> None:
    facts |= dict(zip(("count", "height", "width"), values.shape, strict=True))
    with rasterio.open(path, "w", driver="GTiff", dtype=values.dtype, **facts) as file:
        file.write(values)
        if colours:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in colours]
        if names:
            file.descriptions = names


def emptied(value: float, values: Array = RGB) -> Array:
    """The left quarter without data."""
    return np.where(VALID, values, np.array(value, values.dtype))


# values and facts of a TIFF; the scale; what must be read from it, black without data
KINDS: dict[str, tuple[Array, dict[str, Any], tuple[float, float] | None, Array]] = {
    "minisblack": (RGB, {"photometric": "minisblack"}, None, RGB),
    "four bands": (np.concatenate([RGB, NIR]), {"photometric": "minisblack"}, None, RGB),
    "five bands": (np.concatenate([RGB, NIR, NIR]), {}, None, RGB),
    "lerc": (RGB, {"compress": "lerc"}, None, RGB),
    "blue first": (np.concatenate([RGB[::-1], NIR]), {"photometric": "minisblack", "colours": BGR}, None, RGB),
    "described": (np.concatenate([NIR, RGB[::-1]]), {"names": ("NIR", "Blue", "Green", "Red")}, None, RGB),
    "Sentinel-2": (np.concatenate([NIR, RGB[::-1]]), {"names": ("B01", "B02", "B03", "B04")}, None, RGB),
    "grey": (RGB[:1], {}, None, GREY),
    "white is 0": (RGB[:1], {"photometric": "miniswhite"}, None, 255 - GREY),
    "one bit": (RGB[:1] % 2, {"nbits": 1}, None, GREY % 2 * 255),
    "nodata 0": (emptied(0), {"nodata": 0}, None, emptied(0)),
    "nodata 255": (emptied(255), {"nodata": 255}, None, emptied(0)),
    "alpha": (np.concatenate([RGB, emptied(0, NIR | 255)]), {"photometric": "RGB", "alpha": "yes"}, None, emptied(0)),
    "16 bits": (np.concatenate([RGB, NIR]).astype(np.uint16) * 40, {}, (0, 255 * 40), RGB),
    "16 bits, nodata": (emptied(65535, RGB.astype(np.uint16) * 40), {"nodata": 65535}, (0, 255 * 40), emptied(0)),
    "signed": (RGB.astype(np.int16) * 40 - 5000, {}, (-5000, 255 * 40 - 5000), RGB),
    "float": (emptied(np.nan, RGB.astype(np.float32) / 255), {}, (0, 1), emptied(0)),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_tiff_and_its_parts_are_read_alike(kind: str, tmp_path: Path) -> None:
    values, facts, scale, expected = KINDS[kind]
    save(tmp_path / "a.tif", values, **facts)
    whole = pixels.read(tmp_path / "a.tif")
    np.testing.assert_array_equal(whole.rgb(scale), expected.transpose(1, 2, 0))
    assert whole.valid.mean() == (0.75 if (expected[:, :, :16] == 0).all() else 1)
    assert pixels.is_deep(tmp_path / "a.tif") == (whole.values.dtype != np.uint8) == (scale is not None)
    (single,) = predict.find([tmp_path / "a.tif"], scene_tile_px=SIDE)
    np.testing.assert_array_equal(pixels.read(single.read()).values, whole.values)
    for part in predict.find([tmp_path / "a.tif"], scene_tile_px=SIDE // 2):  # as predict
        x, y = (int(text.split("=")[1]) for text in part.name.split("#")[1].split(","))
        found = pixels.read(part.read()).rgb(scale)
        np.testing.assert_array_equal(found, expected[:, y : y + SIDE // 2, x : x + SIDE // 2].transpose(1, 2, 0))
    if scale is not None:
        with pytest.raises(TileError, match=r"not 8 bits per channel: set data\.scale"):
            pixels.decode(tmp_path / "a.tif", SIDE)


def test_a_palette_becomes_its_colours_in_parts_too(tmp_path: Path) -> None:
    Image.fromarray(RGB.transpose(1, 2, 0)).quantize(64).save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(pixels.read(tmp_path / "a.tif").values, expected)
    part = predict.find([tmp_path / "a.tif"], scene_tile_px=SIDE // 2)[3]
    np.testing.assert_array_equal(pixels.read(part.read()).values, expected[SIDE // 2 :, SIDE // 2 :])


def test_overviews_are_no_frames(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", RGB.repeat(4, 1).repeat(4, 2), tiled=True, blockxsize=64, blockysize=64)
    with rasterio.open(tmp_path / "a.tif", "r+") as file:
        file.build_overviews([2, 4])
    assert pixels.read(tmp_path / "a.tif").values.shape == (4 * SIDE, 4 * SIDE, 3)


def test_too_few_valid_pixels_are_no_tile(tmp_path: Path) -> None:
    save(tmp_path / "a.tif", emptied(0), nodata=0)
    assert not pixels.decode(tmp_path / "a.tif", SIDE, minimum_valid=0.75)[:, :16].any()
    with pytest.raises(pixels.NoDataError, match=r"75% of its pixels are valid \(data\.minimum_valid: 0\.8\)"):
        pixels.decode(tmp_path / "a.tif", SIDE, minimum_valid=0.8)


def test_the_scale_is_the_percentiles_of_valid_pixels(tmp_path: Path) -> None:
    values = np.arange(1, 1 + 3 * SIDE * SIDE, dtype=np.uint16).reshape(3, SIDE, SIDE)
    save(tmp_path / "a.tif", values)
    save(tmp_path / "b.tif", emptied(0, values), nodata=0)
    (tmp_path / "c.tif").write_bytes(b"II*\0")
    low, high = np.percentile(np.concatenate([values.ravel(), values[:, :, VALID].ravel()]), (2, 98))
    assert pixels.measured(sorted(tmp_path.iterdir())) == pytest.approx((low, high), rel=1e-3)
    save(tmp_path / "d.tif", RGB)
    assert pixels.measured([tmp_path / "d.tif"]) is None


def test_a_tile_is_read_while_another_thread_ends_reading_and_restores_its_filters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [threading.Event() for _ in range(3)]

    def overlapping(source: Path) -> None:
        """The first to begin is the first to end, and only then does the second meet a warning."""
        begun, both, ended = order
        if source.name == "first":
            with pixels._reasons():
                begun.set()
                assert both.wait(9)
            ended.set()
        else:
            assert begun.wait(9)
            with pixels._reasons():
                both.set()
                assert ended.wait(9)
                warnings.warn("no place on Earth", UserWarning, stacklevel=1)

    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    before = list(warnings.filters)
    with pixels.workers() as pool:
        list(pool.map(overlapping, [tmp_path / "first", tmp_path / "second"]))
    assert warnings.filters == before
