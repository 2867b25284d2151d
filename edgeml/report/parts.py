"""What a page is made of: texts, tables and pictures, no HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of ready texts; the columns named in `numbers` are aligned right, the rows in `faded` are not to be used."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()
    faded: frozenset[int] = frozenset()
    title: str = ""  # of a table that folds


@dataclass(frozen=True)
class Figure:
    """One picture (a Vega-Lite specification), how to read it, and the same in words and as a table."""

    title: str
    spec: Mapping[str, Any]
    caption: str
    words: str  # what it shows, for who cannot see it
    table: Table


@dataclass(frozen=True)
class Section:
    """A part of the page; `open` parts are shown, the others fold. `commands` can be copied."""

    title: str
    lead: str = ""
    table: Table | None = None
    figures: Sequence[Figure] = ()
    items: Sequence[str] = ()
    terms: Sequence[tuple[str, str]] = ()  # a word and what it means
    commands: Sequence[tuple[str, str]] = ()  # what for, what to type
    open: bool = True

    def __bool__(self) -> bool:
        return bool(self.table or self.figures or self.items or self.commands)


@dataclass(frozen=True)
class Verdict:
    """One sentence first; then the numbers it rests on. `good` is None where nothing was decided."""

    who: str
    says: str
    why: str = ""
    good: bool | None = True
    numbers: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """A report. `verdicts` come first: one sentence per board, and the fleet's."""

    title: str
    subtitle: str
    verdicts: Sequence[Verdict]
    facts: Sequence[tuple[str, str]]  # name, value
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""
    beside: Sequence[tuple[str, str]] = ()  # name and file of the same in other forms
