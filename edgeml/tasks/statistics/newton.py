"""Newton's method over a fleet: each round sums loss, gradient and Hessian at agreed weights.

Near the minimum every step squares the error, so a handful of rounds reach what rounding allows; far from
it a step that made the loss worse is halved, which costs a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from edgeml.artifacts import Task
from edgeml.errors import DataError
from edgeml.tasks.statistics.linear import solve_symmetric
from edgeml.tasks.study import Answer, Question, Sums

ROUNDS = 60
SMALL_STEP = 1e-13  # squared length of a last step, in units of the weights' own uncertainty: the next is its square
WORSE = 1e-12  # of the loss: an increase beyond rounding
Next = Question | Answer


@dataclass(frozen=True)
class Descent:
    """A minimum being looked for: `task` gives `loss`, `gradient` (p,) at its parameter `weights` (p,)."""

    task: Task
    hessian: Callable[[Sums], np.ndarray]  # (p, p), out of the sums
    penalty: np.ndarray  # (p,), the minimum is that of loss + sum(penalty * weights^2) / 2
    then: Callable[[np.ndarray, Sums, int], Next]  # weights, the last sums, rounds

    def ask(self, weights: np.ndarray, *, turn: int = 1, last: tuple[np.ndarray, float] | None = None) -> Question:
        """Return the question at `weights`; `last` is where the loss was known before, and how large it was."""
        task = replace(self.task, parameters={**self.task.parameters, "weights": weights})
        return Question(task, lambda sums: self._follow(weights, sums, turn=turn, last=last))

    def _follow(self, weights: np.ndarray, sums: Sums, *, turn: int, last: tuple[np.ndarray, float] | None) -> Next:
        if turn >= ROUNDS:
            raise DataError(
                f"no minimum after {turn} rounds: perhaps the classes are told apart perfectly, or columns are copies "
                f"of others; give a stronger penalty (a smaller C, a larger alpha)"
            )
        loss = float(sums["loss"] + 0.5 * np.sum(self.penalty * weights**2))
        if last is not None and loss > last[1] + WORSE * abs(last[1]):
            return self.ask((weights + last[0]) / 2, turn=turn + 1, last=last)
        gradient = sums["gradient"] + self.penalty * weights
        step = solve_symmetric(self.hessian(sums) + np.diag(self.penalty), gradient)
        if float(gradient @ step) <= SMALL_STEP:
            return self.then(weights - step, sums, turn)
        return self.ask(weights - step, turn=turn + 1, last=(weights, loss))
