"""The page says what its document says: verdict first, nothing from outside, nothing made up or breaking out."""

from __future__ import annotations

import csv
import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.errors import DataError, NotFound
from edgeml.pipeline.finish import write_report
from edgeml.pipeline.reports import read_document, report_of, with_devices, write_bench
from edgeml.registry import DeviceMeasurement, Registry
from edgeml.report import Page, bench_page, build_page, compare_page, federation_page, render, tabulate
from edgeml.report.numbers import number
from edgeml.report.vega import vega
from tests.report.builders import (
    PROFILE,
    a_benchmark,
    a_board,
    a_federation,
    a_measurement,
    a_result,
    a_story,
    a_summary,
    a_variant,
)

VOID = {"meta", "br", "link", "img", "hr", "input"}


class Reader(HTMLParser):
    """Collects text, headings, attributes, and checks that every tag is closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.headings: list[str] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.specs: list[dict[str, Any]] = []
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
        if where == "script" and data.startswith('{"width":"container"'):
            self.specs.append(json.loads(data))
        if where not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(page: Page) -> Reader:
    return Reader(render(page))


def read_build(summary: dict[str, Any], story: dict[str, Any] | None = None) -> Reader:
    return read(build_page(summary, fleet=story))


def test_the_page_needs_nothing_from_outside() -> None:
    html = render(build_page(a_summary(), fleet=a_story()))
    page = Reader(html)
    assert all(link.startswith(("#", "data:,")) for link in page.links), page.links
    assert "@import" not in html and "sourceMappingURL" not in html and "url(" not in page.text
    assert len(html) < 1_200_000


def test_the_verdict_comes_before_everything_else() -> None:
    text = read_build(a_summary()).text
    assert text.index("Raspberry Pi 4 runs fp32") < text.index("Every variant ran") < text.index("Every prediction")


def test_every_part_is_there_with_its_numbers() -> None:
    page = read_build(a_summary())
    assert page.headings == [
        *("digits", "Verdict", "Variants", "Boards", "Measured here", "Operators", "Memory and cold start", "Roofline"),
        *("Refused, and why", "Mistakes", "Search", "Data", "Where it comes from", "Commands"),
    ]
    for said in (
        *("25.5 kB", "0.9557", "4.8e-07", "0 of 359 (ties 1)", "prior", "nothing to quantize", "cd" * 32, "1.32.0"),
        *("3.95 to 4.05 ms", "66 MB", "throttled, clock at 1.50 of 1.80 GHz", "edgeml verify", "x86_64"),
    ):
        assert said in page.text + json.dumps(page.specs), said


def test_the_fleets_story_stands_first() -> None:
    page = read_build(a_summary(), a_story())
    assert page.headings[2:5] == ["Learned on the devices", "No device alone", "The fleet"]
    assert "0.8950 → 0.9500 after 3 federated rounds" in page.text
    assert "Rollout of 01b7a632: succeeded on 1 devices in 0.5 s" in page.text


def test_what_was_not_measured_is_not_made_up() -> None:
    bare = a_variant("fp32", metrics={}, host_latency_ms={}, measurement={}, work={})
    page = read_build(
        a_summary(variants=[bare], metrics={"test": {}, "source": {}}, confusion=None, search=[], devices={})
    )
    assert "not measured" in page.text and page.specs == []
    assert not {"Mistakes", "Search", "Measured here", "Operators", "Roofline", "Boards"} & set(page.headings)


def test_runs_made_before_measurements_were_whole_still_show_their_latencies() -> None:
    old = a_variant("fp32")
    del old["measurement"]
    assert "4 µs (3.9 to 4.1 µs)" in read_build(a_summary(variants=[old])).text


def test_the_rows_farthest_off_are_shown_and_the_failure_that_missed_by_least() -> None:
    row = {"where": "edge case numeric[3]: missing", "source": [0.25, 0.75], "variant": [None, 0.5], "difference": None}
    failed = a_variant("int8-static-u8s8", verdict="fail", worst=[row])
    failure = {"name": "int8-static-u8s8", "missed_by": 0.0123, "reason": "fails"}
    page = read_build(a_summary(variants=[a_variant("fp32"), failed], best_failure=failure))
    assert "Where variants are farthest from their source" in page.headings
    for words in ("numeric[3]: missing", "0.25 0.75", "NaN 0.5", "infinite", "misses its bound by 1.2e-02"):
        assert words in page.text


def spoiled(**changes: Any) -> dict[str, Any]:
    return a_measurement(valid=False, why="3.1 other tasks per core", **changes)


def test_an_invalid_measurement_is_shown_as_such_with_its_reason_and_beats_nobody() -> None:
    fast = a_variant("int8-static-u8s8", measurement=spoiled(p50_ms=0.5, ci95_ms=[0.4, 0.6]))
    page = read_build(a_summary(variants=[a_variant("fp32"), fast], devices={}))
    assert "INVALID: 0.5 ms" in page.text and "3.1 other tasks per core" in page.text
    points = {row["name"]: row for row in page.specs[0]["data"]["values"]}
    assert points["fp32"]["front"] and not points["int8-static-u8s8"]["front"]
    assert not points["int8-static-u8s8"]["valid"]


def test_a_benchmark_with_only_invalid_runs_says_that_nothing_can_be_used() -> None:
    text = read(bench_page(a_benchmark(a_result(measured=spoiled())))).text
    assert "No run can be used: INVALID. 3.1 other tasks per core." in text


def test_two_variants_are_called_faster_only_where_their_intervals_say_so() -> None:
    near = a_result("int8-static-u8s8", measured=a_measurement(p50_ms=3.98, ci95_ms=[3.9, 4.06]))
    far = a_result("int8-static-u8s8", measured=a_measurement(p50_ms=2.0, ci95_ms=[1.9, 2.1]))
    assert "no difference to fp32 is proven" in read(bench_page(a_benchmark(a_result(), near))).text
    assert "2.00 times as fast as fp32" in read(bench_page(a_benchmark(a_result(), far))).text


def test_a_board_that_is_too_small_is_said_before_anything_is_shipped() -> None:
    page = bench_page(a_benchmark(a_result(memory_mb={"predicted": 2000.0})))
    verdict = next(one for one in page.verdicts if one.who == "raspberry-pi-4")
    assert verdict.good is False and "Needs 2,000 MB, the board has 1,024 MB" in verdict.why


def test_a_measurement_from_a_real_device_joins_the_boards() -> None:
    joined = {"device": "pi-7", "board": "raspberry-pi-4", "variant": "fp32", "measured": a_measurement(p50_ms=7.5)}
    page = read_build(a_summary(on_devices=[joined, joined | {"device": "pi-8", "measured": spoiled()}]))
    assert "fp32 takes 7.5 ms there" in page.text and "pi-8" in page.text
    assert "fp32 on pi-8" in page.text  # among what was refused
    board = next(spec for spec in page.specs if "diamond" in json.dumps(spec))
    assert [row["valid"] for row in board["layer"][-1]["data"]["values"]] == [True, False]


def test_every_method_in_use_is_explained_and_no_other() -> None:
    sources = [{"method": "emulated", "low": 1.0, "predicted": 2.0, "high": 3.0, "weight": 0.3}]
    predictions = {"fp32": {"low": 1, "predicted": 2, "high": 4, "method": "combined", "sources": sources}}
    text = read_build(a_summary(devices={"raspberry-pi-4": a_board("fp32", predictions=predictions)})).text
    assert "instructions counted under emulation" in text and "each weighted by how sure" in text
    assert "calculated from published facts" not in text


def test_the_roofline_marks_the_model_below_its_boards_roof() -> None:
    page = read(bench_page(a_benchmark()))
    spec = next(spec for spec in page.specs if "GMAC/s" in json.dumps(spec))
    roof = max(row["y"] for row in spec["layer"][0]["data"]["values"] if row["roof"] == "fp32")
    assert roof == pytest.approx(PROFILE["frequency_ghz"] * PROFILE["fp32_flops_per_cycle"] / 2)
    marks = {row["kind"]: row for row in spec["data"]["values"]}
    assert marks["gemv"]["y"] == pytest.approx(0.25 * 2.24)  # bound by memory: MAC per byte times bandwidth
    assert marks["conv"]["y"] == pytest.approx(roof)
    assert marks["the model"]["y"] == pytest.approx(41 / 8)  # million MAC over milliseconds


EVIL = ["<script>alert(1)</script>", "</style><b>", '"><img src=x>', "{{ 7 * 7 }}", "&lt;", "'"]


@pytest.mark.parametrize("evil", EVIL)
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
    page = read_build(summary)
    assert "img" not in page.tags and "b" not in page.tags
    assert page.tags.count("script") == len(page.specs) + 2  # their configuration, and our own
    assert evil in page.text


def test_a_forecast_never_stands_without_its_range() -> None:
    assert "20 µs (10 to 40 µs), prior" in read_build(a_summary()).text


def differ(a: dict[str, Any], b: dict[str, Any]) -> Reader:
    return read(compare_page(("old", a), ("new", b)))


def test_two_results_are_compared_by_their_intervals() -> None:
    faster = a_benchmark(a_result(measured=a_measurement(p50_ms=2.0, ci95_ms=[1.9, 2.1])))
    assert "new is faster with fp32: 0.500 of the time, between 0.469 and 0.532." in differ(a_benchmark(), faster).text
    assert "No difference in the latency of fp32 is proven" in differ(a_benchmark(), a_benchmark()).text


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"valid": False, "why": "throttled"}, "the second is INVALID: throttled"),
        ({"scenario": "paced"}, "scenario: single-stream in one, paced in the other"),
        ({"environment": {"cpu_model": "Cortex-A53"}}, "cpu_model: Cortex-A72 in one, Cortex-A53 in the other"),
    ],
)
def test_unmatched_conditions_are_shown_and_not_compared(changes: dict[str, Any], why: str) -> None:
    page = differ(a_benchmark(), a_benchmark(a_result(measured=a_measurement(**changes))))
    assert "The latencies of fp32 cannot be compared" in page.text and why.lower() in page.text.lower()
    assert "0.500" not in page.text


def test_two_builds_are_compared_by_metric_board_and_variant() -> None:
    better = a_summary(
        metrics={"source": {}, "test": {"accuracy": 0.9957}},
        devices={"raspberry-pi-4": a_board("int8-static-u8s8")},
        variants=[a_variant("fp32")],
    )
    page = differ(a_summary(), better)
    assert "new is better: +0.0400" in page.text
    assert "Raspberry Pi 4 runs int8-static-u8s8 in new, fp32 in old" in page.text
    assert "only old has int8-static-u8s8" in page.text
    other = a_summary(dataset=a_summary()["dataset"] | {"digest": "00" * 32})
    assert "not comparable" in differ(a_summary(), other).text


def test_the_numbers_for_programs_are_the_numbers_of_the_page() -> None:
    rows = list(csv.DictReader(io.StringIO(tabulate(a_summary()))))
    here = [row for row in rows if row["where"] == "this-machine"]
    there = [row for row in rows if row["where"] == "raspberry-pi-4"]
    assert [row["variant"] for row in here] == ["fp32", "int8-static-u8s8"]
    assert (here[0]["ms"], here[0]["low_ms"], here[0]["valid"]) == ("4.0", "3.95", "True")
    assert {row["runs_there"] for row in there} == {"True", "False"} and there[0]["method"] == "prior"


def test_json_and_csv_lie_beside_the_page_and_make_it_again(tmp_path: Path) -> None:
    write_bench(tmp_path / "net.html", a_benchmark())
    assert {path.name for path in tmp_path.iterdir()} == {"net.html", "net.json", "net.csv"}
    first = (tmp_path / "net.html").read_text()
    assert 'href="net.json"' in first and 'href="net.csv"' in first
    assert report_of(tmp_path, str(tmp_path / "net.json")) == tmp_path / "net.html"
    assert (tmp_path / "net.html").read_text() == first


def test_what_devices_measured_since_joins_the_report_of_a_release(tmp_path: Path) -> None:
    registry, page = Registry.open(tmp_path / "registry"), tmp_path / "report.html"
    graph = a_summary()["variants"][0]["digest"]
    write_report(page, a_summary(variants=[a_variant("fp32", digest=graph)]))
    before = page.read_text()
    assert with_devices(registry.root, page).read_text() == before
    for when, ms in ((1.0, 9.0), (2.0, 7.5)):
        told = DeviceMeasurement(
            bench=f"bench-{when}",
            device="pi-7",
            board="raspberry-pi-4",
            model="net",
            variant="fp32",
            digest=graph,
            time=when,
            agent="0.1.0",
            hardware={},
            document=a_measurement(p50_ms=ms),
        )
        registry.benches.keep([told])
    text = Reader(with_devices(registry.root, page).read_text()).text
    assert "fp32 takes 7.5 ms there" in text and "takes 9 ms" not in text


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model": 1}', "\x00"])
def test_what_is_no_document_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        read_document(tmp_path / "a.json")
    with pytest.raises(NotFound, match="No such file"):
        read_document(tmp_path / "b.json")


@pytest.mark.parametrize("hole", ["results", "variants", "metrics", "devices"])
def test_a_document_with_a_hole_is_refused(tmp_path: Path, hole: str) -> None:
    document = a_benchmark(results=[{"variant": "fp32"}]) if hole == "results" else a_summary()
    if hole != "results":
        document[hole] = 7
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match="make it again"):
        report_of(tmp_path, str(tmp_path / "a.json"))


def test_the_script_is_bundled_once_and_cannot_end_its_element(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEML_CACHE", str(tmp_path))
    vega.cache_clear()
    made = vega()
    (kept,) = tmp_path.iterdir()
    assert kept.read_text(encoding="utf-8") == made and "</script" not in made and "vegaEmbed" in made
    vega.cache_clear()
    kept.write_text("// as it was kept")
    assert vega() == "// as it was kept"
    vega.cache_clear()


@given(st.floats(1e-9, 1e9))
def test_a_number_is_written_to_three_digits(value: float) -> None:
    assert float(number(value).replace(",", "")) == pytest.approx(value, rel=6e-3)


def test_a_federation_is_told_round_by_round_with_what_it_cost_and_who_answered() -> None:
    page = read(federation_page(a_federation()))
    for words in ("Accuracy 0.1100 → 0.8000 in 4 rounds", "0.9700 own, 0.9000 shared model", "1.07 MB"):
        assert words in page.text
    for figure in ("accuracy round by round", "Loss round by round", "Privacy spent", "Bytes of each round"):
        assert figure in page.text
    assert "dirichlet:0.1, 10 devices" in page.text and len(page.specs) == 7
    answered = page.specs[5]["data"]["values"]
    assert sum(row["value"] for row in answered if row["round"] == 1) == 10, "every device that was asked, once"


def test_a_fleets_federation_says_whether_it_was_released_and_knows_no_centralized_model() -> None:
    gone = ("epsilon", "loss_before", "loss_after", "silent")
    bare = [{name: value for name, value in done.items() if name not in gone} for done in a_federation()["rounds"]]
    fleet = {"simulated": False, "released": "01b7a632", "reason": "released as 01b7a632", "centralized": None}
    told = a_federation(**fleet) | {"rounds": bare, "personal": None, "shares": None, "devices": ["a", "b"]}
    page = read(federation_page(told))
    assert "Released as 01b7a632." in page.text and "not measured" in page.text and len(page.specs) == 5
    assert "Privacy spent" not in page.text and "centralized" not in json.dumps(page.specs)


@pytest.mark.parametrize("evil", EVIL)
def test_names_of_a_federation_cannot_break_out_of_the_page(evil: str) -> None:
    page = read(federation_page(a_federation(model=evil, partition=evil, reason=evil, metric=evil, command=evil)))
    assert "img" not in page.tags and "b" not in page.tags and evil in page.text
    assert page.tags.count("script") == len(page.specs) + 2
