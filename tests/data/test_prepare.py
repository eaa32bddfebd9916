import json
import re
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nst
from PIL import Image

from satclr import files, machine, randomness
from satclr.data import duplicates, prepare, splits, tiles
from tests.conftest import make_run, write_tile


@pytest.fixture
def data(tiny_data: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


def run(data: Path, **changes: Any) -> tiles.TileStore:
    out = data.parent / "build"
    prepare.write_store(data, out, make_run(data=changes).settings.data)
    return tiles.open_store(out)


def audited(data: Path) -> Any:
    return json.loads((data.parent / "build" / "audit.json").read_text())


def sides(store: tiles.TileStore) -> dict[str, str]:
    return dict(zip(store.names, store.splits.tolist(), strict=True))


def names_of(data: Path) -> list[str]:
    return sorted(path.name for path in data.rglob("*.jpg"))


def test_the_store_holds_every_tile_and_the_statistics_of_the_training_tiles(
    tiny_data: Path, store: tiles.TileStore
) -> None:
    assert sorted(store.names) == names_of(tiny_data)
    for row, (category, name) in enumerate(zip(store.categories, store.names, strict=True)):
        np.testing.assert_array_equal(store.pixels[row], Image.open(tiny_data / "Images" / category / name))
        assert store.targets[row, store.labels.index(category)] == 1
    pixels = store.pixels[store.rows("train")].astype(np.float64) / 255
    mean, std = store.statistics("train")
    np.testing.assert_allclose(mean, pixels.mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(axis=(0, 1, 2)), rtol=1e-12)
    assert store.statistics("imagenet") == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_a_stop_leaves_the_former_store_with_its_audit(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(data)
    files_of = {path: path.read_bytes() for path in (data.parent / "build").iterdir()}

    def stopped(*_: object) -> None:
        monkeypatch.setattr(machine.stop, "requested", signal.SIGTERM)
        sys.exit(143)

    monkeypatch.setattr(duplicates, "pairs", stopped)
    with pytest.raises(SystemExit):
        run(data, tile_px=32)
    assert {path: path.read_bytes() for path in (data.parent / "build").iterdir()} == files_of


def sums_of(pixels: Any) -> prepare.Sums:
    values = pixels.reshape(len(pixels), -1, 3).astype(np.int64)
    return np.stack([values.sum(axis=1), (values**2).sum(axis=1)], axis=1)


@given(nst.arrays(np.uint8, (12, 6, 6, 3)), st.permutations(range(12)))
@settings(max_examples=25, deadline=None)
def test_statistics_do_not_depend_on_the_order(pixels: Any, order: list[int]) -> None:
    sums = sums_of(pixels)
    assert prepare.train_statistics(sums, 6) == prepare.train_statistics(sums[order], 6)


def notebook_statistics(images: Any) -> tuple[Any, Any]:
    """The paper's streaming statistics, tile by tile in float64, written from their description."""
    mean, std, m = np.zeros(3), np.zeros(3), 0
    for start in range(0, len(images), 256):
        batch = images[start : start + 256]
        n = len(batch)
        mean_m, mean_n, var_n = mean.copy(), np.zeros(3), np.zeros(3)
        for image in batch:  # (H,W,3) in [0,1]
            flat = image.reshape(-1, 3)
            mean_n += flat.mean(axis=0)  # added up, where a mean over the batch was meant
            var_n += flat.var(axis=0, ddof=1)
        mean = m * mean_m / (m + n) + n * mean_n / (m + n)
        var = m * std**2 / (m + n) + n * var_n / (m + n) + m * n * (mean_m - mean_n) ** 2 / (m + n) ** 2
        std, m = np.sqrt(var), m + n
    return mean, std


def test_released_statistics_are_the_notebooks() -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (600, 5, 5, 3))
    found = prepare.released_statistics(sums_of(pixels), 5)
    order = randomness.rng(0, "released statistics").permutation(600)  # of sums in any order, one of the notebook's
    mean, std = notebook_statistics(pixels[order] / 255)
    np.testing.assert_allclose(found["mean"], mean, rtol=1e-10)
    np.testing.assert_allclose(found["std"], std, rtol=1e-8)
    assert mean.min() > 60  # the defect itself: means of pixels in [0,1] far above 1


def test_released_statistics_do_not_depend_on_the_order_of_categories() -> None:
    rng, count = np.random.default_rng(0), 1285  # UC Merced's training tiles, with its last batch of five
    level = rng.uniform(90, 150, 21).repeat(62)[:count, None, None, None]  # a brightness for each category
    pixels = np.clip(level + rng.normal(0, 15, (count, 5, 5, 3)), 0, 255).astype(np.int64)
    orders = [np.arange(count), *(rng.permutation(count) for _ in range(20))]
    found = [prepare.released_statistics(sums_of(pixels[order]), 5) for order in orders]
    for name in ("mean", "std"):
        values = np.array([each[name] for each in found])
        assert (values.std(axis=0) < 0.02 * values.mean(axis=0)).all()
    _, std = notebook_statistics(pixels / 255)  # category by category
    assert (std > 1.3 * np.array(found[0]["std"])).all()


def test_the_same_data_give_the_same_bytes(data: Path) -> None:
    def written() -> list[bytes]:
        return [path.read_bytes() for path in sorted(run(data).folder.iterdir())]

    first = written()
    shutil.rmtree(data.parent / "build")
    assert (len(first), written()) == (4, first)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:800])


def relink(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/hostname")


FAULTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "truncated": (lambda d: truncate(d / "Images/road/road_00003.jpg"), "road_00003.jpg", "runcated"),
    "row without a tile": (lambda d: (d / "Images/road/road_00003.jpg").unlink(), "road_00003.jpg", "row"),
    "tile without a row": (
        lambda d: shutil.copy(d / "Images/road/road_00003.jpg", d / "Images/road/x.jpg"), "road/x.jpg", "tile without",
    ),
    "wrongly named": (lambda d: (d / "Images/road/notes.txt").write_text("hm"), "notes.txt", "not named"),
    "stray file": (lambda d: (d / "Images/x.jpg").write_text("hm"), "x.jpg", "folders"),
    "leaving link": (lambda d: relink(d / "Images/road/road_00003.jpg"), "road_00003.jpg", "leaves"),
}  # fmt: skip


def test_links_into_dvcs_cache_are_tiles(data: Path) -> None:
    tile = data / "Images/road/road_00003.jpg"
    cached = data.parent / "elsewhere/files/md5/4f" / f"{7:030x}"
    cached.parent.mkdir(parents=True)
    tile.rename(cached)
    tile.symlink_to(cached)
    assert tile.name in run(data).names


def test_valid_pixels_and_the_scale_are_settings(data: Path) -> None:
    clear = np.full((40, 40, 4), 200, np.uint8)
    clear[:, :10, 3] = 0
    Image.fromarray(clear).save(data / "Images/road/road_00003.jpg", "PNG")  # 75% of its pixels are valid
    run(data, minimum_valid=0.7)
    with pytest.raises(prepare.PrepareError, match=r"road_00003\.jpg: no data: 75% of its pixels"):
        run(data, minimum_valid=0.8)
    table = data / "Labels/road.csv"
    table.write_text(table.read_text().replace("road_00003.jpg", "road_00003.tif"))
    (data / "Images/road/road_00003.jpg").unlink()
    Image.fromarray(np.full((40, 40), 300, np.uint16)).save(data / "Images/road/road_00003.tif")
    store = run(data, scale=[200, 400])
    assert np.unique(store.pixels[store.names.index("road_00003.tif")]).tolist() == [128]
    assert store.stats["scale"] == [200, 400]
    with pytest.raises(ValueError, match="low < high"):
        run(data, scale=[400, 200])


def test_a_split_without_labels_is_refused(data: Path) -> None:
    ends = {"1.jpg": "val", "2.jpg": "test"}
    files.write_csv(data / "split.csv", ["image", "split"], [(n, ends.get(n[-5:], "train")) for n in names_of(data)])
    for table in (data / "Labels").iterdir():
        table.write_text(re.sub(r"(?m)(1\.jpg),.*", r"\1,0,0,0", table.read_text()))
    with pytest.raises(splits.SplitError, match=r"no val tile of .* has a label \(6 tiles\); draw another split"):
        run(data, split={"file": "split.csv"})


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_tile_stops_the_stage_by_name_or_is_left_out(fault: str, data: Path) -> None:
    spoil, path, reason = FAULTS[fault]
    spoil(data)
    with pytest.raises(prepare.PrepareError) as caught:
        run(data)
    assert path in str(caught.value)
    assert reason in str(caught.value)
    assert "on_unreadable: drop" in str(caught.value)
    assert any(path in entry["path"] for entry in audited(data)["dropped"])
    store = run(data, on_unreadable="drop")
    lost = fault in {"truncated", "row without a tile", "leaving link"}
    assert len(store.names) == len(store.pixels) == 48 - lost
    assert audited(data)["dropped"]
    assert store.pixels.reshape(len(store.pixels), -1).any(axis=1).all()  # never a black tile


def test_flagged_tiles_are_warned_of_dropped_or_refused(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table, name = data / "Labels" / "road.csv", "road_00003.jpg"
    table.write_text(re.sub(rf"({name}),.*", r"\1,0,0,0", table.read_text()))  # a tile without labels
    assert name in run(data).names
    assert "the audit flags" in capsys.readouterr().err
    assert name not in run(data, labels={"on_problem": "drop"}).names
    with pytest.raises(prepare.PrepareError, match="satclr audit"):
        run(data, labels={"on_problem": "fail"})


def test_groups_are_on_one_side_with_their_near_duplicates(data: Path) -> None:
    scenes = {name: f"scene {i // 4}" for i, name in enumerate(names_of(data))}
    files.write_csv(data / "groups.csv", ["image", "group"], scenes.items())
    copies = [f"water_0000{i}.jpg" for i in range(6)]  # one tile under other names, in two scenes
    for name in copies[1:]:
        shutil.copy(data / "Images/water" / copies[0], data / "Images/water" / name)
    for by, leaks in (("tile", True), ("group", False)):
        side = sides(run(data, split={"by": by}))
        spread = len({(scenes[name], split) for name, split in side.items()}) > len(set(scenes.values()))
        assert spread == (audited(data)["groups_across_splits"] > 0) == leaks
    (data / "groups.csv").unlink()
    store = run(data, split={"by": "group"})
    assert len({store.groups[store.names.index(name)] for name in copies}) == 1
    assert len({side[name] for name in copies}) == len({sides(store)[name] for name in copies}) == 1
    near = audited(data)["near_duplicates"]
    assert copies in near["groups"]
    assert near["groups_across_splits"] == 0


@pytest.mark.parametrize("by", ["tile", "group"])
def test_unlabelled_tiles_change_nothing_but_what_pretraining_may_see(
    data: Path, capsys: pytest.CaptureFixture[str], by: str
) -> None:
    before = run(data, split={"by": by})
    test, train = (before.rows(split)[0] for split in ("test", "train"))
    paths = {row: data / "Images" / before.categories[row] / before.names[row] for row in (test, train)}
    deep = data / "Unlabelled" / "by year" / "2024"
    deep.mkdir(parents=True)
    shutil.copy(paths[test], deep / "copy.jpg")
    shutil.copy(paths[train], data / "Unlabelled" / before.names[train])  # a labelled tile's name again
    rng = np.random.default_rng(5)
    for i in range(3):
        write_tile(deep / f"new_{i}.png", rng, (0, 0, 0))
    store = run(data, split={"by": by})
    names = [f"Unlabelled/by year/2024/{n}" for n in ("copy.jpg", "new_0.png", "new_1.png", "new_2.png")]
    assert store.names == [*before.names, f"Unlabelled/{before.names[train]}", *names]
    count = len(before.names)
    for name in ("splits", "targets", "groups", "pixels"):
        np.testing.assert_array_equal(getattr(store, name)[:count], getattr(before, name))
    assert store.stats["normalization"] == before.stats["normalization"]
    assert store.labelled == count
    assert store.rows("unlabelled").tolist() == list(range(count, count + 5))
    assert not store.targets[count:].any()
    for rows, fits in ((count, True), (count + 5, False)):  # only labelled tiles are embedded
        np.save(data / "features.npy", np.zeros((rows, 2), np.float32))
        with nullcontext() if fits else pytest.raises(tiles.TileError, match="features"):
            tiles.load_features(data / "features.npy", store)
    assert audited(data)["unlabelled"] == {"tiles": 5, "near_duplicates_of_tested": 1}
    assert "1 of 5 unlabelled tiles are near-duplicates" in " ".join(capsys.readouterr().err.split())
    learned = store.learning("leave_out", tiles="unlabelled").rows("train")
    assert [store.names[row] for row in learned] == [f"Unlabelled/{before.names[train]}", *names[1:]]
    (deep / "notes.txt").write_text("hm")
    with pytest.raises(prepare.PrepareError, match=r"notes\.txt: not named"):
        run(data)


def test_splits_are_shown_with_their_prevalence_and_leakage(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = run(data)
    said = capsys.readouterr().err
    for split in tiles.SPLITS:
        rows = store.rows(split)
        assert f"{split} ({len(rows)})" in said
        assert f"{store.targets[rows].mean(0)[store.labels.index('road')]:.2%}" in said
    wanted = {name: tiles.SPLITS[i % 3] for i, name in enumerate(names_of(data))}
    files.write_csv(data / "split.csv", ["image", "split"], wanted.items())
    shutil.copy(data / "Images/water/water_00000.jpg", data / "Images/water/water_00001.jpg")
    assert sides(run(data, split={"file": "split.csv"})) == wanted
    said = " ".join(capsys.readouterr().err.split())
    assert "1 of 1 groups of near-duplicates are in more than one split; split.csv puts them there" in said


def test_no_data_says_where_it_belongs(tmp_path: Path) -> None:
    with pytest.raises(prepare.PrepareError, match="dvc pull"):
        run(tmp_path / "data")
