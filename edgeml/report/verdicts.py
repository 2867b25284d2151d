"""The verdicts: what stands at the top of a page, one sentence for each board, and the numbers it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgeml.report.costs import first_answer
from edgeml.report.numbers import milliseconds, number, size
from edgeml.report.parts import Verdict
from edgeml.report.reading import HERE, Document, Form, Place, Reading
from edgeml.report.words import ABSENT, figure_of, forecast, interval, latency_of, limits_of, sentence

Facts = list[tuple[str, str]]


def of_build(reading: Reading, fleet: Mapping[str, Any] | None) -> list[Verdict]:
    """Return the fleet's verdict where there is one, then each board's."""
    told = [_fleet(fleet)] if fleet else []
    told += [_board(place) for place in reading.places]
    told += [_device(reading, index) for index in range(len(reading.devices))]
    if not reading.places:
        says = "No board was named: every variant that passed is in the bundle, fp32 is the default"
        told.append(Verdict("no board", sentence(says), good=None))
    return told


def _fleet(fleet: Mapping[str, Any]) -> Verdict:
    before, after = fleet["before"], fleet["after"]
    change = f"{after['metric']} {before['value']:.4f} → {after['value']:.4f}"
    words = f"{change} after {len(fleet['rounds'])} federated rounds"
    return Verdict("the fleet", sentence(words), sentence(after["reason"]), bool(after["released"]))


def _board(place: Place) -> Verdict:
    says = f"{place.title} runs {place.chosen}." if place.chosen else f"{place.title}: nothing fits."
    found = place.predictions.get(place.chosen)
    numbers: Facts = [("one row", forecast(found))] if found else []
    if found and found.get("memory_mb"):
        numbers.append(("memory", f"{number(found['memory_mb'])} MB"))
    if place.limits.get("latency_p90_ms") or place.limits.get("memory_mb"):
        numbers.append(("limits", limits_of(place.limits)))
    return Verdict(place.name, says, sentence(place.reason) if place.reason else "", place.fits, numbers)


def _device(reading: Reading, index: int) -> Verdict:
    device = reading.devices[index]
    took, valid = device.measured, device.measured.get("valid", True)
    says = f"{device.variant} takes {latency_of(took.get('p50_ms'))} there"
    why = f"95 % interval {interval(took.get('ci95_ms'))}, p90 {latency_of(took.get('p90_ms'))}"
    if not valid:
        says, why = f"{device.variant} was measured there, but the run is INVALID", str(took.get("why"))
    return Verdict(device.device, sentence(says), sentence(why), True if valid else None)


def facts_of_build(summary: Document, reading: Reading) -> Facts:
    """Return the four numbers that most readers look for."""
    metric, rows = reading.metric, summary["dataset"]
    test, source = summary["metrics"].get("test", {}), summary["metrics"].get("source", {})
    shipped = reading.form(summary.get("default_variant", "fp32")) or reading.forms[0]
    facts = [(f"{metric} on {rows['test']:,} held-out rows", figure_of(test[metric]))] if metric in test else []
    if metric in source:
        facts.append((f"{metric} of the source model", figure_of(source[metric])))
    facts.append((f"{shipped.name} on this machine, median", _median(shipped)))
    facts.append((f"{shipped.name}, size", size(shipped.bytes or 0)))
    small = min(
        (form for form in reading.forms if form.passed and form.bytes), key=lambda f: f.bytes or 0, default=None
    )
    if small is not None and small.name != shipped.name and shipped.bytes:
        facts.append((f"{small.name}, size", size(small.bytes or 0)))
    return facts


def _median(form: Form) -> str:
    return latency_of(form.measured.get("p50_ms")) + (" INVALID" if form.timed and not form.valid else "")


def of_bench(reading: Reading) -> list[Verdict]:
    """Return what was measured here, on real devices, and what is predicted for each board."""
    told = [_here(reading)] if reading.timed else []
    told += [_device(reading, index) for index in range(len(reading.devices))]
    return told + [_forecasts(place) for place in reading.places]


def _here(reading: Reading) -> Verdict:
    valid = sorted((form for form in reading.timed if form.valid), key=lambda form: form.measured["p50_ms"])
    if not valid:
        first = reading.timed[0]
        return Verdict("this machine", "No run can be used: INVALID.", sentence(str(first.measured.get("why"))), False)
    best = valid[0]
    says = f"{best.name} takes {milliseconds(best.measured['p50_ms'])} a query here"
    why = f"95 % interval {interval(best.measured.get('ci95_ms'))} over {best.measured['n']:,} queries"
    if len(valid) > 1:
        says += f", {_against(best, valid[1])}"
    invalid = [form.name for form in reading.timed if not form.valid]
    why += f"; {', '.join(invalid)} INVALID, not used" if invalid else ""
    numbers = [("p90", latency_of(best.measured.get("p90_ms"))), ("p99", latency_of(best.measured.get("p99_ms")))]
    if best.measured.get("cold_start"):
        numbers.append(("first answer of a new process", first_answer(best)))
    return Verdict("this machine", sentence(says), sentence(why), True, numbers)


def _against(best: Form, second: Form) -> str:
    """Return how `best` compares with the next one, only as sure as their intervals are."""
    ends, others = best.measured.get("ci95_ms"), second.measured.get("ci95_ms")
    if ends and others and ends[1] < others[0]:
        return f"{second.measured['p50_ms'] / best.measured['p50_ms']:.2f} times as fast as {second.name}"
    return f"no difference to {second.name} is proven"


def _forecasts(place: Place) -> Verdict:
    ranked = sorted(place.predictions.items(), key=lambda item: item[1]["predicted"])
    (best, first), *others = ranked
    title = "This machine, predicted" if place.name == HERE else place.title
    says = f"{title}: {best} in {milliseconds(first['low'])} to {milliseconds(first['high'])}"
    limit = float(place.profile.get("usable_ram_mb") or place.profile.get("ram_mb") or 0)
    fits = not (limit and first.get("memory_mb") and first["memory_mb"] > limit)
    why = "" if fits else f"needs {number(first['memory_mb'])} MB, the board has {number(limit)} MB"
    if fits and others:
        name, second = others[0]
        sure = first["high"] < second["low"]
        why = f"faster than {name}, whose range does not reach it" if sure else (
            f"against {name} with {milliseconds(second['predicted'])} the ranges decide nothing by themselves"
        )  # fmt: skip
    numbers: Facts = [("predicted", f"{milliseconds(first['predicted'])}, {first.get('method', '')}")]
    numbers += [("memory", f"{number(first['memory_mb'])} MB")] if first.get("memory_mb") else []
    return Verdict(place.name, sentence(says), sentence(why) if why else "", None if fits else False, numbers)


def facts_of_bench(reading: Reading) -> Facts:
    """Return size and work of each form, as far as they are known."""
    facts: Facts = []
    for form in _few(reading.forms):
        if form.timed:
            facts.append((f"{form.name}, median here", _median(form)))
        if form.bytes:
            facts.append((f"{form.name}, size", size(form.bytes)))
    macs = reading.forms[0].work.get("macs") if reading.forms else None
    if macs:
        facts.append(("multiply-accumulates of one row", f"{number(macs / 1e6)} million"))
    return facts or [("variants", ", ".join(reading.names) or ABSENT)]


def _few(forms: Sequence[Form]) -> Sequence[Form]:
    return forms[:2]
