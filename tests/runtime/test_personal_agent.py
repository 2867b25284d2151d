"""A device's own model on real agents: served through deaths and restarts, forbidden, fetched anew."""

from __future__ import annotations

import dataclasses
import signal
from typing import Any

import pytest

from edgeml_runtime.config import BLOBS, KEPT, PERSONAL
from edgeml_runtime.kept import Kept
from edgeml_runtime.slots import Slots
from edgeml_runtime.wire import blocks, signed, topics
from edgeml_runtime.wire.messages import RunOver
from edgeml_runtime.wire.plain import to_plain
from tests.runtime.agent_kit import AgentProcess, ServerSide, needs_mosquitto, until
from tests.runtime.personal_kit import (
    MOST,
    RUN,
    X,
    a_personal_release,
    csv_of,
    graph,
    own_head,
    own_labels,
)
from tests.runtime.releases import KEY, Release, a_release


@pytest.fixture
def owner(agent: AgentProcess, server: ServerSide) -> AgentProcess:
    """An agent with labelled rows in this device's order, and a head that knows it."""
    server.assign(agent.device, a_release("zero", graph()), job="job-zero", seq=1)
    assert server.until_ended(agent.device, "job-zero").state == "SUCCEEDED"
    agent.call("/samples", {"rows": X.tolist(), "targets": [str(label) for label in own_labels()]})
    Kept(agent.state / KEPT, most=MOST).after(RUN, f"{RUN}-1", was={}, now=own_head())
    return agent


def ship(agent: AgentProcess, server: ServerSide, release: Release, *, seq: int) -> Any:
    server.assign(agent.device, release, job=f"job-{seq}", seq=seq)
    ended = server.until_ended(agent.device, f"job-{seq}")
    assert ended.state == "SUCCEEDED", ended
    return agent.status()["personal"]


def says(agent: AgentProcess) -> list[int]:
    return [int(label) for label in agent.predict(X)["labels"]]


@pytest.mark.broker
@needs_mosquitto
def test_an_agent_serves_its_own_model_through_death_and_restart_and_says_so(
    owner: AgentProcess, server: ServerSide
) -> None:
    over = signed.sign(to_plain(RunOver(run=RUN, release="one")), KEY)
    server.publish(topics.task(RUN), over)
    found = ship(owner, server, a_personal_release("one"), seq=2)
    assert found["serves"] and found["own"] == 1.0 and found["gain"] > 0.8 and says(owner) == own_labels().tolist()
    assert owner.predict(X[:1])["personal"] is True
    until(lambda: any(one.personal and (one.gain or 0) > 0.8 for one in server.metrics["pi-1"]), "telemetry of it")
    shown = owner.command("status").stdout
    assert f"yes: accuracy 1 with its own tensors, {found['released']:.4g} without, on 60 rows of its own" in shown
    assert "digits: " in owner.command("task-policy").stdout
    for end in (owner.kill, lambda: owner.stop(signal.SIGTERM)):
        end()
        assert owner.command("predict", csv_of(owner.state)).stdout.split() == [str(one) for one in own_labels()]
        owner.start()
        assert owner.status()["personal"]["serves"] and says(owner) == own_labels().tolist()
    (path,) = (owner.state / PERSONAL).glob("*.safetensors")
    owner.kill()
    path.write_bytes(path.read_bytes()[:-400])
    owner.start()
    assert owner.status()["personal"]["serves"] is False and says(owner) != own_labels().tolist()
    assert "no: " in owner.command("status").stdout


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_the_end_of_a_federation_without_a_release_leaves_nothing_and_the_owner_may_forbid_it(
    owner: AgentProcess, server: ServerSide
) -> None:
    server.publish(topics.task(RUN), signed.sign(to_plain(RunOver(run=RUN)), KEY))
    until(lambda: not list((owner.state / KEPT).glob("*")), "it to be forgotten")
    Kept(owner.state / KEPT, most=MOST).after(RUN, f"{RUN}-1", was={}, now=own_head())
    owner.stop()
    assert owner.command("task-policy", "--set", "personal=no").returncode == 0
    owner.start()
    found = ship(owner, server, a_personal_release("one"), seq=2)
    assert not found["serves"] and "owner's policy" in found["reason"]
    owner.stop()
    assert owner.command("task-policy", "--set", "personal=yes").returncode == 0
    owner.start()
    assert owner.status()["personal"]["serves"]
    assert owner.command("task-policy", "--forget", "digits").returncode == 0
    owner.kill()
    owner.start()
    assert owner.status()["personal"] is None


@pytest.mark.broker
@needs_mosquitto
def test_a_release_that_runs_is_deployed_again_for_the_float_graph_that_own_tensors_lack(
    owner: AgentProcess, server: ServerSide
) -> None:
    def deploy_again(seq: int) -> Any:
        return ship(owner, server, dataclasses.replace(release, manifest=manifest, envelope=envelope), seq=seq)

    kept = Kept(owner.state / KEPT, most=MOST)
    kept.forget(RUN)
    release = a_personal_release("one", others={"int8": graph(rows=1)})
    manifest = dataclasses.replace(release.manifest, boards={"raspberry-pi-4": "int8"})
    envelope, float_graph = signed.sign(manifest.to_document(), KEY), owner.state / BLOBS / blocks.digest_of(graph())
    before = Slots(owner.state / "slots").current
    assert deploy_again(2) is None and before is not None
    float_graph.unlink(missing_ok=True)  # also that of the release before
    kept.after(RUN, f"{RUN}-1", was={}, now=own_head())
    owner.kill()
    owner.start()
    assert "fp32 graph, which takes these tensors, is not here: deploy" in owner.status()["personal"]["reason"]
    assert deploy_again(3)["serves"] and says(owner) == own_labels().tolist() and float_graph.is_file()
    served = owner.status()["running"]
    assert (served["release"], served["variant"]) == ("one", "int8")
    slots = Slots(owner.state / "slots")
    assert slots.previous is not None and slots.previous.path == before.path, "the way back is as it was"
    assert slots.previous.manifest().release == "zero"
    owner.kill()
    float_graph.unlink()
    float_graph.write_bytes(b"damaged")
    owner.start()
    assert "not what the manifest promises: deploy" in owner.status()["personal"]["reason"]
    assert deploy_again(4)["serves"] and deploy_again(5)["serves"]


@pytest.mark.slow
@pytest.mark.broker
@needs_mosquitto
def test_an_agent_that_runs_8_bit_fetches_the_float_graph_for_its_own_tensors(
    owner: AgentProcess, server: ServerSide
) -> None:
    release = a_personal_release("one", others={"int8": graph(rows=1)})
    manifest = dataclasses.replace(release.manifest, boards={"raspberry-pi-4": "int8"})
    signed_anew = signed.sign(manifest.to_document(), KEY)
    found = ship(owner, server, dataclasses.replace(release, manifest=manifest, envelope=signed_anew), seq=2)
    assert found["serves"] and owner.status()["running"]["variant"] == "int8" and says(owner) == own_labels().tolist()
    assert (owner.state / BLOBS / blocks.digest_of(graph())).is_file()
    owner.kill()
    owner.start()
    assert owner.status()["personal"]["serves"]
