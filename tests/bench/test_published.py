"""The prior's rooflines: the published table, the fit to it, and what it says of every board."""

import csv
import dataclasses
from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml import bench, graph
from edgeml.bench.calibrate.blocks import Builder
from edgeml.bench.calibrate.reference import REFERENCES
from edgeml.bench.predict import published, works
from edgeml.bench.predict.machine import machines_of
from edgeml.bench.predict.transfer import LEVELS, ms_of, scales_for
from edgeml.devices import find_board, shipped_boards
from edgeml.graph.proto import load

PI_4, N100 = find_board("raspberry-pi-4"), find_board("n100")
TABLE = list(csv.DictReader((resources.files("edgeml.bench.predict") / "published.csv").read_text().splitlines()))


@pytest.mark.parametrize("column", ["board", "core", "runtime", "precision", "model", "statistic", "source"])
def test_every_published_row_says_where_it_is_from_and_what_it_timed(column: str):
    assert all(row[column] for row in TABLE)


def test_every_published_time_is_of_a_network_whose_work_is_known():
    assert {row["model"] for row in TABLE} <= published.read_works().keys()
    assert all(0.1 < float(row["ms"]) < 1e5 for row in TABLE)


def test_half_precision_is_never_called_float_where_the_core_has_it():
    ncnn = [row for row in TABLE if row["runtime"] == "ncnn" and row["precision"] != "int8"]
    assert {row["precision"] for row in ncnn if row["core"] in ("Cortex-A76", "Cortex-A78AE")} == {"fp16"}
    assert {row["precision"] for row in ncnn if row["core"] in ("Cortex-A53", "Cortex-A72")} == {"fp32"}


def test_no_two_rows_tell_the_same():
    keys = [tuple(row[name] for name in row if name not in ("ms", "statistic", "source")) for row in TABLE]
    assert len(keys) == len(set(keys))


def test_the_work_of_a_network_is_what_its_paper_says():
    known = published.read_works()
    for name, macs in (("mobilenet", 569e6), ("resnet18", 1.81e9), ("vgg16", 15.5e9), ("shufflenet_v2", 146e6)):
        assert known[name].macs == pytest.approx(macs, rel=0.02)


def test_a_graph_and_its_int8_form_have_the_same_work():
    full, small = (works.work_of(graph.cost(REFERENCES["resnet8-64"](int8)[0])) for int8 in (False, True))
    assert small.mmacs == pytest.approx(full.mmacs)
    assert small.mweights == pytest.approx(full.mweights, rel=0.02)


def test_a_window_of_three_is_winograds_only_without_a_stride_and_with_channels_enough():
    net = Builder((1, 3, 32, 32))
    first = net.conv("x", 32, kernel=3)  # three channels
    net.done(net.conv(net.conv(first, 32, kernel=3), 32, kernel=3, stride=2))
    kinds = [works.kind_of(layer) for layer in graph.cost(net.done("conv4")).layers]
    assert kinds == ["dense", "winograd", "dense"]


costs = st.lists(st.floats(0.3, 3.0), min_size=len(works.COLUMNS), max_size=len(works.COLUMNS))


@settings(max_examples=30, deadline=None)
@given(costs)
def test_a_fit_finds_the_costs_that_made_the_times(factors: list[float]):
    table = np.array([work.row() for work in published.read_works().values()])
    start = published.counted(PI_4, "fp32")
    truth = start * np.array(factors)
    found = published.fit(table, table @ truth, start, hold=1e-9)
    assert table @ found == pytest.approx(table @ truth, rel=1e-3)
    held = published.fit(table, table @ truth, start)
    assert np.abs(table @ held / (table @ truth) - 1).mean() < 0.1


@settings(max_examples=30, deadline=None)
@given(costs, st.integers(0, 99))
def test_no_fit_is_faster_than_the_peak(factors: list[float], seed: int):
    generator = np.random.default_rng(seed)
    table = generator.permutation(np.array([work.row() for work in published.read_works().values()]))[:8]
    start, least = published.counted(PI_4, "fp32"), published.floor(PI_4, "fp32", 1)
    found = published.fit(table, table @ (start * np.array(factors)), start, least=least)
    times = table @ (start * np.array(factors))
    assert (found >= np.minimum(least, start * np.median(times / (table @ start))) * (1 - 1e-9)).all()


@pytest.mark.parametrize(("board", "most"), [("raspberry-pi-4", 0.09), ("raspberry-pi-zero-2w", 0.11)])
def test_networks_left_out_of_a_boards_table_are_predicted(board: str, most: float):
    rows = [r for r in published.read_published() if (r.board, r.runtime, r.precision) == (board, "ncnn", "fp32")]
    table, times = published.table_of([row for row in rows if row.threads == 1])
    start, least = published.counted(find_board(board), "fp32"), published.floor(find_board(board), "fp32", 1)
    apart = np.abs(published.left_out(table, times, start, least=least) / times - 1)
    macs = table[:, :6].sum(axis=1)
    flops = np.abs(np.median(times / macs) * macs / times - 1)
    assert apart.mean() < most < 0.3 < flops.mean()


def test_onnxruntimes_own_published_times_lie_in_the_range_that_other_runtimes_give():
    (five,) = machines_of(find_board("raspberry-pi-5"))
    own = [row for row in published.read_published() if row.runtime == "onnxruntime"]
    assert own
    for row in own:
        scales = scales_for(five, "fp32")
        ms, spread = ms_of(published.read_works()[row.model].row(), five, scales, precision="fp32", threads=4)
        assert ms / np.exp(1.645 * spread) < row.ms < ms * np.exp(1.645 * spread)


NETS = {name: build(int8)[0] for name, build in list(REFERENCES.items())[:4] for int8 in (False,)} | {
    f"{name} int8": REFERENCES[name](True)[0] for name in ("mobilenet-v2-1.0-128", "resnet8-64")
}


@pytest.fixture(scope="module")
def nets():
    return {name: graph.serialize(load(data), source="t") for name, data in NETS.items()}


@pytest.mark.parametrize("board", sorted(shipped_boards()))
def test_every_board_gets_an_ordered_range_and_more_threads_are_not_slower(board: str, nets):
    for name, model in nets.items():
        one, two, all_ = (bench.predict(model, find_board(board), threads) for threads in (1, 2, 4))
        for found in (one, two, all_):
            widest = 120 if found.notes else 30  # facts of the board that nobody knows
            assert 0 < found.low < found.predicted < found.high < widest * found.low, name
            assert found.method == "prior"
        assert all_.predicted <= two.predicted * (1 + 1e-9) <= one.predicted * (1 + 1e-9) ** 2, name


@pytest.mark.parametrize("board", sorted(shipped_boards()))
def test_more_work_is_never_faster(board: str):
    times = []
    for width in (16, 32, 64):
        net = Builder((1, 3, 48, 48))
        data = net.done(net.conv(net.conv("x", width, kernel=3), 2 * width))
        times.append(bench.predict(graph.serialize(load(data), source="t"), find_board(board)).predicted)
    assert times == sorted(times)


def test_the_nearest_rows_speak_for_a_board():
    four = machines_of(find_board("raspberry-pi-4"))[0]
    for changes, level in (
        ({}, "board"),
        ({"name": "some-module"}, "soc"),
        ({"name": "some-other", "soc": "RK3399"}, "core"),
        ({"name": "some-other", "soc": None, "core": "Cortex-A73"}, "kind"),
    ):
        assert scales_for(dataclasses.replace(four, **changes), "fp32").level == level
    assert LEVELS["board"] < LEVELS["soc"] < LEVELS["core"] <= LEVELS["kind"]


def test_a_board_whose_profile_leaves_facts_out_is_still_held_to_its_own_timings():
    known = published.read_works()["EfficientDet-lite0"].row()
    tried = [ms_of(known, m, scales_for(m, "fp32"), precision="fp32", threads=1)[0] for m in machines_of(N100)]
    assert max(tried) / min(tried) < 1.1
    assert np.mean(tried) == pytest.approx(76.6, rel=0.1)  # as published
