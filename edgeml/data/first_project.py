"""The first edgeml.yaml of a table, guessed and commented, for `edgeml init`.

path, target -> guess -> YAML text
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from edgeml.data import columns, target
from edgeml.data.fingerprint import SKLEARN
from edgeml.data.sources import TARGET, read_source
from edgeml.project import Read

TEXT = """\
# What edgeml learns, from what, and where it must run. `edgeml build` in this folder does the rest.
name: {name}
task: {task}  # guessed from {target}: {why}
data:
  train: {train}  # {rows} rows
  target: {target}
{drop}search:
  estimators: auto  # or a list of: linear, forest, boosting, mlp
  trials: 12
  timeout_s: 600
  metric: auto  # here: {metric}
compile:
  precisions: [fp32, int8]
  max_accuracy_drop: 0.01  # absolute, on the metric, with its 95 % bound
devices:  # what must run where; `edgeml devices` lists the boards
  - {{board: raspberry-pi-4, latency_p90_ms: 10, memory_mb: 128}}
"""


def guess(path: Path, target_name: str = "", *, folder: Path | None = None) -> str:
    """Return an edgeml.yaml for the table at `path` (a file, or sklearn:NAME), commented with what was seen.

    With `folder` the project is named after it and names the table relative to it. Raises NotFound or
    DataError when the table, or the target in it, cannot be used.
    """
    source = str(path)
    table = read_source(source, Path(), Read())
    name = target_name or (TARGET if table.fixed else "")
    columns.require(table, [name])
    truth = target.read_target(table, name)
    _, notes = columns.choose(table, [str(c) for c in table.frame.columns if c != name])
    left_out = "".join(f"  # {note}\n" for note in (*table.notes, *notes))
    why = f"{len(truth.classes)} classes" if truth.classes else "many different numbers"
    return TEXT.format(
        name=_name(source if folder is None else folder.name),
        task=truth.task,
        target=_scalar(name),
        why=why,
        train=_scalar(_seen_from(folder, source)),
        rows=len(table),
        drop=f"{left_out}  drop: []  # more columns that must not be learned from\n",
        metric=target.metric_for(truth),
    )


def _seen_from(folder: Path | None, source: str) -> str:
    """Return `source` as a project in `folder` names it."""
    return source if folder is None or source.startswith(SKLEARN) else os.path.relpath(source, folder)


def _name(source: str) -> str:
    stem = source.removeprefix(SKLEARN) if source.startswith(SKLEARN) else Path(source).name.split(".")[0]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem).lstrip("._-")
    return _scalar(name[:64] or "model")


def _scalar(text: str) -> str:
    """Return `text` as a YAML scalar, quoted where YAML would read something else."""
    return yaml.safe_dump(text, default_flow_style=True, width=10_000).removesuffix("\n...\n").strip()
