"""The result of a benchmark: what is sent is what is read, and what would break its reader is refused by name."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cbor2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml_runtime.bench_child import Child, finished, perform, unpacked
from edgeml_runtime.errors import BadDigest, MalformedMessage
from edgeml_runtime.wire import tensors
from edgeml_runtime.wire.bench import BenchResult, JobResult, NodeTime, decode_result, encode_result
from edgeml_runtime.wire.blocks import digest_of
from edgeml_runtime.wire.messages import BenchBlob, BenchJob, BenchPlan, BenchTask
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.graphs import mlp

ROWS = tensors.pack({"numeric": np.zeros((1, 64), np.float32)})
QUICK = BenchPlan(warmup_s=0.01, min_s=0.05, min_count=10, max_s=0.1)
TIMES = {
    "min_ms": 1.0, "p50_ms": 2.0, "p90_ms": 3.0, "p99_ms": 4.0, "p999_ms": 5.0, "max_ms": 5.0, "mean_ms": 2.2,
    "cpu_ms": 2.0, "rows_per_s": 450.0, "ci95_ms": [1.9, 2.1], "n": 100, "valid": True, "why": "", "rows": 1,
    "settings": {"threads": 1}, "environment": {"cores": 4},
}  # fmt: skip
NODE = NodeTime(
    name="Gemm1", operator="Gemm", ms=0.1, fast_ms=0.1, runs=20, input_bytes=4, output_bytes=4, parameter_bytes=8,
    types=("float", "float"), dims=((1, 64), (1, 10)), inputs=1,
)  # fmt: skip


def a_task(*verbs: str, **changes: Any) -> BenchTask:
    jobs = tuple(BenchJob(name=v, verb=v, graph="g", rows="r", plan=QUICK) for v in verbs or ("benchmark",))  # type: ignore[arg-type]
    return BenchTask(**{"device": "pi-1", "task": "b1", "kind": "measure", "seq": 1, "jobs": jobs, **changes})


def a_result(**changes: Any) -> BenchResult:
    jobs = (JobResult(name="benchmark", document=TIMES, nodes=(NODE,)),)
    told = {"task": "b1", "device": "pi-1", "boot_id": "x", "agent": "0.1", "environment": {}, "hardware": {}}
    return BenchResult(**{**told, "jobs": jobs, **changes})


def test_a_result_arrives_as_it_was_sent() -> None:
    assert decode_result(encode_result(a_result()), a_task()) == a_result()


def test_a_quantile_for_which_the_queries_were_too_few_may_be_absent() -> None:
    few = a_result(jobs=(JobResult(name="benchmark", document={**TIMES, "p999_ms": None}, nodes=(NODE,)),))
    assert decode_result(encode_result(few), a_task()).jobs[0].document.get("p999_ms") is None


def test_a_job_that_failed_needs_no_numbers() -> None:
    failed = a_result(jobs=(JobResult(name="benchmark", reason="IllegalInstruction", detail="SIGILL"),))
    assert decode_result(encode_result(failed), a_task()).jobs[0].reason == "IllegalInstruction"


def spoil(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(plain: dict[str, Any]) -> None:
        plain["jobs"][0]["document"].update(changes)

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (spoil(p50_ms=float("nan")), "NaN, infinite or beyond"),
        (spoil(series=[[0, float("inf")]]), "NaN, infinite or beyond"),
        (spoil(n=10**30), "NaN, infinite or beyond"),
        (spoil(p50_ms=-1.0), "p50_ms is -1.0, no time"),
        (spoil(p50_ms="1"), "p50_ms is '1', no time"),
        (spoil(p50_ms=True), "p50_ms is True, no time"),
        (spoil(p999_ms="x"), "p999_ms is 'x', no time"),
        (spoil(p90_ms=0.5), "quantiles that fall"),
        (spoil(ci95_ms=[1]), "ci95_ms is"),
        (spoil(n=1.5), "n is missing or no int"),
        (spoil(settings=None), "settings is missing"),
        (spoil(samples_ms=b"bytes"), "value of type bytes"),
        (spoil(deep=[[[[[[[[[[]]]]]]]]]]), "nested deeper than 8"),
        (spoil(many=[0] * 600_000), "more than 500,000 values"),
        (lambda plain: plain.update(task="b2"), "a result of b2 by pi-1; b1 by pi-1 was asked"),
        (lambda plain: plain.update(device="pi-2"), "by pi-2; b1 by pi-1 was asked"),
        (lambda plain: plain.update(schema=2), "schema 2: this side reads 1"),
        (lambda plain: plain.update(jobs=[]), "0 results"),
        (lambda plain: plain["jobs"][0].update(name="other"), "asked were 1"),
        (lambda plain: plain["jobs"][0].update(nodes=[]), "its nodes were asked for"),
        (lambda plain: plain["jobs"][0]["nodes"][0].update(ms=-1.0), "a negative number"),
        (lambda plain: plain["jobs"][0]["nodes"][0].update(types=[]), "or no shapes"),
        (lambda plain: plain["jobs"][0]["nodes"][0].update(colour=1), "unknown field 'colour'"),
        (lambda plain: plain.update({1: 2}), "a key that is no string"),
    ],
    ids=lambda value: value[:24] if isinstance(value, str) else "",
)
def test_what_would_break_its_reader_is_refused_by_name(change: Callable[[dict[str, Any]], None], why: str) -> None:
    plain = to_plain(a_result())
    plain["jobs"][0]["document"] = dict(TIMES)
    change(plain)
    with pytest.raises(MalformedMessage, match=why):
        decode_result(cbor2.dumps(plain), a_task(max_result_bytes=8 << 20))


def test_a_result_beyond_the_limit_is_not_even_parsed() -> None:
    with pytest.raises(MalformedMessage, match="a result of 101 bytes; the limit is 100"):
        decode_result(b"\x80" * 101, a_task(max_result_bytes=100))


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail_in_another_way(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode_result(data, a_task())


def test_a_document_that_contains_itself_is_refused() -> None:
    cyclic: dict[str, Any] = {"schema": 1}
    cyclic["jobs"] = cyclic
    with pytest.raises(MalformedMessage):
        decode_result(cbor2.dumps(cyclic, value_sharing=True), a_task())


# the child


def a_shop(folder: Path, *verbs: str, graphs: dict[str, bytes] | None = None) -> BenchTask:
    """Return a task whose blobs are in `folder`; a graph of its own for the jobs named in `graphs`."""
    (folder / digest_of(ROWS)).write_bytes(ROWS)
    jobs, blobs = [], {digest_of(ROWS): BenchBlob(digest=digest_of(ROWS), size=len(ROWS))}
    for verb in verbs:
        graph = (graphs or {}).get(verb, mlp())
        (folder / digest_of(graph)).write_bytes(graph)
        blobs[digest_of(graph)] = BenchBlob(digest=digest_of(graph), size=len(graph))
        jobs.append(
            BenchJob(name=verb, verb=verb, graph=digest_of(graph), rows=digest_of(ROWS), plan=QUICK, starts=1)  # type: ignore[arg-type]
        )
    return a_task(jobs=tuple(jobs), blobs=tuple(blobs.values()))


def test_every_kind_of_job_gives_what_its_reader_accepts(tmp_path: Path) -> None:
    task = a_shop(tmp_path, "timing", "operators", "benchmark")
    found = Child(tmp_path, task, max_s=60).run()
    assert found is not None
    read = decode_result(encode_result(a_result(jobs=found)), task)
    timing, operators, benchmark = read.jobs
    assert [job.reason for job in read.jobs] == ["", "", ""]
    assert timing.document["n"] >= 10
    assert not timing.nodes
    assert {node.operator for node in operators.nodes} & {"Gemm", "FusedGemm"}
    assert operators.nodes[0].dims[0] == (1, 64)
    assert benchmark.document["memory_mb"]["peak"] > 10
    assert benchmark.nodes


def test_a_graph_that_cannot_be_run_is_the_jobs_failure_and_the_others_go_on(tmp_path: Path) -> None:
    task = a_shop(tmp_path, "timing", "operators", graphs={"timing": b"nonsense"})
    found = Child(tmp_path, task, max_s=60).run()
    assert found is not None
    assert [job.reason for job in found] == ["ModelRefused", ""]


@pytest.mark.fault
def test_a_job_that_kills_its_child_has_the_signal_as_its_reason_and_the_others_go_on(tmp_path: Path) -> None:
    task = a_shop(tmp_path, "timing", "operators")
    (tmp_path / "b1.jsonl").write_text('{"begun": "timing"}\n{"done": {"na')  # as a child that died left it
    child = Child(tmp_path, task, max_s=60)
    child._blame(-4, "")
    found = child.run()
    assert found is not None
    assert [job.reason for job in found] == ["IllegalInstruction", ""]
    assert "SIGILL" in found[0].detail
    assert finished(tmp_path, task) == ({job.name: job for job in found}, "")


def test_a_graph_that_takes_more_memory_than_there_is_says_so(tmp_path: Path, models: Any) -> None:
    wide = models.model(
        [models.node("Expand", ["numeric", "shape"], ["label"])],
        [("numeric", models.FLOAT, [1, 64])],
        outputs=[("label", models.FLOAT, ["a", "b"])],
        weights={"shape": np.array([1 << 32, 64], np.int64)},
    )
    task = a_shop(tmp_path, "timing", graphs={"timing": wide})
    found = Child(tmp_path, task, max_s=60).run()
    assert found is not None
    assert found[0].reason in ("OutOfMemory", "ModelRefused", "Killed")
    assert found[0].detail


def test_a_blob_that_is_packed_inflates_to_what_was_promised_and_no_more(tmp_path: Path) -> None:
    data = bytes(1 << 20)
    packed = zlib.compress(data)
    blob = BenchBlob(digest=digest_of(packed), size=len(packed), inflated=len(data))
    (tmp_path / blob.digest).write_bytes(packed)
    assert unpacked(tmp_path, blob) == data
    for promised in (len(data) - 1, len(data) + 1, 1):
        with pytest.raises(BadDigest, match="inflates to other than"):
            unpacked(tmp_path, dataclasses.replace(blob, inflated=promised))
    (tmp_path / blob.digest).write_bytes(packed[:-9])
    with pytest.raises(BadDigest):
        unpacked(tmp_path, blob)


def test_a_packed_graph_runs_like_a_plain_one(tmp_path: Path) -> None:
    graph, packed = mlp(), zlib.compress(mlp())
    for data in (packed, ROWS):
        (tmp_path / digest_of(data)).write_bytes(data)
    blobs = {
        "g": BenchBlob(digest=digest_of(packed), size=len(packed), inflated=len(graph)),
        "r": BenchBlob(digest=digest_of(ROWS), size=len(ROWS)),
    }
    found = perform(tmp_path, BenchJob(name="a", verb="timing", graph="g", rows="r", plan=QUICK), blobs)
    assert found.reason == ""
    assert found.document["n"] >= 10
