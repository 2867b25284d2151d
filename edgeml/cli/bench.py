"""`edgeml bench`: a model measured here, predicted for boards; `bench compare`: which of two is faster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeml.cli.screen import Screen, json_option, registry_option, show_json, show_table, typed

READABLE = click.Path(path_type=Path)
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """Seconds, written 90, 90s, 30m or 1h."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        number, unit = (value[:-1], UNITS[value[-1]]) if value[-1:] in UNITS else (value, 1.0)
        try:
            seconds = float(number) * unit
        except ValueError:
            self.fail(f"{value!r} is no time: write it like 90s, 30m or 1h", param, ctx)
        if not 0 < seconds <= 86_400:
            self.fail(f"{value} is out of range: more than 0, at most 24h", param, ctx)
        return seconds


class Bench(click.Group):
    """A group whose first word may also be a file: then it is measured."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args != ["--help"]:
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or self.commands["run"]


@click.group(cls=Bench, subcommand_metavar="MODEL [OPTIONS] | COMMAND", short_help="Measure, predict, compare.")
def bench() -> None:
    """Measure MODEL (.onnx or a bundle) on this machine and predict it for boards; `run` may be left out."""


@bench.command("run")
@click.argument("model", type=READABLE)
@click.option("--device", "boards", multiple=True, help="Predict for this board; repeat for more; all.")
@click.option("--measure", is_flag=True, help="Only measure here.")
@click.option("--predict-only", is_flag=True, help="Only predict, run nothing.")
@click.option("--variant", "variants", multiple=True, help="Only these variants of a bundle.")
@click.option(
    "--scenario",
    type=click.Choice(["single-stream", "multi-stream", "offline", "paced"]),
    default="single-stream",
    show_default=True,
    help="Queries one after another, of several rows, of many, or at a fixed rate.",
)
@click.option("--rows", type=click.IntRange(1), help="Rows of one query: multi-stream (8) and offline (64).")
@click.option("--rate", "rate_hz", type=click.FloatRange(0.001, 1e6), default=10.0, help="Paced queries a second.")
@click.option("--threads", type=click.IntRange(1, 1024), help="Of the session; if not given, the bundle's, else 1.")
@click.option("--seconds", type=Duration(), default=1.0, help="Measure at least this long: 5, 90s, 2m; 1 if not given.")
@click.option("--sustained", type=Duration(), help="Measure for all of this time, and show the curve: 30m.")
@click.option("--tune", is_flag=True, help="Search the session settings that are worth it here.")
@click.option("--keep", is_flag=True, help="Write what --tune found into the bundle, or for its one --device.")
@click.option("-o", "--output", type=READABLE, help="Write the JSON document there, for `bench compare`.")
@click.option("--report", type=READABLE, help="Write the HTML report there, JSON and CSV beside it.")
@click.option("--on", "device", metavar="DEVICE_ID", help="Measure on this device of the fleet, through the server.")
@click.option("--deadline", type=Duration(), default=600.0, help="With --on: how long the device may take, or wait.")
@registry_option
@json_option
def run(
    model: Path, *, sustained: float | None, output: Path | None, report: Path | None, as_json: bool, **words: Any
) -> None:
    """Measure MODEL (.onnx or a bundle) on this machine or on a device, and predict it for boards."""
    from edgeml.cli.bench_text import show_bench
    from edgeml.files import write_atomic
    from edgeml.pipeline.benchmark import BenchOptions, bench_path

    where = {name: words.pop(name) for name in ("device", "deadline", "registry_path")}
    with Screen() as screen:
        options = BenchOptions(
            sustained_s=sustained or 0.0, progress=screen.say, bar=screen.bar, **_options(words, where["registry_path"])
        )
        found = _on(model, options, **where) if where["device"] else bench_path(model, options)
    found["command"] = typed()
    if output:
        import json

        write_atomic(output, json.dumps(found, indent=1).encode())
    if report:
        from edgeml.pipeline.reports import write_bench

        write_bench(report, found)
    show_json(found) if as_json else show_bench(found)


def _on(model: Path, options: Any, *, device: str, deadline: float, registry_path: Path) -> dict[str, Any]:
    from edgeml.pipeline.remote_bench import bench_on
    from edgeml.registry import Registry

    if not options.measure or options.boards:
        raise click.UsageError("--on measures on one device: leave out --predict-only and --device")
    return bench_on(Registry.open(registry_path), device, model, options=options, deadline_s=deadline)


def _options(words: dict[str, Any], registry: Path) -> dict[str, Any]:
    only_measure, only_predict = words.pop("measure"), words.pop("predict_only")
    if only_measure and only_predict:
        raise click.UsageError("--measure and --predict-only leave nothing to do: give one of them")
    keep = words.pop("keep")
    if keep and (only_predict or not words["tune"]):
        raise click.UsageError("--keep keeps what --tune finds: give both")
    words["keep"] = registry if keep else None
    return words | {"measure": not only_predict, "predict": not only_measure, "rows": words["rows"] or 0}


@bench.command("compare")
@click.argument("a", type=READABLE)
@click.argument("b", type=READABLE)
@click.option("--threads", type=click.IntRange(1, 1024), default=1, show_default=True, help="Of both sessions.")
@click.option("--seconds", type=Duration(), default=1.0, help="Measure each at least this long; 1 if not given.")
@json_option
def compare(a: Path, b: Path, *, threads: int, seconds: float, as_json: bool) -> None:
    """Which of two is faster, with an interval: models or bundles (BUNDLE:VARIANT), or two results of `bench -o`.

    Models are measured here in turns. Results that were measured under other conditions are refused.
    """
    from edgeml.pipeline.versus import compare_paths

    with Screen() as screen:
        found = compare_paths(a, b, threads=threads, seconds=seconds, progress=screen.say)
    if as_json:
        show_json(found)
        return
    show_table(
        ["", "p50 ms", "file"],
        [["A", found["a"]["p50_ms"], found["a"]["name"]], ["B", found["b"]["p50_ms"], found["b"]["name"]]],
    )
    click.echo(f"\n{found['verdict']}")
