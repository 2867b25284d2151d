"""`edgeml devices`: boards that have a profile, and new ones made of what a device says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeml.cli.calibrate import devices_calibrate
from edgeml.cli.screen import json_option, registry_option, show_json, show_table

READABLE = click.Path(path_type=Path)
UNITS = {  # fact -> what people call it, and its unit
    "soc": ("SoC", ""),
    "core": ("core", ""),
    "described": ("describes", ""),
    "pipeline": ("pipeline", ""),
    "cores": ("cores", ""),
    "frequency_ghz": ("clock", "GHz"),
    "ram_mb": ("RAM", "MB"),
    "usable_ram_mb": ("usable RAM", "MB"),
    "fp32_flops_per_cycle": ("peak fp32", "flop a cycle and core"),
    "int8_macs_per_cycle": ("peak int8", "MAC a cycle and core"),
    "dot_product": ("int8 dot product", ""),
    "i8mm": ("int8 matrix product", ""),
    "fp16": ("fp16 arithmetic", ""),
    "bandwidth_mb_s": ("copy by one core", "MB/s"),
    "l2_kb": ("L2", "KB"),
    "l3_kb": ("L3", "KB"),
    "arch": ("architecture", ""),
    "runtime": ("oldest onnxruntime", ""),
}


@click.group(invoke_without_command=True)
@click.pass_context
def devices(ctx: click.Context) -> None:
    """Board profiles; without a command, the list."""
    if ctx.invoked_subcommand is None:
        devices_list.main(args=[], standalone_mode=False)


@devices.command("list")
@json_option
def devices_list(as_json: bool) -> None:
    """The boards that have a profile: those that ship, and your own."""
    from edgeml.devices import board_rows

    rows = board_rows()
    if as_json:
        show_json(rows)
        return
    show_table(
        ["board", "title", "cores", "GHz", "RAM MB", "int8 dot product", "copy MB/s"],
        [
            [
                row["name"] + (" (yours)" if row["own"] else ""),
                row["title"],
                f"{row['cores']} × {row['core']}" if row.get("cores") and row.get("core") else row.get("core"),
                row.get("frequency_ghz"),
                row.get("ram_mb") or row.get("usable_ram_mb"),
                _word(row.get("dot_product")),
                row.get("bandwidth_mb_s"),
            ]
            for row in rows
        ],
    )


@devices.command("show")
@click.argument("board")
@json_option
def devices_show(board: str, as_json: bool) -> None:
    """Every fact known of BOARD, with its source, and what is not known."""
    from edgeml.devices import find_board

    facts = find_board(board).to_plain()
    if as_json:
        show_json(facts)
        return
    click.echo(f"{facts['title']} ({facts['name']})\n")
    rows = [[said, f"{_word(facts[key])} {unit}".strip(), facts["sources"][key]] for key, said, unit in _known(facts)]
    show_table(["fact", "value", "source"], rows)
    if missing := [UNITS[key][0] for key in UNITS if key not in facts and key not in ("described", "usable_ram_mb")]:
        click.echo(f"\nnot known: {', '.join(missing)}")


@devices.command("add")
@click.argument("name")
@click.option("--from", "report", type=READABLE, help="What `edgeml-agent hardware` printed on the device.")
@click.option("--local", is_flag=True, help="This machine.")
@click.option("--device", help="A device that has reported to the server of the registry.")
@click.option("--force", is_flag=True, help="Replace your board of that name.")
@registry_option
@json_option
def devices_add(name: str, *, report: Path | None, local: bool, device: str | None, **words: Any) -> None:
    """Make the board NAME of what a device says of itself, and keep it among your own."""
    from edgeml.pipeline import boards

    if sum(map(bool, (report, local, device))) != 1:
        raise click.UsageError("say where the facts come from: one of --from REPORT.json, --local, --device ID")
    force = words["force"]
    if report:
        board, path = boards.add_from_file(name, report, force=force)
    elif device:
        board, path = boards.add_from_fleet(name, device, words["registry_path"], force=force)
    else:
        board, path = boards.add_local(name, force=force)
    if words["as_json"]:
        show_json({"path": str(path), "board": board.to_plain()})
        return
    click.echo(f"{path}: {board.title}, {len(board.facts())} facts; see `edgeml devices show {name}`")


def _known(facts: dict[str, Any]) -> list[tuple[str, str, str]]:
    return [(key, *UNITS[key]) for key in UNITS if key in facts]


def _word(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value


devices.add_command(devices_calibrate)
