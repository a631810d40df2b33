"""The report in a real browser, from disk: what a reader sees, clicks and types."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from assay.lab.report import build_report

pytest.importorskip("selenium", reason="selenium is not installed")

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

pytestmark = pytest.mark.browser

GOLDEN = Path(__file__).parents[1] / "golden" / "report"
CARDS = json.loads((GOLDEN / "cards.json").read_text())
RESULTS = json.loads((GOLDEN / "results.json").read_text())
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip

# The contrast of an element's text with the page (WCAG 2), by the browser's own colours.
CONTRAST = """
  const channels = (colour) => colour.match(/[\\d.]+/g).slice(0, 3).map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  const luminance = (colour) => channels(colour).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const page = luminance(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("h1, .lede, .badge, .note, td, dt, a, .source, figcaption")].map((element) => {
    const text = luminance(getComputedStyle(element).color);
    return (Math.max(text, page) + 0.05) / (Math.min(text, page) + 0.05);
  });
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the report of all stored results."""
    return build_report(CARDS, RESULTS, tmp_path_factory.mktemp("report")).parent


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    """Start one headless Chromium with an empty profile."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not browser or not driver:
        pytest.skip("chromium and chromedriver are not installed (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=driver))
    yield chrome
    chrome.quit()


@pytest.fixture
def chrome(started: webdriver.Chrome) -> Iterator[webdriver.Chrome]:
    """Return the browser as a desktop in light mode; afterwards check that no page complained."""
    view(started, 1280, "light")
    yield started
    assert [entry for entry in started.get_log("browser") if entry["level"] != "INFO"] == []


def view(chrome: webdriver.Chrome, width: int, scheme: str) -> None:
    """Set the window's width and the preferred colours."""
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", media)


def shown(chrome: webdriver.Chrome) -> list[str]:
    """Return the ids of the papers that are visible."""
    entries = chrome.find_elements(By.CSS_SELECTOR, "[data-entry]")
    return [entry.find_element(By.TAG_NAME, "code").text for entry in entries if entry.is_displayed()]


def pick(chrome: webdriver.Chrome, verdict: str) -> None:
    """Choose a verdict as a reader does: by a click on its word."""
    chrome.find_element(By.XPATH, f"//label[contains(@class, 'chip')][contains(., '{verdict}')]").click()


def matches(chrome: webdriver.Chrome) -> str:
    """Return what a screen reader is told about the filters."""
    output = chrome.find_element(By.ID, "matches")
    assert output.get_attribute("aria-live") == "polite"
    return output.text


def focused(chrome: webdriver.Chrome) -> Any:
    """Return the focused element."""
    return chrome.switch_to.active_element


def pages(report: Path) -> list[Path]:
    """Return one page of every kind, the one of markup among them."""
    found = sorted(report.rglob("*.html"))
    assert len(found) >= 10
    return found


def test_filter_by_seam_verdict_and_text(chrome: webdriver.Chrome, report: Path) -> None:
    """A filter would show other papers than those it names, or count them wrongly."""
    chrome.get((report / "index.html").as_uri())
    everything = shown(chrome)
    assert len(everything) == 8 and matches(chrome) == "8 papers"

    Select(chrome.find_element(By.ID, "seam")).select_by_value("losses")
    assert sorted(shown(chrome)) == ["even-ends", "waiting"] and matches(chrome) == "2 of 8 papers"
    pick(chrome, "Holds")
    assert shown(chrome) == ["even-ends"] and matches(chrome) == "1 of 8 papers"
    chrome.find_element(By.ID, "query").send_keys("nothing like it")
    assert shown(chrome) == [] and chrome.find_element(By.ID, "nothing").is_displayed()

    chrome.find_element(By.ID, "reset").click()
    assert shown(chrome) == everything
    chrome.find_element(By.ID, "query").send_keys("RISER ada")
    assert shown(chrome) == ["early-riser"]


def test_the_address_keeps_the_filters(chrome: webdriver.Chrome, report: Path) -> None:
    """A view could not be linked, or would be lost on the way back from a study."""
    chrome.get((report / "index.html").as_uri())
    pick(chrome, "Fails")
    chrome.find_element(By.ID, "query").send_keys("early riser")
    assert chrome.current_url.endswith("#q=early+riser&verdict=fails")
    chrome.find_element(By.LINK_TEXT, "Early Riser").click()
    assert chrome.current_url.endswith("studies/early-riser.html")
    chrome.back()
    assert shown(chrome) == ["early-riser"]
    chrome.get((report / "index.html").as_uri() + "#seam=losses&verdict=nonsense")
    chrome.refresh()
    assert sorted(shown(chrome)) == ["even-ends", "waiting"]
    chrome.execute_script("location.hash = '#seam=nowhere'")
    chrome.find_element(By.ID, "reset")
    assert len(shown(chrome)) == 8


def test_with_the_keyboard_alone(chrome: webdriver.Chrome, report: Path) -> None:
    """A reader without a mouse could not find and open a study, or would not see where they are."""
    chrome.get((report / "index.html").as_uri())
    for _ in range(6):
        focused(chrome).send_keys(Keys.TAB)
        if focused(chrome).get_attribute("id") == "query":
            break
    focused(chrome).send_keys("open question")
    focused(chrome).send_keys(Keys.ENTER)
    assert focused(chrome).text == "An Open Question"
    card = focused(chrome).find_element(By.XPATH, "ancestor::li")
    assert card.value_of_css_property("outline-style") == "solid"
    focused(chrome).send_keys(Keys.ENTER)
    assert chrome.current_url.endswith("studies/open-question.html")
    focused(chrome).send_keys(Keys.TAB)
    assert focused(chrome).text == "Skip to the content"
    focused(chrome).send_keys(Keys.ENTER)
    assert focused(chrome).tag_name == "main"


def test_verdicts_with_arrow_keys(chrome: webdriver.Chrome, report: Path) -> None:
    """The verdict filter would need a mouse."""
    chrome.get((report / "index.html").as_uri())
    chrome.find_element(By.CSS_SELECTOR, "[name=verdict][value='']").send_keys(Keys.ARROW_RIGHT)
    assert focused(chrome).get_attribute("value") == "holds"
    assert sorted(shown(chrome)) == ["even-ends", "together"]


def test_every_page_opens_from_disk_without_network(chrome: webdriver.Chrome, report: Path) -> None:
    """A page would load something from elsewhere, or log an error (the fixture checks the console)."""
    for page in pages(report):
        chrome.get(page.as_uri())
        loaded = chrome.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert all(name.startswith(("file:", "data:")) for name in loaded), page.name
        styled = "return getComputedStyle(document.querySelector('.masthead')).borderBottomStyle"
        assert chrome.execute_script(styled) == "solid", page.name
        assert chrome.execute_script("return document.querySelectorAll('main h1').length") == 1


@pytest.mark.parametrize("width", [390, 320])
def test_no_page_scrolls_sideways_on_a_phone(chrome: webdriver.Chrome, report: Path, width: int) -> None:
    """A table or a long name would push the page wider than the screen."""
    view(chrome, width, "light")
    for page in pages(report):
        chrome.get(page.as_uri())
        chrome.execute_script("for (const fold of document.querySelectorAll('details')) fold.open = true")
        assert chrome.execute_script("return document.documentElement.scrollWidth") <= width, page.name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes_are_readable(chrome: webdriver.Chrome, report: Path, scheme: str) -> None:
    """Dark mode would stay light, or text would fall below WCAG's contrast of 4.5."""
    view(chrome, 1280, scheme)
    for name in ("index.html", "studies/early-riser.html", "studies/open-question.html"):
        chrome.get((report / name).as_uri())
        ground = chrome.execute_script(
            "return getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
        )
        assert (sum(ground) < 150) == (scheme == "dark")
        contrasts = chrome.execute_script(CONTRAST)
        assert len(contrasts) > 10 and min(contrasts) >= 4.5, name
    line = chrome.find_element(By.CSS_SELECTOR, ".plot .arm-0 path[style*='stroke: var(--arm-0)']")
    arm = chrome.execute_script("return getComputedStyle(document.documentElement).getPropertyValue('--arm-0')").strip()
    red, green, blue = (int(arm[i : i + 2], 16) for i in (1, 3, 5))
    assert line.value_of_css_property("stroke") == f"rgb({red}, {green}, {blue})"


def test_markup_in_a_name_is_text(chrome: webdriver.Chrome, report: Path) -> None:
    """A name with markup would run (an alert would also break the next command)."""
    (page,) = (page for page in pages(report) if page.name.startswith("script-alert"))
    chrome.get(page.as_uri())
    assert chrome.find_element(By.TAG_NAME, "h1").text.startswith(
        "<script>alert(1)</script> \"quoted\" 'single' & $x^2$"
    )
    assert chrome.find_elements(By.CSS_SELECTOR, "main script, main img") == []


def test_an_arm_can_be_brought_to_the_fore(chrome: webdriver.Chrome, report: Path) -> None:
    """The legend's buttons would dim the wrong curves, or not undo it."""
    chrome.get((report / "studies" / "early-riser.html").as_uri())
    button = chrome.find_element(By.CSS_SELECTOR, "[data-arm='1']")
    button.send_keys(Keys.ENTER)
    dimmed = {e.get_attribute("class") for e in chrome.find_elements(By.CSS_SELECTOR, ".plot .dim")}
    assert dimmed == {"arm-0 dim", "arm-2 dim"} and button.get_attribute("aria-pressed") == "true"
    button.send_keys(Keys.ENTER)
    assert chrome.find_elements(By.CSS_SELECTOR, ".plot .dim") == []


def test_the_command_can_be_copied(chrome: webdriver.Chrome, report: Path) -> None:
    """The button would do nothing where pages from disk may not use the clipboard."""
    chrome.get((report / "studies" / "even-ends.html").as_uri())
    button = chrome.find_element(By.CSS_SELECTOR, "[data-copy]")
    button.click()
    said = chrome.execute_async_script(
        "const done = arguments[1]; setTimeout(() => done(arguments[0].textContent), 200)", button
    )
    assert said in ("Copied", "Selected")
    if said == "Selected":
        assert chrome.execute_script("return String(getSelection())") == "assay run even-ends --scale desk --seeds 6"
