"""Boards as data: what one can hold and run, every fact with its public source.

    devices/<board>.toml -> DeviceProfile

A fact nobody could find stays None; nothing is guessed here.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from edgeml.errors import NotFound, ProjectError

NOT_FACTS = {"name", "title", "sources"}  # fields that need no source
POSITIVE = {
    *("cores", "frequency_ghz", "ram_mb", "usable_ram_mb", "l2_kb", "bandwidth_mb_s"),
    *("fp32_flops_per_cycle", "int8_macs_per_cycle"),
}


@dataclass(frozen=True, kw_only=True)
class DeviceProfile:
    """A board. Peaks are per core; bandwidth is a copy by one core.

    >>> board = find_board("raspberry-pi-4")
    >>> board.core, board.dot_product
    ('Cortex-A72', False)
    """

    name: str
    title: str
    soc: str
    core: str
    pipeline: Literal["in-order", "out-of-order"]
    cores: int
    frequency_ghz: float
    ram_mb: int  # of the smallest model that is sold
    usable_ram_mb: int | None = None  # what is left of it after firmware and kernel
    fp32_flops_per_cycle: int
    int8_macs_per_cycle: int
    dot_product: bool  # SDOT and UDOT
    bandwidth_mb_s: int
    l2_kb: int | None = None  # that one core can use
    arch: Literal["aarch64", "x86_64"]
    runtime: str | None = None  # the oldest onnxruntime to expect there
    sources: Mapping[str, str]

    def __post_init__(self) -> None:
        board, facts = f"board {self.name!r}", self.facts()
        for name in POSITIVE & facts:
            if not getattr(self, name) > 0:
                raise ProjectError(f"{board}: {name} is {getattr(self, name)}, but must be above 0")
        if self.usable_ram_mb is not None and self.usable_ram_mb > self.ram_mb:
            raise ProjectError(f"{board}: usable_ram_mb {self.usable_ram_mb} is more than ram_mb {self.ram_mb}")
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
    def memory_limit_mb(self) -> int:
        return self.usable_ram_mb or self.ram_mb


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


@functools.cache
def read_boards() -> dict[str, DeviceProfile]:
    """Return every board that ships with edgeml, by name."""
    files = sorted(resources.files("devices").iterdir(), key=lambda file: file.name)
    names = [(file, file.name.removesuffix(".toml")) for file in files if file.name.endswith(".toml")]
    return {name: parse_board(file.read_text(encoding="utf-8"), name=name) for file, name in names}


def find_board(name: str) -> DeviceProfile:
    """Return the board called `name`; raise NotFound naming the nearest one."""
    boards = read_boards()
    if name in boards:
        return boards[name]
    near = difflib.get_close_matches(name, boards, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of those"
    raise NotFound(f"no board {name!r} among {', '.join(boards)}; {hint}")


def _check(key: str, value: Any, hint: Any, *, board: str) -> None:
    """Raise ProjectError unless `value` is of the type that the profile declares for `key`."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise ProjectError(f"board {board!r}: {key} is {value!r}, but must be one of {', '.join(arguments)}")
        return
    kinds: tuple[Any, ...] = (dict,) if origin is not None and issubclass(_class(origin), Mapping) else (hint,)
    if origin is types.UnionType:
        kinds = tuple(kind for kind in arguments if kind is not type(None))
    if float in kinds:
        kinds = (*kinds, int)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise ProjectError(f"board {board!r}: {key} is {value!r}, but must be {expected}")


def _class(origin: Any) -> type:
    return origin if isinstance(origin, type) and origin is not types.UnionType else object
