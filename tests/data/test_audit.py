"""The audit finds what is planted, on real releases and on made-up sets, and little else."""

import io
import json
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import openpyxl
import pytest
from rich.console import Console

from satclr import files
from satclr.data.audit import Audit, audit, render
from satclr.data.checks import Finding, longest_runs, namesake
from satclr.data.labels import read

FIRST, SECOND = "mlrsnet-labels/release-2020-06-30", "mlrsnet-labels/release-2021-05-19"


def of_kind(report: Audit, kind: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.kind == kind]


def audited(folder: Path, images: Path | None = None) -> Audit:
    start = time.process_time()  # of this process: other ones may keep the processor busy
    report = audit(folder, images=images)
    assert time.process_time() - start < 20
    return report


def flagged(report: Audit) -> npt.NDArray[np.bool_]:
    return np.isin(np.arange(len(report.labels.tiles)), list(report.flagged))


def test_the_2021_release_is_recognised_and_its_damage_found(external_data: Path) -> None:
    first, report = read(external_data / FIRST), audited(external_data / SECOND)
    labels, dropped = report.labels, flagged(report)
    assert labels.tiles == first.tiles
    corrupt = (labels.targets != first.targets).any(1)
    over = labels.targets.sum(1) > 13
    assert (corrupt.sum(), over.sum()) == (10_300, 3_471)
    assert dropped[over].mean() >= 0.99
    assert dropped[corrupt].mean() >= 0.99
    assert dropped[~corrupt].mean() <= 0.01
    (lost,) = of_kind(report, "lost-label")
    assert {labels.categories[row] for row in lost.rows} == {"stadium", "storage_tank"}
    worst = report.findings[0]
    assert worst.title == "MLRSNet, release of 2021-05-19 (commit 54457eb): 10,300 rows are corrupt"
    assert "cd5ca1c" in worst.advice


def test_the_damage_shows_without_knowing_the_data_set(external_data: Path, tmp_path: Path) -> None:
    """Under other label names nothing packaged applies; the spreadsheet's traces remain."""
    for path in (external_data / SECOND).glob("*.csv"):
        header, _, rest = path.read_text().partition("\n")
        (tmp_path / path.name).write_text(header.replace("gully", "ravine") + "\n" + rest)
    report = audited(tmp_path)
    assert report.known is None
    assert flagged(report)[report.labels.targets.sum(1) > 13].mean() >= 0.99
    told = [line for finding in of_kind(report, "lost-label") for line in finding.details]
    assert any("stadium" in line for line in told)
    assert any("'tanks'" in line for line in told)
    assert len(told) <= 3


def test_the_first_release_is_left_alone(external_data: Path) -> None:
    report = audited(external_data / FIRST)
    assert len(report.flagged) <= 0.01 * len(report.labels.tiles)
    empty = set(np.flatnonzero(report.labels.targets.sum(1) == 0))
    assert len(empty) == 10
    assert empty <= report.flagged.keys()
    assert not [finding for finding in report.findings if finding.level == "error"]
    (release,) = of_kind(report, "known-release")
    assert "2020-06-30" in release.title
    beyond = of_kind(report, "undocumented-label")  # what the authors' own document omits
    assert not any(finding.flagged for finding in beyond)
    assert sum(len(finding.rows) for finding in beyond) == 965


def test_a_mixture_of_releases_is_recognised(external_data: Path, tmp_path: Path) -> None:
    for path in (external_data / FIRST).glob("*.csv"):
        release = SECOND if path.name == "stadium.csv" else FIRST
        # Line ends and byte order marks do not change a digest.
        content = (external_data / release / path.name).read_text().replace("\r\n", "\n")
        (tmp_path / path.name).write_text(content, encoding="utf-8-sig", newline="\r\n")
    (finding,) = of_kind(audited(tmp_path), "known-release")
    assert (finding.level, finding.details) == ("error", ("stadium: 2,462 corrupt rows",))
    assert "1 of 46 tables" in finding.title


def test_ucmerced_has_nothing_to_drop(external_data: Path) -> None:
    folder = external_data / "ucmerced"
    report = audited(folder / "Labels", folder / "Images")
    assert report.known is not None
    assert not report.flagged
    assert {finding.level for finding in report.findings} <= {"notice"}


NAMES = [f"{letter}{i}" for letter in "abcdef" for i in range(5)] + ["pier", "orchards", "kiosk"]
CATEGORIES = ("pier", "orchard", "car_kiosk", "plain")
TILES = 150


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    """A sound data set: each label on a tenth of the tiles, a category's own label on all of its tiles."""
    rng = np.random.default_rng()
    for category in CATEGORIES:
        rows = []
        for i in range(TILES):
            ones = {*rng.choice(NAMES[:30], size=3, replace=False), namesake(category, NAMES)[0]}
            rows.append([f"{category}_{i}.jpg", *(int(name in ones) for name in NAMES)])
        files.write_csv(tmp_path / "Labels" / f"{category}.csv", ["image", *NAMES], rows)
        (tmp_path / "Images" / category).mkdir(parents=True)
        for row in rows:
            (tmp_path / "Images" / category / str(row[0])).touch()
    return tmp_path


def change(folder: Path, category: str, tiles: range, **cells: int) -> set[str]:
    """Set the named cells of some tiles; returns their names."""
    path = folder / "Labels" / f"{category}.csv"
    rows = files.read_csv(path)
    for i in tiles:
        rows[i] |= {name: str(value) for name, value in cells.items()}
    files.write_csv(path, list(rows[0]), [list(row.values()) for row in rows])
    return {rows[i]["image"] for i in tiles}


def found(folder: Path, kind: str) -> tuple[Finding, set[str]]:
    """The one finding of a kind, and its tiles."""
    report = audited(folder / "Labels", folder / "Images")
    (finding,) = of_kind(report, kind)
    return finding, {report.labels.tiles[row] for row in finding.rows}


def test_a_sound_set_has_no_findings_beyond_chance(sound: Path) -> None:
    report = audited(sound / "Labels", sound / "Images")
    assert {finding.kind for finding in report.findings} <= {"run-of-ones", "rare-label"}


def test_faults_of_every_kind_planted_together_are_all_found_and_reported_worst_first(sound: Path) -> None:
    for category in CATEGORIES:
        change(sound, category, range(TILES), f1=0, f2=0, f3=0, f4=0)
        change(sound, category, range(100, 130), f1=1, f2=1)
    change(sound, "pier", range(60, 64), f3=1)
    planted = {
        "run-of-ones": change(sound, "plain", range(10, 30), **dict.fromkeys(NAMES[3:22], 1)),
        "no-label": change(sound, "plain", range(40, 44), **dict.fromkeys(NAMES, 0)),
        "lost-label": change(sound, "orchard", range(TILES), orchards=0),
        "missing-namesake": change(sound, "pier", range(7, 8), pier=0),
        "undocumented-label": change(sound, "plain", range(50, 62), orchards=1),
        "row-without-image": {"pier_9.jpg"},
    }
    planted["too-many-labels"] = planted["run-of-ones"]
    (sound / "Images" / "pier" / "pier_9.jpg").rename(sound / "Images" / "pier" / "pier_1000.jpg")
    table = sound / "Labels" / "car_kiosk.csv"
    table.write_text(table.read_text().replace(",f0,", ",,", 1))
    allowed = [[category, *NAMES[:30], namesake(category, NAMES)[0] or ""] for category in CATEGORIES]
    (sound / "category_labels.csv").write_text("\n".join(map(",".join, allowed)))
    report = audited(sound / "Labels", sound / "Images")
    for kind, tiles in planted.items():
        (finding,) = of_kind(report, kind)
        assert tiles <= {report.labels.tiles[row] for row in finding.rows}, kind
        assert finding.flagged, kind
    details = {f.kind: f.details for f in report.findings}
    assert details["unused-label"] == ("f4",)
    assert details["rare-label"] == ("f3",)
    assert details["identical-labels"] == ("f1 = f2",)
    assert details["repaired-header"] == ("car_kiosk.csv: the nameless column is read as 'f0'",)
    assert of_kind(report, "image-without-row")[0].examples == ("pier/pier_1000.jpg",)
    assert len(report.flagged) <= len(set.union(*planted.values())) + 0.02 * len(report.labels.tiles)
    levels = [finding.level for finding in report.findings]
    assert levels == sorted(levels, key=("error", "suspect", "notice").index)
    raw = json.loads(json.dumps(report.to_dict()))
    assert sum(raw["labels_per_tile"]["histogram"].values()) == raw["tiles"] == TILES * len(CATEGORIES)
    console = Console(width=120, file=io.StringIO())
    with console.capture() as captured:
        console.print(render(report))
    text = captured.get()
    assert all(finding.title.split(":")[0] in text for finding in report.findings)
    assert text.index("is lost") < text.index("No label at all") < text.index("On no tile")


@pytest.mark.parametrize(
    ("category", "label", "gone", "kind", "level"),
    [
        ("orchard", "orchards", TILES, "lost-label", "error"),
        ("car_kiosk", "kiosk", TILES, "lost-label", "suspect"),
        ("pier", "pier", 1, "missing-namesake", "suspect"),
        ("pier", "pier", 70, "missing-namesake", "notice"),
    ],
)
def test_a_lost_label_is_found(sound: Path, category: str, label: str, gone: int, kind: str, level: str) -> None:
    change(sound, "plain", range(20), **{label: 1})
    lacking = change(sound, category, range(gone), **{label: 0})
    finding, tiles = found(sound, kind)
    assert (finding.level, tiles) == (level, lacking)


DOCUMENT = {"PIER": [*NAMES[:30], "pier"], "wide plain": NAMES[:30]}
FORMS: dict[str, list[list[str]]] = {
    "long.csv": [["category", "label"], *([c, name] for c, names in DOCUMENT.items() for name in names)],
    "wide.csv": [[category, *names] for category, names in DOCUMENT.items()],
    "commas.xlsx": [[category, ", ".join(names)] for category, names in DOCUMENT.items()],
    "mlrsnet.xlsx": [  # two lines of heading; number, category, labels, of differing count
        ["The labels of each category"],
        ["No.", "Category", "Labels"],
        *([str(i), f"{c} ", *(f" {n}" for n in names)] for i, (c, names) in enumerate(DOCUMENT.items())),
    ],
}


@pytest.mark.parametrize("form", FORMS)
def test_labels_outside_the_data_sets_own_document_are_found(sound: Path, form: str) -> None:
    (sound / "Labels" / "plain.csv").rename(sound / "Labels" / "wide_plain.csv")
    strange = change(sound, "pier", range(7), kiosk=1)
    if form.endswith(".csv"):
        (sound / "category_labels.csv").write_text("\n".join(map(",".join, FORMS[form])))
    else:
        book = openpyxl.Workbook()
        for category in ("Categories", "pier", "plain"):  # a first sheet of categories, some of them labels too
            book.worksheets[0].append([None, category])
        sheet = book.create_sheet()
        for row in FORMS[form]:
            sheet.append([cell or None for cell in row])
        book.save(sound / "Categories_names.xlsx")
    finding, tiles = found(sound, "undocumented-label")
    assert tiles == strange
    assert finding.flagged
    assert finding.details == ("pier: 'kiosk' on 7 tiles",)


def test_a_document_about_other_labels_flags_nothing(sound: Path) -> None:
    (sound / "category_labels.csv").write_text("\n".join(f"{category},a0" for category in CATEGORIES))
    finding, _ = found(sound, "undocumented-label")
    assert "does not fit" in finding.title
    assert not finding.flagged


def test_runs_are_those_of_a_slow_search(sound: Path) -> None:
    labels = read(sound / "Labels")
    length, last = longest_runs(labels)
    for row, category in enumerate(labels.categories):
        ones = [labels.targets[row, labels.names.index(name)] for name in labels.columns[category]]
        text = "".join(map(str, ones))
        assert length[row] == max(map(len, text.split("0")))
        assert set(text[last[row] + 1 - length[row] : last[row] + 1]) <= {"1"}


@pytest.mark.parametrize(
    ("category", "label", "certain"),
    [
        ("parking_lot", "parking lot", True),
        ("storage_tank", "tanks", False),
        ("mobilehomepark", "mobile-home", False),
        ("Ships", "ship", True),
        ("meadow", None, False),
        ("shipping_yard", None, False),
        ("parking_lot_tank", None, False),
    ],
)
def test_the_label_a_category_is_named_after(category: str, label: str | None, *, certain: bool) -> None:
    names = ("mobile-home", "parking lot", "ship", "tanks")
    assert namesake(category, names) == (label, certain)
