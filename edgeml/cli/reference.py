"""docs/cli.md, written from the commands themselves: `python -m edgeml.cli.reference > docs/cli.md`."""

from __future__ import annotations

from collections.abc import Iterator

import click

from edgeml.cli import COMMANDS, edgeml

HEAD = """\
# The command line

Written from the commands by `make docs`; the tests compare. Every verb takes `--json` where it has something to tell:
one JSON document on stdout, progress on stderr. Errors are one line on stderr. Exit codes: 0 ok, 1 you can fix it,
2 usage, 3 a gate refused and nothing was shipped, 4 the fleet or the broker failed, 130 interrupted.
`edgeml --debug VERB` shows the stack trace of an error.

Shell completion: `eval "$(_EDGEML_COMPLETE=bash_source edgeml)"` (or `zsh_source`, `fish_source`).
"""


def reference() -> str:
    """Return the page: the help of every command, in the order of `edgeml --help`."""
    return HEAD + "".join(_sections())


def _sections() -> Iterator[str]:
    root = click.Context(edgeml, info_name="edgeml", **edgeml.context_settings)  # what commands inherit
    for name in COMMANDS:
        command = edgeml.get_command(root, name)
        assert command is not None, f"{name} is listed but has no command"
        yield from _help(command, name, root)


def _help(command: click.Command, name: str, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100)
    yield f"\n## {context.command_path}\n\n```\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for inner in command.list_commands(context):
            found = command.get_command(context, inner)
            assert found is not None
            yield from _help(found, inner, context)


if __name__ == "__main__":
    click.echo(reference(), nl=False)
