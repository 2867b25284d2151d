"""Everything that is measured of one model on this machine, and the JSON document it becomes everywhere."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeml_runtime.measure.cold import ColdStart, cold_start
from edgeml_runtime.measure.operators import OperatorTime, operators
from edgeml_runtime.measure.overhead import Overhead, overhead
from edgeml_runtime.measure.timing import USUAL, Plan, Timing, Watch, measure, nobody
from edgeml_runtime.session import DEFAULTS, Session, is_program
from edgeml_runtime.sidefile import placed
from edgeml_runtime.wire.manifest import Settings

MOST_PROFILED_S = 1.0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A timing, and where asked for a process's first answer and the operators. Times are of one query."""

    timing: Timing
    settings: Settings
    cold: ColdStart | None = None
    operators: tuple[OperatorTime, ...] = ()
    overhead: Overhead | None = None

    def plain(self) -> dict[str, Any]:
        """Return JSON values: the timing's at the top, `cold_start`, `memory_mb`, `operators`, `overhead` beside."""
        document = asdict(self.timing) | {"settings": asdict(self.settings)}
        if self.cold is not None:
            cold = asdict(self.cold)
            document["memory_mb"] = {key.removesuffix("_mb"): cold.pop(key) for key in list(cold) if key[-3:] == "_mb"}
            document["cold_start"] = cold
        document["overhead"] = None if self.overhead is None else asdict(self.overhead)
        document["operators"] = [
            {"name": node.name, "operator": node.operator, "ms": node.ms, "parameter_bytes": node.parameter_bytes}
            for node in self.operators
        ]
        return document


def benchmark(
    model: str | Path | bytes,
    feeds: Mapping[str, np.ndarray],
    plan: Plan = USUAL,
    *,
    settings: Settings = DEFAULTS,
    starts: int = 0,
    profile: bool = False,
    watch: Watch = nobody,
) -> Benchmark:
    """Return what `model` takes for `feeds` here, `starts` new processes and `profile` included where asked for.

    Raises ModelRefused when the model cannot be loaded or run here, ShapeMismatch when `feeds` do not fit it.
    """
    cold = cold_start(model, feeds, starts=starts, settings=settings) if starts else None
    with placed(model, settings) as source:
        timing = measure(functools.partial(Session, source, settings), feeds, plan, watch=watch)
    runs = max(5, min(500, int(MOST_PROFILED_S * 1e3 / max(timing.p50_ms, 1e-3))))
    nodes = operators(model, feeds, runs=runs, settings=settings) if profile and not is_program(model) else ()
    calls = overhead() if profile else None
    return Benchmark(timing=timing, settings=settings, cold=cold, operators=nodes, overhead=calls)
