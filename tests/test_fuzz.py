"""The fuzzers' short forms; `make fuzz` runs the long ones and prints what became of each case."""

import json
from pathlib import Path

import numpy as np
import pytest

from satclr.data import labels, pixels, prepare, tiles

from .conftest import make_run, write_data
from .fuzz import Fuzzer, pictures
from .fuzz.__main__ import FUZZERS


@pytest.mark.parametrize(("name", "fuzzer", "long", "cases", "expected"), FUZZERS)
def test_no_case_breaks_a_promise(
    name: str, fuzzer: Fuzzer, long: int, cases: int, expected: set[str], tmp_path: Path
) -> None:
    outcomes = fuzzer(cases, 0, tmp_path)
    assert outcomes.total() >= cases // 2  # a fuzzer may have fewer cases to try
    assert expected <= set(outcomes)


def test_prepare_stores_every_kind_of_picture_or_names_it(tmp_path: Path) -> None:
    """All kinds at once: the right ones are in the store, the others in the audit with path and reason."""
    sound, bad = pictures.whole(), pictures.refused()
    names = [picture.name for picture in [*sound, *bad]]
    write_data(tmp_path / "data", tiles_per_category=1)
    header = (tmp_path / "data/Labels/road.csv").read_text().splitlines()[0]
    rows = [header, *(f"{name},0,1,0" for name in names)]
    (tmp_path / "data/Labels/road.csv").write_text("\n".join(rows) + "\n")
    for path in (tmp_path / "data/Images/road").iterdir():
        path.unlink()
    for picture in [*sound, *bad]:
        (tmp_path / "data/Images/road" / picture.name).write_bytes(picture.raw)
    (tmp_path / "data/Images/road" / "\udcff.png").write_bytes(sound[0].raw)  # a name that is no text

    asked = make_run(data={"tile_px": pictures.SIDE, "on_unreadable": "drop"}).settings.data
    prepare.write_store(tmp_path / "data", tmp_path / "build", asked)
    store = tiles.open_store(tmp_path / "build")
    assert {name for name in store.names if name in names} == {picture.name for picture in sound}
    for picture in sound:
        for found in (store.pixels[store.names.index(picture.name)], pixels.decode(picture.raw, pictures.SIDE)):
            np.testing.assert_array_equal(found, picture.pixels, err_msg=picture.name)
    assert store.pixels.reshape(len(store.pixels), -1).any(axis=1).all()
    audit = json.loads((tmp_path / "build/audit.json").read_text())
    dropped = {entry["path"]: entry["reason"] for entry in audit["dropped"]}
    for picture in bad:
        assert picture.reason in dropped[f"Images/road/{picture.name}"], (picture.name, dropped)
        with pytest.raises(tiles.TileError, match=picture.reason):
            pixels.decode(picture.raw, pictures.SIDE)


@pytest.mark.parametrize(("rows", "columns"), [(12, 60_000), (300_000, 2)])
def test_a_large_table_is_read_in_seconds(rows: int, columns: int, tmp_path: Path) -> None:
    lines = [f"t{r}.jpg,{','.join('01'[(r + i) % 3 == 0] for i in range(columns))}" for r in range(rows)]
    (tmp_path / "large.csv").write_text("\n".join([",".join(["image", *map(str, range(columns))]), *lines]))
    found = labels.read(tmp_path)
    order = np.array(list(map(int, found.names)))
    np.testing.assert_array_equal(found.targets, (np.arange(rows)[:, None] + order) % 3 == 0)
