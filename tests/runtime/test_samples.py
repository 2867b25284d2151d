"""Local samples on disk."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edgeml_runtime.errors import AgentRefused, ShapeMismatch, StorageFull
from edgeml_runtime.samples import Samples


def numbers(*values: float) -> dict[str, np.ndarray]:
    return {"numeric": np.array(values, np.float32)}


def test_only_labelled_rows_come_back_in_the_order_they_came(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    ids = [samples.add(numbers(i, 10 * i), now=float(i)) for i in range(5)]
    assert (samples.count(), samples.labelled()) == (5, 0)
    for i in (3, 1):
        assert samples.label(ids[i], i % 2)
    inputs, target = samples.rows()
    assert inputs["numeric"].tolist() == [[1, 10], [3, 30]]
    assert target.tolist() == [1, 1]
    assert (inputs["numeric"].dtype, target.dtype) == (np.float32, np.int64)


def test_rows_without_labels_come_too_where_no_labels_are_needed(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    samples.add({"other": np.zeros(3, np.float32)}, now=0.0)
    for i in range(4):
        samples.add(numbers(i, 10 * i), target=i if i == 2 else None, now=float(i))
    assert samples.inputs()["numeric"].tolist() == [[0, 0], [1, 10], [2, 20], [3, 30]]
    assert samples.inputs(2)["numeric"].tolist() == [[2, 20], [3, 30]]
    assert (samples.count(), samples.usable(), samples.labelled()) == (5, 4, 1)


def test_a_label_for_nobody_is_told(tmp_path: Path) -> None:
    assert Samples(tmp_path / "samples.db").label(7, 1) is False


def test_targets_that_are_not_all_integers_come_back_as_floats(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    samples.add(numbers(1), target=np.float32(2.5), now=0.0)
    samples.add(numbers(2), target=np.int64(3), now=0.0)
    target = samples.rows()[1]
    assert (target.dtype, target.tolist()) == (np.float32, [2.5, 3.0])


@pytest.mark.parametrize("target", [float("nan"), float("inf"), True, "7", None])
def test_a_target_must_be_a_finite_number(tmp_path: Path, target: object) -> None:
    samples = Samples(tmp_path / "samples.db")
    sample = samples.add(numbers(1), now=0.0)
    with pytest.raises(ShapeMismatch, match="expected a class index or a finite number"):
        samples.label(sample, target)  # type: ignore[arg-type]
    assert samples.labelled() == 0


def test_numbers_and_words_survive_a_restart(tmp_path: Path) -> None:
    row = {
        "numeric": np.array([[1.5, np.nan]], np.float32),
        "categorical": np.array([["żółty", "", 'a"b,[1]\n']], object),
    }
    first = Samples(tmp_path / "samples.db")
    first.add(row, target=0, now=0.0)
    first.close()
    inputs, _ = Samples(tmp_path / "samples.db").rows()
    assert np.array_equal(inputs["numeric"], row["numeric"], equal_nan=True)
    assert inputs["categorical"].tolist() == row["categorical"].tolist()
    assert inputs["categorical"].dtype == object


@settings(max_examples=30, deadline=None)
@given(data=arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 3))))
def test_rows_come_back_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, data: np.ndarray) -> None:
    samples = Samples(tmp_path_factory.mktemp("samples") / "samples.db")
    samples.add_many({"image": data}, targets=list(range(len(data))), now=0.0)
    assert samples.rows()[0]["image"].tobytes() == data.tobytes()
    samples.close()


def test_rows_in_bulk_are_stored_together_or_not_at_all(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    table = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert samples.add_many({"numeric": table}, targets=[0, 1, 2], now=0.0) == [1, 2, 3]
    with pytest.raises(ShapeMismatch, match="finite"):
        samples.add_many({"numeric": table}, targets=[0, 1, float("nan")], now=0.0)
    with pytest.raises(ShapeMismatch, match=r"\[2, 3\] rows"):
        samples.add_many({"numeric": table}, targets=[0, 1], now=0.0)
    assert samples.count() == 3


def test_the_oldest_rows_make_room(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db", keep=10)
    for i in range(25):
        samples.add(numbers(i), target=i, now=0.0)
    assert samples.count() == 10
    assert samples.rows()[1].tolist() == list(range(15, 25))


def test_a_limit_takes_the_newest_rows_in_order(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    for i in range(5):
        samples.add(numbers(i), target=i, now=0.0)
    assert samples.rows(limit=2)[1].tolist() == [3, 4]


def test_rows_of_an_older_model_with_other_inputs_are_left_aside(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    samples.add(numbers(1, 2), target=0, now=0.0)
    samples.add(numbers(1, 2, 3), target=1, now=1.0)
    assert samples.rows()[0]["numeric"].tolist() == [[1, 2, 3]]
    assert (samples.count(), samples.labelled()) == (2, 1)


def test_an_empty_store_has_no_rows(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")
    assert samples.rows()[0] == {}
    assert len(samples.rows()[1]) == 0
    samples.add(numbers(1, 2), now=0.0)
    assert samples.rows()[0]["numeric"].shape == (0, 2)


def test_threads_add_and_label_at_once(tmp_path: Path) -> None:
    samples = Samples(tmp_path / "samples.db")

    def work(value: int) -> None:
        for _ in range(25):
            samples.label(samples.add(numbers(value), now=0.0), value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    inputs, target = samples.rows()
    assert sorted(target.tolist()) == sorted([0, 1, 2, 3] * 25)
    assert inputs["numeric"].ravel().astype(int).tolist() == target.tolist()


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "samples.db"
    path.write_bytes(b"these are my holiday photographs" * 100)
    with pytest.raises(AgentRefused, match=r"samples\.db: not a sample store"):
        Samples(path)
    assert path.read_bytes() == b"these are my holiday photographs" * 100


def test_two_rows_are_not_one(tmp_path: Path) -> None:
    with pytest.raises(ShapeMismatch, match="use add_many"):
        Samples(tmp_path / "samples.db").add({"numeric": np.zeros((2, 3), np.float32)}, now=0.0)


def test_the_journal_is_a_write_ahead_log(tmp_path: Path) -> None:
    Samples(tmp_path / "samples.db").close()
    with sqlite3.connect(tmp_path / "samples.db") as db:
        assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.fault
def test_a_full_disk_stores_nothing_and_loses_nothing(small_disk: Path) -> None:
    samples = Samples(small_disk / "samples.db")
    row = {"numeric": np.arange(64, dtype=np.float32)}
    samples.add(row, target=1, now=0.0)
    big = {"numeric": np.ones((8000, 64), np.float32)}
    with pytest.raises(StorageFull, match="the disk is full, the row was not stored"):
        samples.add_many(big, targets=[0] * 8000, now=1.0)
    inputs, target = samples.rows()
    assert (inputs["numeric"].tolist(), target.tolist()) == ([row["numeric"].tolist()], [1])
