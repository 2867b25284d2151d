"""A board's profile: typed facts, each with its source, checked once at the door against what can be true.

    TOML text -parse_board-> DeviceProfile -write_board-> TOML text

A fact nobody could find stays None; nothing is guessed here.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgeml.devices.cores import CORES, Arch, Pipeline
from edgeml.errors import ProjectError

NOT_FACTS = {"name", "title", "sources"}  # fields that need no source
LIMITS: Mapping[str, tuple[float, str]] = {  # what no board of today goes beyond, with its unit
    "cores": (1024, "cores"),
    "frequency_ghz": (10, "GHz"),
    "ram_mb": (16 << 20, "MB"),
    "usable_ram_mb": (16 << 20, "MB"),
    "fp32_flops_per_cycle": (128, "a cycle and core"),
    "int8_macs_per_cycle": (1024, "a cycle and core"),
    "bandwidth_mb_s": (1_000_000, "MB/s"),
    "l2_kb": (1 << 20, "KB"),
    "l3_kb": (1 << 20, "KB"),
}
MOST_WITHOUT_SDOT = 16  # int8 products a cycle: two SMLAL of eight, the most an Arm core starts


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A board. Peaks are per core; bandwidth is a copy by one core.

    >>> from edgeml.devices import find_board
    >>> board = find_board("raspberry-pi-4")
    >>> board.core, board.dot_product
    ('Cortex-A72', False)
    """

    name: str
    title: str
    soc: str | None = None
    core: str | None = None
    described: str | None = None  # which cores this describes, where there are others beside them
    pipeline: Pipeline | None = None
    cores: int | None = None
    frequency_ghz: float | None = None
    ram_mb: int | None = None  # of the smallest model that is sold
    usable_ram_mb: int | None = None  # what is left of it after firmware and kernel
    fp32_flops_per_cycle: int | None = None
    int8_macs_per_cycle: int | None = None
    dot_product: bool | None = None  # int8 products added in fours: SDOT and UDOT, on x86 VNNI
    i8mm: bool | None = None
    fp16: bool | None = None  # half-precision arithmetic
    bandwidth_mb_s: int | None = None
    l2_kb: int | None = None  # that one core can use
    l3_kb: int | None = None
    arch: Arch
    runtime: str | None = None  # the oldest onnxruntime to expect there
    sources: Mapping[str, str]

    def __post_init__(self) -> None:
        board, facts = f"board {self.name!r}", self.facts()
        if impossible := _out_of_range(self) or _contradiction(self):
            raise ProjectError(f"{board}: {impossible}")
        if missing := facts - self.sources.keys():
            raise ProjectError(f"{board}: no source for {', '.join(sorted(missing))}; add it under [sources]")
        if extra := self.sources.keys() - facts:
            raise ProjectError(f"{board}: a source for {sorted(extra)[0]!r}, which is no fact of the profile")

    def facts(self) -> set[str]:
        """Return the names of the facts this profile states."""
        names = {f.name for f in dataclasses.fields(self)} - NOT_FACTS
        return {name for name in names if getattr(self, name) is not None}

    def to_plain(self) -> dict[str, Any]:
        """Return the profile as plain values, unknown facts left out."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}

    @property
    def memory_limit_mb(self) -> int | None:
        return self.usable_ram_mb or self.ram_mb


def _out_of_range(board: DeviceProfile) -> str:
    """Return what number of `board` cannot be true, "" when all can."""
    for name, (most, unit) in LIMITS.items():
        value = getattr(board, name)
        if value is None:
            continue
        if not value > 0:
            return f"{name} is {value}, but must be above 0"
        if not value <= most:
            return f"{name} is {value}, but nothing has more than {most:,} {unit}; check the unit"
    return ""


def _contradiction(board: DeviceProfile) -> str:
    """Return which two facts of `board` exclude each other, "" when none do."""
    ram, usable = board.ram_mb, board.usable_ram_mb
    fp32, int8 = board.fp32_flops_per_cycle, board.int8_macs_per_cycle
    if usable is not None and ram is not None and usable > ram:
        return f"usable_ram_mb {usable} is more than ram_mb {ram}"
    if fp32 and int8 and int8 < fp32 / 2:
        return (
            f"int8_macs_per_cycle {int8} is less than the {fp32 // 2} products a cycle of fp32_flops_per_cycle {fp32}"
        )
    if board.dot_product is False and board.arch == "aarch64" and int8 and int8 > MOST_WITHOUT_SDOT:
        return (
            f"int8_macs_per_cycle is {int8}, which only SDOT gives, but dot_product is false: "
            f"without it an Arm core does {MOST_WITHOUT_SDOT} at most"
        )
    known = CORES.get(board.core or "")
    if known is None:
        return ""
    for name, is_so in (("arch", known.arch), ("pipeline", known.pipeline), ("dot_product", known.dot_product)):
        said = getattr(board, name)
        if None not in (said, is_so) and said != is_so:
            return f"{name} is {_written(said)}, but the core {known.name} is {_written(is_so)}"
    return ""


def parse_board(text: str, *, name: str) -> DeviceProfile:
    """Return the profile written in TOML `text`; raise ProjectError naming what is wrong with it."""
    try:
        facts = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ProjectError(f"board {name!r}: not TOML: {error}") from error
    hints = typing.get_type_hints(DeviceProfile)
    if unknown := facts.keys() - hints.keys():
        near = difflib.get_close_matches(sorted(unknown)[0], hints, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(hints)}"
        raise ProjectError(f"board {name!r}: unknown key {sorted(unknown)[0]!r}; {hint}")
    required = {f.name for f in dataclasses.fields(DeviceProfile) if f.default is dataclasses.MISSING} - {"name"}
    if missing := required - facts.keys():
        raise ProjectError(f"board {name!r}: {', '.join(sorted(missing))} missing")
    for key, value in facts.items():
        _check(key, value, hints[key], board=name)
    return DeviceProfile(**(facts | {"name": name}))


def write_board(board: DeviceProfile) -> str:
    """Return the TOML text that `parse_board` reads as `board`."""
    facts = {name: value for name, value in board.to_plain().items() if name not in ("name", "sources")}
    head = [f"{name} = {_written(value)}" for name, value in facts.items()]
    sources = [f"{name} = {_written(board.sources[name])}" for name in facts if name in board.sources]
    return "\n".join([*head, "", "[sources]", *sources]) + "\n"


def _written(value: Any) -> str:
    """Return a fact as TOML writes it; JSON's text is TOML's but for DEL, which TOML wants escaped."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007F")


def _check(key: str, value: Any, hint: Any, *, board: str) -> None:
    """Raise ProjectError unless `value` is of the type that the profile declares for `key`."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) or _is_optional(hint) else (hint,)
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    choices = [choice for kind in kinds if typing.get_origin(kind) is Literal for choice in typing.get_args(kind)]
    if choices:
        if value not in choices:
            raise ProjectError(f"board {board!r}: {key} is {value!r}, but must be one of {', '.join(choices)}")
        return
    classes = tuple(dict if typing.get_origin(kind) is not None else kind for kind in kinds)
    allowed = (*classes, int) if float in classes else classes
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in classes):
        expected = " or ".join(kind.__name__ for kind in classes)
        raise ProjectError(f"board {board!r}: {key} is {value!r}, but must be {expected}")
    if isinstance(value, dict):
        for name, source in value.items():
            _check(f"the source of {name}", source, str, board=board)


def _is_optional(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Union
