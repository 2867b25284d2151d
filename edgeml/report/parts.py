"""What a page is made of: texts, tables and pictures, no HTML."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Table:
    """Rows of ready texts; the columns named in `numbers` are aligned right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Figure:
    """One picture with what it shows and how to read it."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page; `open` parts are shown, the others fold."""

    title: str
    lead: str = ""
    table: Table | None = None
    figures: Sequence[Figure] = ()
    items: Sequence[str] = ()
    open: bool = True


@dataclass(frozen=True)
class Page:
    """A report. `verdicts` come first: one sentence per board, and the fleet's."""

    title: str
    subtitle: str
    verdicts: Sequence[tuple[str, str, bool]]  # who, what, good news
    facts: Sequence[tuple[str, str]]  # name, value
    sections: Sequence[Section] = field(default_factory=tuple)
    footer: str = ""
