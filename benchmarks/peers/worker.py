"""A process that loads compiled models and times them on request, a JSON line in, a JSON line out.

    {"op": "load", "id": .., "engine": .., "path": .., "rows": .., "batch": 1}    -> {"ok": true}
    {"op": "labels", "id": ..}                                        -> {"labels": [..]}   for all rows, one by one
    {"op": "time", "id": .., "seconds": ..}                           -> {"p50": us, "p90": us, "calls": n}
    {"op": "drop"}                                                    -> {"ok": true}       forget every model

One such process lives in every environment that has a peer, all of them on one core, so that the rounds of one
measurement alternate between environments. Needs numpy and, for an engine that is asked for, its package.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.engines import ENGINES

ROWS_IN_TURN = 16  # rows that the timed calls take in turn
LEAST_CALLS = 3
Predict = Callable[[int], Any]


class Loaded:
    """A model of one engine over fixed rows, `batch` of them in a call."""

    def __init__(self, engine: str, path: str, rows: dict[str, np.ndarray], *, batch: int = 1) -> None:
        prepare, call, answer = ENGINES[engine](path)
        self.count = len(next(iter(rows.values())))
        starts = range(0, self.count - batch + 1, batch)
        self._prepared = [prepare({k: v[i : i + batch] for k, v in rows.items()}) for i in starts]
        self._call, self._answer = call, answer
        self._answer(self._call(self._prepared[0]))

    def labels(self) -> list[int]:
        """Return the class index that the model gives each row."""
        return [int(self._answer(self._call(row))) for row in self._prepared]

    def time(self, seconds: float) -> dict[str, float]:
        """Return the microseconds of single calls, made for about `seconds`."""
        call, rows, clock = self._call, self._prepared[:ROWS_IN_TURN], time.perf_counter_ns
        ends: list[int] = []
        until = clock() + int(seconds * 1e9)
        call(rows[0])  # caches warm again after the others' turns
        before = clock()
        while before < until or len(ends) < LEAST_CALLS:
            call(rows[len(ends) % len(rows)])
            after = clock()
            ends.append(after - before)
            before = after
        p50, p90 = np.percentile(ends, [50, 90]) / 1e3
        return {"p50": float(p50), "p90": float(p90), "calls": len(ends)}


def serve() -> None:
    """Answer requests until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to stderr
    models: dict[str, Loaded] = {}
    cache: dict[str, dict[str, np.ndarray]] = {}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            reply = _reply(request, models, cache)
        except Exception as error:  # a peer may fail in any way; that is a result
            traceback.print_exc()
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _reply(request: dict[str, Any], models: dict[str, Loaded], cache: dict[str, dict[str, np.ndarray]]) -> Any:
    match request["op"]:
        case "load":
            path = request["rows"]
            if path not in cache:
                cache.clear()
                with np.load(path) as file:
                    cache[path] = {name: file[name] for name in file.files}
            batch = request.get("batch", 1)
            models[request["id"]] = Loaded(request["engine"], request["path"], cache[path], batch=batch)
            return {"ok": True}
        case "labels":
            return {"labels": models[request["id"]].labels()}
        case "time":
            return models[request["id"]].time(request["seconds"])
        case "drop":
            models.clear()
            cache.clear()
            return {"ok": True}
    raise ValueError(request["op"])


if __name__ == "__main__":
    serve()
