"""Which rows are held out: by what is in them, whatever comes, goes, is labelled, or dies."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeml_runtime.samples import Samples
from edgeml_runtime.wire.holdout import EVERY, SHARES, Part, objection, part_of, places
from edgeml_runtime.wire.messages import TaskOffer
from edgeml_runtime.wire.plain import from_plain, to_plain
from edgeml_runtime.wire.tasks import KINDS
from tests.runtime.test_learner import an_offer

LEARN, JUDGE = part_of("training", 0.2), part_of("evaluation", 0.2)
row = st.tuples(st.floats(width=32), st.floats(width=32), st.text(max_size=3))


def inputs(rows: list[tuple[float, float, str]]) -> dict[str, np.ndarray]:
    numbers = np.array([row[:2] for row in rows], np.float32).reshape(-1, 2)
    return {"numeric": numbers, "words": np.array([[row[2]] for row in rows], object).reshape(-1, 1)}


@given(st.lists(row, min_size=1, max_size=30), st.data())
def test_a_row_has_its_place_whatever_is_beside_it(rows: list[tuple[float, float, str]], data: st.DataObject) -> None:
    every = places(inputs(rows))
    assert np.all((every >= 0) & (every < 1))
    some = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))  # in any order, some of them twice
    np.testing.assert_array_equal(places(inputs([rows[i] for i in some])), every[some])


def test_the_same_row_has_one_place_however_it_is_written() -> None:
    one = places({"x": np.array([[0.0, np.nan]], np.float32)})
    other_nan = np.array([[-0.0, 0.0]], np.float32)
    other_nan.view(np.uint32)[0, 1] = 0xFFC00001
    np.testing.assert_array_equal(places({"x": other_nan}), one)
    np.testing.assert_array_equal(places({"x": np.array([[0, np.nan]], np.float64)}), one)
    apart = {"a": np.zeros((1, 1), np.float32), "b": np.full((1, 1), np.nan, np.float32)}
    assert places(dict(reversed(apart.items()))) == places(apart)


def test_the_places_are_those_that_every_agent_and_version_gives() -> None:
    rows = {"numeric": np.array([[1.5, -2.0]], np.float32), "words": np.array([["é"]], object)}
    assert places(rows).tolist() == [0.8821371602694745]
    assert places({}).tolist() == []


def test_an_offer_of_an_older_server_holds_nothing_out() -> None:
    offer = an_offer(held_out=0.2)
    assert from_plain(TaskOffer, to_plain(offer)) == offer
    older = {name: value for name, value in to_plain(offer).items() if name != "held_out"}
    assert from_plain(TaskOffer, older).held_out == 0


def test_about_the_share_is_held_out() -> None:
    found = places({"x": np.random.default_rng(0).normal(size=(5000, 4)).astype(np.float32)})
    for share in SHARES[1:]:
        assert abs(np.mean(found < share) - share) < 0.025


def test_training_and_evaluation_see_no_row_together_and_the_other_tasks_see_all() -> None:
    for kind in KINDS:
        assert part_of(kind, 0.0) == EVERY
    for share in SHARES[1:]:
        assert part_of("training", share) == Part(share, 1.0) and part_of("evaluation", share) == Part(0.0, share)
        assert {part_of(kind, share) for kind in set(KINDS) - {"training", "evaluation"}} == {EVERY}


@pytest.mark.parametrize("share", [0.25, -0.1, 0.6, 1.0, float("nan"), 0.1 + 0.2])
def test_a_share_between_those_that_devices_know_is_refused(share: float) -> None:
    assert "a device holds out 0, 0.1, 0.2, 0.3, 0.4 or 0.5" in objection(share)


rows_by_number = st.lists(st.integers(0, 30), max_size=12)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["add", "label", "restart"]), rows_by_number), max_size=8))
def test_no_row_changes_sides_as_rows_come_go_and_are_labelled(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, list[int]]]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "samples.db"
    samples, sides, ids = Samples(path, keep=20), dict[float, str](), [0]
    for what, numbers in steps:
        if what == "add":
            given = np.array(numbers, np.float32).reshape(-1, 1)
            ids += samples.add_many({"x": given}, targets=numbers or None, now=0.0) if numbers else []
        elif what == "label":
            for number in numbers:
                samples.label(ids[number % len(ids)], number)
        else:
            samples.close()
            samples = Samples(path, keep=20)
        parts = {"learn": samples.rows(part=LEARN)[0], "judge": samples.rows(part=JUDGE)[0]}
        found = {name: part["x"].ravel().tolist() if part else [] for name, part in parts.items()}
        for name, values in found.items():
            assert all(sides.setdefault(value, name) == name for value in values)
        both = found["learn"] + found["judge"]
        assert sorted(both) == sorted(samples.rows()[0].get("x", np.zeros(0)).ravel().tolist())
        assert samples.labelled(LEARN) == len(found["learn"]) and samples.labelled(JUDGE) == len(found["judge"])
    samples.close()


def test_rows_of_an_older_agent_get_the_places_of_new_ones(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(50, 3)).astype(np.float32)
    new = Samples(tmp_path / "new.db")
    new.add_many({"x": x}, targets=list(range(50)), now=0.0)
    held = new.rows(part=JUDGE)[1].tolist()
    new.close()
    with sqlite3.connect(tmp_path / "new.db") as file:  # as an agent left it that knew of no places
        file.execute("DROP INDEX sides")
        file.execute("DROP INDEX unplaced")
        file.execute("ALTER TABLE samples DROP COLUMN place")
    assert Samples(tmp_path / "new.db").rows(part=JUDGE)[1].tolist() == held
    with sqlite3.connect(tmp_path / "new.db") as file:  # that agent came back for a day, and went
        file.execute("UPDATE samples SET place = NULL WHERE id > 20")
    assert Samples(tmp_path / "new.db").rows(part=JUDGE)[1].tolist() == held
    assert 0 < len(held) < 50
