"""What people see: progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from rich.live import Live
    from rich.status import Status

BAR_WIDTH, PIPED_EVERY_S = 32, 60.0
F = TypeVar("F", bound=Callable[..., Any])


def json_option(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="One JSON document on stdout.")(command)


def registry_option(command: F) -> F:
    return click.option(
        "--registry",
        "registry_path",
        envvar="EDGEML_REGISTRY",
        type=click.Path(path_type=Path),
        default=Path.home() / ".edgeml",
        show_default="~/.edgeml",
        help="Folder of releases, keys and the fleet's state; also EDGEML_REGISTRY.",
    )(command)


class Screen:
    """Progress lines on stderr: a spinner on a terminal, plain lines when piped."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._status: Status | None = None
        self._began = self._told = time.monotonic()

    def __enter__(self) -> Screen:
        if self._console.is_terminal:
            self._status = self._console.status("")
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            self._status.stop()

    def say(self, stage: str, line: str) -> None:
        """Show what `stage` says; an empty line only tells that it began."""
        if self._status:
            self._status.update(f"[bold]{stage}[/] ...")
        if line:
            self._console.print(
                f"[dim]{time.monotonic() - self._began:6.1f} s[/]  [bold]{stage:<9}[/] {line}", soft_wrap=True
            )

    def live(self, running: Live | None) -> Live | None:
        """Return a part of the terminal that is drawn anew, the one `running` if there is one; None when piped."""
        if running is not None or not self._console.is_terminal:
            return running
        from rich.live import Live

        if self._status:
            self._status.stop()
        live = Live(console=self._console, auto_refresh=False)
        live.start()
        return live

    def bar(self, stage: str, what: str, share: float) -> None:
        """Show how far `stage` is; when piped, only what takes long, now and then."""
        if self._status:
            full = int(BAR_WIDTH * share)
            drawn = f"[green]{'━' * full}[/][dim]{'━' * (BAR_WIDTH - full)}[/]"
            self._status.update(f"[bold]{stage:<9}[/] {drawn} {share:4.0%}  {what}")
        elif time.monotonic() - self._told > PIPED_EVERY_S:
            self._told = time.monotonic()
            self.say(stage, f"{share:.0%}  {what}")


class Rounds:
    """Federated rounds as they end: a table that grows on a terminal, plain lines when piped."""

    SHOWN = 12  # the newest

    def __init__(self, screen: Screen) -> None:
        self._screen, self._done = screen, list[Any]()
        self._live: Live | None = None

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def add(self, done: Any) -> None:
        """Show a round that is over."""
        self._done.append(done)
        live = self._screen.live(self._live)
        if live is None:
            self._screen.say("round", _round_line(done))
            return
        self._live = live
        live.update(self._table(), refresh=True)

    def _table(self) -> Any:
        from rich.table import Table

        table = Table(box=None, pad_edge=False, header_style="bold")
        for header in (
            "round",
            "devices",
            "rows",
            "held out",
            "metric",
            "",
            "loss",
            "kB up",
            "kB down",
            "seconds",
            "epsilon",
            "not taken",
        ):
            table.add_column(header, justify="left" if not header else "right")
        best = max((abs(one.metric) for one in self._done), default=1.0) or 1.0
        for one in self._done[-self.SHOWN :]:
            bar = "[green]" + "━" * round(16 * abs(one.metric) / best) + "[/]"
            spent = getattr(one, "epsilon", None)
            table.add_row(
                *(str(one.round), f"{len(one.participants):,}", f"{one.rows:,}", f"{getattr(one, 'held_out', 0):,}"),
                *(f"{one.metric:.4f}", bar),
                *(f"{one.loss:.4f}", f"{one.bytes_up / 1e3:,.0f}", f"{one.bytes_down / 1e3:,.0f}"),
                *(f"{one.seconds:.2f}", "-" if spent is None else f"{spent:.2f}"),
                str(sum(sum(faults.values()) for faults in getattr(one, "rejected", {}).values()) or "-"),
            )
        return table


def _round_line(done: Any) -> str:
    if getattr(done, "state", "") == "abandoned":
        told = [f"{device}: {why}" for device, why in sorted(done.refused.items())]
        told += [f"{device}: silent" for device in done.silent]
        return "; ".join([f"{done.round}: abandoned, {done.why}", *told]) + _rejected(done)
    spent, held_out = getattr(done, "epsilon", None), getattr(done, "held_out", 0)
    aside, masks = f" and {held_out:,} held out" if held_out else "", getattr(done, "bytes_masks", 0)
    return (
        f"{done.round}: {len(done.participants):,} devices, {done.rows:,} rows{aside}, metric {done.metric:.4f}, "
        f"loss {done.loss:.4f}, {done.bytes_up:,} bytes up, {done.seconds:.2f} s"
        + (f", {masks:,} bytes up and down for masks" if masks else "")
        + ("" if spent is None else f", epsilon {spent:.2f}")
        + _rejected(done)
    )


def _rejected(done: Any) -> str:
    """Return what was not taken, device by device."""
    counts = getattr(done, "rejected", {})
    told = [
        f"{device} {', '.join(f'{fault} {count}' for fault, count in sorted(faults.items()))}"
        for device, faults in sorted(counts.items())
    ]
    return f"; not taken: {'; '.join(told)}" if told else ""


def typed() -> str:
    """Return the command as it was typed."""
    return shlex.join(["edgeml", *sys.argv[1:]])


def show_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def show_table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table; the columns after the first are right-aligned when they hold numbers."""
    from rich.console import Console
    from rich.table import Table

    filled = [[_text(cell) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, header in enumerate(headers):
        numbers = all(row[index][:1] in "-+0123456789" for row in filled if row[index])
        table.add_column(header, justify="right" if numbers and index else "left", overflow="fold")
    for row in filled:
        table.add_row(*row)
    width = None if sys.stdout.isatty() else 160
    Console(highlight=False, markup=False, width=width).print(table)


def _text(cell: object) -> str:
    if cell is None:
        return "-"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)
