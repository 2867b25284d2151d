"""The owner's side of the policy: read it in words, change a line of it, see what ran and what is kept here."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edgeml_runtime.config import FEEDBACK, KEPT, PERSONAL, SAMPLES, TASKS, Config, Policy
from edgeml_runtime.errors import AgentRefused
from edgeml_runtime.kept import Kept
from edgeml_runtime.ledger import Ledger
from edgeml_runtime.owned import OwnTensors, tells_gain
from edgeml_runtime.samples import Samples
from edgeml_runtime.task_child import LOG
from edgeml_runtime.vetting import OPERATORS
from edgeml_runtime.wire.plain import to_plain
from edgeml_runtime.wire.tasks import KINDS

BENCH = "times the graphs of a benchmark; no rows are read"
SHOWN = 10  # of the last runs
_SIZES = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_NUMBER = re.compile(r"((?:\d+\.?\d*|\.\d+)(?:e-?\d+)?)([kMG]?)")


def changed(policy: Policy, settings: Sequence[str]) -> Policy:
    """Return `policy` with each of `settings`, NAME=VALUE, taken over; raise AgentRefused for what cannot be.

    >>> changed(Policy(), ["min_rows=50", "max_update_bytes=2M", "accept=training,drift"]).max_update_bytes
    2097152
    """
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise AgentRefused(f"--set {setting!r}: write NAME=VALUE, for example min_rows=50")
        part, dot, rest = name.partition(".")
        if dot and part == "bench":
            policy = dataclasses.replace(policy, bench=_with(policy.bench, rest, value))
        else:
            policy = _with(policy, name, value)
    return policy


def _with(group: Any, name: str, value: str) -> Any:
    known = {field.name: getattr(group, field.name) for field in dataclasses.fields(group) if field.name != "bench"}
    if name not in known:
        raise AgentRefused(f"the policy has no {name!r}; it has {', '.join(known)}")
    return dataclasses.replace(group, **{name: _parsed(name, value.strip(), known[name])})


def _parsed(name: str, value: str, now: Any) -> Any:
    """Return `value` as the type of what is there `now`."""
    if isinstance(now, tuple):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(now, bool):
        if value not in ("yes", "no", "true", "false"):
            raise AgentRefused(f"{name}={value}: write yes or no")
        return value in ("yes", "true")
    number = _NUMBER.fullmatch(value)
    if number is None or (isinstance(now, int) and not float(number[1]) * _SIZES[number[2]] == int(_amount(number))):
        raise AgentRefused(f"{name}={value}: write a number of at least 0, with k, M or G where it is large")
    return int(_amount(number)) if isinstance(now, int) else _amount(number)


def _amount(number: re.Match[str]) -> float:
    return float(number[1]) * _SIZES[number[2]]


def told(state: Path, config: Config, *, now: float | None = None) -> dict[str, Any]:
    """Return the policy and what came of it, for programs."""
    log, moment = Ledger(state / TASKS / LOG), time.time() if now is None else now
    kept = Kept(state / KEPT, most=config.policy.max_kept_bytes)
    owned = OwnTensors(state / PERSONAL, kept, most=config.policy.max_kept_bytes)
    samples = Samples(state / SAMPLES) if (state / SAMPLES).exists() else None
    return {
        "device": config.device,
        "policy": to_plain(config.policy),
        "rows": {"labelled": samples.labelled(), "all": samples.usable()} if samples else {"labelled": 0, "all": 0},
        "today": log.today(moment),
        "runs": log.entries(SHOWN),
        "kept": [dataclasses.asdict(one) for one in kept.held()],
        "personal": [dataclasses.asdict(one) for one in owned.held()],
    }


def lines(state: Path, config: Config, *, now: float | None = None) -> Iterator[str]:
    """Yield the policy in words, and what came of it."""
    policy, facts = config.policy, told(state, config, now=now)
    yield f"{config.device}: what its owner lets a server do with its rows and its time"
    yield ""
    for kind, what in [*KINDS.items(), ("bench", BENCH)]:
        yield f"  {'yes' if kind in policy.accept else 'no':4}{kind:13}{what}"
    yield ""
    for name, text in _terms(policy, facts):
        yield f"{name:11}{text}"
    for one in facts["kept"]:
        yield f"{'kept':11}{one['run']}: {one['size']:,} bytes, last used {_when(one['changed'])}"
    for one in facts["personal"]:
        yield f"{'personal':11}{one['run']}: {one['size']:,} bytes, of {_when(one['changed'])}"
    for run in facts["runs"]:
        at = run.get("at")
        when = _when(float(at)) if isinstance(at, int | float) else "?"
        yield f"{'ran':11}{when}  {run.get('kind')!s:12} {run.get('round')!s:20} graph {str(run.get('graph'))[:16]}"


def _terms(policy: Policy, facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    rows = facts["rows"]
    yield "rows", f"{policy.min_rows} or more ({rows['labelled']} labelled here, {rows['all']} in all)"
    yield "leaves", f"at most {policy.max_update_bytes:,} bytes a run"
    yield "clipped", f"to a norm of {policy.clip_norm:g}, or less" if policy.clip_norm else "as the server asks"
    yield "noise", f"of {policy.noise:g} clip norms, or more" if policy.noise else "as the server asks"
    yield (
        "seen",
        "under masks only: the server learns sums" if policy.secure else "by the server, one by one if it asks so",
    )
    own = "may serve" if policy.personal else "does not serve"
    yield "own model", f"{own}: a release with tensors that this device learned for itself, and that stay here"
    if policy.personal:
        gain = "how much better it is on the rows here" if tells_gain(policy) else "not how well"
        yield "", f"a server is told whether it serves, and {gain}"
    if policy.templates:
        yield "graphs", f"only the {len(policy.templates)} pinned: {', '.join(one[:16] for one in policy.templates)}"
    else:
        count = len(policy.operators or OPERATORS)
        yield "graphs", f"any of up to {policy.max_task_bytes:,} bytes that passes the checks, of {count} operators"
    keys = ", ".join(key[:16] for key in policy.task_keys)
    yield "signed by", f"only {keys}" if keys else "any trusted key"
    memory = f"{policy.max_task_memory:,} bytes of memory" if policy.max_task_memory else "the memory that is free"
    limit = f"of {policy.tasks_per_day:,} " if policy.tasks_per_day else ""
    yield "takes", f"up to {policy.max_task_s:g} s and {memory} a run; {facts['today']} {limit}runs in 24 hours"


def forget(state: Path, run: str, *, most: int) -> list[str]:
    """Delete what the federation `run` kept here, this device's own tensors for the model `run`, or "all" of them.

    Return their names; raise AgentRefused for an unknown one.
    """
    kept = Kept(state / KEPT, most=most)
    owned = OwnTensors(state / PERSONAL, kept, most=most)
    runs, models = {one.run for one in kept.held()}, {one.run for one in owned.held()}
    names = sorted(runs | models)
    if run != "all" and run not in names:
        raise AgentRefused(f"no federation or model {run!r} keeps anything here; known: {', '.join(names) or 'none'}")
    gone = names if run == "all" else [run]
    for name in gone:
        if name in runs:
            kept.forget(name)
        if name in models:
            owned.forget(name)
    owned.sweep()
    for path in (state / FEEDBACK).glob("*") if (state / FEEDBACK).is_dir() else ():
        if run == "all" or path.stem.rpartition("-")[0] == run:
            path.unlink(missing_ok=True)
    return gone


def _when(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at))
