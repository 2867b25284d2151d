"""The page says what the summary says: verdict first, nothing from outside, nothing made up or breaking out."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.report import build_page, plots, render
from edgeml.report.scales import fit, milliseconds, number
from tests.report.builders import a_board, a_story, a_summary, a_variant

VOID = {"meta", "br", "link", "img", "hr"}


class Reader(HTMLParser):
    """Collects text, headings, attributes, and checks that every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.heads: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.feed(page)
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        where = self.open[-1] if self.open else ""
        if where in ("h1", "h2"):
            self.headings.append(data.strip())
        if where == "th":
            self.heads.append(data.strip())
        if where != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(summary: dict[str, Any], story: dict[str, Any] | None = None) -> Reader:
    return Reader(render(build_page(summary, fleet=story)))


def test_the_page_needs_nothing_from_outside() -> None:
    page = render(build_page(a_summary(), fleet=a_story()))
    assert Reader(page).links == []
    assert "http" not in page and "<script" not in page and "@import" not in page


def test_the_verdict_comes_before_everything_else() -> None:
    text = read(a_summary()).text
    assert text.index("raspberry-pi-4 runs fp32") < text.index("Variants") < text.index("Boards")


def test_every_part_is_there_with_its_numbers() -> None:
    page = read(a_summary())
    assert page.headings == ["digits", "Variants", "Boards", "Mistakes", "Search", "Data", "Where it comes from"]
    for said in (
        "25,475",
        "0.9557",
        "4.8e-07",
        "0 of 359 (ties 1)",
        "prior",
        "nothing to quantize",
        "cd" * 32,
        "1.32.0",
    ):
        assert said in page.text
    assert page.tags.count("svg") == 5


def test_the_fleets_story_stands_first() -> None:
    page = read(a_summary(), a_story())
    assert page.headings[1:4] == ["Learned on the devices", "No device alone", "The fleet"]
    assert "0.8950 → 0.9500 after 3 federated rounds" in page.text
    assert "Rollout of 01b7a632: succeeded on 1 devices in 0.5 s" in page.text


def test_what_was_not_measured_is_not_made_up() -> None:
    bare = a_variant("fp32", metrics={}, host_latency_ms={})
    page = read(a_summary(variants=[bare], metrics={"test": {}, "source": {}}, confusion=None, search=[], devices={}))
    assert "not measured" in page.text
    assert "Mistakes" not in page.headings and "Search" not in page.headings


def test_the_rows_farthest_off_are_shown_and_the_failure_that_missed_by_least() -> None:
    row = {"where": "edge case numeric[3]: missing", "source": [0.25, 0.75], "variant": [None, 0.5], "difference": None}
    failed = a_variant("int8-static-u8s8", verdict="fail", worst=[row])
    failure = {"name": "int8-static-u8s8", "missed_by": 0.0123, "reason": "fails"}
    page = read(a_summary(variants=[a_variant("fp32"), failed], best_failure=failure))
    assert "Where variants are farthest from their source" in page.headings
    for words in ("numeric[3]: missing", "0.25 0.75", "NaN 0.5", "infinite", "misses its bound by 1.2e-02"):
        assert words in page.text


def test_an_invalid_measurement_is_shown_as_such_with_its_reason() -> None:
    spoiled = a_variant("fp32")
    spoiled["host_latency_ms"] |= {"valid": False, "why": "3.1 other tasks per core"}
    text = read(a_summary(variants=[spoiled])).text
    assert "INVALID: 4 µs" in text and "3.1 other tasks per core" in text


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "</style><b>", '"><img src=x>', "{{ 7 * 7 }}", "&lt;"])
def test_names_cannot_break_out_of_the_page(evil: str) -> None:
    board = a_board("fp32", reason=evil)
    summary = a_summary(
        model=evil,
        devices={evil: board},
        variants=[a_variant(evil)],
        default_variant=evil,
        confusion={"labels": [evil, "b"], "counts": [[1, 2], [3, 4]]},
        search=[{"estimator": evil, "parameters": {evil: evil}, "score": 0.5, "spread": 0.1, "seconds": 1.0}],
    )
    page = read(summary)
    assert "script" not in page.tags and "img" not in page.tags and "b" not in page.tags
    assert evil in page.text


def test_a_forecast_never_stands_without_its_range() -> None:
    assert "20 µs (10 µs to 40 µs), prior" in read(a_summary()).text


ONE = plots.Axis("latency", milliseconds)
PICTURES = {
    "scatter": plots.scatter([{"name": "a", "x": 0.1, "y": 0.9, "size": 10}], ONE, plots.Axis("accuracy")),
    "scatter of equals": plots.scatter([{"name": n, "x": 1.0, "y": 1.0, "size": 0} for n in "abc"], ONE, ONE),
    "ranges": plots.ranges([{"name": "a", "low": 1, "middle": 2, "high": 4, "limit": 9, "series": 7}], ONE),
    "boxes": plots.boxes([{"name": "a & b", "samples": [1.0]}, {"name": "<", "samples": [1.0, 2.0]}], ONE),
    "whiskers": plots.whiskers([{"name": "a", "value": 0.5, "spread": 0.0}], plots.Axis("f1")),
    "line": plots.line([{"name": "before", "value": 0.5, "note": "n"}], plots.Axis("f1")),
    "heat": plots.heat(["a", "b"], [[0, 0], [0, 0]]),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_picture_is_well_formed_with_its_marks_inside(name: str) -> None:
    root = ElementTree.fromstring(PICTURES[name])
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for mark in root.iter():
        for key, limit in (("x", width), ("cx", width), ("x1", width), ("y", height), ("cy", height), ("y2", height)):
            if key in mark.attrib:
                assert 0 <= float(mark.attrib[key]) <= limit, f"{mark.tag} {mark.attrib}"


values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


@given(values, st.booleans())
def test_a_scale_keeps_order_and_holds_its_values_and_ticks(found: list[float], log: bool) -> None:
    scale = fit(found, 0, 600, log=log)
    places = [scale(value) for value in sorted(found)]
    assert places == sorted(places)
    assert all(-1e-6 <= place <= 600 + 1e-6 for place in places)
    ticks = scale.ticks()
    assert ticks and ticks == sorted(set(ticks))
    assert all(scale.low <= tick <= scale.high * (1 + 1e-9) for tick in ticks)


@given(st.floats(1e-9, 1e9))
def test_a_number_is_written_to_three_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=6e-3)
