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

    def bar(self, stage: str, what: str, share: float) -> None:
        """Show how far `stage` is; when piped, only what takes long, now and then."""
        if self._status:
            full = int(BAR_WIDTH * share)
            drawn = f"[green]{'━' * full}[/][dim]{'━' * (BAR_WIDTH - full)}[/]"
            self._status.update(f"[bold]{stage:<9}[/] {drawn} {share:4.0%}  {what}")
        elif time.monotonic() - self._told > PIPED_EVERY_S:
            self._told = time.monotonic()
            self.say(stage, f"{share:.0%}  {what}")


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
