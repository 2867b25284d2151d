"""What a data set is made of, without reading it as a table: its files, and one digest of bytes and options.

    project -> source_digest -> sha256

Equal digests mean equal rows in equal splits, so a stage may answer from its cache. No pandas here.
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import importlib.metadata
import json
from collections.abc import Sequence
from pathlib import Path

from edgeml.errors import DataError, NotFound
from edgeml.project import Project

RULES = 1  # raised whenever the same bytes and options begin to give other rows
SKLEARN = "sklearn:"


def source_digest(project: Project) -> str:
    """Return the sha256 of the bytes of every source and of each option that shapes the rows.

    Raises NotFound for a file that is not there.
    """
    options = {
        "rules": RULES,
        "name": project.name,
        "task": project.task,
        "data": project.data.model_dump(mode="json"),
        "metric": project.search.metric,
        "seed": project.search.seed,
    }
    whole = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    data = project.data
    for source in [*sources_of(data.train), *sources_of(data.valid or []), *sources_of(data.test or [])]:
        whole.update(_source_bytes_digest(source, project.folder))
    return whole.hexdigest()


def sources_of(given: str | Sequence[str]) -> list[str]:
    """Return the sources as a list, however they were written."""
    return [given] if isinstance(given, str) else list(given)


def files_of(source: str, folder: Path) -> list[Path]:
    """Return the files that `source`, a path or a glob relative to `folder`, stands for.

    Raises NotFound, with the nearest name in that folder, when there is none.
    """
    if "://" in source:
        raise DataError(f"{source}: only files and sklearn:NAME are read so far (docs/roadmap.md); download it first")
    path = folder / source
    if path.is_file():
        return [path]
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 - may be absolute
    files = [file for file in found if file.is_file()]
    if not files:
        beside = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "check data.train and data.test in edgeml.yaml"
        raise NotFound(f"no data at {path}: {hint}")
    return files


def _source_bytes_digest(source: str, folder: Path) -> bytes:
    if source.startswith(SKLEARN):
        version = importlib.metadata.version("scikit-learn")
        return hashlib.sha256(f"{source} {version}".encode()).digest()
    whole = hashlib.sha256()
    for path in files_of(source, folder):
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.digest()
