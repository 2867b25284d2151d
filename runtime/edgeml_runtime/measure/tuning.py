"""Which session settings are the fastest for this model on this machine, by comparisons in turns.

One setting after another is changed, and kept only where the change is proven to be worth it. What costs
others, spinning threads that burn an idle core or a second thread on a board that also has to do something
else, must earn more than what is free. Memory is not looked at here: `cold_start` measures it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.errors import DeviceError
from edgeml_runtime.measure.timing import USUAL, Plan
from edgeml_runtime.measure.versus import versus
from edgeml_runtime.session import DEFAULTS, Session
from edgeml_runtime.wire.manifest import Settings

FREE, SHARED, IDLE_CORE = 0.97, 0.80, 0.60  # of the time before: what a change must reach to be kept


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One change that was tried. `ratio` is of the time before it, None where it could not be run."""

    change: Mapping[str, Any]
    ratio: float | None
    ratio95: tuple[float, float] | None
    kept: bool
    why: str


@dataclass(frozen=True, kw_only=True)
class Tuned:
    """The settings that won, and all that was tried, in order."""

    settings: Settings
    trials: tuple[Trial, ...]


def changes(cores: int) -> list[tuple[Mapping[str, Any], float]]:
    """Return what is tried in turn on a machine where `cores` may be used, each with the bound it must reach."""
    threads = [2**power for power in range(1, 8) if 2**power < cores] + ([cores] if cores > 1 else [])
    several = [({"threads": count}, SHARED) for count in threads]
    rest: list[tuple[Mapping[str, Any], float]] = [
        ({"graph_level": "extended"}, FREE),  # without the NCHWc layout: less memory on x86, sometimes less time
        ({"prepacking": False}, FREE),
        ({"arena": False}, FREE),
    ]
    return [*several, *rest, *([({"spinning": True}, IDLE_CORE)] if threads else [])]


def tune(model: str | Path | bytes, feeds: Mapping[str, np.ndarray], plan: Plan = USUAL) -> Tuned:
    """Return the best settings for `feeds` here. Raises ModelRefused and ShapeMismatch as Session and `measure` do."""
    best, trials = DEFAULTS, []
    for change, bound in changes(len(os.sched_getaffinity(0))):
        if change.get("spinning") and best.threads == 1:
            continue  # nobody spins in a pool of one
        trial = _try((best, change), bound, model=model, feeds=feeds, plan=plan)
        trials.append(trial)
        if trial.kept:
            best = replace(best, **change)
    return Tuned(settings=best, trials=tuple(trials))


def _try(
    pair: tuple[Settings, Mapping[str, Any]],
    bound: float,
    *,
    model: str | Path | bytes,
    feeds: Mapping[str, np.ndarray],
    plan: Plan,
) -> Trial:
    before, change = pair
    try:
        found = versus((Session(model, before), feeds), (Session(model, replace(before, **change)), feeds), plan)
    except DeviceError as error:
        return Trial(change=change, ratio=None, ratio95=None, kept=False, why=str(error)[:200])
    kept = found.valid and found.ratio95[1] <= bound
    why = found.why or f"{'at most' if kept else 'must be at most'} {bound:g} of the time before"
    return Trial(change=change, ratio=found.ratio, ratio95=found.ratio95, kept=kept, why=why)
