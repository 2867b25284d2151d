"""`edgeml devices calibrate`: what the kernels of a device cost, so that models can be predicted for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from edgeml.cli.screen import json_option, registry_option, show_json, show_table


@click.command("calibrate")
@click.argument("device", required=False, metavar="[DEVICE_ID]")
@click.option("--local", is_flag=True, help="This machine; it becomes the board `this-machine`.")
@click.option("--name", help="The board that it becomes.  [this-machine, or what the device was enrolled as]")
@click.option(
    "--threads", type=click.IntRange(1, 1024), multiple=True, help="Of the sessions; several times. [1, and all cores]"
)
@click.option("--force", is_flag=True, help="Begin anew, where an interrupted calibration would go on.")
@registry_option
@json_option
def devices_calibrate(
    *, device: str | None, local: bool, name: str | None, registry_path: Path, as_json: bool, **options: Any
) -> None:
    """Measure hundreds of micro-models and five reference nets: minutes, and Ctrl-C may interrupt it.

    On DEVICE_ID of the fleet, through the server, or with --local on this machine.
    """
    from edgeml.pipeline.calibration import THIS_MACHINE, calibrate_here

    if local == bool(device):
        raise click.UsageError("give the DEVICE_ID of a device of the fleet, or --local for this machine")
    with _Bar() as bar:
        if device:
            from edgeml.pipeline.remote_device import calibrate_on
            from edgeml.registry import Registry

            registry = Registry.open(registry_path)
            found = calibrate_on(registry, device, board=name or "", progress=bar.show, **options)
        else:
            found = calibrate_here(board=name or THIS_MACHINE, progress=bar.show, **options)
    if as_json:
        show_json(found)
        return
    for one in found:
        _show(one)
    click.echo(f"\nnow: edgeml bench MODEL --device {found[0]['board']} --predict-only")


def _show(found: dict[str, Any]) -> None:
    show_table(
        ["reference net", "predicted by the others / measured"],
        [[net, f"{ratio:.2f}"] for net, ratio in found["references"].items()],
    )
    for doubt in found["doubts"]:
        click.echo(f"disturbed: {doubt}", err=True)
    click.echo(
        f"{found['threads']} threads: {found['samples']} samples of {found['classes']} classes in "
        f"{found['seconds']:.0f} s, median error {found['median_error']:.1%}\n{found['calibration']}\n"
    )


class _Bar:
    """A progress bar on a terminal; a line every tenth when piped."""

    def __enter__(self) -> _Bar:
        from rich.console import Console
        from rich.progress import Progress

        self._console, self._tenth = Console(stderr=True), -1
        self._progress = Progress(console=self._console, disable=not self._console.is_terminal)
        self._task = self._progress.add_task("calibrate", total=None)
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def show(self, done: int, total: int, what: str) -> None:
        """Show that `done` of `total` are finished, and what is at work."""
        self._progress.update(self._task, completed=done, total=total, description=f"{what:<24}")
        if not self._console.is_terminal and 10 * done // total > self._tenth:
            self._tenth = 10 * done // total
            self._console.print(f"calibrate {10 * self._tenth} %: {what}", highlight=False)
