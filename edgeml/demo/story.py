"""The demo, step by step: build, ship, predict, learn on the devices, ship what is better, report."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeml.demo.agents import Agent, Process, wait_until
from edgeml.demo.alone import accuracy_alone
from edgeml.demo.digits import Share, deal
from edgeml.errors import ServerUnavailable
from edgeml.pipeline.finish import write_report
from edgeml.pipeline.fleet import device_rows, federation_summary, rollout_row
from edgeml.pipeline.run import BuildOptions, build
from edgeml.pipeline.wait import wait_federation, wait_rollout
from edgeml.project import read_project
from edgeml.registry import Registry
from edgeml.transport.broker import Choice, start_broker

BOARDS = ("raspberry-pi-zero-2w", "raspberry-pi-4", "raspberry-pi-5")
LEARNING: dict[str, Any] = {"local_epochs": 2, "learning_rate": 0.05, "momentum": 0.9}
LIVE = 40  # predictions each agent serves after each rollout


@dataclass(frozen=True, kw_only=True)
class DemoOptions:
    folder: Path
    rounds: int = 5
    broker: Choice = "auto"
    say: Callable[[str, str], None] = field(default=lambda stage, line: None)


@dataclass
class Scene:
    """Who is on stage, and what the report will tell."""

    registry: Registry
    server: Process
    agents: list[Agent]
    test: Share
    say: Callable[[str, str], None]
    rollouts: list[dict[str, Any]] = field(default_factory=list)

    @property
    def processes(self) -> list[Process]:
        return [self.server, *self.agents]


def run_demo(options: DemoOptions) -> dict[str, Any]:
    """Return what `edgeml demo --json` prints. Everything that was started has ended when this returns or raises."""
    began, say = time.monotonic(), options.say
    if options.folder.exists():
        shutil.rmtree(options.folder)
    test, shares = deal(options.folder / "project", agents=len(BOARDS))
    say(
        "data", f"{sum(len(share.digits) for share in shares)} digits dealt to {len(shares)} agents, each its own third"
    )
    with contextlib.ExitStack() as stack:
        scene = _open(stack, options, test)
        summary = build(
            read_project(options.folder / "project"), scene.registry, BuildOptions(command="edgeml demo", progress=say)
        )
        _roll_out(scene, "digits")
        before = _live(scene)
        for agent, share in zip(scene.agents, shares, strict=True):
            agent.call("/samples", {"rows": share.rows(), "targets": [str(digit) for digit in share.digits]})
        say(
            "samples", ", ".join(f"{a.device} keeps {len(s.digits)}" for a, s in zip(scene.agents, shares, strict=True))
        )
        federation = _federate(scene, options, [len(share.digits) for share in shares])
        if federation["released"]:
            _roll_out(scene, f"digits@{federation['released']}")
        after = _live(scene)
        say("live", f"right answers on the same {LIVE * len(scene.agents)} digits: {before} before, {after} after")
        held = {agent.device: share for agent, share in zip(scene.agents, shares, strict=True)}
        alone = accuracy_alone(
            scene.registry,
            held,
            test,
            epochs=LEARNING["local_epochs"] * options.rounds,
            learning_rate=LEARNING["learning_rate"],
        )
        say("alone", ", ".join(f"{one['device']} by itself {one['accuracy']:.4f}" for one in alone))
        fleet = _story(scene, federation, alone)
    report = options.folder / "report.html"
    write_report(report, {**summary, "report": str(report)}, fleet)
    return {
        "accuracy": federation["test"],
        "rounds": federation["rounds"],
        "agents": len(BOARDS),
        "alone": alone,
        "live": {"before": before, "after": after, "of": LIVE * len(BOARDS)},
        "released": federation["released"],
        "seconds": round(time.monotonic() - began, 1),
        "report": str(report),
    }


def _open(stack: contextlib.ExitStack, options: DemoOptions, test: Share) -> Scene:
    """Start the broker, the coordinator and the agents; they come up while the first model is built."""
    broker = stack.enter_context(start_broker(kind=options.broker))
    options.say("broker", f"{broker.kind} on {broker.host}:{broker.port}")
    registry = Registry.open(options.folder / "registry")
    stack.callback(registry.close)
    address, key, logs = f"{broker.host}:{broker.port}", registry.public_key_hex(), options.folder / "agents"
    command = ["-m", "edgeml", "server", "--broker", address, "--registry", str(registry.root)]
    server = stack.enter_context(Process("server", command, options.folder / "server.log"))
    agents = [
        stack.enter_context(Agent(f"pi-{number}", board, folder=logs, broker=address, key=key))
        for number, board in enumerate(BOARDS, start=1)
    ]
    options.say("agents", ", ".join(f"{agent.device} ({board})" for agent, board in zip(agents, BOARDS, strict=True)))
    return Scene(registry, server, agents, test, options.say)


def _roll_out(scene: Scene, release: str) -> None:
    wait_until(lambda: _alive(scene.registry), scene.processes, what="the server")
    wait_until(lambda: _online(scene.registry) == len(scene.agents), scene.processes, what="the agents to come online")
    model, _, which = release.partition("@")

    def show(record: Any) -> None:
        scene.say(
            "rollout", ", ".join(f"{d} {(e.get('step') or e['state']).lower()}" for d, e in record.devices.items())
        )

    record = wait_rollout(scene.registry, scene.registry.request_rollout(model, which or None, "all"), on_change=show)
    scene.rollouts.append(rollout_row(record))


def _alive(registry: Registry) -> bool:
    try:
        registry.server_alive()
    except ServerUnavailable:
        return False
    return True


def _online(registry: Registry) -> int:
    return sum(device.online for device in registry.devices())


def _heard(registry: Registry) -> bool:
    """Say whether every agent's telemetry holds both of its turns at predicting."""
    return all(row["predictions"] >= 2 * LIVE for row in device_rows(registry, now=time.time()))


def _live(scene: Scene) -> int:
    """Ask every agent for some digits of the test share and return how many answers are right."""
    right = 0
    for number, agent in enumerate(scene.agents):
        index = slice(number * LIVE, (number + 1) * LIVE)
        answers = agent.call("/predict", {"rows": scene.test.rows()[index]})
        right += int(
            np.sum([said == str(true) for said, true in zip(answers["labels"], scene.test.digits[index], strict=True)])
        )
        scene.say(
            "predict",
            f"{agent.device}: {', '.join(answers['labels'][:12])} ... for {scene.test.digits[index][:12].tolist()}",
        )
    return right


def _federate(scene: Scene, options: DemoOptions, rows: list[int]) -> dict[str, Any]:
    def held() -> bool:
        reported = [device.reported for device in scene.registry.devices()]
        return sorted(r.samples for r in reported if r) == sorted(rows)

    wait_until(held, scene.processes, what="the agents to report their samples")

    def show(done: Any) -> None:
        scene.say(
            "round",
            f"{done.round} of {options.rounds}: {len(done.participants)} agents, {done.rows} rows and {done.held_out} "
            f"held out, accuracy {done.metric:.4f}, {done.bytes_up:,} bytes up, {done.seconds:.2f} s",
        )

    wanted = {"rounds": options.rounds, "min_devices": 2, **LEARNING}
    record = wait_federation(scene.registry, scene.registry.request_federation("digits", wanted), on_round=show)
    summary = federation_summary(record)
    scene.say("gate", summary["reason"])
    return summary


def _story(scene: Scene, federation: dict[str, Any], alone: list[dict[str, Any]]) -> dict[str, Any]:
    wait_until(lambda: _heard(scene.registry), scene.processes, what="the telemetry of the last predictions")
    test = federation["test"]
    return {
        "before": {
            "metric": "accuracy",
            "value": test["before"],
            "validation": federation["before"],
            "release": federation["from"],
        },
        "after": {
            "metric": "accuracy",
            "value": test["after"],
            "release": federation["released"],
            "released": bool(federation["released"]),
            "reason": federation["reason"],
        },
        "rounds": federation["rounds"],
        "agents_alone": alone,
        "devices": device_rows(scene.registry, now=time.time()),
        "rollouts": scene.rollouts,
    }
