"""GeoTIFFs of four bands and 16 bits, from `satclr import` to the labels of a scene."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import rasterio

from satclr import files
from satclr.data import tiles
from tests.test_cli import STAGES, satclr, succeed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*geotransform.*")

SIDE = 48
KINDS = ("water", "grass", "sand")
# Reflectances times 10,000 of blue, green, red and near infrared, as Planet orders its bands.
BANDS = {"water": (900, 700, 400, 200), "grass": (500, 1100, 600, 3200), "sand": (1300, 1900, 2600, 3000)}


def ground(rng: np.random.Generator, side: int, kinds: list[str]) -> npt.NDArray[np.uint16]:
    """(4,side,side): stripes of each kind of ground, with noise."""
    owner = np.arange(side) * len(kinds) // side
    values = np.array([BANDS[kind] for kind in kinds])[owner].T[:, None, :]
    noisy = values * rng.uniform(0.8, 1.2, (1, side, side)) + rng.normal(0, 40, (4, side, side))
    return np.clip(noisy, 1, 65535).astype(np.uint16)


def save(path: Path, values: npt.NDArray[np.uint16], **facts: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = [rasterio.enums.ColorInterp[name] for name in ("blue", "green", "red", "undefined")]
    count, height, width = values.shape
    with rasterio.open(
        path, "w", driver="GTiff", width=width, height=height, count=count, dtype=values.dtype, nodata=0, **facts
    ) as file:
        file.write(values)
        file.colorinterp = colours


def download(folder: Path) -> None:
    rng, rows = np.random.default_rng(0), []
    for kind, other in zip(KINDS, (*KINDS[1:], KINDS[0]), strict=True):
        for i in range(12):
            kinds = [kind, other] if i % 2 else [kind]
            save(folder / f"{kind}_land" / f"{kind}_{i:02}.tif", ground(rng, SIDE, kinds))
            rows.append([f"{kind}_{i:02}.tif", *(int(name in kinds) for name in KINDS)])
    files.write_csv(folder / "labels.csv", ["image", *KINDS], rows)


def test_a_set_of_deep_geotiffs_goes_from_import_to_a_scenes_labels(
    project: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change(tree: dict[str, Any]) -> None:
        tree["run"] = ["baseline"]
        tree["profiles"]["tiny"]["pretrain"]["arch"] = "resnet18"  # whose random features tell colours apart
        tree["profiles"]["tiny"]["data"]["tile_px"] = SIDE  # not resized, so that the percentiles are seen
        tree["profiles"]["tiny"]["probe"] |= {"epochs": 100, "learning_rate": 0.03}

    root = project(change, data=False)
    (source := tmp_path / "download").mkdir()
    download(source)
    out = succeed("import", str(source), "tiny", capsys=capsys)
    assert "36 tiles, 3 categories (by folder), 3 labels" in out
    assert len(list((root / "data/tiny/Images").rglob("*.tif"))) == 36, "not lessened to 8 bits"
    for command in (["prepare"], *([stage, "--arm", "baseline"] for stage in STAGES), ["register"]):
        succeed(*command, capsys=capsys)
    (requirements,) = (root / "mlruns").rglob("requirements.txt")
    assert f"rasterio=={rasterio.__version__}" in requirements.read_text().split()
    store = tiles.open_store(root / "build/tiny")
    low, high = store.stats["scale"]
    assert 200 < low < 600
    assert 2500 < high < 3500, "red, green and blue, not the infrared"
    train = store.pixels[store.rows("train")]
    assert 0.01 < (train == 0).mean() < 0.04, "the percentiles 2 and 98"
    assert 0.01 < (train == 255).mean() < 0.04

    rng = np.random.default_rng(1)
    scene = np.concatenate([ground(rng, SIDE, [kind]) for kind in KINDS], axis=2)
    scene = np.concatenate([scene, np.zeros_like(scene)], axis=1)
    scene[:, SIDE:, :10] = 1
    turned = rasterio.Affine.translation(5e5, 4e6) @ rasterio.Affine.rotation(30) @ rasterio.Affine.scale(3, -3)
    save(root / "scene.tif", scene, crs="EPSG:32633", transform=turned)
    parts = [f"{kind}.tif" for kind in KINDS]
    for i, part in enumerate(parts):
        save(root / part, scene[:, :SIDE, i * SIDE : (i + 1) * SIDE])
    code, out, err = satclr("predict", "scene.tif", *parts, "--scene-tile-px", str(SIDE), "--json", capsys=capsys)
    assert code == 0, err
    rows = [json.loads(line) for line in out.splitlines()]
    scores = np.array([[row["probabilities"][kind] for kind in KINDS] for row in [*rows[:3], *rows[6:]]])
    np.testing.assert_allclose(scores[:3], scores[3:], atol=1e-5, err_msg="a part of a scene, and the same as a file")
    assert len(np.unique(scores[:3].round(4), axis=0)) == 3
    assert [(row["labels"], "probabilities" in row) for row in rows[3:6]] == [([], False)] * 3
    assert all(row["error"].startswith("no data: ") for row in rows[3:6])
    assert err.count("scene.tif") == 1
    assert "scene.tif: 3 of 6 tiles: too few pixels hold data" in err
    assert "bounds" not in rows[0]
    outline = np.array(rows[0]["polygon"])
    assert outline[0].tolist() == outline[-1].tolist() == [5e5, 4e6]
    x, y = outline[:-1].T
    assert abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2 == pytest.approx((3 * SIDE) ** 2, rel=1e-6)
