"""Delimited text into a table of cells, with the file line of every row for error messages.

    bytes (plain or gzip) -> read_table -> Table

Cells stay text here; what a column means is decided in `columns`. A row of the wrong width is an error, never padded.
"""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from edgeml.errors import DataError, NotFound
from edgeml.project import Read

MISSING = frozenset({"", "NA", "NaN", "nan", "null"})
SEPARATORS = (",", ";", "\t", "|", " ")  # tried in this order; the blank stands for any run of blanks
FEWEST_NAMED = 3  # rows before one field too many can be taken for row names
GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class Table:
    """Named columns of stripped text cells, "" where one is missing, or of numbers; `lines` are the file's own."""

    frame: pd.DataFrame
    lines: np.ndarray
    files: tuple[str, ...]  # the file of every row, or one name for all
    decimal: str = "."
    notes: tuple[str, ...] = ()
    fixed: bool = False  # a published layout, such as the pixels of an image: constant columns stay

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def name(self) -> str:
        return self.files[0] if len(set(self.files)) == 1 else f"{self.files[0]} and others"

    def where(self, row: int) -> str:
        """Return the place of a row as an editor shows it."""
        file = self.files[row] if len(self.files) > 1 else self.files[0]
        return f"{file} {'row' if self.fixed else 'line'} {self.lines[row]}"


@dataclass(frozen=True)
class Records:
    """The rows of a delimited text, split into fields, and the line each begins on."""

    rows: list[list[str]]
    lines: list[int]
    sep: str


def read_table(path: Path, read: Read = Read()) -> Table:  # noqa: B008 - a frozen model
    """Return the table in the file at `path`.

    Raises NotFound when there is no file and DataError when it is empty, not UTF-8, or ragged.
    """
    records = read_records(path, read.sep)
    header, first, notes = _header(records, read, path.name)
    body, lines = records.rows[first:], records.lines[first:]
    if not body:
        raise DataError(f"{path.name} has a header and no rows: add rows, or set data.read.header to false")
    if _named_rows(body, len(header)) and not read.names:
        body = [row[1:] for row in body]
        notes = [*notes, f"{path.name}: the first field of each row is a row name without a header; left out"]
    for row, line in zip(body, lines, strict=True):
        if len(row) != len(header):
            raise DataError(
                f"{path.name} line {line}: a row of the wrong width: {len(row)} fields, expected {len(header)}; "
                f"correct that line, or set data.read.sep if {records.sep!r} is not the separator"
            )
    missing = MISSING | set(read.na)
    columns = {name: _cells(column, missing) for name, column in zip(header, zip(*body, strict=True), strict=True)}
    frame = pd.DataFrame(columns, dtype=object)
    return Table(frame, np.array(lines), (path.name,), read.decimal, tuple(notes))


def _named_rows(body: Sequence[Sequence[str]], width: int) -> bool:
    """Say whether each row begins with a name of its own that has no header; a row or two may just be too wide."""
    return (
        len(body) >= FEWEST_NAMED
        and all(len(row) == width + 1 for row in body)
        and len({row[0] for row in body}) == len(body)
    )


def stack(tables: Sequence[Table]) -> Table:
    """Return the tables under each other; raise DataError when their columns differ."""
    first = tables[0]
    for other in tables[1:]:
        if list(other.frame.columns) != list(first.frame.columns):
            odd = sorted(set(other.frame.columns) ^ set(first.frame.columns)) or ["their order"]
            raise DataError(
                f"{other.name} and {first.name} have different columns: {', '.join(odd[:5])}; make them alike"
            )
    if len(tables) == 1:
        return first
    files = tuple(table.files[0] for table in tables for _ in range(len(table)))
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    notes = tuple(note for table in tables for note in table.notes)
    return Table(frame, np.concatenate([table.lines for table in tables]), files, first.decimal, notes)


def read_records(path: Path, sep: str | None = None) -> Records:
    """Return the fields of every line that is not blank; `sep` is guessed when None."""
    text = _text(path)
    if not text.strip():
        raise DataError(f"{path.name} is empty: it needs a header and rows")
    sep = sep or _guess_separator(text)
    rows, lines, before = [], [], 0
    reader = csv.reader(_lines(text, sep), delimiter=sep, skipinitialspace=True)
    try:
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                rows.append(row)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path.name} line {reader.line_num}: not delimited text: {error}") from error
    return Records(rows, lines, sep)


def _text(path: Path) -> str:
    if not path.is_file():
        raise NotFound(f"no data at {path}: check the path")
    content = path.read_bytes()
    if content.startswith(GZIP_MAGIC):
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{path.name} is damaged gzip ({error}): copy or download it again") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path.name} line {line} is not UTF-8 text (byte {error.start}): save it as UTF-8") from error


def _lines(text: str, sep: str) -> Iterator[str]:
    lines: Iterator[str] = io.StringIO(text, newline="")
    return (f"{line.strip()}\n" for line in lines) if sep == " " else lines


def _guess_separator(text: str) -> str:
    """Return the first separator that cuts the head into rows as wide as the header, or one wider (row names)."""
    head = "".join(line for _, line in zip(range(30), io.StringIO(text), strict=False) if line.strip())
    by_row_names = []
    for sep in SEPARATORS:
        rows = list(csv.reader(_lines(head, sep), delimiter=sep, skipinitialspace=True))
        (width, often), *_ = Counter(len(row) for row in rows[1:] or rows).most_common(1)
        if width < 2 or often < 0.8 * (len(rows) - 1):
            continue
        if len(rows[0]) == width:
            return sep
        by_row_names += [sep] if 2 <= len(rows[0]) == width - 1 else []
    return by_row_names[0] if by_row_names else ","


def _header(records: Records, read: Read, name: str) -> tuple[list[str], int, list[str]]:
    first = [cell.strip() for cell in records.rows[0]]
    header = read.names or (first if read.header else [f"column_{i + 1}" for i in range(len(first))])
    notes = [f"{name}: the columns without a name are called by their position"] if "" in header else []
    header = [column or f"column_{i + 1}" for i, column in enumerate(header)]
    if twice := [column for column, count in Counter(header).items() if count > 1]:
        raise DataError(f"{name} line {records.lines[0]}: column {twice[0]!r} appears twice; rename one of them")
    return header, int(read.header), notes


def _cells(column: Sequence[str], missing: frozenset[str] | set[str]) -> list[str]:
    return ["" if (cell := raw.strip()) in missing else cell for raw in column]
