"""The pages in a real browser: Debian's chromium, headless. Screenshots are kept in EDGEML_ARTIFACTS or build/."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

from edgeml.report import bench_page, build_page, compare_page, federation_page, render
from tests.report.builders import a_benchmark, a_federation, a_measurement, a_result, a_story, a_summary, a_variant

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed: apt-get install chromium")
SHOTS = Path(os.environ.get("EDGEML_ARTIFACTS") or "build") / "screenshots"
SCREENS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "light"},
    "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True},
}
SERIOUS = ("serious", "critical")


def spoiled() -> dict[str, Any]:
    return a_variant("int8-static-s8s8", measurement=a_measurement(valid=False, why="3.1 other tasks per core"))


def documents() -> dict[str, str]:
    """Return every kind of page as HTML, with all that can be on it."""
    build = a_summary(variants=[a_variant("fp32"), a_variant("int8-static-u8s8", bytes=9000), spoiled()])
    joined = {"device": "pi-7", "board": "raspberry-pi-4", "variant": "fp32", "measured": a_measurement(p50_ms=0.03)}
    change = {"change": {"threads": 2}, "ratio": 0.7, "ratio95": [0.68, 0.72], "kept": True, "why": "at most 0.8"}
    tuned = {"settings": a_measurement()["settings"], "trials": [change]}
    course = {"first_ms": 4.0, "last_ms": 4.1, "ratio": 1.02, "verdict": "4.1 ms at the end, as at the start"}
    bench = a_benchmark(
        a_result(measured=a_measurement(tuned=tuned, sustained=course)),
        a_result("int8-static-u8s8", measured=a_measurement(p50_ms=2.0, ci95_ms=[1.9, 2.1])),
    )
    bare = a_variant("fp32", measurement={}, host_latency_ms={})
    return {
        "build": render(build_page(build | {"on_devices": [joined]}, fleet=a_story())),
        "bench": render(bench_page(bench)),
        "compare": render(compare_page(("old", a_summary()), ("new", build))),
        "federation": render(federation_page(a_federation())),
        "bare": render(build_page(a_summary(variants=[bare], devices={}))),
    }


PAGES = tuple(documents()) if CHROMIUM else ("build",)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as play:
        running = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pages")
    for name, html in documents().items():
        (made / f"{name}.html").write_text(html, encoding="utf-8")
    return made


class Visit:
    """A page that was opened and drawn, and what it said and asked for meanwhile."""

    def __init__(self, browser: Browser, path: Path, screen: str, **more: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.context = browser.new_context(**(SCREENS[screen] | more))
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        if more.get("java_script_enabled", True):
            self.page.wait_for_selector("html[data-drawn]")

    def open_all(self) -> None:
        self.page.evaluate("document.querySelectorAll('details').forEach((part) => { part.open = true; })")
        drawn = "[...document.querySelectorAll('.plot')].every((plot) => plot.querySelector('svg[aria-hidden]'))"
        self.page.wait_for_function(drawn)


@pytest.fixture
def visit(browser: Browser, folder: Path) -> Iterator[Any]:
    opened: list[Visit] = []

    def go(name: str, screen: str = "light", **more: Any) -> Visit:
        opened.append(Visit(browser, folder / f"{name}.html", screen, **more))
        return opened[-1]

    yield go
    for one in opened:
        one.context.close()


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PAGES)
def test_every_figure_is_drawn_and_nothing_is_said_or_fetched(visit: Any, name: str, screen: str) -> None:
    seen = visit(name, screen)
    seen.open_all()
    SHOTS.mkdir(parents=True, exist_ok=True)
    seen.page.screenshot(path=SHOTS / f"{name}-{screen}.png", full_page=True)
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith(("file:", "data:"))] == []
    wide, room = seen.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= room, "the page scrolls sideways"


@pytest.mark.parametrize("screen", SCREENS)
@pytest.mark.parametrize("name", PAGES)
def test_axe_finds_no_serious_barrier(visit: Any, name: str, screen: str) -> None:
    seen = visit(name, screen)
    seen.open_all()
    found = Axe().run(seen.page).response["violations"]
    barriers = [
        f"{one['id']}: {one['help']}: {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for one in found
        if one["impact"] in SERIOUS
        for node in one["nodes"]
    ]
    assert not barriers, "\n".join(barriers)


@pytest.mark.parametrize("name", PAGES)
def test_headings_go_down_one_step_at_a_time_and_figures_have_words_and_tables(visit: Any, name: str) -> None:
    page = visit(name).page
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3,h4')].map((one) => Number(one.tagName[1]))")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    figures = page.evaluate(
        "[...document.querySelectorAll('figure')].map((one) => [one.querySelector('[role=img]')?.ariaLabel,"
        "one.querySelectorAll('thead th[scope=col]').length, one.querySelectorAll('tbody tr').length])"
    )
    assert all(label and heads and rows for label, heads, rows in figures), figures


def test_everything_that_acts_is_reached_by_the_keyboard(visit: Any) -> None:
    page = visit("build").page
    reached: set[str] = set()
    for _ in range(400):
        page.keyboard.press("Tab")
        at = page.evaluate("document.activeElement === document.body ? '' : document.activeElement.tagName")
        if not at:
            break
        reached.add(at)
    assert {"A", "SUMMARY", "SELECT", "BUTTON", "PRE"} <= reached


def test_a_point_tells_its_numbers_when_it_is_pointed_at(visit: Any) -> None:
    page = visit("bench").page
    mark = page.locator("#variants .plot svg .mark-symbol.role-mark path").first
    mark.hover()
    page.wait_for_selector("#tip:not([hidden])")
    said = page.locator("#tip").inner_text()
    assert "fp32" in said and "4 ms (3.95 to 4.05 ms), measured" in said


def test_another_board_is_drawn_when_it_is_chosen(visit: Any) -> None:
    page = visit("bench").page
    before = page.locator("#variants .plot svg").inner_html()
    page.locator("#variants select").select_option("Raspberry Pi 4")
    page.wait_for_function("(was) => document.querySelector('#variants .plot svg').innerHTML !== was", arg=before)


def test_the_time_strip_zooms_and_comes_back(visit: Any) -> None:
    page = visit("bench").page
    strip = page.locator("#measured-here .plot").nth(1)
    strip.scroll_into_view_if_needed()
    box, whole = strip.bounding_box(), strip.element_handle()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    begins = "(strip) => [...strip.querySelectorAll('text')].some((label) => label.textContent === '0.0')"
    assert whole.evaluate(begins)
    page.mouse.move(*middle)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -400)
    page.keyboard.up("Control")
    page.wait_for_function(f"(strip) => !({begins})(strip)", arg=whole)
    page.mouse.dblclick(*middle)
    page.wait_for_function(begins, arg=whole)


@pytest.mark.parametrize("name", PAGES)
def test_print_shows_all_parts_on_paper_even_from_a_dark_screen(visit: Any, name: str) -> None:
    seen = visit(name, "dark")
    SHOTS.mkdir(parents=True, exist_ok=True)
    seen.page.pdf(path=SHOTS / f"{name}.pdf", format="A4")
    seen.page.emulate_media(media="print")
    assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert seen.page.evaluate("getComputedStyle(document.body).color") == "rgb(23, 32, 46)"
    closed = seen.page.evaluate("[...document.querySelectorAll('details.part')].filter((part) => !part.open).length")
    assert closed == 0
    assert seen.said == []


def test_without_its_script_the_page_still_says_everything(visit: Any) -> None:
    page = visit("build", java_script_enabled=False).page
    assert page.locator("h3", has_text="Raspberry Pi 4 runs fp32").count() == 1
    assert "fp32 4.1 ms, middle half 3.95 to 4.25 ms" in page.locator("main").inner_text()
