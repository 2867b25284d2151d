"""The last answer, kept: the same question has the same answer, another one has none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgeml_runtime.answered import Answered, Trained
from edgeml_runtime.config import Policy
from tests.runtime.test_learner import an_offer

GIVEN = Trained(b"\x00\xff the body", 40, {"loss.before": 1.5, "seconds": 0.25})


def test_the_same_question_has_the_same_answer_in_the_next_process(tmp_path: Path) -> None:
    Answered(tmp_path / "tasks" / "answer", Policy()).keep(an_offer(), GIVEN)
    again = an_offer(deadline_s=7.0, cohort=("pi-1",))  # a restarted server offers for the time that is left
    assert Answered(tmp_path / "tasks" / "answer", Policy()).to(again) == GIVEN


@pytest.mark.parametrize(
    "changes",
    [{"round": "r2"}, {"graph": "2" * 64}, {"parameters": "2" * 64}, {"noise": 1.0}, {"scalars": {"lr": 1.0}}],
)
def test_another_question_has_no_answer(tmp_path: Path, changes: dict[str, Any]) -> None:
    answered = Answered(tmp_path / "answer", Policy())
    answered.keep(an_offer(), GIVEN)
    assert answered.to(an_offer(**changes)) is None


def test_what_was_answered_under_another_policy_is_no_answer(tmp_path: Path) -> None:
    Answered(tmp_path / "answer", Policy()).keep(an_offer(), GIVEN)
    assert Answered(tmp_path / "answer", Policy(clip_norm=1.0, noise=1.0)).to(an_offer()) is None


@pytest.mark.parametrize("spoil", [b"", b"torn", None])
def test_a_damaged_or_forgotten_answer_is_none(tmp_path: Path, spoil: bytes | None) -> None:
    answered = Answered(tmp_path / "answer", Policy())
    answered.keep(an_offer(), GIVEN)
    if spoil is None:
        answered.forget()
    else:
        (tmp_path / "answer").write_bytes(spoil)
    assert answered.to(an_offer()) is None
