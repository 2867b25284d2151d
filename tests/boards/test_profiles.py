"""Board profiles: every file in devices/ is sound, and a wrong one is refused in words."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.devices import DeviceProfile, find_board, parse_board, shipped_boards, write_board
from edgeml.devices.cores import BY_PART, CORES, PEAKS
from edgeml.errors import NotFound, ProjectError
from tests.boards.table import devices_table_row

ROOT = Path(__file__).resolve().parents[2]
FACTS = {
    "title": '"A board"',
    "soc": '"S1"',
    "core": '"Cortex-A55"',
    "pipeline": '"in-order"',
    "cores": "4",
    "frequency_ghz": "1.5",
    "ram_mb": "1024",
    "fp32_flops_per_cycle": "8",
    "int8_macs_per_cycle": "16",
    "dot_product": "true",
    "bandwidth_mb_s": "2000",
    "arch": '"aarch64"',
}


def a_board_text(**changes: str | None) -> str:
    """Return a sound profile with `changes`; None leaves the fact out but keeps its source."""
    facts = {name: value for name, value in (FACTS | changes).items() if value is not None}
    sources = "".join(f'{name} = "a data sheet"\n' for name in FACTS if name != "title")
    return "".join(f"{name} = {value}\n" for name, value in facts.items()) + f"[sources]\n{sources}"


@pytest.mark.parametrize("name", sorted(shipped_boards()))
def test_every_board_names_the_source_of_every_fact(name):
    board = shipped_boards()[name]
    assert board.name == name
    assert board.sources.keys() == board.facts()
    assert all(len(source) > 10 for source in board.sources.values())


@pytest.mark.parametrize("name", sorted(shipped_boards()))
def test_every_board_is_within_the_possible(name):
    board = shipped_boards()[name]
    assert 0.3 <= (board.frequency_ghz or 1) <= 6
    assert board.core is None or board.core in CORES
    assert PEAKS.get(board.core or "", (board.fp32_flops_per_cycle,))[0] == board.fp32_flops_per_cycle
    assert "[K]" not in str(board.sources)


@pytest.mark.parametrize("name", sorted(shipped_boards()))
def test_every_board_is_the_same_after_it_was_written(name):
    assert parse_board(write_board(shipped_boards()[name]), name=name) == shipped_boards()[name]


def test_the_boards_that_edgeml_promises_are_there():
    promised = {
        *("raspberry-pi-3b-plus", "raspberry-pi-400", "raspberry-pi-cm4", "raspberry-pi-cm5", "jetson-nano"),
        *("jetson-orin-nano", "rock-5b", "orange-pi-5", "beaglebone-ai-64", "coral-dev-board", "n100"),
        *("generic-aarch64", "generic-x86-64"),
    }
    assert promised <= shipped_boards().keys() and len(shipped_boards()) >= 14


@pytest.mark.parametrize("name", ["rock-5b", "orange-pi-5"])
def test_boards_of_several_kinds_of_core_say_which_one_they_describe(name):
    assert "Cortex-A55" in (find_board(name).described or "")


@pytest.mark.parametrize("name", ["generic-aarch64", "generic-x86-64"])
def test_a_class_of_boards_states_nothing_that_the_class_does_not_guarantee(name):
    assert shipped_boards()[name].facts() == {"arch"}


def test_every_core_has_a_part_of_its_own():
    assert len(BY_PART) == sum(bool(core.part[1]) for core in CORES.values())
    assert PEAKS.keys() <= CORES.keys()


def test_the_page_lists_every_board_as_its_profile_is():
    page = (ROOT / "docs/devices.md").read_text(encoding="utf-8")
    for board in shipped_boards().values():
        assert devices_table_row(board) in page, "docs/devices.md: run `python -m tests.boards.table`"


def test_the_three_boards_of_the_first_release_are_there():
    assert {"raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5"} <= shipped_boards().keys()
    assert [find_board(f"raspberry-pi-{name}").dot_product for name in ("zero-2w", "4", "5")] == [False, False, True]


def test_a_source_must_be_words():
    with pytest.raises(ProjectError, match="the source of arch is 4, but must be str"):
        parse_board('title = "t"\narch = "aarch64"\n[sources]\narch = 4\n', name="b")


def test_a_board_nobody_knows_is_answered_with_the_nearest_one():
    with pytest.raises(NotFound, match="did you mean 'raspberry-pi-4'"):
        find_board("raspbery-pi-4")


def test_facts_nobody_found_are_absent_not_guessed():
    board = parse_board(a_board_text(), name="b")
    assert (board.l2_kb, board.usable_ram_mb) == (None, None)
    assert "l2_kb" not in board.to_plain()
    assert board.memory_limit_mb == 1024


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cores": "0"}, "cores is 0, but must be above 0"),
        ({"cores": '"four"'}, "cores is 'four', but must be int"),
        ({"cores": "true"}, "cores is True, but must be int"),
        ({"dot_product": "1"}, "dot_product is 1, but must be bool"),
        ({"arch": '"arm"'}, "arch is 'arm', but must be one of aarch64"),
        ({"frequency_ghz": "-1.0"}, "frequency_ghz is -1.0"),
        ({"usable_ram_mb": "2048"}, "usable_ram_mb 2048 is more than ram_mb 1024"),
        ({"l2_kb": "512"}, "no source for l2_kb"),
        ({"arch": None}, "arch missing"),
        ({"frequency_ghz": "11.0"}, "frequency_ghz is 11.0, but nothing has more than 10 GHz"),
        ({"frequency_ghz": "1500"}, "frequency_ghz is 1500, but nothing has more than 10 GHz; check the unit"),
        ({"frequency_ghz": "nan"}, "frequency_ghz is nan"),
        ({"frequency_ghz": "inf"}, "frequency_ghz is inf"),
        ({"bandwidth_mb_s": "2_000_000_000"}, "bandwidth_mb_s is 2000000000, but nothing has more than 1,000,000 MB/s"),
        ({"int8_macs_per_cycle": "3"}, "int8_macs_per_cycle 3 is less than the 4 products"),
        ({"dot_product": "false", "int8_macs_per_cycle": "32"}, "int8_macs_per_cycle is 32, which only SDOT gives"),
        ({"core": '"Gracemont"', "dot_product": "true"}, "arch is .aarch64., but the core Gracemont is .x86_64."),
        ({"core": '"Cortex-A76"'}, "pipeline is .in-order., but the core Cortex-A76 is .out-of-order."),
        ({"core": '"Cortex-A53"'}, "dot_product is true, but the core Cortex-A53 is false"),
        ({"pipeline": '"sideways"'}, "pipeline is 'sideways', but must be one of in-order, out-of-order"),
        ({"frequency_mhz": "1500"}, "unknown key 'frequency_mhz'; did you mean 'frequency_ghz'"),
    ],
)
def test_a_wrong_profile_is_refused_with_the_number_and_the_name(changes, message):
    with pytest.raises(ProjectError, match=rf"board 'b': .*{message}"):
        parse_board(a_board_text(**changes), name="b")


def test_text_that_is_no_toml_is_refused():
    with pytest.raises(ProjectError, match="not TOML"):
        parse_board("cores: 4", name="b")


def test_a_source_for_a_fact_that_is_not_stated_is_refused():
    with pytest.raises(ProjectError, match="a source for 'l2_kb', which is no fact"):
        dataclasses.replace(find_board("raspberry-pi-4"), l2_kb=None)


@given(st.text(max_size=300))
def test_any_text_is_a_board_or_is_refused_in_words(text):
    try:
        assert isinstance(parse_board(text, name="b"), DeviceProfile)
    except ProjectError as error:
        assert str(error).startswith("board 'b': ")
