"""Predictions from counted instructions: on the committed counts, for boards that are not here."""

import dataclasses
import functools
import itertools
import json
from importlib import resources

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.emulation import nets
from benchmarks.emulation.count import TRUTH, classes
from benchmarks.emulation.models import as_signed
from edgeml.artifacts import OnnxModel
from edgeml.bench.calibrate.blocks import Builder
from edgeml.bench.predict.emulated import (
    CORES,
    LEAST_COVERAGE,
    emulate,
    kernels_of,
    nodes_on_arm,
    parse_cycles,
    sealed,
)
from edgeml.bench.predict.fit import LEAST_SAMPLES
from edgeml.devices import find_board, read_boards
from edgeml.errors import DataError

COUNTED = sorted(set(CORES.values()))
ZERO, PI_4, PI_5 = (find_board(f"raspberry-pi-{name}") for name in ("zero-2w", "4", "5"))


@functools.cache
def text_of(core: str) -> str:
    return (resources.files("edgeml.bench.predict") / "cycles" / f"{core}.json").read_text(encoding="utf-8")


def a_net(form: str = "fp32", *, width: int = 64, size: int = 20) -> OnnxModel:
    """Return four convolutions and a dense layer: fp32, u8s8 or s8s8."""
    net = Builder((1, 3, size, size), int8=form != "fp32")
    x = net.conv("x", width, kernel=3)
    x = net.conv(net.conv(net.conv(x, width), width, kernel=3, group=width), width)
    data = net.done(net.dense(net.pooled(x), 10))
    return OnnxModel(as_signed(data) if form == "s8s8" else data, source="test")


def cycles(model: OnnxModel, board) -> float:
    """Return the millions of cycles of `model` on `board`, memory aside."""
    return kernels_of(CORES[board.core]).forecast(nodes_on_arm(model)).ms


@pytest.mark.parametrize("core", COUNTED)
def test_the_counts_of_every_core_are_whole_and_their_classes_explain_them(core):
    found = parse_cycles(text_of(core), core)
    assert len(found.samples) > 1000 and {one.name.partition(" ")[2] for one in found.references} == {
        "",
        "int8",
        "int8 s8",
    }
    model = kernels_of(core)
    forecasts = [(one.ms, model.forecast(one.nodes)) for one in found.references]
    assert all(said.low <= ms <= said.high and said.coverage == 1.0 for ms, said in forecasts)
    assert np.median([abs(said.ms / ms - 1) for ms, said in forecasts]) < 0.05


@pytest.mark.parametrize("core", COUNTED)
@pytest.mark.parametrize("operator", ["Conv float", "QLinearConv uint8", "QLinearConv int8", "Gemm float"])
def test_every_core_has_counts_of_what_networks_are_made_of(core, operator):
    assert kernels_of(core).models[operator, ""].samples >= LEAST_SAMPLES


def test_the_counts_say_who_made_them_with_what():
    for core in COUNTED:
        body = json.loads(text_of(core))
        assert {"by", "on", "qemu", "llvm", "models"} <= body["made"].keys() and body["onnxruntime"]
        assert body["made"]["models"]["cortex-a76"] == "neoverse-n1"  # cortex-a76 is silently costed as an A57


@given(st.data())
def test_counts_that_were_damaged_are_refused_or_the_same(data):
    text = text_of("cortex-a72")
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = data.draw(
        st.sampled_from(
            [text[:at], text[:at] + text[at + 1 :], text[:at] + data.draw(st.characters()) + text[at + 1 :]]
        )
    )
    try:
        same = json.loads(damaged) == json.loads(text)
    except ValueError:
        same = False
    if not same:
        with pytest.raises(DataError, match="count again"):
            parse_cycles(damaged, "cortex-a72")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": 0}, "schema 0"),
        ({"core": "cortex-a53"}, "the cycles of cortex-a53"),
        ({"works": []}, "IndexError"),
        ({"columns": ["family"]}, "ValueError"),
        ({"samples": []}, "without a single sample"),
    ],
)
def test_counts_that_are_not_what_is_read_here_are_refused_by_name(change, said):
    body = json.loads(text_of("cortex-a72"))
    del body["digest"]
    with pytest.raises(DataError, match=said):
        parse_cycles(sealed(body | change), "cortex-a72")


@pytest.mark.parametrize("form", ["fp32", "u8s8", "s8s8"])
@pytest.mark.parametrize("board", [ZERO, PI_4, PI_5], ids=lambda board: board.name)
def test_more_multiply_accumulates_take_longer(board, form):
    found = [cycles(a_net(form, width=width), board) for width in (16, 32, 64, 128, 256)]
    assert all(less < more for less, more in itertools.pairwise(found))


def test_int8_gains_more_from_the_pi_5_than_its_clock_because_it_has_dot_products():
    clock = PI_5.frequency_ghz / PI_4.frequency_ghz
    for form in ("u8s8", "s8s8"):
        four, five = (emulate(a_net(form), None, board) for board in (PI_4, PI_5))
        assert four.predicted / five.predicted > 1.5 * clock
    assert cycles(a_net("fp32"), PI_4) / cycles(a_net("fp32"), PI_5) < cycles(a_net("s8s8"), PI_4) / cycles(
        a_net("s8s8"), PI_5
    )


def test_the_type_of_activations_decides_by_the_core():
    model = {form: a_net(form, width=128) for form in ("u8s8", "s8s8")}
    assert cycles(model["u8s8"], PI_4) != cycles(model["s8s8"], PI_4)
    assert cycles(model["u8s8"], PI_4) / cycles(model["s8s8"], PI_4) < cycles(model["u8s8"], PI_5) / cycles(
        model["s8s8"], PI_5
    )


@pytest.mark.parametrize("name", sorted(read_boards()))
def test_every_board_with_a_counted_core_gets_a_range_and_no_other_does(name):
    board = find_board(name)
    found = emulate(a_net(), None, board)
    assert (found is not None) == (board.core in CORES)
    if found is not None:
        assert found.method == "emulated" and 0 < found.low < found.predicted < found.high
        assert found.coverage == 1.0 and found.memory_mb > 50
        assert bool(found.notes) == (board.core.lower() not in COUNTED)


def test_more_threads_are_faster_and_less_certain():
    one, four = (emulate(a_net(), None, PI_4, threads=threads) for threads in (1, 4))
    assert four.predicted < one.predicted and four.high / four.low > one.high / one.low
    assert "one thread was counted" in four.notes[0]


def test_a_nearer_core_has_the_narrower_range():
    other = dataclasses.replace(PI_4, core="Cortex-A57")
    exact, near = (emulate(a_net(), None, board) for board in (PI_4, other))
    assert near.high / near.low > exact.high / exact.low and "nearest to Cortex-A57" in near.notes[0]


def test_operators_that_were_never_counted_lower_the_coverage_until_there_is_no_answer():
    def of(odd: int) -> OnnxModel:
        net = Builder((1, 64, 20, 20))
        x = net.conv("x", 64)
        for _ in range(odd):
            x = net.add("Atan", [x], net.shapes[x])
        return OnnxModel(net.done(x), source="test")

    coverage = [kernels_of("cortex-a72").forecast(nodes_on_arm(of(odd))).coverage for odd in (0, 1, 2, 40)]
    assert coverage[0] == 1.0 and all(more > less for more, less in itertools.pairwise(coverage))
    assert coverage[-1] < LEAST_COVERAGE and emulate(of(40), None, PI_4) is None


def test_weights_that_do_not_fit_into_a_cache_take_at_least_what_memory_gives():
    net = Builder((1, 2048))
    model = OnnxModel(net.done(net.dense(net.dense("x", 2048), 2048)), source="test")
    floor = 2 * 2048 * 2048 * 4 / (ZERO.bandwidth_mb_s * 1e3)
    assert emulate(model, None, ZERO).predicted >= floor > cycles(model, ZERO) / ZERO.frequency_ghz


def test_half_precision_has_other_operators_on_aarch64_so_that_there_is_no_answer_here():
    model = nets.variants("mlp-256")["fp16"]
    assert emulate(model, {"x": np.zeros((1, 784), np.float32)}, PI_5) is None


TOLD = [
    f"{net} {recipe}"
    for net in nets.NETS
    for recipe in ("fp32", "int8-static-u8s8", "int8-static-s8s8", "int8-dynamic")
]


@pytest.mark.parametrize("name", [name for name in TOLD if name in json.loads(TRUTH.read_text())["cortex-a72"]])
def test_the_graph_seen_here_is_the_one_that_aarch64_ran(name):
    net, recipe = name.split()
    stored = json.loads(TRUTH.read_text(encoding="utf-8"))["cortex-a72"][name]["classes"]
    assert classes(nodes_on_arm(nets.variants(net)[recipe])) == stored
