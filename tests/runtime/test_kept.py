"""What stays on a device between rounds, and the book of what ran there."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime.errors import MalformedMessage, TaskRefused
from edgeml_runtime.kept import KEEP_DAYS, Kept
from edgeml_runtime.ledger import KEEP_LINES, Ledger

MUCH = 1 << 20


def a_state(value: float, size: int = 3) -> dict[str, np.ndarray]:
    return {"c": np.full(size, value, np.float32)}


def value_of(state: dict[str, np.ndarray]) -> float | None:
    return float(state["c"][0]) if state else None


@given(rounds=st.lists(st.tuples(st.integers(1, 4), st.booleans()), max_size=12).map(sorted))
@settings(max_examples=50, deadline=None)
def test_a_round_begins_from_what_the_one_before_left_however_often_it_is_run(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[tuple[int, bool]]
) -> None:
    folder, expected = tmp_path_factory.mktemp("kept"), dict[int, float | None]()
    last: float | None = None
    for number, stored in rounds:
        kept = Kept(folder, most=MUCH)  # each run in a process of its own
        was = kept.before("r", f"r-{number}")
        assert value_of(was) == expected.setdefault(number, last)
        if stored:  # or it was killed before
            last = (value_of(was) or 0.0) + number
            kept.after("r", f"r-{number}", was=was, now=a_state(last))


def test_federations_do_not_see_each_other(tmp_path: Path) -> None:
    kept = Kept(tmp_path, most=MUCH)
    kept.after("a", "a-1", was={}, now=a_state(1))
    assert kept.before("b", "b-1") == {} and value_of(kept.before("a", "a-2")) == 1.0
    with pytest.raises(MalformedMessage, match=r"federation called '../a'"):
        kept.before("../a", "a-1")


def test_a_damaged_file_is_no_memory_and_a_half_written_one_is_swept(tmp_path: Path) -> None:
    kept = Kept(tmp_path, most=MUCH)
    kept.after("a", "a-1", was={}, now=a_state(1))
    (tmp_path / "a.safetensors").write_bytes(b"torn")
    (tmp_path / "b.safetensors.new").write_bytes(b"half")
    assert kept.before("a", "a-2") == {}
    kept.expire()
    assert not (tmp_path / "b.safetensors.new").exists()


def test_memory_is_bounded_and_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    kept = Kept(tmp_path, most=6_000)
    for at, run in enumerate(("a", "b")):
        kept.after(run, f"{run}-1", was={}, now=a_state(1, size=600))
        os.utime(tmp_path / f"{run}.safetensors", (at + 1, at + 1))
    kept.before("a", "a-2")  # used now
    kept.after("c", "c-1", was={}, now=a_state(1, size=600))
    assert {one.run for one in kept.held()} == {"a", "c"}
    with pytest.raises(TaskRefused, match="the owner's policy allows 6,000"):
        kept.after("d", "d-1", was={}, now=a_state(1, size=2_000))


def test_what_nobody_asked_for_in_three_months_is_deleted(tmp_path: Path) -> None:
    kept = Kept(tmp_path, most=MUCH)
    for run in ("old", "new"):
        kept.after(run, f"{run}-1", was={}, now=a_state(1))
    now = (tmp_path / "old.safetensors").stat().st_mtime
    os.utime(tmp_path / "old.safetensors", (now - KEEP_DAYS * 86_400 - 60,) * 2)
    kept.expire(now)
    assert [one.run for one in kept.held()] == ["new"]
    assert kept.forget("new") and not kept.forget("new") and kept.held() == []


def test_the_ledger_counts_a_day_and_forgives_a_torn_line(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "tasks" / "ran.jsonl")
    assert book.today(0.0) == 0
    for at in (1_000.0, 90_000.0, 200_000.0):
        book.note({"at": at, "round": f"r-{at:g}"})
    with (tmp_path / "tasks" / "ran.jsonl").open("ab") as file:
        file.write(b'{"at": 200001.0, "rou')
    book.note({"at": 200_002.0, "round": "after the power cut"})
    assert book.today(200_003.0) == 2 and book.today(91_000.0) == 3  # the clock went back: later ones count, too
    assert [entry["round"] for entry in book.entries(2)] == ["after the power cut"]
    assert len(book.entries()) == 4


def test_the_ledger_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "ran.jsonl"
    path.write_bytes(b'{"at": 1.0}\n' * (KEEP_LINES * 3 // 2))
    Ledger(path).note({"at": 2.0})
    assert len(path.read_bytes().splitlines()) == KEEP_LINES
    assert Ledger(path).entries(1) == [{"at": 2.0}]
