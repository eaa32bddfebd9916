"""Label tables: what is read, what is put right, what is refused."""

import re
from pathlib import Path

import pandas as pd
import pytest

from satclr.data.labels import LabelError, Labels, read


def write(folder: Path, **tables: str | bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for category, content in tables.items():
        raw = content.encode() if isinstance(content, str) else content
        (folder / f"{category}.csv").write_bytes(raw)
    return folder


def targets_of(labels: Labels, tile: str) -> dict[str, int]:
    return dict(zip(labels.names, labels.targets[labels.tiles.index(tile)].tolist(), strict=True))


def test_known_misspellings_are_put_right_and_reported(tmp_path: Path) -> None:
    labels = read(write(tmp_path, bay="image,habor,swimmimg  pool\na.jpg,1,0\n"))
    assert labels.names == ("harbor", "swimming pool")
    assert targets_of(labels, "a.jpg") == {"harbor": 1, "swimming pool": 0}
    assert len(labels.repairs) == 2
    assert any("'habor'" in repair and "'harbor'" in repair for repair in labels.repairs)


def test_a_nameless_column_is_the_one_label_the_table_lacks(tmp_path: Path) -> None:
    labels = read(write(tmp_path, a="image,ice,sea\na.jpg,1,0\n", b="image,sea,  \nb.jpg,0,1\n"))
    assert targets_of(labels, "b.jpg") == {"ice": 1, "sea": 0}
    assert labels.columns["b"] == ("sea", "ice")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("image,ice,sea\na.jpg,1,0\nb.jpg,0,2\n", ["bad.csv, line 3", "'sea'", "'2'"]),
        ("image,ice,sea\na.jpg,1,\n", ["bad.csv, line 2", "'sea'", "''"]),
        ("image,ice,sea\na.jpg,yes,1\n", ["bad.csv, line 2", "'ice'", "'yes'"]),
        ("image,ice,sea\na.jpg,1,0\na.jpg,1,0\n", ["bad.csv, line 3", "'a.jpg'", "line 2"]),
        ("image,ice,sea\ngood.jpg,1,0\n", ["'good.jpg'", "bad.csv, line 2"]),
        ("image,ice\na.jpg,1\n", ["bad.csv", "'sea'", "good.csv"]),
        ("image,ice,sea,fog\na.jpg,1,0,1\n", ["good.csv", "'fog'", "bad.csv"]),
        ("image,ice,sea,\na.jpg,1,0,1\n", ["bad.csv", "nameless"]),
        ("image,,\na.jpg,1,0\n", ["bad.csv", "2 nameless"]),
        ("image,ice,ice\na.jpg,1,0\n", ["bad.csv", "duplicate column", "'ice'"]),
        ("tile,ice,sea\na.jpg,1,0\n", ["bad.csv", "'image'"]),
        ("image,ice,sea\na.jpg,1\n", ["bad.csv, line 2", "2 cells", "3"]),
        ("image,ice,sea\n", ["bad.csv", "no rows"]),
        ("", ["bad.csv", "no rows"]),
        ("image\na.jpg\n", ["bad.csv", "no label column"]),
        ("image,ice,sea\n../a.jpg,1,0\n", ["bad.csv, line 2", "'../a.jpg'"]),
        (b"image,ice,sea\na.jpg,1,\0\n", ["bad.csv", "NUL"]),
        (b"\x89PNG\r\n\x1a\n\x81\x8d", ["bad.csv, line 3", "0x81"]),
        ('image,ice,sea\n"a.jpg,1,0\n', ["bad.csv, line 2", "not CSV"]),
    ],
)
def test_a_table_that_cannot_be_trusted_is_refused(tmp_path: Path, table: str | bytes, said: list[str]) -> None:
    folder = write(tmp_path, bad=table, good="image,ice,sea\ngood.jpg,1,0\n")
    with pytest.raises(LabelError, match=".*".join(map(re.escape, said))):
        read(folder)


def test_a_folder_without_tables_is_refused(tmp_path: Path) -> None:
    for folder, said in (tmp_path / "nowhere", "no such folder"), (write(tmp_path, **{"._fork": ""}), "no label table"):
        with pytest.raises(LabelError, match=said):
            read(folder)


@pytest.mark.parametrize("release", ["release-2020-06-30", "release-2021-05-19"])
def test_mlrsnet(external_data: Path, release: str) -> None:
    folder = external_data / "mlrsnet-labels" / release
    labels = read(folder)
    assert labels.targets.shape == (109_161, 60)
    assert len(set(labels.tiles)) == 109_161
    tables = [pd.read_csv(path).rename(columns=lambda c: c.strip() or "snowberg") for path in folder.glob("*.csv")]
    counts = pd.concat(tables).drop(columns="image").sum()
    counts = counts.rename({"habor": "harbor", "swimmimg pool": "swimming pool"})
    assert dict(zip(labels.names, labels.targets.sum(0).tolist(), strict=True)) == counts.to_dict()
