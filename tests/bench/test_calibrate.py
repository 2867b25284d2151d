"""Calibration: real micro-models on this machine, kept through kill -9, and read again only whole."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto

from edgeml import bench
from edgeml.bench.calibrate import calibration as documents
from edgeml.bench.calibrate import journal as journals
from edgeml.bench.calibrate import run as runs
from edgeml.bench.calibrate.blocks import Builder, feeds
from edgeml.bench.calibrate.kernels import TABLE, kernels
from edgeml.bench.calibrate.reference import REFERENCES
from edgeml.bench.calibrate.work import Caches, Work, in_turn, works_of
from edgeml.errors import DataError, NotFound
from edgeml_runtime.measure import Plan, operators
from edgeml_runtime.session import Session

QUICK = Plan(warmup_s=0.02, min_s=0.02, min_count=3, max_s=0.05)
SMALL = bench.Scope(kernels=("relu", "tree regressor"), references=("ds-cnn",), rounds=2, plan=QUICK)
CACHE = 1 << 20


class Counting(bench.Here):
    """This machine, which counts what it was asked."""

    def __init__(self):
        super().__init__()
        object.__setattr__(self, "asked", [])

    def nodes(self, model, inputs, runs):
        self.asked.append(len(model))
        return super().nodes(model, inputs, runs)


def test_nodes_are_found_again_by_name_where_sessions_run_them_in_another_order():
    kernel = kernels(CACHE, names=("blocked",))[0]
    model, shape = kernel.built()
    nodes = tuple(operators(model, feeds(shape), runs=3, weights=True))
    subject = runs.Subject(kernel.name, kernel.built, False, kernel.swept)

    def samples(*rows):
        found = runs._samples(
            subject, [journals.Row(row) for row in rows], caches=Caches(CACHE, CACHE), profiler=runs.Profiler(0.0)
        )
        return list(found)

    assert len(nodes) > 4 and samples(nodes, nodes[::-1]) == samples(nodes, nodes)


@pytest.fixture(scope="module")
def calibration():
    return bench.calibrate(bench.Here(), name="here", scope=SMALL)


@pytest.fixture(scope="module")
def document(calibration):
    return calibration.to_json()


@pytest.mark.parametrize("name", [name for name, _, _ in TABLE])
def test_every_micro_model_runs_and_its_kernels_have_work(name):
    kernel = kernels(CACHE, names=(name,))[0]
    model, shape = kernel.built()
    works = works_of(operators(model, feeds(shape), runs=1, weights=True), model)
    assert any(work.macs or work.moved or work.gathered for work in works)
    assert all(value >= 0 for work in works for value in work.amounts().values())
    assert kernel.built() == (model, shape)  # the same one every time, so that a journal can go on


def test_there_are_hundreds_of_micro_models_and_a_third_of_them_is_cold_and_one_is_hot():
    every = kernels(CACHE)
    assert 200 <= len(every) <= 800
    assert len({kernel.name for kernel in every}) == len(every)
    for swept in (0, CACHE // 2, 2 * CACHE):
        assert 0.25 < np.mean([kernel.swept == swept for kernel in every]) < 0.42


@pytest.mark.parametrize("int8", [False, True], ids=["fp32", "int8"])
@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_every_reference_net_answers_and_in_int8_runs_in_int8(name, int8):
    model, shape = REFERENCES[name](int8)
    assert Session(model).run(feeds(shape))
    works = works_of(operators(model, feeds(shape), runs=1, weights=True), model)
    kinds = {work.family.split()[0] for work in works if work.macs}
    assert ("QLinearConv" in kinds) == int8
    assert not (int8 and "Conv" in kinds)


def test_an_unknown_kernel_or_net_is_named():
    with pytest.raises(NotFound, match=r"pointwize.*pointwise"):
        bench.calibrate(bench.Here(), name="x", scope=bench.Scope(kernels=("pointwize",)))
    with pytest.raises(NotFound, match=r"resnet9000.*resnet8-64"):
        bench.calibrate(bench.Here(), name="x", scope=bench.Scope(kernels=("relu",), references=("resnet9000",)))


def test_a_calibration_tells_what_was_measured_and_where(calibration):
    families = {work.family for work, _ in calibration.samples}
    assert {"Relu float", "TreeEnsembleRegressor float"} <= families
    assert [one.name for one in calibration.references] == ["ds-cnn", "ds-cnn int8"]
    assert calibration.call_ms < min(one.ms for one in calibration.references)
    assert calibration.environment["onnxruntime"] and calibration.environment["machine"]


def test_trees_are_told_by_their_visits(calibration):
    trees = [(work.gathered, ms) for work, ms in calibration.samples if work.family.startswith("Tree")]
    assert len({visits for visits, _ in trees}) > 3
    assert all(visits > 0 for visits, _ in trees)


def test_a_document_comes_back_as_it_was(calibration, document, tmp_path):
    path = tmp_path / "here.calibration.json"
    path.write_text(document, encoding="utf-8")
    assert bench.read_calibration(path) == calibration


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(DataError, match=r"no calibration can be read there \(No such file"):
        bench.read_calibration(tmp_path / "none.json")


def resealed(document: str, **changes) -> str:
    """Return the document with changes and a digest that fits them, as a careless program would write it."""
    body = json.loads(document) | changes
    body.pop("digest")
    return json.dumps({**body, "digest": documents.seal_of(body)})


SAMPLE = [{"family": "Relu float", "kind": "", "macs": 0.0, "moved": 8.0, "weights": 0.0}, 0.1]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[: len(text) // 2], "not a calibration"),
        (lambda text: text.replace('"macs": 0.0', '"macs": 1.0', 1), "changed or cut off"),
        (lambda text: resealed(text, schema=1), "its schema is 1, this edgeml reads 2"),
        (lambda text: resealed(text, call_ms=float("nan")), "call_ms is nan"),
        (lambda text: resealed(text, call_ms=-1.0), "call_ms is -1.0"),
        (lambda text: resealed(text, call_ms="1"), "call_ms is '1'"),
        (lambda text: resealed(text, samples=[[SAMPLE[0], -0.1]]), "Relu float: milliseconds is -0.1"),
        (lambda text: resealed(text, samples=[[SAMPLE[0], float("inf")]]), "milliseconds is inf"),
        (lambda text: resealed(text, samples=[[SAMPLE[0] | {"macs": float("nan")}, 0.1]]), "macs is nan"),
        (lambda text: resealed(text, samples=[[SAMPLE[0] | {"moved": -8}, 0.1]]), "moved is -8"),
        (lambda text: resealed(text, samples=[[SAMPLE[0] | {"colour": 1}, 0.1]]), "colour"),
        (lambda text: resealed(text, samples=[]), "without a single sample"),
        (lambda text: resealed(text, cache_bytes=0), "cache_bytes is 0"),
        (lambda text: resealed(text, device=7), "7 stands where a text"),
        (lambda text: resealed(text, environment={}), "onnxruntime"),
        (lambda text: resealed(text, settings={"threads": -3}), "threads is -3"),
        (lambda text: "[" * 100_000, "not a calibration"),
        (lambda text: "", "not a calibration"),
    ],
)
def test_a_damaged_document_is_refused_and_the_damage_named(document, damage, said):
    with pytest.raises(DataError, match=said) as refused:
        bench.parse_calibration(damage(document), "pi.json")
    assert str(refused.value).startswith("pi.json: ")
    assert "calibrate again" in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = [field.name for field in dataclasses.fields(bench.Calibration)]


@given(st.dictionaries(st.sampled_from(FIELDS), JSON, min_size=1, max_size=3))
@settings(max_examples=150, deadline=None)
def test_whatever_stands_in_a_document_it_is_read_or_refused(document, changes):
    with contextlib.suppress(DataError):
        bench.parse_calibration(resealed(document, **changes))


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_no_flipped_or_lost_byte_is_read_as_another_calibration(calibration, document, data):
    raw = bytearray(document.encode())
    at = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[at] ^= data.draw(st.integers(1, 255))
    else:
        del raw[at : at + data.draw(st.integers(1, 40))]
    with contextlib.suppress(DataError):
        assert bench.parse_calibration(bytes(raw)) == calibration  # a space more or less changes nothing


def test_a_finished_journal_is_not_run_again(calibration, tmp_path):
    path, counting = tmp_path / "journal", Counting()
    bench.calibrate(counting, name="here", scope=SMALL, journal=path)
    first = len(counting.asked)
    again = bench.calibrate(counting, name="here", scope=SMALL, journal=path)
    assert first > 20
    assert len(counting.asked) == first
    assert [(work.family, work.moved) for work, _ in again.samples] == [
        (work.family, work.moved) for work, _ in calibration.samples
    ]


CALIBRATING = """
import sys
from pathlib import Path
from edgeml import bench
from tests.bench.test_calibrate import SMALL
bench.calibrate(bench.Here(), name="here", scope=SMALL, journal=Path(sys.argv[1]))
"""


def test_killed_in_the_middle_it_goes_on_where_it_was(tmp_path):
    path, counting = tmp_path / "journal", Counting()
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, f"{root}/runtime"])}
    child = subprocess.Popen([sys.executable, "-c", CALIBRATING, str(path)], env=environment, cwd=root)
    until = time.monotonic() + 60
    while time.monotonic() < until and (not path.exists() or path.read_bytes().count(b"\n") < 8):
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait(timeout=30)
    with path.open("ab") as file:
        file.write(b'0123456789ab ["half a line')  # what a power cut leaves
    finished = path.read_bytes().count(b"\n") - 1  # without its head
    bench.calibrate(counting, name="here", scope=SMALL, journal=path)
    whole = path.read_bytes().count(b"\n") - 1
    assert finished >= 7
    assert len(counting.asked) == whole - finished


@pytest.mark.parametrize("spoil", ["conditions", "flipped", "binary"])
def test_a_journal_that_cannot_be_trusted_is_begun_anew(spoil, tmp_path):
    path = tmp_path / "journal"
    log = journals.Journal(path, {"onnxruntime": "1"})
    log.add("a", journals.Row((), 1.0))
    log.add("b", journals.Row((), 2.0))
    if spoil == "flipped":
        path.write_bytes(path.read_bytes().replace(b"2.0", b"3.0"))
    if spoil == "binary":
        path.write_bytes(os.urandom(2000))
    read = journals.Journal(path, {"onnxruntime": "2" if spoil == "conditions" else "1"})
    assert read.get("b") is None
    assert len(read) == (1 if spoil == "flipped" else 0)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_whatever_stands_in_a_journal_it_can_be_opened(tmp_path_factory, tail):
    path = tmp_path_factory.mktemp("journal") / "journal"
    journals.Journal(path, {}).add("a", journals.Row((), 1.0))
    path.write_bytes(path.read_bytes() + tail)
    assert journals.Journal(path, {}).get("a") == journals.Row((), 1.0)


def test_no_module_here_reads_the_wall_clock_which_may_jump():
    for path in (Path(bench.__file__).parent / "calibrate").glob("*.py"):
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"time_ns", "now", "utcnow", "today"}
        assert "import time" not in path.read_text()


def test_a_convolution_that_took_its_clip_in_is_a_kind_of_its_own():
    net = Builder((1, 16, 14, 14))
    model = net.done(net.conv("x", 32, act="Clip"))
    kinds = {work.kind for work in works_of(operators(model, feeds((1, 16, 14, 14)), runs=1, weights=True), model)}
    assert "pointwise clipped" in kinds


def test_cold_weights_grow_with_what_the_cache_cannot_keep():
    works = [Work("Gemm float", "", 1.0, 1.0, float(CACHE))]
    caches = Caches(4 * CACHE, CACHE // 8)
    found = [in_turn(works, caches, swept=factor * CACHE)[0] for factor in (0, 4, 16)]
    assert [work.stale for work in found] == [1, 1, 1]
    assert 0 == found[0].far < found[1].far < found[2].far == 1
    assert in_turn([Work("Gemm float", "", 1.0, 1.0, 10.0)], caches)[0].stale == 0  # at home in the nearer cache


def test_the_activations_of_a_net_are_never_as_far_away_as_its_weights():
    works = [Work("Gemm float", "", 1.0, 100.0, 2.0 * CACHE)]
    assert in_turn(works, Caches(CACHE, CACHE // 8))[0].spilled == 0 < in_turn(works, Caches(CACHE, CACHE // 8))[0].far
    assert in_turn(works, Caches(CACHE, CACHE // 8), swept=8 * CACHE)[0].spilled == 100


def a_rung(ms: float) -> list[journals.Row]:
    node = operators(*_one_product(), runs=1)[0]
    return [journals.Row((dataclasses.replace(node, ms=ms),))]


def _one_product():
    net = Builder((1, 8))
    return net.done(net.dense("x", 8)), feeds((1, 8))


@pytest.mark.parametrize(
    ("times", "kept"),
    [
        ((1, 1, 1, 1, 1, 1.1, 3), 1.0),  # all of it
        ((1, 1, 1, 3, 3, 3, 3), 9 / 16),  # half lost between 3/8 and 1/2, and the weights' own eighth
        ((3, 3, 3, 3, 3, 3, 3), 1.0),  # says nothing
    ],
)
def test_what_the_last_cache_keeps_is_measured_for_neighbours_use_it_too(times, kept):
    caches = runs._kept(Caches(CACHE, CACHE // 8), [a_rung(ms) for ms in times])
    assert caches == pytest.approx(kept * CACHE, rel=0.02)


@pytest.mark.parametrize(
    ("out", "kernel", "depthwise", "ragged", "odd"),
    [(64, 1, False, 0, 0), (58, 1, False, 100 * 10, 100 * 2), (11, 3, True, 900 * 11, 900 * 3), (20, 3, False, 400, 0)],
)
def test_what_is_left_over_from_whole_vectors_of_channels_is_counted(out, kernel, depthwise, ragged, odd):
    channels = out if depthwise else 16
    net = Builder((1, channels, 10, 10), int8=True)
    model = net.done(net.conv("x", out, kernel=kernel, group=channels if depthwise else 1))
    (work,) = [
        w for w in works_of(operators(model, feeds((1, channels, 10, 10)), runs=1, weights=True), model) if w.macs
    ]
    assert (work.ragged, work.odd, work.part) == (ragged, odd, 0)


def test_what_threads_share_is_told_of_the_blocked_layout_by_rows_and_64_filters():
    nodes = operators(*_one_convolution((1, 32, 6, 6), 128), runs=1, weights=True)
    (node,) = [node for node in nodes if node.operator == "Conv"]
    blocked, plain = (
        works_of([dataclasses.replace(node, name=name)], ModelProto())[0].part for name in ("conv_nchwc", "conv")
    )
    assert (blocked, plain) == (36 * 128 * 32 / (6 * 2), 0)


def _one_convolution(shape, out):
    net = Builder(shape)
    return net.done(net.conv("x", out, act="")), feeds(shape)


def a_product_net(ms: float, node_ms: float) -> tuple[runs.Subject, list[journals.Row]]:
    """Return a reference net of one product, whose node took `node_ms` under the profiler, and `ms` as a whole."""
    model, inputs = _one_product()
    node = dataclasses.replace(operators(model, inputs, runs=1)[0], ms=node_ms)
    return runs.Subject("net made", lambda: (model, (1, 8))), [journals.Row((node,), ms)]


@pytest.mark.parametrize(("ms", "shares"), [(1.0, 0.29), (1.5, 0.0)])
def test_products_give_the_profiler_back_what_makes_nodes_longer_than_their_net(ms, shares):
    profiler = runs.Profiler(0.01)
    nets = [a_product_net(ms, 1.1), a_product_net(ms, 1.2), a_product_net(ms, 1.4)]
    found = runs._of_products(nets, caches=Caches(CACHE, CACHE), call_ms=0.1, profiler=profiler)
    assert found == pytest.approx({False: shares, True: 0.0})


def test_no_product_gives_the_profiler_more_than_half_of_its_time_and_no_other_node_gives_it_any():
    profiler = runs.Profiler(0.01, {True: 0.004})
    conv = Work("QLinearConv uint8", "dense", 1.0, 1.0, 1.0)
    assert profiler.without(0.03, conv) == pytest.approx(0.016)
    assert profiler.without(0.014, conv) == pytest.approx(0.002)
    assert profiler.without(0.03, dataclasses.replace(conv, macs=0.0)) == pytest.approx(0.02)
    assert profiler.without(0.03, dataclasses.replace(conv, family="Conv float")) == pytest.approx(0.02)
