"""edgeml.yaml as typed models: strict, with defaults for everything but the name, the data and the target.

An unknown key is a ProjectError that names the line and the nearest known key; `${VAR}` and
`${VAR:-default}` expand; paths are relative to the file.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any, Literal

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from edgeml.errors import NotFound, ProjectError
from edgeml_runtime.wire.holdout import objection

FILE = "edgeml.yaml"
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Read(Section):
    sep: str | None = None  # None: guessed from the first lines
    header: bool = True
    names: list[str] | None = None
    na: list[str] = []  # besides the empty field and NA, NaN, null
    decimal: str = "."


class Data(Section):
    train: str | list[str]
    valid: str | None = None  # rows the gates of later releases judge on; a share of train if not given
    test: str | None = None  # an official test set; a share of train if not given
    target: str | None = None
    drop: list[str] = []
    group: str | None = None
    device: str | None = None  # the column that says where a row lies; not learned from
    read: Read = Read()


class Search(Section):
    estimators: Literal["auto"] | list[str] = "auto"
    trials: int = Field(12, ge=1)
    timeout_s: float = Field(600, gt=0)
    folds: int = Field(5, ge=2)
    metric: str = "auto"
    seed: int = 0


class Compile(Section):
    precisions: Literal["auto"] | list[str] = ["fp32", "int8"]  # recipes by name or by precision: docs/quantize.md
    max_accuracy_drop: float = Field(0.01, ge=0)
    search_s: float = Field(600, gt=0)  # of one recipe that searches: mixed precision, pruning, students
    opset: Literal["auto"] | int = "auto"  # the newest that every board's onnxruntime loads
    runtime: str | None = Field(None, pattern=r"^\d+\.\d+(\.\d+)*$")  # onnxruntime of boards that name none


class Verify(Section):
    """The thresholds of the gate; `edgeml.verify.Limits` says what each one means."""

    fp32_relative: float = Field(1e-4, gt=0)
    tensor_rms: float = Field(0.05, gt=0)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    resamples: int = Field(1000, ge=100)
    tie: float = Field(1e-6, ge=0)
    edge_cases: bool = True


class Board(Section):
    board: str
    latency_p90_ms: float | None = Field(None, gt=0)
    memory_mb: float | None = Field(None, gt=0)
    threads: int = Field(1, ge=1)
    runtime: str | None = Field(None, pattern=r"^\d+\.\d+(\.\d+)*$")  # onnxruntime there; the profile's if not given


class Federated(Section):
    enabled: bool = False
    min_devices: int = Field(2, ge=1)
    rounds: int = Field(5, ge=1)
    local_epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    learning_rate: float = Field(0.05, gt=0)
    momentum: float = Field(0.9, ge=0, lt=1)
    min_rows: int = Field(20, ge=1)
    deadline_s: float = Field(60, gt=0)
    held_out: float = 0.2  # share of a device's rows to judge on
    gate: Literal["better", "not-worse"] = "better"

    @pydantic.field_validator("held_out")
    @classmethod
    def _a_share_that_devices_know(cls, value: float) -> float:
        if why := objection(value):
            raise ValueError(why)
        return value


class Track(Section):
    mlflow: Literal["auto", "off"] = "auto"

    @pydantic.field_validator("mlflow", mode="before")
    @classmethod
    def _yaml_reads_off_as_false(cls, value: Any) -> Any:
        return "off" if value is False else value


class Project(Section):
    """One project file; `folder` is where it stands."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    task: Literal["classification", "regression"] | None = None
    data: Data
    search: Search = Search()
    compile: Compile = Compile()
    verify: Verify = Verify()
    devices: list[Board] = []
    federated: Federated = Federated()
    track: Track = Track()
    folder: Path = Field(default=Path(), exclude=True)

    def path(self, name: str) -> Path:
        return self.folder / name


# PROJECT.md of the design names these; they are refused by name until they are built
ROADMAP = {
    "features",
    "monitor",
    "time",
    "schema",
    "engine",
    "sampler",
    "strategy",
    "secure_aggregation",
    "dp",
    "query",
}


def read_project(path: Path) -> Project:
    """Return the project at `path`, a folder or its edgeml.yaml.

    Raises NotFound when there is none and ProjectError, with the line, when it is wrong.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise NotFound(f"no project at {file}: write one with `edgeml init NAME --from data.csv --target COLUMN`")
    try:
        return parse_project(file.read_text(encoding="utf-8"), folder=file.parent, name=str(file))
    except UnicodeDecodeError as error:
        raise ProjectError(f"{file} is not UTF-8 text: byte {error.start} cannot be read") from error


def parse_project(text: str, *, folder: Path = Path(), name: str = FILE) -> Project:
    """Return the project written in `text`; `name` is what error messages call it."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise ProjectError(f"{name}{line}: not YAML: {getattr(error, 'problem', error)}") from error
    if not isinstance(content, dict):
        raise ProjectError(f"{name}: expected keys like name and data, got {type(content).__name__}")
    try:
        return Project.model_validate({**_expand(content, name), "folder": folder})
    except pydantic.ValidationError as error:
        raise ProjectError(_explain(error.errors()[0], root, name)) from error


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema of edgeml.yaml, for editors."""
    return Project.model_json_schema()


def _expand(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, name) for item in value]
    if not isinstance(value, str):
        return value

    def variable(found: re.Match[str]) -> str:
        text = os.environ.get(found[1], found[2])
        if text is None:
            raise ProjectError(f"{name}: ${{{found[1]}}} is not set; set it, or write ${{{found[1]}:-default}}")
        return text

    return _VARIABLE.sub(variable, value)


def _explain(error: Any, root: yaml.Node | None, name: str) -> str:
    keys = [str(part) for part in error["loc"] if not str(part).startswith(("literal[", "list[", "constrained"))]
    where = f"{name} line {_line(root, keys)}"
    if error["type"] == "missing":
        return f"{where}: {'.'.join(keys)} is required"
    if error["type"] != "extra_forbidden":
        return f"{where}: {'.'.join(keys)}: {error['msg']}, got {error.get('input')!r:.60}"
    if keys[-1] in ROADMAP:
        return f"{where}: {'.'.join(keys)} is not built yet (docs/roadmap.md); take it out"
    known = _known(keys[:-1])
    near = difflib.get_close_matches(keys[-1], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{where}: unknown key {'.'.join(keys)!r}; {hint}"


def _known(keys: list[str]) -> list[str]:
    section: type[BaseModel] = Project
    for key in keys:
        if key.isdigit():
            continue
        annotation = section.model_fields[key].annotation
        parts = getattr(annotation, "__args__", (annotation,))
        section = next(part for part in parts if isinstance(part, type) and issubclass(part, BaseModel))
    return [field for field in section.model_fields if field != "folder"]


def _line(node: yaml.Node | None, keys: list[str]) -> int:
    line = 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == key), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and key.isdigit() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
    return line
