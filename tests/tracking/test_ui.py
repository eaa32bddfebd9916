"""The pages that people open, in a real browser (Debian's packages chromium and chromium-driver)."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from satclr.project import Project
from satclr.tracking import registry
from tests.made_up import write
from tests.tracking.conftest import free_port, make_project

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
WAIT_S = 300
SHOTS = "SATCLR_SCREENSHOTS"  # a folder to keep the pictures in
PROJECT = "SATCLR_PROJECT"  # a project after `dvc repro`, to look at instead of a made-up one


def made(folder: Path) -> Path:
    """The project of PROJECT, else a made-up one."""
    if PROJECT in os.environ:
        return Path(os.environ[PROJECT])
    project = make_project(folder / "project", "baseline", "simclr")
    for arm, skill in (("baseline", 0.5), ("simclr", 2.0)):
        write(project.run(arm), skill=skill)
    registry.run(project)
    return project.root


@contextmanager
def satclr_ui(project: Path) -> Iterator[str]:
    """`satclr ui`, started in a folder below the project; the address that it prints."""
    below = project / "results"
    command = [sys.executable, "-m", "satclr", "ui", "--port", str(free_port())]
    server = subprocess.Popen(command, cwd=below, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        yield next(line.strip() for line in lines if line.startswith("http://127.0.0.1:"))
    finally:
        server.terminate()
        server.wait(timeout=60)
    assert not (below / "mlruns").exists()


def test_a_browser_shows_arms_curves_and_champion(
    tmp_path: Path, browser: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = made(tmp_path)
    shots = Path(os.environ.get(SHOTS, tmp_path))

    def shows(*texts: str) -> bool:
        return all(text in browser.find_element(By.TAG_NAME, "body").text for text in texts)

    def curves() -> int:
        """How many curves are drawn once the page is scrolled to the probe's; it draws those in sight."""
        for heading in browser.find_elements(By.XPATH, "//*[normalize-space(text())='probe']"):
            browser.execute_script("arguments[0].scrollIntoView()", heading)
        return len(browser.find_elements(By.CSS_SELECTOR, ".js-line"))

    def see(address: str, name: str, *texts: str, at_least: int = 0) -> None:
        browser.get(address)
        try:
            waiting = WebDriverWait(browser, WAIT_S, ignored_exceptions=[StaleElementReferenceException])
            waiting.until(lambda _: curves() >= at_least, f"{address} does not draw {at_least} curves")
            waiting.until(lambda _: shows(*texts), f"{address} does not show {texts}")
            time.sleep(1)  # for its last fonts and lines
        finally:
            shot = shots / f"mlflow-{name}.png"
            browser.save_screenshot(str(shot))
            with Image.open(shot) as picture:
                picture.convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(shot, optimize=True)

    with satclr_ui(project) as home:
        base = home.partition("/#/")[0]
        browser.get(base)
        browser.execute_script('localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true")')
        see(home, "runs", "baseline-s0", "simclr-s0", "test/mAP")
        see(f"{home}&compareRunsMode=CHART", "compare", "probe/val_mAP", "baseline-s0", "simclr-s0", at_least=4)
        name = f"satclr-{Project(project).profile}"
        see(f"{base}/#/models/{name}", "model", name, "@ champion", "Version 1")
