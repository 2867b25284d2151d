"""Commands that make releases: init, build, compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeml.cli.screen import Screen, json_option, registry_option, show_json, show_table, typed

READABLE = click.Path(path_type=Path)


@click.command()
@click.argument("name")
@click.option("--from", "source", type=READABLE, help="A table to guess from, .csv, .csv.gz, .tsv or .txt.")
@click.option("--target", help="The column to predict.")
@json_option
def init(name: str, source: Path | None, target: str | None, as_json: bool) -> None:
    """Write NAME/edgeml.yaml, guessed from the data and commented."""
    from edgeml.pipeline.start import start_project

    path = start_project(Path(name), source=source, target=target)
    show_json({"project": str(path)}) if as_json else click.echo(f"{path}: now run `edgeml build {path.parent}`")


@click.command()
@click.argument("project", type=READABLE, default=Path())
@click.option("--only", metavar="STAGE", help="Stop after this stage.")
@click.option("--force", is_flag=True, help="Do every stage again.")
@registry_option
@json_option
def build(project: Path, only: str | None, force: bool, registry_path: Path, as_json: bool) -> None:
    """Data to a verified, registered release: PROJECT is a folder with edgeml.yaml, or the file."""
    from edgeml.pipeline.run import BuildOptions
    from edgeml.pipeline.run import build as run
    from edgeml.project import read_project
    from edgeml.registry import Registry

    with Screen() as screen:
        options = BuildOptions(only=only, force=force, command=typed(), progress=screen.say)
        summary = run(read_project(project), Registry.open(registry_path), options)
    show_json(summary) if as_json else show_summary(summary)


@click.command("compile")
@click.argument("model", type=READABLE)
@click.option("--calibration", type=READABLE, help="Rows of the training set: .npz .npy .csv, for int8 variants.")
@click.option("--labels", type=READABLE, help="Rows with their truth (`y`, or a `target` column), for accuracy.")
@click.option("--device", "boards", multiple=True, help="A board it must run on; repeat for more.")
@click.option("--precision", "precisions", multiple=True, help="int8, mixed, fp16, int4, auto or a recipe; repeat.")
@click.option("--max-accuracy-drop", type=click.FloatRange(0), default=0.01, show_default=True, help="On the metric.")
@click.option("--runtime", help="Oldest onnxruntime on the boards, like 1.23; else as their profiles say.")
@click.option("--lint", "only_lint", is_flag=True, help="Print what will be slow, large or unsupported, and stop.")
@click.option("--name", help="Name of the model in the registry; its file's name if not given.")
@click.option("--trust", is_flag=True, help="Load a pickle: it can run any code on this machine.")
@click.option("-o", "--output", type=READABLE, help="Folder of the bundle and the report.")
@registry_option
@json_option
def compile_(model: Path, registry_path: Path, as_json: bool, only_lint: bool, **given: Any) -> None:
    """A finished MODEL to a verified release.

    Takes .onnx, .keras, .h5, a SavedModel folder, scikit-learn's .skops .joblib .pkl, LightGBM's .txt and XGBoost's
    .json and .ubj.
    """
    if only_lint:
        told = {name: given[name] for name in ("trust", "boards", "runtime")}
        show_findings(model, as_json=as_json, **told)
        return
    from edgeml.pipeline.run import CompileOptions, compile_model
    from edgeml.registry import Registry

    with Screen() as screen:
        options = CompileOptions(command=typed(), progress=screen.say, **given)
        summary = compile_model(model, Registry.open(registry_path), options)
    show_json(summary) if as_json else show_summary(summary)


def show_findings(model: Path, *, as_json: bool, **told: Any) -> None:
    """Print the lint of `model`, a finding a line."""
    from edgeml.graph.lint import to_plain
    from edgeml.pipeline.examine import lint_model

    found = lint_model(model, **told)
    if as_json:
        show_json({"model": str(model), "findings": to_plain(found)})
        return
    for finding in found:
        click.echo(finding.line())
    click.echo(f"{len(found)} findings" if found else "nothing to say: no finding")


def show_summary(summary: dict[str, Any]) -> None:
    """Print what a person wants of a run: the verdict per board, the variants, where the report is."""
    if "variants" not in summary:
        click.echo(f"{summary['model']}: stopped after {summary['stage']}")
        return
    unchanged = " (nothing changed since it was built)" if summary.get("cached") else ""
    click.echo(f"{summary['model']} release {summary['release']}{unchanged}\n")
    show_table(
        ["variant", "bytes", summary["metric"], "drop <=", "p50 ms here", "verdict"],
        [
            [
                variant["name"],
                variant["bytes"],
                variant["metrics"].get(summary["metric"]),
                variant["accuracy_drop_upper"],
                variant["host_latency_ms"]["p50"],
                variant["verdict"],
            ]
            for variant in summary["variants"]
        ],
    )
    for variant in summary["variants"]:
        click.echo(f"{variant['name']} {variant['reason']}")
    for item in summary["skipped"]:
        click.echo(f"{item['name']}: {item['reason']}")
    click.echo()
    for board, choice in summary["devices"].items():
        click.echo(f"{board}: {choice['reason']}")
    click.echo(f"\nbundle  {summary['bundle']}\nreport  {summary['report']}")
