"""The numbers that a prediction needs of a board; what its profile leaves out is tried as it is on each known board.

A board of which nothing but its class is known is predicted as every known board of the class in turn: the middle of
those answers is the prediction, and their spread widens its range.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from edgeml.devices import DeviceProfile, shipped_boards
from edgeml.devices.cores import Pipeline

KIND = ("arch", "pipeline", "dot_product")  # what must agree for one board to stand in for another; given up from here


@dataclass(frozen=True, kw_only=True)
class Machine:
    """A board as predictions see it: the facts of DeviceProfile that rates come from, none of them unknown."""

    name: str
    soc: str | None
    core: str | None
    pipeline: Pipeline
    dot_product: bool
    cores: int
    frequency_ghz: float
    fp32_flops_per_cycle: int
    int8_macs_per_cycle: int
    bandwidth_mb_s: int
    l2_kb: int


NEEDED = tuple(field.name for field in fields(Machine) if field.name not in ("name", "soc", "core", "l2_kb"))


def machines_of(board: DeviceProfile) -> tuple[Machine, ...]:
    """Return `board` as one machine, or as the several that it may be where its profile leaves facts out."""
    if not unknown_of(board):
        return (_machine(board, board),)
    return tuple(dict.fromkeys(_machine(board, donor) for donor in _donors(board)))


def unknown_of(board: DeviceProfile) -> tuple[str, ...]:
    """Return the facts that predictions need and the profile of `board` leaves out."""
    return tuple(name for name in NEEDED if getattr(board, name) is None)


def _machine(board: DeviceProfile, donor: DeviceProfile) -> Machine:
    facts = {name: getattr(donor if getattr(board, name) is None else board, name) for name in NEEDED}
    core = board.core or (donor.core if board.pipeline is None else None)
    l2_kb = board.l2_kb or (donor.l2_kb if board.cores is None else None) or 0
    return Machine(name=board.name, soc=board.soc, core=core, **facts, l2_kb=l2_kb)


def _donors(board: DeviceProfile) -> Sequence[DeviceProfile]:
    """Return the known boards of the same kind, or of the nearest kind that there are any of."""
    known = [(name, getattr(board, name)) for name in KIND if getattr(board, name) is not None]
    for given_up in range(len(known) + 1):
        asked = known[given_up:]
        if found := [donor for donor in _complete() if all(getattr(donor, name) == value for name, value in asked)]:
            return found
    raise AssertionError("no board is complete")


@functools.cache
def known_machines() -> Mapping[str, Machine]:
    """Return the boards that ship, by name, of which enough is known to be one machine."""
    tried = {name: machines_of(board) for name, board in shipped_boards().items()}
    return {name: machines[0] for name, machines in tried.items() if len(machines) == 1}


@functools.cache
def _complete() -> tuple[DeviceProfile, ...]:
    return tuple(board for board in shipped_boards().values() if not unknown_of(board))
