"""Journeys of a fleet: ship, serve, learn, and what happens when things break on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeml.demo.digits import Share, deal
from tests.journeys.conftest import Fleet

pytestmark = pytest.mark.journey
Shares = tuple[Share, list[Share]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Shares]:
    """A registry with the first release of the demo's digits, and the rows held back: to test, and for each agent."""
    folder = tmp_path_factory.mktemp("digits")
    shares = deal(folder / "project", agents=3)
    project = folder / "project/edgeml.yaml"
    text = project.read_text(encoding="utf-8").replace("search: {", "search: {trials: 1, folds: 2, ")
    project.write_text(text, encoding="utf-8")
    environment = {**os.environ, "EDGEML_REGISTRY": str(folder / "registry")}
    command = [sys.executable, "-m", "edgeml", "build", str(folder / "project")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "registry", shares


@pytest.fixture
def beginning(built: tuple[Path, object]) -> Path:
    return built[0]


@pytest.fixture
def shares(built: tuple[Path, Shares]) -> Shares:
    return built[1]


def test_a_release_is_shipped_served_and_improved_on_the_devices(fleet: Fleet, shares: Shares) -> None:
    test, held = shares
    fleet.serve()
    agents = [fleet.join(f"dev-{k}") for k in range(3)]

    done = fleet.edgeml("deploy", "digits", "--to", "all", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert {entry["state"] for entry in json.loads(done.stdout)["devices"].values()} == {"SUCCEEDED"}
    first = json.loads(done.stdout)["release"]
    assert all(fleet.running(f"dev-{k}").release == first for k in range(3))

    answers = agents[0].call("/predict", {"rows": test.rows()[:50]})["labels"]
    assert np.mean([said == str(true) for said, true in zip(answers, test.digits[:50], strict=True)]) > 0.7

    for agent, share in zip(agents, held, strict=True):
        agent.call("/samples", {"rows": share.rows(), "targets": [str(digit) for digit in share.digits]})
    fleet.until(
        lambda: (
            sum(d.reported.samples for d in fleet.registry.devices() if d.reported) == sum(len(s.digits) for s in held)
        ),
        what="the samples to be reported",
    )
    done = fleet.edgeml("federate", "digits", "--rounds", 3, "--local-epochs", 2, "--wait", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [len(one["participants"]) for one in told["rounds"]] == [3, 3, 3]
    assert told["released"] and told["after"] > told["before"]
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert "accuracy round by round" in page and told["released"] in page

    done = fleet.edgeml(
        "federate", "digits", "--strategy", "scaffold", "--momentum", 0, "--rounds", 2, "--wait", "--json"
    )
    assert done.returncode == 0, done.stderr
    corrected = json.loads(done.stdout)["rounds"]
    assert [len(one["participants"]) for one in corrected] == [3, 3] and not corrected[1]["refused"]
    assert corrected[0]["bytes_up"] > 1.8 * told["rounds"][0]["bytes_up"], (
        "the change of c_i travels beside the model's"
    )

    done = fleet.edgeml("deploy", f"digits@{told['released']}", "--to", "dev-0,dev-2", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    assert fleet.running("dev-0").release == told["released"] and fleet.running("dev-1").release == first

    fleet.until(
        lambda: any(row["predictions"] >= 50 for row in json.loads(fleet.edgeml("fleet", "list", "--json").stdout)),
        what="the telemetry of 50 predictions",
    )


def test_a_deploy_to_nobody_lists_who_is_there(fleet: Fleet) -> None:
    fleet.serve()
    fleet.join("dev-a", "raspberry-pi-5")
    done = fleet.edgeml("deploy", "digits", "--to", "board:raspberry-pi-4")
    assert done.returncode == 4 and "dev-a" in done.stderr and "Traceback" not in done.stderr
    done = fleet.edgeml("deploy", "digits", "--to", "dev-b")
    assert done.returncode == 1 and "dev-a" in done.stderr


def test_a_federation_without_samples_ends_with_reasons_and_hangs_nobody(fleet: Fleet) -> None:
    fleet.serve()
    fleet.join("dev-0")
    assert fleet.edgeml("deploy", "digits", "--to", "all", "--wait").returncode == 0
    done = fleet.edgeml("federate", "digits", "--rounds", 2, "--min-devices", 1, "--deadline", 8, "--wait", "--json")
    assert done.returncode == 4
    assert "0 of the 1" in done.stderr and "dev-0" in done.stderr


@pytest.mark.fault
def test_a_server_that_is_killed_goes_on_where_it_was(fleet: Fleet) -> None:
    server = fleet.serve()
    fleet.join("dev-0")
    server._child.kill()
    server._child.wait()
    registry = fleet.registry
    rollout = registry.request_rollout("digits", None, "all")
    fleet.serve()
    fleet.until(lambda: registry.rollout(rollout).is_over, what="the rollout of the second server")
    assert registry.rollout(rollout).state == "SUCCEEDED"
