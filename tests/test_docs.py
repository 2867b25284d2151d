"""Docs cannot drift: the reference is generated, commands in prose exist, links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from benchmarks.run_all import page as benchmarks_page
from benchmarks.run_all import with_excerpts
from edgeml.cli import COMMANDS, edgeml
from edgeml.cli.reference import reference

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "runtime/README.md", *ROOT.glob("docs/**/*.md")])
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def test_the_reference_is_what_the_commands_say() -> None:
    written = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    assert written == reference(), "run `make docs`"


@every_page
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@every_page
def test_tables_shown_in_a_page_are_the_measured_ones(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == with_excerpts(text), "run `python benchmarks/run_all.py --page`"


def test_the_page_of_benchmarks_has_every_table() -> None:
    assert (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8") == benchmarks_page(), (
        "run `python benchmarks/run_all.py --page`"
    )


def shown_commands(page: Path) -> list[str]:
    blocks = re.findall(r"```(?:sh|console|bash)\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line.split("  #")[0] for line in lines if line.startswith("edgeml ")]


@every_page
def test_commands_shown_in_a_page_exist_with_their_options(page: Path) -> None:
    for line in shown_commands(page):
        words = shlex.split(line.replace("[", "").replace("]", "").replace("...", ""), comments=True)[1:]
        command: click.Command = edgeml
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{page.name}: `{line}`: no command {words[0]!r}"
            command, words = found, words[1:]
        known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
        used = {word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)} - {"--help", "-h", "--version"}
        assert used <= known, f"{page.name}: `{line}`: unknown {sorted(used - known)}"


def test_every_command_is_listed_with_its_own_first_sentence() -> None:
    for name in COMMANDS:
        command = edgeml.get_command(click.Context(edgeml), name)
        assert command is not None and (command.help or "").strip(), f"{name} says nothing of itself"


@pytest.mark.parametrize(
    "name", ["help", "setup", "demo", "test", "slow", "runtimes", "oracles", "emulated", "bench", "docs"]
)
def test_the_makefile_has_the_targets_the_pages_name(name: str) -> None:
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
