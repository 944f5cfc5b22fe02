"""A walk through pages in Chromium: what a person sees and does, without a network.

Skipped where there is no Chromium, no driver of it, or no Selenium.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import bnfold
from bnfold._run import stopwatch

from ..cli.command import bnfold as command
from ..graphs import bn, conv, model, op, reseed
from .test_page import HOSTILE, foldable, saved

pytest.importorskip("fast_sugiyama", reason="pages need bnfold[report]")
selenium = pytest.importorskip("selenium", reason="needs Selenium, to drive a browser")
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
if BROWSER is None or DRIVER is None:
    pytest.skip("needs Chromium and chromedriver", allow_module_level=True)

_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--window-size=1440,900",
)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def opened(browser: Any, page: Path) -> list[str]:
    """Open a page; gives the addresses that were asked for. No error may show in the console."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.dataset.drawn") == "true"
    assert browser.get_log("browser") == []

    events = [json.loads(each["message"])["message"] for each in browser.get_log("performance")]
    return [
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
        and event["params"]["documentURL"] == page.as_uri()  # not what Chromium starts with
    ]


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def settled(browser: Any) -> None:
    """Wait until the picture is drawn anew."""
    browser.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done));"
    )


def details(browser: Any) -> str:
    settled(browser)
    return one(browser, "#details").text


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page")
    reseed()  # as ahead of each test: here whatever ran before would have a say in the numbers
    return bnfold.report(saved(foldable(), folder / "m.onnx"), folder / "r.html")


def test_a_page_opens_without_an_error_or_a_request(browser: Any, page: Path) -> None:
    assert opened(browser, page) == [page.as_uri()]
    assert "Proved: the same function" in one(browser, "h1").text
    assert one(browser, "#label-before").text.endswith("5 operators")
    assert one(browser, "#label-after").text.endswith("4 operators")


def test_a_click_on_a_batchnorm_tells_where_it_went(browser: Any, page: Path) -> None:
    opened(browser, page)
    one(browser, "#before .op.gone").click()
    told = details(browser)
    assert "Its scale and shift went into" in told and "W′[o] = s[o] · W[o]" in told
    rows = [row.text.split()[0] for row in browser.find_elements("css selector", "#details tr")]
    assert rows[1:4] == ["least", "middle", "most"] and sorted(rows[4:]) == list("0123")
    assert browser.find_elements("css selector", "#before .flow:not(.faint)")
    one(browser, "#details .link").click()  # to the Conv
    assert "What it took in" in details(browser)
    assert one(browser, "#before .op.chosen").get_attribute("aria-label").startswith("Conv")
    assert one(browser, "#after .op.chosen .kind").text == "Conv"


def test_the_summary_tells_what_went_and_not_what_stays(browser: Any, tmp_path: Path) -> None:
    """The scale of a Sub and a Div goes in, and the Sub stays for its shift."""
    digits = Path(__file__).parents[2] / "examples" / "digits.onnx"
    opened(browser, bnfold.report(digits, tmp_path / "r.html"))
    told = details(browser)
    assert "7 operators gone" in told and "1 into the Conv after, such as /Div" in told
    assert "1 zero-padding, such as /Sub" in told


def test_search_finds_and_leads_there(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    one(browser, "body").send_keys("/")
    query = browser.switch_to.active_element
    query.send_keys("norm")
    assert one(browser, "#hits").text == "2 hits"
    query.send_keys(Keys.ENTER)
    assert "/a/norm/BatchNormalization" in details(browser)
    query.send_keys(Keys.ENTER)
    assert "/b/norm/BatchNormalization" in details(browser)
    assert "Why it stays" in details(browser)
    query.clear()
    query.send_keys("nowhere")
    assert one(browser, "#hits").text == "no hit"


def test_a_notebook_shows_the_picture(browser: Any, tmp_path: Path) -> None:
    """Of a plan and a verdict: drawn as wide as there is room, and what names say is text."""
    made = foldable()
    for node in made.graph.node:
        node.name += HOSTILE
    made.graph.output[0].name = made.graph.node[-1].output[0] = HOSTILE
    plan, verdict = bnfold.plan(made), bnfold.verify(made, bnfold.fold(made))
    for shown in (plan, verdict):
        page = tmp_path / "cell.html"
        text = f"<!doctype html><meta charset='utf-8'><title>cell</title>{shown._repr_html_()}"
        page.write_text(text, "utf-8")
        browser.get_log("browser")
        browser.get(page.as_uri())
        assert browser.get_log("browser") == [] and browser.title == "cell"
        picture = one(browser, "svg")
        assert 300 < picture.size["width"] <= 720 and 20 < picture.size["height"] < 200
        assert picture.find_elements("css selector", "rect")
        assert not browser.find_elements("css selector", "script")
        room = browser.execute_script(
            "const all = document.querySelector('svg').getBBox(); return [all.x, all.x + all.width]"
        )
        assert room[0] >= 0
    browser.get(page.as_uri())
    assert "of the tolerance" in one(browser, "svg").text


def test_groups_close_and_open_by_mouse_and_keyboard(browser: Any, page: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    opened(browser, page)
    shown = len(browser.find_elements("css selector", "#before .op:not(.group)"))
    one(browser, "#before .op.title .kind").click()
    settled(browser)
    assert len(browser.find_elements("css selector", "#before .op:not(.group)")) < shown
    assert one(browser, "#before [aria-expanded=false]")
    pane = one(browser, "#before")
    pane.send_keys(Keys.ARROW_RIGHT)
    settled(browser)
    assert len(browser.find_elements("css selector", "#before .op:not(.group)")) == shown
    pane.send_keys(Keys.ARROW_DOWN)
    settled(browser)
    active = pane.get_attribute("aria-activedescendant")
    assert browser.execute_script("return !!document.getElementById(arguments[0])", active)


def test_the_table_sorts_and_leads_into_the_picture(browser: Any, page: Path) -> None:
    opened(browser, page)
    titles = browser.find_elements("css selector", "#all th button")
    assert one(browser, "#all tbody td").text == "stays"  # what one can do something about
    titles[0].click()
    first = one(browser, "#all tbody td").text
    titles[0].click()
    assert {first, one(browser, "#all tbody td").text} == {"fold", "stays"}
    assert one(browser, "#all th").get_attribute("aria-sort") == "descending"
    one(browser, "#all tbody .link").click()
    assert "Why it stays" in details(browser)


def test_hostile_names_are_text(browser: Any, tmp_path: Path) -> None:
    made = foldable()
    for node in made.graph.node:
        node.name += f"{HOSTILE}<img src=x onerror=document.title='broken'>"
    page = bnfold.report(saved(made, tmp_path / "m.onnx"), tmp_path / "r.html")
    assert opened(browser, page) == [page.as_uri()]
    one(browser, "#before .op.gone").click()
    assert "<img src=x" in details(browser)
    assert browser.title == "m.onnx · bnfold"
    assert browser.find_elements("css selector", "img, script:not([type])")[1:] == []


def test_no_request_leaves_even_if_a_script_asks_for_one(browser: Any, page: Path) -> None:
    opened(browser, page)
    refused = browser.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('sent'), "
        "(error) => done('refused'));"
    )
    assert refused == "refused"
    assert any("Content Security Policy" in each["message"] for each in browser.get_log("browser"))


def test_ten_thousand_operators_stay_usable(browser: Any, tmp_path: Path) -> None:
    count = 10_000
    nodes = [op("Relu", f"t{k}", f"t{k + 1}", name=f"relu_{k}") for k in range(count - 2)]
    made = model(
        conv("conv", "x", "c", (4, 3, 1, 1)),
        bn("norm", "c", "t0", 4),
        *nodes,
        x=[1, 3, 2, 2],
        y=f"t{count - 2}",
    )
    source = saved(made, tmp_path / "m.onnx")
    from bnfold._report.page.api import report

    page = report(source, tmp_path / "r.html", timeout=120)
    begun = time.monotonic()
    opened(browser, page)
    assert time.monotonic() - begun < 10  # half a second where nothing else runs
    assert len(browser.find_elements("css selector", ".op")) < 400
    one(browser, "[aria-label='Open all groups']").click()
    settled(browser)
    assert len(browser.find_elements("css selector", ".op")) < 400
    query = one(browser, "#query")
    query.send_keys("relu_9876\n")
    assert "relu_9876" in details(browser)


def test_a_page_prints_and_has_both_colours(browser: Any, page: Path) -> None:
    opened(browser, page)
    grounds = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        ground = "return getComputedStyle(document.documentElement).backgroundColor"
        grounds.append(browser.execute_script(ground))
    assert grounds[0] != grounds[1]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    for tool, shown in (("#find", False), ("#tools", False), ("#before", True), ("#all", True)):
        assert one(browser, tool).is_displayed() == shown, tool
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(browser.print_page()) > 10_000


def test_a_page_fits_windows_of_any_width(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is wider than the window, no words of the legend are squeezed, and the figures of the
    head begin at one place in every row.
    """
    monkeypatch.setattr(stopwatch, "SECONDS", 0.1)
    made, target = saved(foldable(), tmp_path / "a-long-name-of-a-file.onnx"), tmp_path / "r.html"
    command("fold", made, "-o", tmp_path / "f.onnx", "--time", "--html", target)
    measured = (
        "const boxes = (all) => [...document.querySelectorAll(all)].map((one) => {"
        "  const box = one.getBoundingClientRect(); return [box.left, box.top, box.height]; });"
        "return [document.documentElement.scrollWidth, boxes('#facts > *'), boxes('#legend > *')];"
    )
    for width in (400, 800, 1280, 1920):
        shape = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", shape)
        opened(browser, target)
        wide, figures, keys = browser.execute_script(measured)
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        assert wide <= width
        assert len(figures) == 7 and len(keys) == 3
        assert all(height < 30 for _, _, height in keys), width
        begins = {top: min(left for left, at, _ in figures if at == top) for _, top, _ in figures}
        assert len(set(begins.values())) == 1, width


def test_all_that_can_be_reached_has_a_name(browser: Any, page: Path) -> None:
    opened(browser, page)
    unnamed = browser.execute_script(
        "return [...document.querySelectorAll('button, input, [role=treeitem], [role=img], "
        "[role=tree], section')].filter((each) => !(each.getAttribute('aria-label') || "
        "each.getAttribute('aria-labelledby') || each.textContent)).length"
    )
    assert unnamed == 0
