"""Devices that call the same things by other names: no one model is right for all of them, each one's own is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgeml.demo.digits import Share, deal
from tests.journeys.conftest import Fleet

pytestmark = [pytest.mark.journey, pytest.mark.slow]
TURNS = (0, 3, 7)  # what device k calls digit + TURNS[k]


def spoken(digits: np.ndarray, device: int) -> list[str]:
    return [str(digit) for digit in (digits + TURNS[device]) % 10]


def right(fleet: Fleet, test: Share, device: int) -> float:
    """Return the share of answers that are what this device would say."""
    said = fleet.agents[f"dev-{device}"].call("/predict", {"rows": test.rows()})["labels"]
    return float(np.mean([one == other for one, other in zip(said, spoken(test.digits, device), strict=True)]))


def kill(fleet: Fleet, device: str) -> None:
    """End an agent without a word, and start it again on what it left."""
    agent = fleet.agents.pop(device)
    agent._child.kill()
    agent._child.wait()
    fleet.until(lambda: device not in fleet.online(), what=f"{device} to be missed")
    fleet.join(device)


def test_fedper_ships_a_release_that_every_device_makes_its_own(fleet: Fleet) -> None:
    test, shares = deal(fleet.folder / "project", agents=3)
    pixels, digits = np.concatenate([s.pixels for s in shares]), np.concatenate([s.digits for s in shares])
    order = np.random.default_rng(0).permutation(len(digits))
    project = fleet.folder / "project/edgeml.yaml"
    text = project.read_text(encoding="utf-8").replace("search: {", "search: {trials: 1, folds: 2, ")
    project.write_text(text, encoding="utf-8")
    assert fleet.edgeml("build", fleet.folder / "project", "--json").returncode == 0
    fleet.serve()
    for k in range(3):
        fleet.join(f"dev-{k}")
    assert fleet.edgeml("deploy", "digits", "--to", "all", "--wait").returncode == 0
    for k, agent in enumerate(fleet.agents.values()):
        own = Share(test.columns, pixels[order[k::3]], digits[order[k::3]])
        agent.call("/samples", {"rows": own.rows(), "targets": spoken(own.digits, k)})
    fleet.until(
        lambda: sum(d.reported.samples for d in fleet.registry.devices() if d.reported) == len(digits),
        what="the samples to be reported",
    )
    before = [right(fleet, test, k) for k in range(3)]

    words = ("--strategy", "fedper", "--rounds", 8, "--local-epochs", 2, "--min-devices", 2, "--json")
    asked = json.loads(fleet.edgeml("federate", "digits", *words).stdout)["federation"]
    fleet.until(lambda: len(fleet.registry.federation(asked).rounds) >= 2, what="two rounds")
    kill(fleet, "dev-1")
    fleet.until(lambda: fleet.registry.federation(asked).is_over, what="the federation")
    told = json.loads(fleet.edgeml("federate", "digits", "--report", "--json").stdout)
    assert told["released"], told["reason"]
    assert "loss of the devices' own models" in told["reason"] and told["after"] > told["before"] - 0.02
    assert told["own_models"] == {"learned": 3, "run": 0, "serve": 0, "gain": None}
    assert [right(fleet, test, k) for k in range(3)] == before, "nothing serves before it is deployed"

    done = fleet.edgeml("deploy", f"digits@{told['released']}", "--to", "all", "--wait")
    assert done.returncode == 0, done.stderr
    found = [agent.call("/status")["personal"] for agent in fleet.agents.values()]
    assert all(one["serves"] and one["run"] == asked for one in found), found
    after = [right(fleet, test, k) for k in range(3)]
    assert before[0] > 0.7 and max(before[1:]) < 0.3, "the global model says what the server calls them"
    assert min(after) > 0.85, after

    kill(fleet, "dev-2")
    assert fleet.agents["dev-2"].call("/status")["personal"]["serves"] and right(fleet, test, 2) == after[2]
    fleet.join("dev-9")
    assert fleet.edgeml("deploy", f"digits@{told['released']}", "--to", "dev-9", "--wait").returncode == 0
    said = fleet.agents["dev-9"].call("/predict", {"rows": test.rows()})["labels"]
    assert np.mean([one == str(digit) for one, digit in zip(said, test.digits, strict=True)]) > 0.7, "for newcomers"
    assert fleet.agents["dev-9"].call("/status")["personal"] is None

    fleet.until(
        lambda: sum(row["personal"] is True for row in json.loads(fleet.edgeml("fleet", "list", "--json").stdout)) == 3,
        what="telemetry of three own models",
    )
    said_so = fleet.edgeml("federate", "digits", "--report")
    assert "own models answer on 3 of the 3 devices that run it, mean gain +0." in said_so.stdout, said_so.stderr
    page = Path(said_so.stdout.split("report  ")[1].strip()).read_text(encoding="utf-8")
    assert "own models answer on" in page and "3 of 3 devices, mean gain +0." in page
