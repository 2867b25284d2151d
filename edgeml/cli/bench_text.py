"""What `edgeml bench` prints for people: numbers with their intervals, then what they rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from edgeml.cli.screen import show_table

BLOCKS = "▁▂▃▄▅▆▇█"
MOST_OPERATORS, CURVE_WIDTH = 6, 60


def show_bench(found: Mapping[str, Any]) -> None:
    """Print a document of `bench_path`."""
    measured = {result["variant"]: result["measured"] for result in found["results"] if result["measured"]}
    if measured:
        _show_measured(f"{found['model']} on {found.get('where', 'this machine')}", measured)
    for variant, why in found.get("failed", {}).items():
        click.echo(f"\n{variant} was not measured: {why}")
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
    click.echo(
        f"{what}: {where.get('cpu_model') or where['machine']}, {where['cores']} cores, "
        f"onnxruntime {where['onnxruntime']}\n{first['scenario']}, {rows} a query, milliseconds a query"
    )
    show_table(
        ["variant", "p50", "95 % interval", "p90", "p99", "p99.9", "CPU", "queries", "rows/s", ""],
        [_timing(name, one) for name, one in measured.items()],
    )
    if any("cold_start" in one for one in measured.values()):
        click.echo("\nA new process, milliseconds, and the memory it holds, MB")
        show_table(
            ["variant", "process", "import", "session", "first answer", "resident", "anonymous", "peak", "energy mJ"],
            [_cold(name, one) for name, one in measured.items() if "cold_start" in one],
        )
    for name, one in measured.items():
        if not one["valid"]:
            click.echo(f"\n{name} is INVALID, and never decides: {one['why']}")
        if one.get("operators"):
            click.echo(f"\n{name}: {_operators(one['operators'])}")
        if one.get("sustained"):
            click.echo(f"{name}: {_curve(one)}")
        if one.get("tuned"):
            click.echo(f"{name}: {_tuned(one['tuned'])}")


def _timing(name: str, one: Mapping[str, Any]) -> list[object]:
    low, high = one["ci95_ms"]
    numbers = [one[key] for key in ("p90_ms", "p99_ms", "p999_ms", "cpu_ms")]
    verdict = "" if one["valid"] else "INVALID"
    return [name, one["p50_ms"], f"{low:.4g} to {high:.4g}", *numbers, one["n"], round(one["rows_per_s"]), verdict]


def _cold(name: str, one: Mapping[str, Any]) -> list[object]:
    cold, memory = one["cold_start"], one["memory_mb"]
    steps = [cold[key] for key in ("process_ms", "import_ms", "session_ms", "first_ms")]
    energy = one["energy_mj"] if one["energy_mj"] is not None else "not measured"
    return [name, *steps, memory["steady"], memory["anonymous"], memory["peak"], energy]


def _operators(nodes: Sequence[Mapping[str, Any]]) -> str:
    total = sum(node["ms"] for node in nodes) or 1.0
    shares: dict[str, float] = {}
    for node in nodes:
        shares[node["operator"]] = shares.get(node["operator"], 0.0) + node["ms"] / total
    largest = sorted(shares.items(), key=lambda item: -item[1])
    told = [f"{operator} {share:.0%}" for operator, share in largest[:MOST_OPERATORS]]
    rest = sum(share for _, share in largest[MOST_OPERATORS:])
    return "time goes to " + ", ".join([*told, *([f"others {rest:.0%}"] if rest else [])])


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
