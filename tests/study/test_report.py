from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from satclr.study import report
from satclr.data import tiles
from satclr.study.report import pictures, sections

from .measured import PALETTE, arms


def write(root: Path, store: tiles.TileStore) -> Path:
    return report.run(
        root / "results" / "tiny",
        root / "reports" / "tiny",
        store,
        arms=[[arm] for arm in arms()],
        palette=PALETTE,
        commit="c0ffee",
    )


def test_the_page_is_one_file_that_asks_nothing_of_the_network(measured: Path, store: tiles.TileStore) -> None:
    html = write(measured, store).read_text()
    assert len(html) < 15e6
    own = html.replace(
        max(re.findall(r"<script>(.*?)</script>", html, re.DOTALL), key=len), ""
    )  # without Plotly
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", own)
    assert not re.search(r"@import|url\((?!\$\{sheet)", own)


def test_the_page_shows_the_numbers_of_compare(measured: Path, store: tiles.TileStore) -> None:
    html = write(measured, store).read_text()
    found = json.loads((measured / "reports" / "tiny" / "compare.json").read_text())
    for entry in found["arms"].values():
        assert f"{entry['test_mAP']:.4f}" in html
        assert f"{entry['seeds']['0']['test_knn_mAP']:.4f}" in html
    assert f"{found['contrasts'][0]['delta_mAP']:+.4f}" in html
    assert "c0ffee" in html
    assert store.digest in html


def test_the_page_shows_leakage_and_the_prevalence_of_labels(measured: Path, store: tiles.TileStore) -> None:
    html = write(measured, store).read_text()
    (row,) = json.loads((measured / "reports" / "tiny" / "compare.json").read_text())["leakage"]
    assert (row["by_tile"], row["by_group"]) == ("baseline", "baseline_by_group")
    assert "<h3>Leakage</h3>" in html
    assert f"<td>{row['train_tiles'][0] - row['train_tiles'][1]} of {row['train_tiles'][0]}</td>" in html
    for split in tiles.SPLITS:
        share = store.targets[store.rows(split)].mean(0)[store.labels.index("road")]
        assert f"<td>{share:.2%}</td>" in html


def test_a_repeated_report_is_bit_identical(measured: Path, store: tiles.TileStore) -> None:
    assert write(measured, store).read_bytes() == write(measured, store).read_bytes()


def test_mistakes_are_the_highest_without_and_the_lowest_with_the_label(
    measured: Path, store: tiles.TileStore
) -> None:
    with np.load(measured / "results" / "tiny" / "simclr-s0" / "scores.npz") as saved:
        scores, targets, names = (saved[k] for k in ("test_scores", "test_targets", "test_tiles"))
    found = sections.hardest(sections.Run(arms()[1], measured / "results" / "tiny" / "simclr-s0"), store)
    assert [float(row["AP"]) for row in found] == sorted(float(row["AP"]) for row in found)
    for row in found:
        k = store.labels.index(row["label"])
        for examples, has, sign in ((row["wrong"], 0, -1), (row["missed"], 1, 1)):
            rows = np.flatnonzero(targets[:, k] == has)
            expected = rows[np.argsort(sign * scores[rows, k], kind="stable")][: sections.EXAMPLES]
            shown = [float(e["score"]) for e in examples]
            assert shown == pytest.approx(scores[expected, k])
            assert all(targets[names.tolist().index(e["tile"]), k] == has for e in examples)


@pytest.mark.parametrize(
    ("interval", "verdict"), [([0.1, 0.2], "yes"), ([-0.2, -0.1], "no"), ([-0.1, 0.1], "open")]
)
def test_the_verdict_is_the_intervals(interval: list[float], verdict: str) -> None:
    tree: dict[str, Any] = {
        "arms": {"baseline": {"val_mAP": 0.9}, "a": {"val_mAP": 0.3}, "b": {"val_mAP": 0.4}},
        "contrasts": [
            {"arm": "a", "against": "baseline", "ci95": [5, 6]},
            {"arm": "b", "against": "baseline", "ci95": interval},
            {"arm": "b", "against": "a", "ci95": [5, 6]},
        ],
    }
    found = report.page.answer(tree)
    assert (found["verdict"], found["arm"]) == (verdict, "b")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda root: (root / "reports" / "tiny" / "compare.json").unlink(), "run `satclr compare` first"),
        (
            lambda root: (root / "results" / "tiny" / "simclr-s0" / "probe.csv").unlink(),
            "probe.csv does not exist",
        ),
        (lambda root: rename_arm(root / "reports" / "tiny" / "compare.json"), "run `satclr compare` again"),
    ],
)
def test_what_is_missing_is_named(
    measured: Path, store: tiles.TileStore, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    shutil.copytree(measured, tmp_path / "copy")
    spoil(tmp_path / "copy")
    with pytest.raises(report.ReportError, match=says):
        write(tmp_path / "copy", store)


def rename_arm(path: Path) -> None:
    tree = json.loads(path.read_text())
    tree["arms"]["other"] = tree["arms"].pop("baseline")
    path.write_text(json.dumps(tree))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no Chromium with chromedriver on this machine")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


OVERLAPS = """
const boxes = [...document.querySelectorAll("main > *, .pair > *, .tiles > *")].filter(e => e.offsetHeight);
const seen = [];
for (const a of boxes) for (const b of boxes) {
  if (a === b || a.contains(b) || b.contains(a)) continue;
  const p = a.getBoundingClientRect(), q = b.getBoundingClientRect();
  const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
  const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
  if (wide > 1 && high > 1) seen.push(`${a.tagName} ${a.className} and ${b.tagName} ${b.className}`);
}
return seen;
"""


# Text of charts that is cut off by its chart, lies on other text, or is too small to read.
ILLEGIBLE = """
const seen = [];
for (const chart of document.querySelectorAll(".chart")) {
  const name = chart.dataset.chart || `map of ${chart.dataset.arm}`, frame = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll("text")].filter(e => e.textContent.trim() && e.checkVisibility());
  const boxes = texts.map(e => [e.textContent, e.getBoundingClientRect(), parseFloat(getComputedStyle(e).fontSize)]);
  boxes.forEach(([text, p, size], i) => {
    if (p.left < frame.left - 1 || p.right > frame.right + 1 || p.top < frame.top - 1 || p.bottom > frame.bottom + 1)
      seen.push(`${name}: ${text} is cut off`);
    if (size < 10) seen.push(`${name}: ${text} is ${size} px high`);
    for (const [other, q] of boxes.slice(i + 1)) {
      const wide = Math.min(p.right, q.right) - Math.max(p.left, q.left);
      const high = Math.min(p.bottom, q.bottom) - Math.max(p.top, q.top);
      if (wide > 1 && high > 3) seen.push(`${name}: ${text} lies on ${other}`);
    }
  });
}
return seen;
"""


def opened(browser: Any, path: Path, *, width_px: int = 1280, scheme: str = "light") -> Any:
    """The browser with the page drawn, on a screen of this width and without a network."""
    size = {"width": width_px, "height": 900, "deviceScaleFactor": 1, "mobile": width_px < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    browser.get(path.as_uri())
    deadline = time.monotonic() + 60
    while browser.execute_script("return document.documentElement.dataset.ready") != "yes":
        assert time.monotonic() < deadline, browser.get_log("browser")
        time.sleep(0.1)
    return browser


@pytest.mark.parametrize("width_px", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_opens_the_page_without_a_complaint(
    measured: Path, store: tiles.TileStore, browser: Any, width_px: int, scheme: str
) -> None:
    opened(browser, write(measured, store), width_px=width_px, scheme=scheme)
    assert browser.get_log("browser") == []
    charts = browser.execute_script(
        "return [...document.querySelectorAll('.chart')].map(e => [e.querySelectorAll('svg').length, e.clientWidth])"
    )
    assert len(charts) >= 12  # among them a map for each arm
    assert all(drawn and 0 < wide <= width_px for drawn, wide in charts)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width_px
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script(ILLEGIBLE) == []
    ink = browser.execute_script("return getComputedStyle(document.querySelector('.chart .xtick text')).fill")
    assert ink == {"light": "rgb(27, 31, 36)", "dark": "rgb(232, 234, 237)"}[scheme]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_print_is_dark_on_white_and_fits_the_paper(
    measured: Path, store: tiles.TileStore, browser: Any, scheme: str
) -> None:
    opened(browser, write(measured, store), scheme=scheme)
    look = """
    const text = getComputedStyle(document.querySelector(".chart .xtick text")).fill;
    const wide = [...document.querySelectorAll(".chart svg.main-svg")].map(e => e.clientWidth);
    return [getComputedStyle(document.body).backgroundColor, text, Math.max(...wide)];
    """
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    paper, ink, wide = browser.execute_script(look)
    assert (paper, ink) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert wide <= 700
    assert browser.execute_script(OVERLAPS) == []
    assert browser.execute_script(ILLEGIBLE) == []
    browser.execute_script("dispatchEvent(new Event('afterprint'))")
    paper, ink, wide = browser.execute_script(look)
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    assert wide > 900


def test_pointing_at_a_map_shows_the_tile(measured: Path, store: tiles.TileStore, browser: Any) -> None:
    opened(browser, write(measured, store))
    shown = browser.execute_script(
        """
        const map = document.querySelector("[data-arm]");
        map.emit("plotly_hover", { points: [{ pointNumber: 2 }], event: { clientX: 40, clientY: 40 } });
        const tip = document.getElementById("tip");
        return [tip.textContent, tip.offsetHeight, getComputedStyle(tip.firstChild).backgroundImage];
        """
    )
    tree = json.loads((measured / "results" / "tiny" / "simclr-s0" / "maps.json").read_text())
    tile = tree["tiles"][2]
    labels = [
        label for label, has in zip(store.labels, store.targets[store.names.index(tile)], strict=True) if has
    ]
    assert shown[0] == f"{tile}: {', '.join(labels)}"
    assert shown[1] > 88
    assert shown[2].startswith('url("data:image/jpeg')
    colours = "return [...new Set(document.querySelector('[data-arm]').data[0].marker.color)].length"
    by_category = browser.execute_script(colours)
    browser.execute_script(
        "const s = document.getElementById('colour'); s.value = 'label 1'; s.dispatchEvent(new Event('change'))"
    )
    shown_tiles = [store.names.index(name) for name in tree["tiles"]]
    assert by_category == len({store.categories[row] for row in shown_tiles})
    assert browser.execute_script(colours) == len(set(store.targets[shown_tiles, 1].tolist()))


def test_the_corrupted_tile_is_one_the_audit_trusts(measured: Path, store: tiles.TileStore) -> None:
    test = [store.names[row] for row in store.rows("test")]
    tested = {"haze": {"1": 0.5, "3": 0.4}}
    rows = sections.corrupted(tested, store, flagged=test[1:])
    expected = pictures.uri(store.pixels[store.names.index(test[0])], side_px=sections.CORRUPTION_PX)
    assert rows[0] == {"name": "untouched", "pictures": [expected]}
    assert [(row["name"], len(row["pictures"])) for row in rows[1:]] == [("haze", 2)]
