"""The command `federate`: rounds in a fleet, or simulated over virtual devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeml.cli.screen import Rounds, Screen, json_option, registry_option, show_json, typed

SIMULATED = ("partition", "attack", "byzantine", "stragglers", "silent", "dropouts", "speeds", "workers", "per_round")
PRIVATE = ("where", "clip_norm", "noise", "adapt", "sampling", "max_epsilon")
IN_FLEET = ("selector", "target", "spread", "family", "max_abandoned", "alone", "gate", "report")
HELD_OUT = "Share of rows that devices keep back to judge on.  [default: the project's, 0.2; simulated: 0]"
FLEET = {"rounds": 5, "min_devices": 2, "local_epochs": 1, "batch_size": 16, "learning_rate": 0.05, "momentum": 0.9}


@click.command()
@click.argument("model", metavar="MODEL|PROJECT")
@click.option("--simulate", "devices", type=click.IntRange(1), help="Virtual devices over PROJECT's training rows.")
@click.option("--rounds", type=click.IntRange(1), help="How many rounds.  [default: 5]")
@click.option("--wait", is_flag=True, help="Wait until the rounds are done and judged.")
@click.option("--strategy", default="fedavg", show_default=True, help="A row of the table in docs/learn.md.")
@click.option("--mu", type=click.FloatRange(0), help="Of the proximal term; the strategy's own if not given.")
@click.option("--compress", default="", help="How updates travel: fp16, int8, topk:0.05, sign.")
@click.option("--secure", is_flag=True, help="Sum what devices send under masks: the server sees no single part.")
@click.option(
    "--private", "where", type=click.Choice(["server", "device"]), help="Who adds noise; needs edgeml[privacy]."
)
@click.option("--clip-norm", type=float, help="Private: the longest update.  [default: 1]")
@click.option(
    "--noise", type=float, help="Private: standard deviation of each value's noise, in clip norms.  [default: 1]"
)
@click.option("--adapt", type=float, help="Private: how fast the clip norm follows the updates' lengths; 0.2 is usual.")
@click.option("--sampling", type=float, help="Private: the probability with which a device takes part in a round.")
@click.option("--max-epsilon", type=float, help="Private: the rounds end before they would tell more.")
@click.option("--min-devices", type=click.IntRange(1), help="Updates a round needs: its quorum.  [default: 2]")
@click.option("--local-epochs", type=click.IntRange(1), help="[default: 1]")
@click.option("--batch-size", type=click.IntRange(1), help="[default: 16]")
@click.option("--learning-rate", type=click.FloatRange(0, min_open=True), help="[default: 0.05]")
@click.option("--momentum", type=float, help="Of the devices' SGD.  [default: 0.9]")
@click.option("--deadline", "deadline_s", default=60.0, show_default=True, help="Seconds a round waits for updates.")
@click.option("--to", "selector", help="In a fleet: all, board:NAME, or device ids with commas.  [default: all]")
@click.option("--target", type=click.IntRange(1), help="In a fleet: updates a round closes at; a few more are asked.")
@click.option("--spread", type=click.FloatRange(0), help="In a fleet: deadlines of median + SPREAD deviations.")
@click.option(
    "--async", "buffer", type=click.IntRange(1), metavar="K", help="A step at every K updates, by age (FedBuff)."
)
@click.option("--family", help="In a fleet: fitted exactly by sums, in place of training; see docs/exact.md.")
@click.option(
    "--max-abandoned", type=click.IntRange(1), help="In a fleet: rounds without a quorum in a row.  [default: 3]"
)
@click.option("--alone", is_flag=True, default=None, help="In a fleet: do not ask it how well a candidate does there.")
@click.option(
    "--gate",
    type=click.Choice(["better", "not-worse"]),
    help="In a fleet: what may ship, see docs/federated.md.  [default: the project's]",
)
@click.option("--report", is_flag=True, default=None, help="In a fleet: the last report anew, nothing else.")
@click.option("--held-out", type=click.FloatRange(0, 0.9), help=HELD_OUT)
@click.option("--partition", help="Simulated: iid, dirichlet:A, shards:K, or a column.  [default: iid]")
@click.option(
    "--per-round",
    type=click.IntRange(0),
    help="Simulated: devices at work at once.  [default: all]",
)
@click.option("--stragglers", type=click.FloatRange(0, 1), help="Simulated: share that has time for a few epochs.")
@click.option("--silent", type=click.FloatRange(0, 1), help="Simulated: share that does not answer, drawn anew.")
@click.option("--dropouts", type=click.FloatRange(0, 1), help="Simulated: share that dies in a phase of --secure.")
@click.option("--byzantine", type=click.FloatRange(0, 1), help="Simulated: share of devices that lie.")
@click.option("--attack", type=click.Choice(["garbage", "flip", "scale", "nan"]), help="Simulated: how they lie.")
@click.option("--speeds", type=click.FloatRange(0, 5), help="Simulated, async: spread of speeds.  [default: 0.5]")
@click.option("--workers", type=click.IntRange(0), help="Simulated: processes; one per core from 200 devices on.")
@click.option("--seed", default=0, show_default=True, help="Of the order of rows and of everything simulated.")
@registry_option
@json_option
def federate(model: str, devices: int | None, wait: bool, registry_path: Path, as_json: bool, **given: Any) -> None:
    """Federated rounds over MODEL: what they learn is released only if the gate finds it better.

    By default on rows that the devices held out of the training. With --alone or --private on the server's rows only;
    a --family has learned from the devices' held-out rows too; fedper is judged by the devices' training loss. See
    docs/federated.md.

    With --simulate N, rounds over N virtual devices that share the training rows of PROJECT; nothing is released.
    """
    asked = _privately({name: value for name, value in given.items() if value is not None})
    if devices is not None:
        if extra := [name for name in IN_FLEET if name in asked]:
            named = {"selector": "to"}.get(extra[0], extra[0].replace("_", "-"))
            raise click.UsageError(f"--{named} is for a fleet, not for --simulate")
        summary = _simulate(Path(model), devices, asked)
    else:
        if extra := [name for name in SIMULATED if name in asked]:
            raise click.UsageError(f"--{extra[0].replace('_', '-')} is for --simulate N")
        summary = _in_the_fleet(model, asked, registry_path, wait=wait)
    show_json(summary) if as_json else _show(summary)


def _privately(asked: dict[str, Any]) -> dict[str, Any]:
    """Return `asked` with all that is about privacy under `privacy` and `secure`, as federations want it."""
    about = {name: asked.pop(name) for name in PRIVATE if name in asked}
    if about and "where" not in about:
        raise click.UsageError(f"--{next(iter(about)).replace('_', '-')} is for --private server or device")
    if about:
        asked["privacy"] = about
    if asked.pop("secure"):
        asked["secure"] = {}
    return asked


def _simulate(path: Path, devices: int, asked: dict[str, Any]) -> dict[str, Any]:
    from edgeml.federated.masks import Masks
    from edgeml.federated.privacy import Privacy
    from edgeml.pipeline.federate import SimulationOptions, simulate_project
    from edgeml.project import read_project

    options = {name: value for name, value in asked.items() if name not in ("deadline_s", "min_devices")}
    options["privacy"] = Privacy(**asked.get("privacy", {}))
    options["secure"] = Masks() if "secure" in asked else None
    with Screen() as screen, Rounds(screen) as shown:
        chosen = SimulationOptions(devices=devices, command=typed(), progress=screen.say, **options)
        return simulate_project(read_project(path), chosen, shown.add)


def _in_the_fleet(model: str, asked: dict[str, Any], registry_path: Path, *, wait: bool) -> dict[str, Any]:
    from edgeml.federated.strategy import strategy
    from edgeml.pipeline.federate import last_federation, write_federation
    from edgeml.pipeline.wait import wait_federation
    from edgeml.registry import Registry

    strategy(asked["strategy"])
    registry = Registry.open(registry_path)
    if asked.pop("report", False):
        return write_federation(registry, last_federation(registry, model), command=typed())
    registry.server_alive()
    record = registry.federation(registry.request_federation(model, FLEET | _nested(asked)))
    if wait:
        with Screen() as screen, Rounds(screen) as shown:
            record = wait_federation(registry, record.id, on_round=shown.add)
    return write_federation(registry, record, command=typed())


def _nested(asked: dict[str, Any]) -> dict[str, Any]:
    """Return `asked` with what is about the cohort, patience and buffer where federations want it."""
    about = {name: asked.pop(name) for name in ("selector", "target") if name in asked}
    found = asked | ({"cohort": about} if about else {})
    if "spread" in found:
        found["patience"] = {"spread": found.pop("spread")}
    if found.pop("alone", False):
        found["ask_fleet"] = False
    if "buffer" in found:
        found |= {"mode": "async", "buffer": {"size": found["buffer"]}}
    return found


def _show(summary: dict[str, Any]) -> None:
    if "verdict" in summary:
        click.echo(summary["verdict"])
        if own := summary.get("own_models"):
            gain = "" if own["gain"] is None else f", mean gain {own['gain']:+.4f}"
            click.echo(f"own models answer on {own['serve']} of the {own['run']} devices that run it{gain}")
    else:
        central = f", centralized {summary['centralized']:.4f}"
        change = f"{summary['metric']} {summary['before']:.4f} -> {summary['after']:.4f}{central}"
        spent = summary["rounds"][-1]["epsilon"] if summary["rounds"] else None
        told = "" if spent is None else f", epsilon {spent:.2f}"
        count = len(summary["rounds"])
        click.echo(f"{summary['model']}: {change}, {count} rounds of {summary['devices']} devices{told}")
        if summary["personal"]:
            own, shared = summary["personal"]["own"], summary["personal"]["shared"]
            mine = "" if own is None else f"{own:.4f} with their own models, "
            click.echo(f"on rows held out on the devices: {mine}{shared:.4f} with the shared")
    if "report" in summary:
        click.echo(f"report  {summary['report']}")
