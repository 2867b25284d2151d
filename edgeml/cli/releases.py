"""Commands over what was made: registry, report."""

from __future__ import annotations

from pathlib import Path

import click

from edgeml.cli.screen import json_option, registry_option, show_json, show_table


@click.group(invoke_without_command=True)
@click.pass_context
def registry(ctx: click.Context) -> None:
    """Models, releases, lineage; without a command, the list."""
    if ctx.invoked_subcommand is None:
        registry_list.main(args=[], standalone_mode=False)


@registry.command("list")
@click.argument("model", required=False)
@registry_option
@json_option
def registry_list(model: str | None, registry_path: Path, as_json: bool) -> None:
    """Releases, newest first; of MODEL only when it is given."""
    from edgeml.pipeline.releases import release_rows

    rows = release_rows(registry_path, model)
    if as_json:
        show_json(rows)
        return
    show_table(
        ["model", "no.", "release", "created", "metric", "value", "variants", "bytes"],
        [
            [r["model"], r["number"], r["release"], r["created"], r["metric"], r["value"], r["variants"], r["bytes"]]
            for r in rows
        ],
    )


@registry.command("show")
@click.argument("release")
@registry_option
@json_option
def registry_show(release: str, registry_path: Path, as_json: bool) -> None:
    """One RELEASE (model, model@3 or model@digest) with its variants and its lineage."""
    from edgeml.pipeline.releases import release_details

    found = release_details(registry_path, release)
    if as_json:
        show_json(found)
        return
    click.echo(f"{found['model']}@{found['number']} is release {found['release']}, made {found['created']}")
    show_table(["variant", "bytes", "digest"], [[v["name"], v["bytes"], v["digest"]] for v in found["graphs"]])
    show_table(["board", "variant"], list(found["boards"].items()))
    show_table(["made from", "digest"], list(found["lineage"].items()))


@click.command()
@click.argument("runs", nargs=-1, metavar="[RUN]")
@click.option("--compare", is_flag=True, help="Two runs or results side by side: report --compare A B.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write a drawn page there.")
@click.option("--open", "open_it", is_flag=True, help="Open it in the browser.")
@registry_option
@json_option
def report(
    runs: tuple[str, ...], *, compare: bool, output: Path | None, open_it: bool, registry_path: Path, as_json: bool
) -> None:
    """The path of the HTML report: of RUN (a model, a release, a run or a project folder), or the newest.

    The result of `edgeml bench -o` (RUN.json) is drawn first, beside the file or at --output.
    """
    from edgeml.pipeline.reports import compare_reports, report_of

    if len(runs) != 2 if compare else len(runs) > 1:
        raise click.UsageError(f"{len(runs)} names: give one, or two with --compare")
    if compare:
        path = compare_reports(registry_path, runs[0], runs[1], output=output or Path("comparison.html"))
    else:
        path = report_of(registry_path, runs[0] if runs else "", output)
    show_json({"report": str(path)}) if as_json else click.echo(str(path))
    if open_it:
        click.launch(path.as_uri())
