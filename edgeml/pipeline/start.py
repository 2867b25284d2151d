"""Projects begun from a table: a folder with a commented edgeml.yaml."""

from __future__ import annotations

from pathlib import Path

from edgeml import data
from edgeml.errors import UserError
from edgeml.files import write_atomic
from edgeml.project import FILE, parse_project

BLANK = """\
name: {name}
data:
  train: data.csv          # a table with one row per line: .csv .tsv .txt, gzip too; or sklearn:digits
  target: target           # the column to predict
devices:
  - board: raspberry-pi-4  # `edgeml devices list` shows the boards
"""


def start_project(folder: Path, *, source: Path | None, target: str | None) -> Path:
    """Write `folder`/edgeml.yaml, guessed from the table `source`, and return its path.

    Raises UserError when there is a project already, or a table without the column to predict.
    """
    file = folder / FILE
    if file.exists():
        raise UserError(f"{file} is there already; edit it, or choose another name")
    if source is None:
        text = BLANK.format(name=folder.name)
    elif target is None:
        raise UserError(f"--from {source} needs --target COLUMN: which column is to be predicted?")
    else:
        text = data.guess(source, target, folder=folder)
    parse_project(text, name=str(file))
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(file, text.encode())
    return file
