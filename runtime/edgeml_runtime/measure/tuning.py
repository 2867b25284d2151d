"""Which session settings are worth it for this model on this machine, by comparisons in turns.

One change after another is tried, and kept only where it is proven to be worth it. What costs others, spinning threads
that burn an idle core or a second thread on a board that also has to do something else, must earn more than what is
free. Of a big model the memory is looked at, too: with its weights in a file beside it and no second copy of them, it
may take a little longer if it then holds much less.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import DeviceError
from edgeml_runtime.measure.cold import cold_start
from edgeml_runtime.measure.timing import USUAL, Plan
from edgeml_runtime.measure.versus import Versus, versus
from edgeml_runtime.session import DEFAULTS, Session
from edgeml_runtime.sidefile import placed
from edgeml_runtime.wire.manifest import Settings

FREE, SHARED, IDLE_CORE = 0.97, 0.80, 0.60  # of the time before: what a change must reach to be kept
DEARER, LIGHTER = 1.10, 0.75  # what saves memory may take this much of the time, if it holds so much of the memory
BIG_BYTES = 8 << 20  # of a model: below, what Python and onnxruntime hold decides


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One change that was tried. `ratio` is of the time before it, None where it could not be run.

    `anonymous_mb` before and after, where memory was looked at.
    """

    change: Mapping[str, Any]
    ratio: float | None
    ratio95: tuple[float, float] | None
    kept: bool
    why: str
    anonymous_mb: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The settings that won, and all that was tried, in order."""

    settings: Settings
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class _Subject:
    model: str | Path | bytes
    feeds: Mapping[str, np.ndarray]
    plan: Plan


def changes(cores: int, *, big: bool = False) -> list[tuple[Mapping[str, Any], float]]:
    """Return what is tried in turn on a machine where `cores` may be used, each with the bound it must reach."""
    threads = [2**power for power in range(1, 8) if 2**power < cores] + ([cores] if cores > 1 else [])
    several = [({"threads": count}, SHARED) for count in threads]
    rest: list[tuple[Mapping[str, Any], float]] = [
        ({"graph_level": "extended"}, FREE),  # without the NCHWc layout: less memory on x86, sometimes less time
        ({"prepacking": False}, FREE),
        ({"arena": False}, FREE),
        ({"mem_pattern": False}, FREE),
        ({"io_binding": False}, FREE),
    ]
    if big:
        rest.append(({"external_data": True, "prepacking": False}, DEARER))
    return [*several, *rest, *([({"spinning": True}, IDLE_CORE)] if threads else [])]


def tune(
    model: str | Path | bytes,
    feeds: Mapping[str, np.ndarray],
    plan: Plan = USUAL,
    *,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Tuned:
    """Return the best settings for `feeds` here; `progress` is told how many changes of how many are tried.

    Raises ModelRefused and ShapeMismatch as Session and `measure` do.
    """
    subject, size = _Subject(model, feeds, plan), len(model) if isinstance(model, bytes) else Path(model).stat().st_size
    best, trials = DEFAULTS, []
    wanted = changes(len(os.sched_getaffinity(0)), big=size >= BIG_BYTES)
    for done, (change, bound) in enumerate(wanted):
        progress(done, len(wanted))
        if change.get("spinning") and best.threads == 1:
            continue  # nobody spins in a pool of one
        trial = _try((best, change), bound, subject)
        trials.append(trial)
        if trial.kept:
            best = replace(best, **change)
    progress(len(wanted), len(wanted))
    return Tuned(settings=best, trials=tuple(trials))


def _try(pair: tuple[Settings, Mapping[str, Any]], bound: float, subject: _Subject) -> Trial:
    before, change = pair
    after = replace(before, **change)
    try:
        with placed(subject.model, before) as one, placed(subject.model, after) as other:
            sides = (Session(one, before), subject.feeds), (Session(other, after), subject.feeds)
        found = versus(*sides, subject.plan)
        del sides
        memory = _memory(before, after, subject) if after.external_data and not before.external_data else None
    except DeviceError as error:
        return Trial(change=change, ratio=None, ratio95=None, kept=False, why=str(error)[:200])
    kept, why = _judge(found, bound, memory)
    return Trial(
        change=change, ratio=found.ratio, ratio95=found.ratio95, kept=kept, why=found.why or why, anonymous_mb=memory
    )


def _judge(found: Versus, bound: float, memory: tuple[float, float] | None) -> tuple[bool, str]:
    """Return whether a change is kept, and why."""
    kept, why = found.ratio95[1] <= bound, f"at most {bound:g} of the time before"
    if memory is not None:
        kept = kept and memory[1] <= LIGHTER * memory[0]
        why += f" and {LIGHTER:g} of the memory: {memory[0]:.0f} to {memory[1]:.0f} MB"
    return kept and found.valid, why if kept else f"must be {why}"


def _memory(before: Settings, after: Settings, subject: _Subject) -> tuple[float, float]:
    """Return the anonymous megabytes of a process that answers, before and after."""
    found = [cold_start(subject.model, subject.feeds, starts=1, settings=one) for one in (before, after)]
    return found[0].anonymous_mb, found[1].anonymous_mb
