import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.support import ui as support

from satclr.data import tiles
from satclr.files import FileError
from satclr.project import Project, ProjectError
from satclr.study import compare
from satclr.study import report as reporting
from satclr.study.results import Results


@pytest.fixture(scope="module")
def written(measured: Path) -> Path:
    return reporting.run(Project(measured))


@pytest.fixture
def store(measured: Path) -> tiles.TileStore:
    return tiles.open_store(measured / "build/tiny")


def test_the_page_is_one_file_that_loads_nothing(written: Path, measured: Path) -> None:
    html = written.read_text()
    assert len(html) < 15e6
    figures = {path: path.read_bytes() for path in (written.parent / "figures").iterdir()}
    names = {"ladder", "train_loss", "pretrain_loss", "differences", "robustness", "prevalence"}
    assert names < {path.stem for path in figures}
    assert all(png.startswith(b"\x89PNG") for png in figures.values())
    assert html == reporting.run(Project(measured)).read_text()
    assert figures == {path: path.read_bytes() for path in figures}
    own = html.replace(max(re.findall(r"<script>(.*?)</script>", html, re.DOTALL), key=len), "")  # without Plotly
    assert not re.search(r"""\s(src|href)=["'](?!data:|#)""", own)
    assert not re.search(r"@import|url\((?!\$\{sheet|#)", own)


def test_the_page_shows_the_numbers_of_compare(written: Path, measured: Path, store: tiles.TileStore) -> None:
    report = json.loads((measured / "reports/tiny/compare.json").read_text())
    share = store.targets[store.rows("val")].mean(0)[store.labels.index("airplane")]
    unlabelled = "7,654 unlabelled tiles for pretraining, 32 of them near-duplicates of validation or test tiles"
    texts = {store.digest, unlabelled, "<h3>Leakage</h3>", "<td>4 of 40</td>", f"<td>{share:.2%}</td>"}
    texts |= {f"{entry['test_mAP']:.4f}" for entry in report["arms"].values()}
    texts |= {f"{entry['seeds']['0']['test_knn_mAP']:.4f}" for entry in report["arms"].values()}
    texts.add(f"{report['contrasts'][0]['delta_mAP']:+.4f}")
    html = written.read_text()
    assert [text for text in texts if text not in html] == []


def test_mistakes_are_the_highest_without_and_the_lowest_with_the_label(measured: Path, store: tiles.TileStore) -> None:
    results = Results(Project(measured).run("simclr"))
    test = results.scores("test")
    hardest = reporting.hardest(results, store)
    assert [float(row["AP"]) for row in hardest] == sorted(float(row["AP"]) for row in hardest)
    for row in hardest:
        k = store.labels.index(row["label"])
        for examples, has, sign in ((row["wrong"], 0, -1), (row["missed"], 1, 1)):
            rows = np.flatnonzero(test.targets[:, k] == has)
            expected = rows[np.argsort(sign * test.scores[rows, k], kind="stable")][: reporting.EXAMPLES]
            assert [e["score"] for e in examples] == pytest.approx(test.scores[expected, k])
            assert all(test.targets[test.tiles.index(e["tile"]), k] == has for e in examples)


def test_the_corrupted_tile_is_one_the_audit_trusts(store: tiles.TileStore) -> None:
    first, *flagged = store.rows("test")
    rows = reporting.corrupted({"haze": {"1": 0.5, "3": 0.4}}, store, flagged=[store.names[row] for row in flagged])
    assert rows[0] == {"name": "untouched", "pictures": [reporting.uri(store.pixels[first])]}
    assert [(row["name"], len(row["pictures"])) for row in rows[1:]] == [("haze", 2)]


@pytest.mark.parametrize(("interval", "verdict"), [([1, 2], "yes"), ([-2, -1], "no"), ([-1, 1], "open")])
def test_the_verdict_is_the_intervals(interval: list[float], verdict: str) -> None:
    arms = {"baseline": {"val_mAP": 0.9}, "a": {"val_mAP": 0.3}, "b": {"val_mAP": 0.4}}
    pairs = [("a", "baseline", [5, 6]), ("b", "baseline", interval), ("b", "a", [5, 6])]
    contrasts = [{"arm": arm, "against": against, "ci95": ci95} for arm, against, ci95 in pairs]
    answer = compare.answer({"arms": arms, "contrasts": contrasts})
    assert (answer["verdict"], answer["arm"]) == (verdict, "b")


def test_what_does_not_fit_is_named(measured: Path, tmp_path: Path) -> None:
    shutil.copytree(measured, tmp_path / "copy")
    path = tmp_path / "copy/reports/tiny/compare.json"
    tree = json.loads(path.read_text())
    tree["arms"]["other"] = tree["arms"].pop("baseline")
    path.write_text(json.dumps(tree))
    with pytest.raises(FileError, match="run `satclr compare` again"):
        reporting.run(Project(tmp_path / "copy"))
    path.unlink()
    with pytest.raises(ProjectError, match=r"compare\.json does not exist"):
        reporting.run(Project(tmp_path / "copy"))
    shutil.copy(measured / "reports/tiny/compare.json", path)
    (tmp_path / "copy/build/tiny/audit.json").write_text('{"tiles": 3}')
    with pytest.raises(FileError, match=r"audit\.json is of a `satclr prepare` that did not finish"):
        reporting.run(Project(tmp_path / "copy"))


def opened(browser: Any, path: Path, *, width_px: int = 1280, scheme: str = "light") -> None:
    """Open the page on a screen of this width, without a network, and wait until its maps are drawn."""
    size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": width_px < 500}
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    browser.get(path.as_uri())
    ready = "return document.documentElement.dataset.ready == 'yes'"
    support.WebDriverWait(browser, 60, 0.05).until(lambda _: browser.execute_script(ready))


@pytest.mark.parametrize(("width_px", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_browser_shows_the_page_and_prints_it(written: Path, browser: Any, width_px: int, scheme: str) -> None:
    opened(browser, written, width_px=width_px, scheme=scheme)
    assert browser.get_log("browser") == []
    charts = "[...document.querySelectorAll('.chart')].map(e => e.querySelector('svg').clientWidth)"
    drawn = browser.execute_script(f"return {charts}")
    assert (len(drawn), min(drawn) > 0) == (14, True)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width_px
    look = f"""
    const text = getComputedStyle(document.querySelector(".chart svg text")).fill;
    return [getComputedStyle(document.body).backgroundColor, text, Math.max(...{charts}) <= 700];
    """
    screen = {"light": ["rgb(255, 255, 255)", "rgb(27, 31, 36)"], "dark": ["rgb(20, 23, 27)", "rgb(232, 234, 237)"]}
    assert browser.execute_script(look)[:2] == screen[scheme]
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert browser.execute_script(look) == ["rgb(255, 255, 255)", "rgb(0, 0, 0)", True]
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    assert browser.execute_script(look)[:2] == screen[scheme]


def test_pointing_at_a_map_shows_the_tile(written: Path, measured: Path, store: tiles.TileStore, browser: Any) -> None:
    opened(browser, written)
    text, height, background = browser.execute_script("""
        const map = document.querySelector("[data-arm]");
        map.emit("plotly_hover", { points: [{ pointNumber: 2 }], event: { clientX: 40, clientY: 40 } });
        const tip = document.getElementById("tip");
        return [tip.textContent, tip.offsetHeight, getComputedStyle(tip.firstChild).backgroundImage];
    """)
    shown = json.loads((measured / "results/tiny/simclr-s0/maps.json").read_text())["tiles"]
    rows = [store.names.index(name) for name in shown]
    labels = np.compress(store.targets[rows[2]], store.labels)
    assert text == f"{shown[2]}: {', '.join(labels) or 'no label'}"
    assert height > 88
    assert background.startswith('url("data:image/jpeg')
    colours = "return [...new Set(document.querySelector('[data-arm]').data[0].marker.color)].length"
    assert browser.execute_script(colours) == len({store.categories[row] for row in rows})
    choose = "const s = document.getElementById('colour'); s.value = 'label 1'; s.dispatchEvent(new Event('change'))"
    browser.execute_script(choose)
    assert browser.execute_script(colours) == len(set(store.targets[rows, 1].tolist()))
