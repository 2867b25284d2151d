"""What `edgeml bench` prints for people: numbers with their intervals, then what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from edgeml.cli.screen import show_table

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_OPERATORS, LEAST_SHARE, CURVE_WIDTH = 6, 0.005, 60
MUCH_OVERHEAD = 0.2  # of the median: then a call is worth a note
LONG = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9"}


def show_bench(found: Mapping[str, Any]) -> None:
    """Print a document of `bench_path`."""
    measured = {result["variant"]: result["measured"] for result in found["results"] if result["measured"]}
    if measured:
        _show_measured(f"{found['model']} on {found.get('where', 'this machine')}", measured)
    for variant, why in found.get("failed", {}).items():
        click.echo(f"\n{variant} was not measured: {why}")
    if found.get("release"):
        click.echo(f"\nkept in the bundle, which is release {found['release']} now")
    predicted = [result for result in found["results"] if result["predicted"]]
    if predicted:
        click.echo("\nPredicted for boards, milliseconds a row")
        show_table(
            ["board", "variant", "low", "predicted", "high", "memory MB", "method", "coverage"],
            [_forecast(result) for result in predicted],
        )
        for note in dict.fromkeys(note for result in predicted for note in result["predicted"].get("notes", ())):
            click.echo(f"note: {note}")


def _show_measured(what: str, measured: Mapping[str, Mapping[str, Any]]) -> None:
    first = next(iter(measured.values()))
    where, rows = first["environment"], "1 row" if first["rows"] == 1 else f"{first['rows']} rows"
    small = all(one["p50_ms"] < 1 for one in measured.values())
    click.echo(
        f"{what}: {where.get('cpu_model') or where['machine']}, {where['cores']} cores, "
        f"onnxruntime {where['onnxruntime']}\n"
        f"{first['scenario']}, {rows} a query, {'microseconds' if small else 'milliseconds'} a query"
    )
    show_table(
        ["variant", "p50", "95 % interval", "p90", "p99", "p99.9", "CPU", "queries", ""],
        [_timing(name, one, 1e3 if small else 1.0) for name, one in measured.items()],
    )
    if any("cold_start" in one for one in measured.values()):
        click.echo("\nA new process: milliseconds until its first answer, step by step, and the memory it holds, MB")
        show_table(
            ["variant", "process", "import", "session", "first", "resident", "anonymous", "peak"],
            [_cold(name, one) for name, one in measured.items() if "cold_start" in one],
        )
    click.echo("")
    for line in verdicts(measured):
        click.echo(line)
    for name, one in measured.items():
        if not one["valid"]:
            click.echo(f"\n{name} is INVALID, and never decides: {one['why']}")
        if one.get("operators"):
            click.echo(f"\n{name}: {_operators(one['operators'])}")
        if one.get("sustained"):
            click.echo(f"{name}: {_curve(one)}")
        if one.get("tuned"):
            click.echo(f"{name}: {_tuned(one['tuned'])}")


def verdicts(measured: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a sentence or two for each variant: what its numbers mean, and how far they may be believed."""
    reference = measured.get("fp32")
    lines = []
    for name, one in measured.items():
        said = f"{name}: {_span(one['p50_ms'])} a query, 9 of 10 within {_span(one['p90_ms'])}, {_rate(one)}"
        if "memory_mb" in one:
            memory = one["memory_mb"]
            said += (
                f"; {max(0.0, memory['steady'] - memory['bare']):.0f} MB beside the runtime's {memory['bare']:.0f} MB"
            )
        if "cold_start" in one:
            cold = one["cold_start"]
            total = sum(cold[step] for step in ("process_ms", "import_ms", "session_ms", "first_ms"))
            said += f"; the first answer {_span(total)} after a start"
        if reference is not None and one is not reference:
            said += f"; {_against(one, reference)}"
        energy = one["energy_mj"]
        said += "; energy not measured" if energy is None else f"; {energy:.3g} mJ a query"
        lines.append(f"{said}." if one["valid"] else f"{said}. Not to be relied on, see below.")
        lines += [f"    {note}" for note in _notes(one)]
    return lines


def _against(one: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Return how a variant compares with fp32, as far as the two intervals allow."""
    (low, high), (first, last) = one["ci95_ms"], reference["ci95_ms"]
    ratio = reference["p50_ms"] / one["p50_ms"]
    if not (one["valid"] and reference["valid"]) or (low <= last and first <= high):
        return "no difference to fp32 is proven"
    return f"{ratio:.2g}x as fast as fp32" if ratio > 1 else f"{1 / ratio:.2g}x as slow as fp32"


def _notes(one: Mapping[str, Any]) -> list[str]:
    notes, calls = [], one.get("overhead")
    if calls and calls["predict_ms"] > MUCH_OVERHEAD * one["p50_ms"] and one["rows"] == 1:
        notes.append(
            f"of it {_span(calls['predict_ms'])} are the call itself (Python and onnxruntime on a graph that does "
            f"nothing), {_span(calls['loop_ms'])} of them the clock"
        )
    if one.get("unsure"):
        names = " and ".join(LONG[name] for name in one["unsure"])
        notes.append(f"{one['n']} queries are too few to be sure of {names}: measure for longer with --seconds")
    return notes


def _span(ms: float) -> str:
    """Return a time in the unit in which it is easy to read."""
    if ms < 1:
        return f"{ms * 1e3:.3g} us"
    return f"{ms:.3g} ms" if ms < 1000 else f"{ms / 1e3:.3g} s"


def _rate(one: Mapping[str, Any]) -> str:
    rate = one["rows_per_s"]
    return f"{rate:,.0f} rows a second" if rate >= 10 else f"{rate:.2g} rows a second"


def _timing(name: str, one: Mapping[str, Any], scale: float) -> list[object]:
    low, high = (end * scale for end in one["ci95_ms"])
    keys = ("p50_ms", "p90_ms", "p99_ms", "p999_ms", "cpu_ms")
    middle, *numbers = ["-" if one[key] is None else f"{one[key] * scale:.3g}" for key in keys]
    verdict = "" if one["valid"] else "INVALID"
    return [name, middle, f"{low:.3g} to {high:.3g}", *numbers, f"{one['n']:,}", verdict]


def _cold(name: str, one: Mapping[str, Any]) -> list[object]:
    cold, memory = one["cold_start"], one["memory_mb"]
    steps = [cold[key] for key in ("process_ms", "import_ms", "session_ms", "first_ms")]
    return [name, *(f"{step:.3g}" for step in steps), *(round(memory[key]) for key in ("steady", "anonymous", "peak"))]


def _operators(nodes: Sequence[Mapping[str, Any]]) -> str:
    total = sum(node["ms"] for node in nodes) or 1.0
    shares: dict[str, float] = {}
    for node in nodes:
        shares[node["operator"]] = shares.get(node["operator"], 0.0) + node["ms"] / total
    largest = sorted(shares.items(), key=lambda item: -item[1])
    told = [f"{operator} {share:.0%}" for operator, share in largest[:MOST_OPERATORS] if share >= LEAST_SHARE]
    rest = sum(share for _, share in largest[len(told) :])
    return "time goes to " + ", ".join([*told, *([f"others {rest:.0%}"] if rest >= LEAST_SHARE else [])])


def _curve(one: Mapping[str, Any]) -> str:
    points = [point[1] for point in one["series"]]
    step = max(1, len(points) // CURVE_WIDTH)
    values = [min(points[i : i + step]) for i in range(0, len(points), step)]
    low, high = min(values), max(values)
    bars = "".join(BLOCKS[int((value - low) / (high - low or 1.0) * (len(BLOCKS) - 1))] for value in values)
    return f"{bars} {low:.4g} to {high:.4g} ms; {one['sustained']['verdict']}"


def _tuned(tuned: Mapping[str, Any]) -> str:
    lines = [f"settings for this machine: {_settings(tuned['settings'])}"]
    for trial in tuned["trials"]:
        ratio = "cannot run" if trial["ratio"] is None else f"{trial['ratio']:.3f} of the time"
        kept = "kept" if trial["kept"] else "left"
        lines.append(f"    {kept}  {_settings(trial['change']):<28} {ratio}; {trial['why']}")
    return "\n".join(lines)


def _settings(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _forecast(result: Mapping[str, Any]) -> list[object]:
    told = result["predicted"]
    numbers = [told[name] for name in ("low", "predicted", "high")]
    memory = result["memory_mb"]["predicted"]
    return [result["board"], result["variant"], *numbers, round(memory), _method(told), f"{told['coverage']:.0%}"]


def _method(told: Mapping[str, Any]) -> str:
    """Return the method, with the shares of those that were combined."""
    shares = {source["method"]: source["weight"] for source in told["sources"] if source["weight"] > 0}
    if len(shares) < 2:
        return str(told["method"])
    return " + ".join(f"{method} {share:.0%}" for method, share in sorted(shares.items(), key=lambda item: -item[1]))
