"""The pages in a real browser, from the disk: the explorer, our report, and Snakemake's own."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import MISSING, browser, open_page, problems, wait_for
from explorer_page import Page, run_table
from selenium.webdriver import ActionChains
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from workspace import snakemake

from dhel_kcl.experiment.grid import load_config
from dhel_kcl.jobs.layout import Layout
from dhel_kcl.jobs.manifest import load_manifest

pytestmark = [
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (apt-get install chromium-driver)"),
    pytest.mark.xdist_group("browser"),
]

POINTS = "g.by_batch_size_marks path"
SPECTRA = "g.spectrum_marks path"


@pytest.fixture(scope="module")
def driver() -> Iterator[WebDriver]:
    with browser() as started:
        yield started


@pytest.fixture
def explorer(driver: WebDriver, layout: Layout) -> WebDriver:
    open_page(driver, layout.explorer, POINTS)
    return driver


def count(driver: WebDriver, selector: str) -> int:
    return len(driver.find_elements(By.CSS_SELECTOR, selector))


def choose(driver: WebDriver, parameter: str, option: str) -> None:
    Select(driver.find_element(By.NAME, parameter)).select_by_visible_text(option)
    settle(driver)


def click(driver: WebDriver, run: str) -> None:
    point_of(driver, run).click()
    settle(driver)


def settle(driver: WebDriver) -> None:
    """Wait until the charts show what was chosen."""
    driver.execute_async_script(
        "const done = arguments[0]; explorer.runAsync().then(() => requestAnimationFrame(done));"
    )


def point_of(driver: WebDriver, run: str) -> WebElement:
    """The point of a run, told from the others by what it is bound to."""
    script = "return [...document.querySelectorAll(arguments[0])].find(p => p.__data__.datum.run === arguments[1])"
    found = driver.execute_script(script, POINTS, run)
    assert isinstance(found, WebElement), f"{run} has no point"
    return found


def test_the_explorer_shows_a_point_for_each_run_without_an_error_or_a_request(
    explorer: WebDriver, layout: Layout
) -> None:
    runs = load_config(layout.config).runs
    assert count(explorer, POINTS) == count(explorer, "g.against_rank_marks path") == len(runs)
    for run in runs:
        point_of(explorer, run)
    assert count(explorer, SPECTRA) == count(explorer, "g.training_marks path") == 2, "one marked run for each loss"
    assert problems(explorer) == []


@pytest.mark.parametrize(
    ("parameter", "option", "left"),
    [
        ("chosen_loss", "DHEL", 2),
        ("chosen_batch_size", "128", 2),
        ("chosen_setting", "t 2, gamma 16", 2),
        ("chosen_dataset", "Digits", 4),
    ],
)
def test_a_filter_leaves_the_points_that_match_and_all_brings_the_others_back(
    explorer: WebDriver, parameter: str, option: str, left: int
) -> None:
    choose(explorer, parameter, option)
    assert count(explorer, POINTS) == count(explorer, "g.against_rank_marks path") == left
    choose(explorer, parameter, "all")
    assert count(explorer, POINTS) == 4
    assert problems(explorer) == []


def test_the_accuracy_and_the_representation_can_be_chosen(explorer: WebDriver) -> None:
    titles = "g.role-title-text text"
    assert "Test accuracy (linear) of each run" in wait_for(explorer, titles)
    before = [point.get_attribute("transform") for point in explorer.find_elements(By.CSS_SELECTOR, POINTS)]
    choose(explorer, "accuracy", "k-NN")
    choose(explorer, "representation", "backbone h")
    after = [point.get_attribute("transform") for point in explorer.find_elements(By.CSS_SELECTOR, POINTS)]
    shown = wait_for(explorer, titles)
    assert "Test accuracy (k-NN) of each run" in shown
    assert "Spectrum of the covariance of h, marked runs" in shown
    assert before != after
    assert problems(explorer) == []


def test_pointing_at_a_run_tells_its_settings_its_accuracy_and_the_manifest_behind_it(
    explorer: WebDriver, layout: Layout
) -> None:
    run = "digits-dhel-temperature0.3-bs128-seed0"
    manifest = load_manifest(layout.run_manifest("pretrain", run))
    accuracy = json.loads(layout.evaluation(run).read_text(encoding="utf-8"))["linear_top1"]
    ActionChains(explorer).move_to_element(point_of(explorer, run)).perform()
    names = wait_for(explorer, "#vg-tooltip-element.visible td.key")
    told = dict(zip(names, wait_for(explorer, "#vg-tooltip-element.visible td.value"), strict=True))
    assert told["run"] == run
    assert told["hyperparameters"] == "temperature 0.3"
    assert (told["batch size"], told["seed"]) == ("128", "0")
    assert float(told["accuracy (linear)"]) == pytest.approx(accuracy, rel=1e-5)
    assert told["git commit"] == (manifest.git_commit or "unknown")
    assert told["started"] == manifest.started
    assert str(manifest.hardware["cpu"]) in told["hardware"]
    assert manifest.outputs["encoder.safetensors"].sha256.startswith(told["encoder sha256"])
    assert manifest.inputs["train.beton"].sha256.startswith(told["beton sha256"])
    assert (layout.root / told["manifest"]).resolve() == layout.run_manifest("pretrain", run).resolve()
    assert problems(explorer) == []


def test_clicking_a_run_shows_its_spectrum_and_lists_its_manifests(explorer: WebDriver, layout: Layout) -> None:
    runs = load_config(layout.config).runs
    marked = {text.split()[0] for text in wait_for(explorer, "#runs tbody td:first-child")}
    assert len(marked) == 2
    run = next(run for run in runs if run not in marked)
    before = explorer.find_element(By.CSS_SELECTOR, SPECTRA).get_attribute("d")
    click(explorer, run)
    assert wait_for(explorer, "#runs tbody td:first-child") == [run]
    assert count(explorer, SPECTRA) == 1
    after = explorer.find_element(By.CSS_SELECTOR, SPECTRA).get_attribute("d")
    assert after != before
    assert after.count("L") > 10, "a line through the singular values"
    for link in explorer.find_elements(By.CSS_SELECTOR, "#runs a"):
        path = layout.root / str(link.get_dom_attribute("href"))
        assert path.resolve() == layout.run_manifest(link.text, run).resolve()
        assert path.exists()
    assert problems(explorer) == []


def test_a_run_that_diverged_is_a_cross_below_the_accuracies(driver: WebDriver, page: Page) -> None:
    page.write(run_table("dhel", 32), run_table("dhel", 64), run_table("dhel", 256, diverged=True))
    open_page(driver, page.output, POINTS)
    points = [point_of(driver, f"cifar10-dhel-bs{size}-seed0") for size in (32, 64, 256)]
    outlines = [str(point.get_attribute("d")) for point in points]
    assert outlines[1].count("L") == 3, "a diamond"
    assert outlines[2].count("L") == 11, "a cross"
    assert points[2].location["y"] > max(point.location["y"] for point in points[:2]), "below"
    assert count(driver, "g.against_rank_marks path") == 2, "it has no rank"
    click(driver, "cifar10-dhel-bs256-seed0")
    assert wait_for(driver, "#runs tbody td:first-child") == ["cifar10-dhel-bs256-seed0 (diverged)"]
    assert (count(driver, "g.training_marks path"), count(driver, SPECTRA)) == (1, 0), "it has no spectrum"
    assert "none" in wait_for(driver, "#vg-tooltip-element.visible td.value")
    assert problems(driver) == []


def test_our_report_shows_every_image_and_needs_no_network(driver: WebDriver, layout: Layout) -> None:
    open_page(driver, layout.report, "#provenance")
    assert driver.execute_script("return document.images.length") == len(list(layout.figures.glob("*.png")))
    assert driver.execute_script("return document.documentElement.scrollWidth") <= 1280, "no scrolling sideways"
    assert problems(driver) == []


def test_snakemakes_own_report_shows_the_workflow_and_the_explorer_in_it(
    driver: WebDriver, finished: Path, tmp_path: Path
) -> None:
    page = tmp_path / "report-of-the-workflow.html"
    made = snakemake("--report", str(page), cwd=finished)
    assert made.returncode == 0, made.stderr
    open_page(driver, page, "#app canvas")
    driver.find_element(By.XPATH, "//*[normalize-space(text())='Explorer']").click()
    wait_for(driver, "a.transition-all")
    driver.find_element(By.CSS_SELECTOR, "a.transition-all").click()
    wait_for(driver, "iframe")
    driver.switch_to.frame(driver.find_element(By.TAG_NAME, "iframe"))
    assert len(wait_for(driver, POINTS)) == 4
    driver.switch_to.default_content()
    assert problems(driver) == []
