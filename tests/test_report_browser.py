"""The report in a browser: no error, no request beyond the page, tables sort, players play, a phone shows it whole.

Needs Debian's `chromium` and `chromium-driver`; without them these tests are skipped and say so.
"""

import json
import shutil
import tempfile
import wave
from pathlib import Path

import numpy as np
import pytest
from selenium import webdriver
from selenium.common.exceptions import NoAlertPresentException
from selenium.webdriver.common.by import By
from test_report import COLUMNS, EVIL, make_rows, provenance

from outputs.table import write_table

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "emotify"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None,
    reason="no browser: apt-get install chromium chromium-driver, then the report is opened in it",
)
KEPT = ("midlevel_minorness", "midlevel_dissonance", "gems_sadness")


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    profile = tempfile.mkdtemp(prefix="profile")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--no-first-run",
        "--autoplay-policy=no-user-gesture-required",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_page_load_timeout(300)
    driver.set_script_timeout(300)
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


def make_report(folder):
    """A report with players for half a second of sound a track."""
    from click.testing import CliRunner

    from annotate.cli import main

    columns = [column for column in COLUMNS if column.family in ("scan", "decode", "ratings") or column.name in KEPT]
    names = {column.name for column in columns}
    rows = [{name: value for name, value in row.items() if name in names} | {"in_training": ""} for row in make_rows(24)]
    for row in rows:
        row["track"] = row["track"].replace(".mp3", ".wav")
    rows[3]["track"] = EVIL
    write_table(rows, columns, provenance(), folder / "t.parquet")
    sound = (8000 * np.sin(np.arange(4000) / 8)).astype("<i2").tobytes()
    for row in rows:
        path = folder / "music" / row["track"]
        path.parent.mkdir(parents=True, exist_ok=True)
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(8000)
            file.writeframes(sound)
    arguments = ["report", folder / "t.parquet", "--out", folder / "report", "--audio", folder / "music"]
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return folder / "report" / "index.html"


@pytest.fixture(scope="module")
def opened(browser, tmp_path_factory):
    """The page, loaded once; what it did on the way is in the logs."""
    page = make_report(tmp_path_factory.mktemp("browser"))
    browser.get("about:blank")
    requests(browser)  # what the browser did for itself when it started
    browser.get_log("browser")
    browser.get(page.as_uri())
    return browser, page


def requests(driver) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    return [message["params"]["request"]["url"] for message in messages if message["method"] == "Network.requestWillBeSent"]


def test_it_loads_without_an_error_and_asks_nobody(opened):
    driver, page = opened
    asked = requests(driver)
    assert page.as_uri() in asked
    assert [url for url in asked if url != page.as_uri() and not url.startswith(("data:", "chrome:"))] == []
    assert driver.get_log("browser") == []
    with pytest.raises(NoAlertPresentException):
        driver.switch_to.alert.accept()
    assert "<script>alert(1)</script>.mp3" in driver.find_element(By.TAG_NAME, "main").get_attribute("textContent")


def test_tables_sort_both_ways_numbers_as_numbers(opened):
    driver, _ = opened
    table = driver.find_elements(By.CSS_SELECTOR, "#distributions details table")[0]
    driver.execute_script("for (const d of document.querySelectorAll('details')) d.open = true;")
    headings = table.find_elements(By.CSS_SELECTOR, "thead button")
    place = [heading.get_attribute("textContent") for heading in headings].index("mean")
    shown = "return Array.from(arguments[0].tBodies[0].rows, row => Number(row.cells[arguments[1]].dataset.value))"
    before = driver.execute_script(shown, table, place)
    driver.execute_script("arguments[0].click()", headings[place])
    assert driver.execute_script(shown, table, place) == sorted(before)
    driver.execute_script("arguments[0].click()", headings[place])
    assert driver.execute_script(shown, table, place) == sorted(before, reverse=True)
    assert table.find_elements(By.CSS_SELECTOR, "thead th")[place].get_attribute("aria-sort") == "descending"


def test_players_play_the_files(opened):
    driver, page = opened
    players = driver.find_elements(By.TAG_NAME, "audio")
    assert len(players) == 20
    played = driver.execute_async_script(
        "const [player, done] = arguments; player.addEventListener('ended', () => done(player.duration));"
        "player.addEventListener('error', () => done('error ' + player.error.message)); player.muted = true;"
        "player.play().catch(error => done(String(error)));",
        players[0],
    )
    assert played == pytest.approx(0.5, abs=0.1)
    asked = [url for url in requests(driver) if not url.startswith(("chrome:", "data:"))]
    assert asked
    assert all(url.startswith((page.parents[1] / "music").as_uri()) for url in asked)
    assert driver.get_log("browser") == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_without_scrolling_sideways_in_both_schemes(scheme, opened):
    driver, _ = opened
    metrics = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    try:
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 390
        colours = driver.execute_script(
            "const body = getComputedStyle(document.body);"
            "const text = getComputedStyle(document.querySelector('figure svg text'));"
            "return [body.backgroundColor, body.color, text.fill]"
        )
        background, ink, figure_text = (np.mean([int(part) for part in colour[4:-1].split(",")[:3]]) for colour in colours)
        assert (background > 200, ink < 60) == ((True, True) if scheme == "light" else (False, False))
        assert abs(background - figure_text) > 120
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.corpus
@pytest.mark.skipif(not DATA.is_dir(), reason="the real music is not beside the checkout")
def test_the_report_on_real_music_opens_and_plays(browser, in_process, tmp_path):
    table = tmp_path / "emotify.parquet"
    run = in_process("run", DATA, "--out", table, "--models", "midlevel,probe", "--include", "*/[1-4].*", "--no-cache", "-q")
    assert run.exit_code == 0, run.output
    made = in_process("report", table, "--ratings", DATA / "data.csv", "--audio", DATA, "--out", tmp_path / "report")
    assert made.exit_code == 0, made.output
    browser.get_log("browser")
    browser.get((tmp_path / "report" / "index.html").as_uri())
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert "correlations_midlevel" in content["figures"]
    assert browser.get_log("browser") == []
    player = browser.find_elements(By.TAG_NAME, "audio")[0]
    length = browser.execute_async_script(
        "const [player, done] = arguments; player.addEventListener('loadedmetadata', () => done(player.duration));"
        "player.addEventListener('error', () => done('error ' + player.error.message)); player.load();",
        player,
    )
    assert length > 20
