"""Commands that look at bundles and rows: verify, predict."""

from __future__ import annotations

from pathlib import Path

import click

from edgeml.cli.screen import json_option, show_json, show_table

READABLE = click.Path(path_type=Path)


@click.command()
@click.argument("bundle", type=READABLE)
@click.option("--data", type=READABLE, help="Rows with their truth, to check accuracy on.")
@json_option
def verify(bundle: Path, data: Path | None, as_json: bool) -> None:
    """Replay the goldens of BUNDLE, check its digests, and its accuracy where --data is given."""
    from edgeml.pipeline.examine import verify_bundle

    verdict = verify_bundle(bundle, data)
    if as_json:
        show_json(verdict)
    else:
        click.echo(f"{verdict['model']} release {verdict['release']}: {verdict['verdict']}")
        show_table(
            ["variant", "max difference", "label flips", "rows", "verdict"],
            [[v["name"], v["max_abs"], v["label_flips"], v["rows"], v["reason"]] for v in verdict["variants"]],
        )
    raise SystemExit(0 if verdict["verdict"] == "pass" else 3)


@click.command()
@click.argument("bundle", type=READABLE)
@click.argument("data", type=READABLE)
@click.option("--board", default="", help="Use the variant chosen for this board.")
@click.option("-o", "--output", type=READABLE, help="Write a .csv there instead of printing.")
@json_option
def predict(bundle: Path, data: Path, board: str, output: Path | None, as_json: bool) -> None:
    """Run BUNDLE over the rows of DATA through the device's own code."""
    from edgeml.pipeline.examine import predict_rows, write_predictions

    answers = predict_rows(bundle, data, board=board)
    if output:
        write_predictions(output, answers)
        click.echo(f"{output}: {len(answers['rows']):,} rows", err=True)
    if as_json:
        show_json(answers)
    elif not output:
        show_table(answers["columns"], answers["rows"])
