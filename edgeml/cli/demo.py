"""The command `edgeml demo`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeml.cli.screen import Screen, json_option, show_json

if TYPE_CHECKING:
    from edgeml.transport.broker import Choice


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("edgeml-demo"), show_default=True)
@click.option("--rounds", default=5, show_default=True, help="Federated rounds.")
@click.option("--broker", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
@json_option
def demo(output: Path, rounds: int, broker: Choice, as_json: bool) -> None:
    """All of it on this machine: broker, build, three agents, rollout, federated rounds, report.

    Everything is kept in the output folder; everything that was started is ended.
    """
    from edgeml.demo import DemoOptions, run_demo

    with Screen() as screen:
        told = run_demo(DemoOptions(folder=output.resolve(), rounds=rounds, broker=broker, say=screen.say))
    if as_json:
        show_json(told)
        return
    before, after = told["accuracy"]["before"], told["accuracy"]["after"]
    rounds = len(told["rounds"])
    click.echo(
        f"\naccuracy {before:.4f} -> {after:.4f} on the test rows after {rounds} rounds, {told['seconds']} s in all"
    )
    click.echo(f"report   {told['report']}")
