"""The rows a task is given, counted while labels come in."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeml_runtime.config import SAMPLES
from edgeml_runtime.errors import TaskRefused
from edgeml_runtime.samples import Samples
from edgeml_runtime.task_child import _rows
from edgeml_runtime.wire.holdout import EVERY, Part, places
from edgeml_runtime.wire.tasks import HELD_OUT
from tests.runtime.hostile_kit import WIDTH, an_order
from tests.runtime.hostile_kit import state as state
from tests.runtime.test_agent_rounds import softmax_regression


class LabelledMeanwhile(Samples):
    """Rows of which one more, to learn from, is given its label whenever the labelled ones are counted."""

    def labelled(self, part: Part = EVERY) -> int:
        count = super().labelled(part)
        self.add({"numeric": LEARNED[count % len(LEARNED)]}, target=1, now=2.0)
        return count


DRAWN = np.random.default_rng(5).normal(size=(400, WIDTH)).astype(np.float32)
LEARNED = DRAWN[places({"numeric": DRAWN}) >= 0.2]


def test_labels_that_come_while_rows_are_counted_do_not_change_how_many_are_held_out(state: Path) -> None:
    with contextlib.closing(LabelledMeanwhile(state / SAMPLES)) as samples:
        held_out = samples.labelled(Part(0.0, 0.2))
        graph = softmax_regression()
        training = replace(an_order(state, graph, "training"), held_out=0.2)
        assert held_out and _rows(samples, training, labelled=True)[1] == {HELD_OUT: float(held_out)}
        drift = replace(training, kind="drift", min_rows=10**6)
        with pytest.raises(TaskRefused, match=r"^\d+ labelled rows, and 1000000 are needed"):
            _rows(samples, drift, labelled=True)
