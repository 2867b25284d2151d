"""What both ways through rounds work with: the fleet and its tasks, the plan, the conditions, and the crew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from edgeml.artifacts import Task
from edgeml.federated import Plan
from edgeml.simulation.conditions import Conditions
from edgeml.simulation.crew import Crew
from edgeml.simulation.device import Call
from edgeml.simulation.fleet import Fleet, tasks_of
from edgeml_runtime.wire.messages import TaskOffer


@dataclass(frozen=True)
class Setting:
    """One simulation; `rows` is how many every device learns from."""

    fleet: Fleet
    plan: Plan
    conditions: Conditions
    crew: Crew
    rows: Mapping[str, int]

    @cached_property
    def tasks(self) -> dict[int, Task]:
        """The tasks by local epochs."""
        return tasks_of(self.fleet, self.plan, self.conditions)

    @cached_property
    def liars(self) -> frozenset[str]:
        """The devices that attack."""
        return self.conditions.liars(sorted(self.rows), self.plan.seed)

    def calls(self, asked: Sequence[str], offer: TaskOffer, *, number: int) -> list[Call]:
        """Return who of those `asked` trains, and on which graph, which the crew then has."""
        for task in self.tasks.values():
            self.crew.load(task.digest, task.data, max_update_bytes=offer.max_update_bytes)
        graphs = {epochs: task.digest for epochs, task in self.tasks.items()}
        return self.conditions.calls(asked, graphs, liars=self.liars, seed=self.plan.seed, number=number)
