"""Board profiles: every file in devices/ is sound, and a wrong one is refused in words."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeml.devices import DeviceProfile, find_board, parse_board, read_boards
from edgeml.errors import NotFound, ProjectError

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


@pytest.mark.parametrize("name", sorted(read_boards()))
def test_every_board_names_the_source_of_every_fact(name):
    board = read_boards()[name]
    assert board.name == name
    assert board.sources.keys() == board.facts()
    assert all(len(source) > 10 for source in board.sources.values())


@pytest.mark.parametrize("name", sorted(read_boards()))
def test_every_board_is_within_the_possible(name):
    board = read_boards()[name]
    assert 0.3 <= board.frequency_ghz <= 6
    assert board.int8_macs_per_cycle >= board.fp32_flops_per_cycle / 2
    assert board.memory_limit_mb <= board.ram_mb


def test_the_three_boards_of_the_first_release_are_there():
    assert {"raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5"} <= read_boards().keys()
    assert [find_board(f"raspberry-pi-{name}").dot_product for name in ("zero-2w", "4", "5")] == [False, False, True]


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
        ({"core": None}, "core missing"),
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
