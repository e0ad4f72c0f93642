"""Open pages in headless Chromium (from Debian) and report everything that goes wrong in it."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.support.wait import WebDriverWait

PROGRAMS = ("chromium", "chromedriver")
MISSING = [program for program in PROGRAMS if shutil.which(program) is None]
_OPTIONS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--no-first-run", "--window-size=1280,1700")


@contextmanager
def browser() -> Iterator[WebDriver]:
    """Start the browser installed on this machine; nothing is downloaded."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in _OPTIONS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(executable_path=shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def open_page(driver: WebDriver, page: Path, ready: str) -> None:
    """Open a page without a server, and wait for an element."""
    for log in ("browser", "performance"):
        driver.get_log(log)  # drop the messages of earlier pages
    driver.get(page.resolve().as_uri())
    wait_for(driver, ready)


def wait_for(driver: WebDriver, selector: str, count: int = 1) -> list[str]:
    """Wait until at least `count` elements match, and return their texts."""
    found = "return [...document.querySelectorAll(arguments[0])].map(element => element.textContent)"

    def enough(driver: WebDriver) -> list[str] | None:
        texts = driver.execute_script(found, selector)
        return texts if len(texts) >= count else None

    return WebDriverWait(driver, 120).until(enough, f"{selector}: fewer than {count} on the page")


def problems(driver: WebDriver) -> list[str]:
    """Return console errors, images that did not load, and network requests since the page was opened."""
    errors = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]
    broken = driver.execute_script(
        "return [...document.images].filter(i => !i.complete || i.naturalWidth === 0).map(i => i.src.slice(0, 80))"
    )
    messages = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    requested = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert any(url.startswith("file:") for url in requested), "the log of requests does not work"
    outside = [url for url in requested if urlsplit(url).scheme not in ("file", "data", "blob")]
    return [f"error: {text}" for text in errors] + [f"broken image: {src}" for src in broken] + outside
