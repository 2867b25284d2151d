"""Commands of the fleet: broker, server, deploy, fleet."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgeml.transport.broker import Choice

from edgeml.cli.screen import Screen, json_option, registry_option, show_json, show_table


@click.command()
@click.option("--port", default=1883, show_default=True, help="Port on 127.0.0.1; 0 takes a free one.")
@click.option("--kind", type=click.Choice(["auto", "mosquitto", "embedded"]), default="auto", show_default=True)
@json_option
def broker(port: int, kind: Choice, as_json: bool) -> None:
    """Run an MQTT broker for the lab: mosquitto if it is installed, else an embedded one. Loopback only."""
    from edgeml.transport.broker import start_broker

    with start_broker(port, kind=kind) as running:
        facts = {"host": running.host, "port": running.port, "kind": running.kind}
        show_json(facts) if as_json else click.echo(f"{running.kind} on {running.host}:{running.port}; Ctrl-C ends it")
        running.wait()


@click.command()
@click.option("--broker", "address", default="127.0.0.1:1883", show_default=True, help="HOST:PORT of the MQTT broker.")
@registry_option
def server(address: str, registry_path: Path) -> None:
    """Run the coordinator: it ships releases, runs rounds and collects telemetry until Ctrl-C."""
    from edgeml.pipeline import retraining
    from edgeml.registry import Registry
    from edgeml.server import serve

    registry = Registry.open(registry_path)
    whom = f"--broker {address} --key {registry.public_key_hex()}"
    click.echo(f"enroll a device: edgeml-agent enroll {whom} --id NAME --board BOARD")
    serve(registry, address, retrain=retraining(registry), log=lambda line: click.echo(line, err=True))


@click.command()
@click.argument("release")
@click.option("--to", "selector", required=True, help="all, board:NAME, or device ids with commas between them.")
@click.option("--wait", is_flag=True, help="Wait until every device runs it, or one failed.")
@click.option("--deadline", "deadline_s", default=600.0, show_default=True, help="Seconds each device has.")
@click.option("--soak-predictions", default=0, show_default=True, help="Real predictions a device must serve first.")
@registry_option
@json_option
def deploy(release: str, selector: str, wait: bool, registry_path: Path, as_json: bool, **options: Any) -> None:
    """Ship RELEASE (model, model@3 or model@digest) to devices."""
    from edgeml.pipeline.wait import wait_rollout
    from edgeml.registry import Registry

    registry = Registry.open(registry_path)
    model, _, which = release.partition("@")
    registry.server_alive()
    record = registry.rollout(registry.request_rollout(model, which or None, selector, **options))
    if wait:
        with Screen() as screen:
            record = wait_rollout(registry, record.id, on_change=lambda now: screen.say("rollout", _line(now)))
    plain = {"rollout": record.id, "model": record.model, "release": record.release, "state": record.state}
    if as_json:
        show_json({**plain, "devices": {name: dict(entry) for name, entry in record.devices.items()}})
    else:
        click.echo(
            f"{record.model} release {record.release} to {len(record.devices)} devices: {record.state} ({record.id})"
        )


def _line(record: Any) -> str:
    states = [f"{name} {entry.get('step') or entry['state']}".lower() for name, entry in record.devices.items()]
    return ", ".join(states)


@click.group(invoke_without_command=True)
@click.pass_context
def fleet(ctx: click.Context) -> None:
    """Devices: what they run, how they feel; without a command, the list."""
    if ctx.invoked_subcommand is None:
        fleet_list.main(args=[], standalone_mode=False)


@fleet.command("list")
@registry_option
@json_option
def fleet_list(registry_path: Path, as_json: bool) -> None:
    """Every device that ever reported, what it runs and what it served."""
    from edgeml.pipeline.fleet import device_rows
    from edgeml.registry import Registry

    rows = device_rows(Registry.open(registry_path), now=time.time())
    if as_json:
        show_json(rows)
        return
    show_table(
        [
            "device",
            "board",
            "state",
            "release",
            "variant",
            "own",
            "predictions",
            "errors",
            "p50 ms",
            "p90 ms",
            "samples",
            "notes",
        ],
        [
            [
                row["id"],
                row["board"],
                row["state"],
                row["release"],
                row["variant"],
                _own(row),
                row["predictions"],
                row["errors"],
                row["p50_ms"],
                row["p90_ms"],
                row["samples"],
                "; ".join(row["notes"]),
            ]
            for row in rows
        ],
    )


def _own(row: dict[str, Any]) -> str:
    """Return whether a device answers with tensors of its own, and what it says they gain."""
    if row["personal"] is None:
        return ""
    gain = "" if row["gain"] is None else f" {row['gain']:+.3g}"
    return ("yes" if row["personal"] else "no") + gain


@fleet.command("forget-key")
@click.argument("device")
@registry_option
def forget_key(device: str, registry_path: Path) -> None:
    """Let DEVICE, which was set up anew, sign its updates with the key that it reports next."""
    from edgeml.registry import Registry

    Registry.open(registry_path).fleet.forget_key(device)
    click.echo(f"{device}: the next key that it reports is the one it is known by")
