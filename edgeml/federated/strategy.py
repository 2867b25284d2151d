"""The ways to learn together, one row each: what devices do, how updates become one, what that excludes.

A strategy is data. `local.task_of` makes its task graph, `Federation` its rounds; `STRATEGIES` is the whole table, and
`python -m edgeml.federated.strategy` prints it for docs/learn.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgeml.errors import UserError
from edgeml.federated.server_step import ServerStep


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One row. `mu` is the default weight of the proximal term, 0 without one."""

    name: str
    what: str
    paper: str
    rule: str = "fedavg"  # of AGGREGATORS
    server: ServerStep = field(default_factory=ServerStep)
    mu: float = 0.0
    control: bool = False  # control variates: devices correct their drift
    personal: Literal["", "head", "model"] = ""  # what of a device's own never leaves it
    excludes: frozenset[Literal["secure", "async"]] = frozenset()  # why: `combinations`

    @property
    def proximal(self) -> bool:
        """Whether its task takes `mu`."""
        return self.mu > 0


_ADAPTIVE = {kind: ServerStep(kind=kind, rate=0.03) for kind in ("adagrad", "adam", "yogi")}
_SEEN: frozenset[Literal["secure", "async"]] = frozenset({"secure"})
_LATE: frozenset[Literal["secure", "async"]] = frozenset({"async"})
_ROWS = (
    Strategy(name="fedavg", what="the mean change, by rows", paper="1602.05629"),
    Strategy(
        name="fedavgm",
        what="the server keeps momentum",
        paper="1909.06335",
        server=ServerStep(kind="momentum", beta1=0.9, rate=0.3),
    ),
    Strategy(name="fedprox", what="devices are drawn to the round's parameters by mu", paper="1812.06127", mu=0.1),
    Strategy(
        name="scaffold",
        what="devices add c - c_i to their gradients, against drift",
        paper="1910.06378",
        control=True,
        excludes=_LATE,
    ),
    Strategy(
        name="fednova",
        what="the mean change per local step",
        paper="2007.07481",
        rule="fednova",
        excludes=_SEEN,
    ),
    Strategy(name="fedadagrad", what="Adagrad on the server", paper="2003.00295", server=_ADAPTIVE["adagrad"]),
    Strategy(name="fedadam", what="Adam on the server", paper="2003.00295", server=_ADAPTIVE["adam"]),
    Strategy(name="fedyogi", what="Yogi on the server", paper="2003.00295", server=_ADAPTIVE["yogi"]),
    Strategy(
        name="qfedavg",
        what="devices with a larger loss count more",
        paper="1905.10497",
        rule="qfedavg",
        excludes=_SEEN,
    ),
    Strategy(name="median", what="the median of every value", paper="1803.01498", rule="median", excludes=_SEEN),
    Strategy(
        name="trimmed_mean",
        what="the mean of every value without the extremes",
        paper="1803.01498",
        rule="trimmed_mean",
        excludes=_SEEN,
    ),
    Strategy(name="krum", what="the change nearest to its neighbours", paper="1703.02757", rule="krum", excludes=_SEEN),
    Strategy(
        name="multi_krum",
        what="the mean of the changes nearest to their neighbours",
        paper="1703.02757",
        rule="multi_krum",
        excludes=_SEEN,
    ),
    Strategy(
        name="bulyan",
        what="Krum's choices, and of them the values nearest to the median",
        paper="1802.07927",
        rule="bulyan",
        excludes=_SEEN,
    ),
    Strategy(
        name="fedper",
        what="the last layer stays on the device",
        paper="1912.00818",
        personal="head",
    ),
    Strategy(
        name="ditto",
        what="FedAvg, and a second model on each device, drawn to it by mu",
        paper="2012.04221",
        mu=0.5,
        personal="model",
    ),
)


STRATEGIES: dict[str, Strategy] = {row.name: row for row in _ROWS}


def strategy(name: str) -> Strategy:
    """Return the row called `name`; raise UserError when there is none.

    >>> strategy("fedprox").mu
    0.1
    """
    if name not in STRATEGIES:
        raise UserError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def table() -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| strategy | what it does | devices add | the server adds | not with | arXiv |",
        "|---|---|---|---|---|---|",
    ]
    for row in STRATEGIES.values():
        added = [f"mu (w - anchor), mu {row.mu:g}"] if row.mu else []
        added += ["c - c_i to every gradient"] * row.control
        added += [{"head": "their own last layer", "model": "a second model"}[row.personal]] if row.personal else []
        server = "" if row.server.kind == "add" else f"{row.server.kind}, rate {row.server.rate:g}"
        cells = (row.name, row.what, "; ".join(added), server, ", ".join(sorted(row.excludes)), row.paper)
        lines.append(f"| {' | '.join(f'`{cell}`' if cell == row.name else cell for cell in cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
