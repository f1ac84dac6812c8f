"""The report in a real browser: point, click, switch, sort, filter, copy, and not one error."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from report_store import TASKS, given, plan_of, score_of, search, store_of
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from batchsweep.report.page import write

pytestmark = pytest.mark.browser

Text = Callable[[str], str]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a search that measured half of the cells."""
    folder = tmp_path_factory.mktemp("report")
    plan = plan_of()
    store = store_of(folder / "store.zarr", plan)
    cell = given(f"{plan.entries[0].key}#1", "Sorted", 0.27, "results/Sorted.json")
    search(store, plan, imported=[cell], policy="toptwo_gp", budget={"pulls": 12}, stop_at_regret=0)
    return write(store, folder / "out", title="a sweep")[0]


@pytest.fixture
def browser(chromium: webdriver.Chrome, page: Path) -> Iterator[webdriver.Chrome]:
    """The page, freshly loaded; whatever a test did, the console has to stay empty."""
    chromium.set_window_size(1200, 1600)
    chromium.get(page.as_uri())
    WebDriverWait(chromium, 20).until(lambda b: b.find_elements(By.CSS_SELECTOR, "#plane svg path"))
    yield chromium
    assert [line["message"] for line in chromium.get_log("browser")] == []


def pinned(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "pinned").text


def rows(browser: webdriver.Chrome) -> list[list[str]]:
    return browser.execute_script(
        "return [...document.querySelectorAll('#arms-body tr')]"
        ".map(tr => [...tr.cells].map(td => td.textContent))"
    )


def cell(browser: webdriver.Chrome, checkpoint: int, layer: int) -> tuple[int, int]:
    """Where a cell of the plane is, in pixels from the middle of the plane's element."""
    x, y, w, h = browser.execute_script(
        "const el = document.getElementById('plane'), chart = echarts.getInstanceByDom(el);"
        "const [x, y] = chart.convertToPixel({ seriesIndex: 0 }, [arguments[0], arguments[1]]);"
        "return [x, y, el.clientWidth, el.clientHeight];",
        checkpoint,
        layer,
    )
    return round(x - w / 2), round(y - h / 2)


def test_the_page_opens_with_the_best_arm_pinned(browser: webdriver.Chrome) -> None:
    best = browser.find_element(By.CSS_SELECTOR, ".verdict b").text
    assert pinned(browser).startswith(f"Pinned: {best}. main score, mean over 2 tasks: 0.")
    for chart in ("plane", "over-time", "over-depth", "over-tasks", "search-chart"):
        assert browser.find_elements(By.CSS_SELECTOR, f"#{chart} svg"), chart


def test_pointing_at_a_cell_tells_its_numbers(browser: webdriver.Chrome) -> None:
    plane = browser.find_element(By.ID, "plane")
    ActionChains(browser).move_to_element_with_offset(plane, *cell(browser, 1, 1)).perform()
    said = WebDriverWait(browser, 10).until(
        lambda b: next(
            (d.text for d in b.find_elements(By.CSS_SELECTOR, "#plane > div") if "tiny" in d.text),
            None,
        )
    )
    assert "tiny step8, layer 2" in said
    assert "main score, mean over 2 tasks: 0." in said
    assert "pulls" in said and ("measured" in said or "predicted" in said)


def test_a_click_pins_an_arm_and_arrow_keys_move_on(browser: webdriver.Chrome) -> None:
    plane = browser.find_element(By.ID, "plane")
    ActionChains(browser).move_to_element_with_offset(plane, *cell(browser, 0, 0)).click().perform()
    WebDriverWait(browser, 10).until(lambda b: "tiny step0, layer 1" in pinned(b))
    plane.send_keys(Keys.ARROW_UP, Keys.ARROW_RIGHT)
    assert "tiny step8, layer 2" in pinned(browser)
    plane.send_keys(Keys.ARROW_DOWN, Keys.ARROW_DOWN, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert "tiny step0, layer 1" in pinned(browser), "at the edge it stays"


def test_an_imported_cell_says_where_it_is_from(browser: webdriver.Chrome) -> None:
    Select(browser.find_element(By.ID, "what")).select_by_visible_text("Sorted")
    plane = browser.find_element(By.ID, "plane")
    ActionChains(browser).move_to_element_with_offset(plane, *cell(browser, 0, 0)).click().perform()
    WebDriverWait(browser, 10).until(lambda b: "tiny step0, layer 1" in pinned(b))
    said = pinned(browser)
    assert (
        "main score, Sorted: 0.2700. measured. 1 of 1 measured tasks imported, not pulled" in said
    )
    assert "imported from results/Sorted.json" in said
    Select(browser.find_element(By.ID, "what")).select_by_index(0)


def test_another_task_and_ranks(browser: webdriver.Chrome) -> None:
    Select(browser.find_element(By.ID, "what")).select_by_visible_text("Sorted")
    name = browser.find_element(By.ID, "plane").get_attribute("aria-label")
    assert name is not None and name.startswith("tiny: main score, Sorted, 4 layers by 3 check")
    before = rows(browser)
    Select(browser.find_element(By.ID, "scale")).select_by_value("rank")
    assert "mean rank among all arms, Sorted" in pinned(browser)
    ranks = sorted(float(row[3]) for row in rows(browser))
    assert ranks[0] >= 1 and ranks[-1] <= len(before) == 12
    assert sum(ranks) == pytest.approx(sum(range(1, 13)))


def test_the_table_sorts_filters_and_copies(browser: webdriver.Chrome) -> None:
    scores = [float(row[3]) for row in rows(browser)]
    assert scores == sorted(scores, reverse=True) and len(scores) == 12
    measured = [row for row in rows(browser) if row[4] == "2"]
    for row in measured:
        truth = np.mean([score_of(int(row[1][4:]), int(row[2]), t) for t in TASKS])
        assert float(row[3]) == pytest.approx(truth, abs=1e-4)
    head = browser.find_elements(By.CSS_SELECTOR, "#arms-head button")[2]
    head.click()
    layers = [int(row[2]) for row in rows(browser)]
    assert layers == sorted(layers, reverse=True)
    head.click()
    assert [int(row[2]) for row in rows(browser)] == sorted(layers)
    browser.find_element(By.ID, "filter").send_keys("step64 layer3")
    assert [row[1:3] for row in rows(browser)] == [["step64", "3"]]
    browser.find_element(By.ID, "copy").click()
    WebDriverWait(browser, 10).until(lambda b: b.find_element(By.ID, "copied").text == "copied")
    browser.find_element(By.ID, "filter").clear()
    browser.find_element(By.ID, "filter").send_keys(Keys.CONTROL, "v")
    pasted = browser.find_element(By.ID, "filter").get_attribute("value")
    assert pasted is not None and "model,checkpoint,layer,score,measured,pulls" in pasted


def test_the_slider_goes_back_in_the_search(browser: webdriver.Chrome) -> None:
    slider = browser.find_element(By.ID, "until")
    assert browser.find_element(By.ID, "pull-text").text == "after 13 of 13 pulls"
    slider.send_keys(Keys.HOME)
    assert browser.find_element(By.ID, "pull-text").text == "after 0 of 13 pulls"
    assert sum(int(row[5]) for row in rows(browser)) == 0
    slider.send_keys(Keys.ARROW_RIGHT)
    assert sum(int(row[5]) for row in rows(browser)) == 0, "the first one was imported"
    slider.send_keys(Keys.ARROW_RIGHT)
    assert sum(int(row[5]) for row in rows(browser)) == 1
    browser.find_element(By.ID, "play").click()
    WebDriverWait(browser, 20).until(
        lambda b: b.find_element(By.ID, "pull-text").text == "after 13 of 13 pulls"
    )


def test_light_and_dark(browser: webdriver.Chrome) -> None:
    colour = "return getComputedStyle(document.body).backgroundColor"
    first = browser.execute_script(colour)
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(colour) != first
    browser.find_element(By.ID, "theme").click()
    assert browser.execute_script(colour) == first


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: webdriver.Chrome) -> None:
    browser.set_window_size(390, 844)
    browser.refresh()
    width = WebDriverWait(browser, 10).until(
        lambda b: b.execute_script(
            "return document.querySelector('#plane svg') && document.documentElement.scrollWidth"
        )
    )
    assert width <= browser.execute_script("return window.innerWidth")


def test_on_paper_there_are_the_pictures_and_no_controls(browser: webdriver.Chrome) -> None:
    shown = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(e => e.getClientRects().length > 0)"
    )
    assert all(browser.execute_script(shown, ".controls, #plane svg"))
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert not any(browser.execute_script(shown, ".controls, #arms, #play"))
        assert all(browser.execute_script(shown, "#plane svg, .chart svg, .facts"))
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_everything_has_a_name_and_is_reached_by_tab(browser: webdriver.Chrome) -> None:
    """As Chromium tells a screen reader: its own tree of names, not our attributes."""
    browser.execute_cdp_cmd("Accessibility.enable", {})
    nodes = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    there = [n for n in nodes if not n["ignored"]]
    named = {
        role: [n["name"]["value"] for n in there if n["role"]["value"] == role]
        for role in ("button", "combobox", "slider", "searchbox", "image", "columnheader")
    }
    assert all(named.values()), "a role that nothing has"
    assert {role: names.count("") for role, names in named.items()} == dict.fromkeys(named, 0)
    assert any("mean over 2 tasks" in name for name in named["image"])
    assert "pulls so far" in named["slider"]
    reached = []
    for _ in range(20):
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.append(browser.execute_script("return document.activeElement.id"))
    for control in ("model", "what", "scale", "theme", "plane", "filter", "copy"):
        assert control in reached, control


def test_a_screenshot_has_the_planes_colours_where_they_belong(browser: webdriver.Chrome) -> None:
    """Low scores are dark and high ones bright: late checkpoints beat early ones."""
    from matplotlib.image import imread

    plane = browser.find_element(By.ID, "plane")
    image = imread(io.BytesIO(plane.screenshot_as_png))
    scale = image.shape[1] / plane.size["width"]

    def brightness(checkpoint: int, layer: int) -> float:
        x, y = cell(browser, checkpoint, layer)
        column = int((x + plane.size["width"] / 2 - 14) * scale)  # beside the dot in the middle
        row = int((y + plane.size["height"] / 2) * scale)
        return float(image[row - 2 : row + 3, column - 2 : column + 3, :3].mean())

    assert brightness(2, 2) > brightness(0, 2) + 0.1
