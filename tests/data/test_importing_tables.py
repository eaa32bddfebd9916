"""Label tables in the forms that people publish: each is read, or named with the reason it was not."""

import io
import json
import unicodedata
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet
from scipy.io import savemat

from satclr.data import importing, labels
from satclr.data.importing.plan import Plan
from tests.fuzz import ACCEPTED, REFUSED, tables

from .downloads import Files, folder_of, pack, picture

TAGS = {"a_00": ["road", "water"], "a_01": ["water"], "b_00": ["bare soil"], "b_01": ["road", "tree"]}
NAMES = ("bare soil", "road", "tree", "water")
EXPECTED = {name: set(tags) for name, tags in TAGS.items()}


def images(where: str = "Images/{folder}/{name}.jpg", names: Any = tuple(TAGS)) -> Files:
    rng = np.random.default_rng(0)
    return {where.format(folder=name[0], name=name): picture("JPEG", rng) for name in names}


def labels_of(plan: Plan) -> dict[str, set[str]]:
    """The labels of each tile, by its name without suffix."""
    rows = (row for _, table in plan.tables.values() for row in table)
    return {name.rpartition(".")[0]: set(present) for name, present in rows}


def look(tmp_path: Path, files: Files, **options: Any) -> Plan:
    return importing.look(folder_of(tmp_path / "set", files), **options)


def hot(one: str = "1", zero: str = "0", suffix: str = ".jpg") -> str:
    rows = [[name + suffix, *(one if n in tags else zero for n in NAMES)] for name, tags in TAGS.items()]
    return "".join(",".join(row) + "\n" for row in [["image", *NAMES], *rows])


def tagged(separator: str) -> str:
    return "image_name;tags\n" + "".join(f'{name};"{separator.join(tags)}"\n' for name, tags in TAGS.items())


def book() -> bytes:
    workbook, buffer = openpyxl.Workbook(), io.BytesIO()
    workbook.worksheets[0].append(["About this data set"])
    sheet = workbook.create_sheet("labels")
    for row in (["Labels of all tiles"], ["image", *NAMES]):
        sheet.append(row)
    for name, tags in TAGS.items():
        sheet.append([f"{name}.jpg", *(label in tags for label in NAMES)])
    workbook.save(buffer)
    return buffer.getvalue()


def mat(**variables: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, variables)
    return buffer.getvalue()


def cells(names: Any) -> Any:
    return np.array([*names, None], dtype=object)[:-1]


MATRIX = np.array([[int(n in tags) for n in NAMES] for tags in TAGS.values()])
RECORDS = [{"file_name": f"{name}.jpg", "labels": tags} for name, tags in TAGS.items()]
COCO = {
    "images": [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate(TAGS)],
    "categories": [{"id": k, "name": name} for k, name in enumerate(NAMES)],
    "annotations": [
        {"image_id": i, "category_id": NAMES.index(t)} for i, tags in enumerate(TAGS.values()) for t in [*tags, *tags]
    ],
}
FORMS: dict[str, tuple[str, str | bytes]] = {
    "0/1": ("labels.csv", hot()),
    "True/False": ("LABELS.CSV", hot("True", "False")),
    "yes/no": ("labels.tsv", hot("Yes", "no").replace(",", "\t")),
    "1.0": ("labels.txt", hot("1.0", "0.0")),
    "marks": ("labels.csv", hot("x", "")),
    "signed": ("labels.csv", hot("1", "-1")),
    "counts": ("labels.csv", hot("3", "0")),
    "spaces between": ("labels.txt", hot().replace("bare soil", "bare_soil").replace(",", " ")),
    "other suffix": ("labels.csv", hot(suffix=".TIF")),
    "letter case, paths": ("labels.csv", hot().replace("a_", "C:\\data\\A\\A_").replace("b_", "/scans/me/B_")),
    "index and position": ("labels.csv", "".join(
        f"{i - 1 if i else ''},{'lon' if i == 0 else 7.5 + i},{line}\n" for i, line in enumerate(hot().splitlines())
    )),
    "tags by commas": ("labels.csv", tagged(", ")),
    "tags by |": ("labels.csv", tagged("|")),
    "tags by ;": ("labels.csv", tagged("; ")),
    "tags as list": ("labels.csv", "image;tags\n" + "".join(f"{n};{t}\n" for n, t in TAGS.items())),
    "tags as NumPy list": ("x.csv", "image;tags\n" + "".join(f"{n};{np.array(t)}\n" for n, t in TAGS.items())),
    "tags without quotes": ("x.csv", "image,labels\n" + "".join(f"{n},{','.join(t)}\n" for n, t in TAGS.items())),
    "tags without header": ("x.txt", "".join(f"{n}, {', '.join(t)}\n" for n, t in TAGS.items())),
    "a row per label": ("x.csv", "image,label\n" + "".join(f"{n},{t}\n" for n, tags in TAGS.items() for t in tags)),
    "xlsx, second sheet": ("Labels.XLSX", book()),
    "xlsm": ("labels.xlsm", book()),
    "records": ("labels.json", json.dumps(RECORDS)),
    "lines of records": ("metadata.jsonl", "\n".join(map(json.dumps, RECORDS))),
    "object of lists": ("labels.json", json.dumps({f"{n}.jpg": t for n, t in TAGS.items()})),
    "object of shares": ("labels.json", json.dumps({f"{n}.jpg": [[x, 0.4] for x in t] for n, t in TAGS.items()})),
    "object of objects": ("labels.json", json.dumps({n: {x: x in t for x in NAMES} for n, t in TAGS.items()})),
    "columns": ("labels.json", json.dumps({k: {str(i): r[k] for i, r in enumerate(RECORDS)} for k in RECORDS[0]})),
    "columns and rows": ("x.json", json.dumps({"columns": ["file", "tags"], "data": [*TAGS.items()]})),
    "pairs": ("labels.json", json.dumps([*TAGS.items()])),
    "records within": ("labels.json", json.dumps({"version": 2, "tiles": RECORDS})),
    "object of named objects": ("x.json", json.dumps({n: [{"name": x} for x in t] for n, t in TAGS.items()})),
    "COCO": ("_annotations.coco.json", json.dumps(COCO)),
    "mat": ("labels.mat", mat(files=cells(TAGS), classes=cells(NAMES), labels=MATRIX)),
    "mat of tags": ("labels.mat", mat(files=cells(TAGS), tags=cells(map("; ".join, TAGS.values())))),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_table_gives_its_labels(tmp_path: Path, form: str) -> None:
    name, content = FORMS[form]
    raw = content.encode() if isinstance(content, str) else content
    plan = look(tmp_path, images() | {"README.txt": b"Tiles, labelled by hand.\nSee the table.\n", name: raw})
    found = {tile: {label.replace("_", " ") for label in own} for tile, own in labels_of(plan).items()}
    assert found == EXPECTED
    assert len(plan.read) == 1
    assert name in plan.read[0]


def test_no_damage_to_a_table_ends_in_a_traceback_or_in_folders_as_labels(tmp_path: Path) -> None:
    forms = {name: text.encode() if isinstance(text, str) else text for name, text in FORMS.values()}
    del forms["labels.mat"]  # read by a process of its own: slow
    outcomes = tables.run_import(200, 0, tmp_path / "set", forms=forms, images=images())
    assert set(outcomes) == {ACCEPTED, REFUSED}


def test_a_parquet_table_is_read(tmp_path: Path) -> None:
    folder_of(tmp_path / "set", images())
    parquet.write_table(pa.Table.from_pylist(RECORDS), tmp_path / "set" / "train.parquet")
    assert labels_of(importing.look(tmp_path / "set")) == EXPECTED


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("labels.csv", b'image,a,b\n"a_00.jpg,1,0\nb_00.jpg,0,1\n', "not CSV"),
        ("labels.xlsx", b"PK no", "not a readable spreadsheet"),
        ("labels.json", b'{"a_00.jpg": ', "line 1 column"),
        ("labels.json", b'{"a_00": [0, 1], "a_01": [1, 1], "b_00": [0, 0]}', "without the labels' names"),
        ("class_index.json", b'{"a": 0, "b": 1}', "is no image"),
        ("labels.mat", b"MATLAB 7.3 MAT-file", ""),
        ("labels.xls", b"\xd0\xcf\x11\xe0", "save it as .xlsx"),
        ("labels.csv", b"image,a,b\ntile-1,1,0\ntile-2,0,1\n", "'tile-1' is no image"),
        ("labels.csv", b"a_00.jpg,1,0\na_01.jpg,0,1\n", "not a header"),
        ("labels.csv", b"image,lat,lon\na_00.jpg,1.5,2.5\na_01.jpg,4.5,1.5\n", "no column of labels"),
        ("labels.txt", b"image a b\na_00.jpg 1 0\na_01.jpg 1\n", ""),
    ],
)
def test_a_file_that_may_be_a_table_is_named_and_folders_must_be_asked_for(
    tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    files = images() | {name: content}
    with pytest.raises(importing.SourceError, match=f"{name}.*{said}.*--labels-from folders"):
        look(tmp_path, files)
    assert labels_of(look(tmp_path, files, labels_from="folders"))["a_00"] == {"a"}
    assert labels_of(look(tmp_path, images() | {"table.csv": hot().encode()} | files)) == EXPECTED


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("a_01.jpg,0", "a_01.jpg,7", "labels.csv, line 3, column 'bare soil': '7'"),
        ("a_01.jpg,0", "a_01.jpg,", "labels.csv, line 3, column 'bare soil': ''"),
        ("a_01.jpg", "a_00.jpg", "labels.csv, line 3: duplicate row for 'a_00.jpg'"),
        ("road", "image", "'image'"),
        ("road", "a|b", "a|b"),
    ],
)
def test_a_mistake_is_named_by_the_users_file(tmp_path: Path, old: str, new: str, said: str) -> None:
    source = pack(tmp_path / "set.zip", images() | {"x/labels.csv": hot().replace(old, new, 1).encode()})
    with pytest.raises(importing.SourceError) as caught:
        importing.run(source, tmp_path / "data" / "mine")
    assert said in str(caught.value)
    assert "x/labels.csv" in str(caught.value)
    assert "unpacked" not in str(caught.value)


def test_names_meet_in_any_unicode_form(tmp_path: Path) -> None:
    files = images("Images/K\u00fcste/{name}.jpg", ["K\u00fcste_0", "K\u00fcste_1"])
    files = {unicodedata.normalize("NFD", name): data for name, data in files.items()}
    files["labels.csv"] = "image,sea\nK\u00fcste_0.jpg,1\nK\u00fcste_1.jpg,0\n".encode()
    importing.run(folder_of(tmp_path / "set", files), tmp_path / "mine")
    read = labels.read(tmp_path / "mine" / "Labels")
    assert read.tiles == ["K\u00fcste_0.jpg", "K\u00fcste_1.jpg"]
    assert (tmp_path / "mine" / "Images" / "K\u00fcste" / "K\u00fcste_0.jpg").is_file()


def test_leading_zeros_are_kept_and_numbers_find_them(tmp_path: Path) -> None:
    files = images("Images/{name}.jpg", ["0007", "0008", "0010"])
    for rows in (b"0007,1\n0008,0\n0010,1\n", b"7,1\n8,0\n10,1\n"):
        plan = look(tmp_path, files | {"labels.csv": b"id,sea\n" + rows})
        assert labels_of(plan) == {"0007": {"sea"}, "0008": set(), "0010": {"sea"}}


@pytest.mark.parametrize("suffix", ["csv", "txt", "json"])
def test_labels_may_be_one_file(tmp_path: Path, suffix: str) -> None:
    text = json.dumps(RECORDS) if suffix == "json" else hot()
    (tmp_path / f"table.{suffix}").write_text(text)
    assert labels_of(look(tmp_path, images(), labels_source=tmp_path / f"table.{suffix}")) == EXPECTED


def test_same_names_in_split_folders_belong_to_their_own_tables(tmp_path: Path) -> None:
    files: Files = {}
    for k, split in enumerate(("train", "valid", "test")):  # as Roboflow exports them
        files |= images(f"{split}/{{name}}.jpg", ["0", "1"])
        files[f"{split}/_classes.csv"] = f"filename, road, sea\n0.jpg, 1, {k % 2}\n1.jpg, 0, 1\n".encode()
    files["README.roboflow.txt"] = b"Exported, with 6 images\n"
    plan = look(tmp_path, files)
    assert labels_of(plan)["train_0"] == {"road"}
    assert labels_of(plan)["val_0"] == {"road", "sea"}
    assert plan.split is not None
    assert plan.split["val_1.jpg"] == "val"
    table = "split,image,sea\n" + "".join(f"{s},{i}.jpg,{int(s == 'test')}\n" for s in ("train", "test") for i in "01")
    files = {name: data for name, data in files.items() if name.endswith(".jpg") and "valid" not in name}
    plan = look(tmp_path / "one", files | {"labels.csv": table.encode()})
    assert labels_of(plan) == {"train_0": set(), "train_1": set(), "test_0": {"sea"}, "test_1": {"sea"}}


def test_a_column_or_a_tables_name_is_the_split(tmp_path: Path) -> None:
    lines = hot().splitlines()
    words = ("split", "Train", "validation", "test", "training")
    text = "\n".join(f"{line},{word}" for line, word in zip(lines, words, strict=True))
    assert (look(tmp_path, images() | {"labels.csv": text.encode()}).split or {}) == {
        "a_00.jpg": "train", "a_01.jpg": "val", "b_00.jpg": "test", "b_01.jpg": "train",
    }  # fmt: skip
    parts = {f"{s}.csv": "\n".join([lines[0], *lines[i : i + 2]]).encode() for s, i in (("train", 1), ("test", 3))}
    assert list((look(tmp_path / "b", images() | parts).split or {}).values()).count("test") == 2
    odd = text.replace("validation", "perhaps")
    with pytest.raises(importing.SourceError, match=r"labels.csv, line 3, column 'split': 'perhaps'"):
        look(tmp_path / "c", images() | {"labels.csv": odd.encode()})


def test_an_import_stops_where_most_have_no_partner(tmp_path: Path) -> None:
    text = "image,sea\na_00.jpg,1\n" + "".join(f"other-{i}.jpg,0\n" for i in range(3))
    files = images() | {"labels.csv": text.encode()}
    with pytest.raises(importing.SourceError, match=r"3 of 4 rows.*other-0.*3 of 4 images.*suffix.*case.*folders"):
        look(tmp_path, files)
    assert labels_of(look(tmp_path, files, labels_from="tables")) == {"a_00": {"sea"}}


def test_planets_tags_label_the_training_images(tmp_path: Path) -> None:
    files = images("train-jpg/{name}.jpg", [f"train_{i}" for i in range(4)])
    files |= images("test-jpg/{name}.jpg", [f"test_{i}" for i in range(6)])
    rows = ["image_name,tags", "train_0,haze primary", "train_1,agriculture clear primary water", "train_2,cloudy"]
    files["train_v2.csv"] = "\n".join([*rows, "train_3,clear primary"]).encode()
    files["sample_submission_v2.csv"] = b"image_name,tags\ntest_0,primary\ntest_1,primary\n"
    plan = look(tmp_path, files)
    assert labels_of(plan)["train_1"] == {"agriculture", "clear", "primary", "water"}
    assert len(plan.tiles) == 4
    assert any("sample_submission" in note for note in plan.notes)


def test_treesatais_labels_with_shares_and_lists_of_files(tmp_path: Path) -> None:
    names = [f"{genus}_{i}_WEFL_NLF" for genus in ("Abies_alba", "Larix_decidua") for i in range(2)]
    files = images("aerial_60m/{name}.tif", names)
    shares = {f"{name}.tif": [["Abies", 0.9], ["Larix", 0.1]][: 1 + i % 2] for i, name in enumerate(names)}
    files["labels/TreeSatBA_v9_60m_multi_labels.json"] = json.dumps(shares).encode()
    for split, listed in (("train", names[:3]), ("test", names[3:])):
        files[f"{split}_filenames.lst"] = "".join(f"{name}.tif\n" for name in listed).encode()
    plan = look(tmp_path, files)
    assert labels_of(plan)[names[0]] == {"Abies"}
    assert labels_of(plan)[names[1]] == {"Abies", "Larix"}
    assert [which for _, which in sorted((plan.split or {}).items())] == ["train"] * 3 + ["test"]


def test_a_dry_run_shows_the_plan_and_a_person_may_stop(tmp_path: Path) -> None:
    source = pack(tmp_path / "set.zip", images() | {"labels.csv": hot().replace("b_01", "c_01").encode()})
    before = sorted(tmp_path.rglob("*"))
    text = str(importing.look(source))
    for part in ("labels.csv: images in column 'image', 4 label columns", "a_00.jpg ← Images/a/a_00.jpg: road, water"):
        assert part in text
    assert "images without row: 1, such as Images/b/b_01.jpg" in text
    no = Mock(return_value=False)
    with pytest.raises(importing.SourceError, match="nothing was imported"):
        importing.run(source, tmp_path / "mine", confirm=no)
    no.assert_called_once_with(text)
    assert sorted(tmp_path.rglob("*")) == before
    assert importing.run(source, tmp_path / "mine", confirm=lambda _: True).read == importing.look(source).read
