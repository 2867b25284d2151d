"""The result of a benchmark on a device: CBOR in blocks, bounded and checked before a number of it is believed.

A device that lies can only lie about itself; what is refused here is what would break whoever reads it:
numbers that are NaN, infinite or negative, other jobs than were asked for, documents without end.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cbor2

from edgeml_runtime.errors import MalformedMessage
from edgeml_runtime.wire.messages import BenchTask
from edgeml_runtime.wire.plain import from_plain, to_plain

SCHEMA = 1
MAX_DEPTH, MAX_VALUES = 8, 500_000
LARGEST = 2**63
TIMES = ("p50_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms", "max_ms", "cpu_ms", "rows_per_s")
RARE = "p999_ms"  # None where the queries are too few for it
RISING = ("min_ms", "p50_ms", "p90_ms", "p99_ms", "p999_ms", "max_ms")


@dataclass(frozen=True, kw_only=True)
class NodeTime:
    """A node of the graph as the device ran it: `measure.OperatorTime` with its shapes as two lists."""

    name: str
    operator: str
    ms: float
    fast_ms: float
    runs: int
    input_bytes: int
    output_bytes: int
    parameter_bytes: int
    types: tuple[str, ...]  # element types of every input, then every output
    dims: tuple[tuple[int, ...], ...]
    inputs: int  # how many of them are inputs


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """What one job gave: a timing's document, nodes, both, or the reason why neither."""

    name: str
    reason: str = ""  # class name of the error, or of the signal that ended the child
    detail: str = ""
    document: Mapping[str, Any] = field(default_factory=dict)  # measure.Benchmark.plain() without `operators`
    nodes: tuple[NodeTime, ...] = ()


@dataclass(frozen=True, kw_only=True)
class BenchResult:
    """What a device found out, and what it is."""

    schema: int = SCHEMA
    task: str
    device: str
    boot_id: str
    agent: str
    environment: Mapping[str, Any]
    hardware: Mapping[str, str]
    jobs: tuple[JobResult, ...]


def encode_result(result: BenchResult) -> bytes:
    return bytes(cbor2.dumps(to_plain(result)))


def decode_result(data: bytes, task: BenchTask) -> BenchResult:
    """Return the result in `data` if it answers `task`; raise MalformedMessage naming what is wrong with it."""
    if len(data) > task.max_result_bytes:
        raise MalformedMessage(f"a result of {len(data):,} bytes; the limit is {task.max_result_bytes:,}")
    try:
        plain = cbor2.loads(data)
    except (ValueError, EOFError, RecursionError, TypeError, cbor2.CBORError) as error:
        raise MalformedMessage(f"a result of {len(data)} bytes that cannot be parsed: {error}") from error
    version = plain.get("schema") if isinstance(plain, dict) else None
    if version != SCHEMA:
        raise MalformedMessage(f"a result of schema {version!r}: this side reads {SCHEMA}; update it")
    _check_values(plain)
    result = from_plain(BenchResult, plain)
    if (result.task, result.device) != (task.task, task.device):
        raise MalformedMessage(f"a result of {result.task} by {result.device}; {task.task} by {task.device} was asked")
    names, wanted = [job.name for job in result.jobs], [job.name for job in task.jobs]
    if sorted(names) != sorted(wanted):
        raise MalformedMessage(f"{len(names)} results {names[:3]}...; asked were {len(wanted)}: {wanted[:3]}...")
    verbs = {job.name: job.verb for job in task.jobs}
    for job in result.jobs:
        if not job.reason:
            _check_job(job, verbs[job.name])
    return result


def _check_job(job: JobResult, verb: str) -> None:
    if verb != "operators":
        check_timing(job.document, job.name)
    if verb != "timing" and not job.nodes:
        raise MalformedMessage(f"{job.name}: its nodes were asked for, and there are none")
    for node in job.nodes:
        numbers = (node.ms, node.fast_ms, node.runs, node.input_bytes, node.output_bytes, node.parameter_bytes)
        shapes = len(node.types) == len(node.dims) and 0 <= node.inputs <= len(node.types)
        if min(numbers) < 0 or not shapes:
            raise MalformedMessage(f"{job.name}: node {node.name[:40]!r} has a negative number, or no shapes")


def check_timing(document: Mapping[str, Any], name: str) -> None:
    """Raise MalformedMessage unless `document` is a timing: finite, in order, with its interval and its verdict."""
    for key in TIMES if document.get(RARE) is None else (*TIMES, RARE):
        value = document.get(key)
        if not isinstance(value, int | float) or isinstance(value, bool) or value < 0:
            raise MalformedMessage(f"{name}: {key} is {value!r}, no time")
    rising = [document[key] for key in RISING if document.get(key) is not None]
    if any(later < earlier for earlier, later in itertools.pairwise(rising)):
        raise MalformedMessage(f"{name}: quantiles that fall: {', '.join(f'{value:g}' for value in rising)} ms")
    interval = document.get("ci95_ms")
    if not isinstance(interval, list) or len(interval) != 2 or not all(_is_number(end) for end in interval):
        raise MalformedMessage(f"{name}: ci95_ms is {str(interval)[:40]}, no interval")
    for key, kind in (("n", int), ("valid", bool), ("why", str), ("rows", int), ("settings", dict)):
        if not isinstance(document.get(key), kind):
            raise MalformedMessage(f"{name}: {key} is missing or no {kind.__name__}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_values(plain: Any) -> None:
    """Raise MalformedMessage for a number that is not finite, for depth, for number, and for what is not plain."""
    todo, count = [(plain, 0)], 0
    while todo:
        value, depth = todo.pop()
        count += 1
        if depth > MAX_DEPTH or count > MAX_VALUES:
            raise MalformedMessage(f"a result nested deeper than {MAX_DEPTH}, or of more than {MAX_VALUES:,} values")
        if isinstance(value, dict):
            if not all(isinstance(key, str) for key in value):
                raise MalformedMessage("a result with a key that is no string")
            todo += [(item, depth + 1) for item in value.values()]
        elif isinstance(value, list):
            todo += [(item, depth + 1) for item in value]
        elif isinstance(value, int | float) and not abs(value) < LARGEST:  # NaN is not smaller either
            raise MalformedMessage("a result with a number that is NaN, infinite or beyond all measure")
        elif value is not None and not isinstance(value, str | bool | int | float):
            raise MalformedMessage(f"a result with a value of type {type(value).__name__}")
