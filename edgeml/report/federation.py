"""The page of a federation, simulated or real: what was learned, round by round, at what cost, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Sized
from typing import Any

from edgeml.report import charts
from edgeml.report.numbers import number, size
from edgeml.report.parts import Figure, Page, Section, Table, Verdict
from edgeml.report.words import ABSENT, figure_of, moment, sentence

Document = Mapping[str, Any]
Round = Mapping[str, Any]
HEIGHT = 220
ANSWERS = (("took part", "participants"), ("refused", "refused"), ("silent", "silent"))


def federation_page(document: Document) -> Page:
    """Return the page of what `edgeml federate` wrote as JSON."""
    rounds = document["rounds"]
    sections = [_learned(document), _cost(rounds), _answers(rounds), _table(document), _shares(document)]
    strategy, wrong = f"strategy {document['strategy']}", _wrong(document)
    said = [document.get("partition"), strategy, *wrong, moment(document.get("created", ""))]
    return Page(
        title=document["model"],
        subtitle=" · ".join(
            ["simulated federation" if document.get("simulated") else "federation", *filter(None, said)]
        ),
        verdicts=[_verdict(document)],
        facts=_facts(document),
        sections=[section for section in sections if section],
        footer=f"Made by {document.get('command') or 'edgeml federate'}.",
    )


def _verdict(document: Document) -> Verdict:
    metric, before, after = document["metric"], document["before"], document["after"]
    who = f"{_count(document['devices'])} devices"
    says = f"{metric} {figure_of(before)} → {figure_of(after)} in {len(document['rounds'])} rounds"
    numbers = [("centralized, on the same rows", figure_of(document.get("centralized")))]
    if document.get("personal"):
        own, shared = document["personal"]["own"], document["personal"]["shared"]
        mine = "" if own is None else f"{figure_of(own)} own, "
        numbers.append(("on devices' own held-out rows", f"{mine}{figure_of(shared)} shared model"))
    if fleet := document.get("fleet_evaluation"):
        where = "held out on the devices" if fleet.get("held_out") else "of the devices"
        low, high = fleet["gain_interval"]
        change = f"{figure_of(fleet['before'])} → {figure_of(fleet['after'])}"
        gained = f"{change}, {fleet['gain']:+.4f} [{low:+.4f}, {high:+.4f}]"
        numbers.append((f"{fleet['metric']} on {fleet['rows']:,} rows {where}", gained))
    good = None if document.get("simulated") else bool(document.get("released"))
    return Verdict(who, sentence(says), sentence(document.get("reason") or ""), good, numbers)


def _wrong(document: Document) -> list[str]:
    """Return what went wrong on purpose, with the share of devices."""
    given = document.get("conditions", {})
    words = {"byzantine": f"lie ({given.get('attack')})", "stragglers": "are slow", "silent": "do not answer"}
    words["dropouts"] = "die within secure aggregation"
    return [f"{given[name]:.0%} {what}" for name, what in words.items() if given.get(name)]


def _facts(document: Document) -> list[tuple[str, str]]:
    rounds = document["rounds"]
    found = [
        ("devices", f"{_count(document['devices']):,}"),
        ("rounds", f"{len(rounds):,}"),
        ("sent by devices", size(sum(r["bytes_up"] for r in rounds))),
        ("sent to devices", size(sum(r["bytes_down"] for r in rounds))),
        *([("of these for masks", size(masks))] if (masks := sum(r.get("bytes_masks", 0) for r in rounds)) else []),
        ("time", f"{number(sum(r['seconds'] for r in rounds))} s"),
    ]
    if aside := max((r.get("held_out", 0) for r in rounds), default=0):
        found.insert(1, ("rows held out on them", f"{aside:,}"))
    if rounds and rounds[-1].get("clock_s") is not None:
        found.append(("on the devices' clock", f"{number(rounds[-1]['clock_s'])} s"))
    if own := document.get("own_models"):
        gain = "" if own["gain"] is None else f", mean gain {own['gain']:+.3g}"
        found.append(("own models answer on", f"{own['serve']:,} of {own['run']:,} devices{gain}"))
    spent = [r["epsilon"] for r in rounds if r.get("epsilon") is not None]
    return [*found, ("epsilon", number(spent[-1]))] if spent else found


def _learned(document: Document) -> Section:
    metric, rounds = document["metric"], document["rounds"]
    levels = [("before", document["before"]), ("centralized", document.get("centralized"))]
    figures = [
        _lines(
            f"{metric} round by round",
            rounds,
            {"shared model": lambda r: r["metric"]},
            axis=f"{metric}, server's rows",
            levels=[(name, value) for name, value in levels if value is not None],
        ),
        _lines(
            "Loss round by round",
            rounds,
            {
                "shared model": lambda r: r["loss"],
                "devices before": lambda r: r.get("loss_before"),
                "devices after": lambda r: r.get("loss_after"),
            },
            axis="loss: server's rows, devices' own",
        ),
    ]
    if any(r.get("epsilon") is not None for r in rounds):
        spent = {"epsilon": lambda r: r.get("epsilon")}
        figures.append(_lines("Privacy spent", rounds, spent, axis="epsilon"))
    return Section("Learned", "What the shared model is worth after each round.", figures=figures)


def _cost(rounds: Sequence[Round]) -> Section:
    up_down: dict[str, Callable[[Round], float | None]] = {
        "from devices": lambda r: r["bytes_up"] / 1e3,
        "to devices": lambda r: r["bytes_down"] / 1e3,
    }
    seconds: dict[str, Callable[[Round], float | None]] = {"seconds": lambda r: r["seconds"]}
    figures = [
        _lines("Bytes of each round", rounds, up_down, axis="kB, all devices together", zero=True),
        _lines("Seconds of each round", rounds, seconds, axis="seconds", zero=True),
    ]
    return Section("Cost", "What each round took: bytes on the wire, and time.", figures=figures)


def _answers(rounds: Sequence[Round]) -> Section:
    rows = [
        {"round": r["round"], "name": name, "value": _count(r.get(key, 0))} for r in rounds for name, key in ANSWERS
    ]
    names = [name for name, _ in ANSWERS if any(row["value"] for row in rows if row["name"] == name)]
    shown = [row | {"said": f"{row['value']:,}"} for row in rows if row["name"] in names]
    encoding = {
        "x": {"field": "round", "type": "ordinal", "axis": {"title": "round", "labelAngle": 0}},
        "y": charts.quantity("value", "devices", tickMinStep=1),
        "color": charts.colour(names, legend=len(names) > 1),
        "tooltip": charts.tips(round="round", name="what", said="devices"),
    }
    layers: list[charts.Spec] = [{"mark": {"type": "bar", "cornerRadius": 2}, "encoding": encoding}]
    least = min((_count(r["participants"]) for r in rounds), default=0)
    picture = Figure(
        "Who answered",
        charts.figure(shown, layers, height=HEIGHT),
        "Refused: it took no part, or what it sent was broken or not finite.",
        f"At least {least:,} devices took part in every round.",
        _grid(shown, names),
    )
    return Section("Participants", "", figures=[picture] if shown else [])


def _table(document: Document) -> Section:
    head = [
        "round",
        document["metric"],
        "loss",
        "devices",
        "rows",
        "held out",
        "bytes up",
        "bytes down",
        "seconds",
        "ended",
    ]
    rows = [
        [
            str(r["round"]),
            figure_of(r["metric"]),
            figure_of(r["loss"]),
            f"{_count(r['participants']):,}",
            f"{r['rows']:,}",
            f"{r.get('held_out', 0):,}",
            f"{r['bytes_up']:,}",
            f"{r['bytes_down']:,}",
            number(r["seconds"]),
            r.get("state", "closed"),
        ]
        for r in document["rounds"]
    ]
    return Section("Every round", "", Table(head, rows, frozenset(range(9))) if rows else None, open=False)


def _shares(document: Document) -> Section:
    shares = document.get("shares") or []
    if not shares:
        return Section("Rows of the devices")
    rows = [{"device": i, "value": count, "said": f"{count:,}"} for i, count in enumerate(sorted(shares, reverse=True))]
    encoding = {
        "x": charts.quantity("device", "devices, the largest first", tickMinStep=1),
        "y": charts.quantity("value", "rows"),
        "tooltip": charts.tips(said="rows"),
    }
    mark = {"type": "area", "interpolate": "step-after", "color": "var(--c0)", "opacity": 0.5, "line": True}
    middle = sorted(shares)[len(shares) // 2]
    told = [("fewest", min(shares)), ("middle", middle), ("most", max(shares)), ("all", sum(shares))]
    skewed = document.get("skew")
    apart = f" Their labels are {skewed:.2f} from the whole's, of 1 at most." if skewed is not None else ""
    picture = Figure(
        "Rows of each device",
        charts.figure(rows, [{"mark": mark, "encoding": encoding}], height=140),
        f"Dealt by {document.get('partition') or 'their owners'}.{apart}",
        f"From {min(shares):,} to {max(shares):,} rows, {middle:,} in the middle.",
        Table(["device", "rows"], [[name, f"{count:,}"] for name, count in told], frozenset({1})),
    )
    return Section("Rows of the devices", "", figures=[picture], open=False)


def _lines(
    title: str,
    rounds: Sequence[Round],
    series: Mapping[str, Callable[[Round], float | None]],
    *,
    axis: str,
    levels: Sequence[tuple[str, float]] = (),
    zero: bool = False,
) -> Figure:
    """Return a figure of one line per series over the rounds, and a dashed one at each level."""
    rows = [
        {"round": r["round"], "name": name, "value": value, "said": figure_of(value)}
        for name, read in series.items()
        for r in rounds
        if (value := read(r)) is not None
    ]
    names = [name for name in series if any(row["name"] == name for row in rows)]
    every = [*names, *(name for name, _ in levels)]
    x = charts.quantity("round", "round", tickMinStep=1, scale={"nice": False})
    y = charts.quantity("value", axis, scale={"zero": zero})
    tint = charts.colour(every, legend=len(every) > 1)
    encoding = {"x": x, "y": y, "color": tint, "tooltip": charts.tips(round="round", name="what", said=axis)}
    layers: list[charts.Spec] = [
        {"mark": {"type": "line", "strokeWidth": 2.5}, "encoding": encoding},
        {"mark": {"type": "point", "filled": True, "size": 45, "opacity": 1}, "encoding": encoding},
    ]
    if levels:
        flat = [{"name": name, "value": value, "said": figure_of(value)} for name, value in levels]
        told = {"y": y, "color": tint, "tooltip": charts.tips(name="what", said=axis)}
        mark = {"type": "rule", "strokeDash": [6, 4], "strokeWidth": 2}
        layers.append({"data": {"values": flat}, "mark": mark, "encoding": told})
    words = "; ".join(f"{name} {_first_last(rows, name)}" for name in names)
    words += "".join(f"; {name} {figure_of(value)}" for name, value in levels)
    return Figure(title, charts.figure(rows, layers, height=HEIGHT), "", words or ABSENT, _grid(rows, names))


def _first_last(rows: Sequence[Mapping[str, Any]], name: str) -> str:
    said = [row["said"] for row in rows if row["name"] == name]
    return f"{said[0]} to {said[-1]}"


def _grid(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Table:
    """Return the same numbers as a table: a row per round, a column per name."""
    cells = {(row["round"], row["name"]): row["said"] for row in rows}
    numbers = sorted({row["round"] for row in rows})
    body = [[str(i), *(cells.get((i, name), ABSENT) for name in names)] for i in numbers]
    return Table(["round", *names], body, frozenset(range(len(names) + 1)))


def _count(value: Sized | int) -> int:
    return value if isinstance(value, int) else len(value)
