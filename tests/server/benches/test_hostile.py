"""What is said in another's name, too late, or untrue: refused, and counted for who said it."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from edgeml.registry import Registry
from edgeml.server.errand import End, Errand
from edgeml.transport import Broker
from edgeml.transport.broker import find_mosquitto
from edgeml_runtime.wire import messages, signed, topics
from edgeml_runtime.wire.messages import BenchStatus, BenchTask
from edgeml_runtime.wire.plain import to_plain
from tests.server.benches.kit import Agent, Liar, a_request, ended
from tests.server.stand_ins import Server, until

pytestmark = [
    pytest.mark.broker,
    pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed: apt install mosquitto"),
]


@pytest.mark.fault
def test_a_task_replayed_to_another_device_or_later_is_refused_and_counted(
    registry: Registry, agent: Callable[..., Agent], liar: Liar
) -> None:
    one, other = agent(), agent("pi-2")
    bench_id = a_request(registry)
    assert ended(registry, bench_id).state == "SUCCEEDED"
    envelope = liar.heard[0]
    liar.say(topics.bench("pi-2"), envelope)
    until(lambda: other.call("/status")["malformed"]["count"] == 1, "the count")
    assert "a benchmark for pi-1 arrived at pi-2" in other.call("/status")["malformed"]["last"]
    assert other.bench() == {}
    assert ended(registry, a_request(registry)).state == "SUCCEEDED"
    liar.say(topics.bench("pi-1"), envelope)
    until(lambda: one.call("/status")["malformed"]["count"] == 1, "the count")
    assert "was seen before" in one.call("/status")["malformed"]["last"]
    task = BenchTask(device="pi-1", task="forged", kind="measure", seq=10**6)
    forged = json.loads(envelope)
    liar.say(topics.bench("pi-1"), signed.canonical({**forged, "signed": to_plain(task)}))
    until(lambda: one.call("/status")["malformed"]["count"] == 2, "the count")
    assert "BadSignature" in one.call("/status")["malformed"]["last"]


@pytest.mark.fault
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xa1\x66schema\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00", "a result of schema nan"),
        (b"nonsense", "a result of"),
        (b"\x00" * (5 << 20), "announces 5,242,880 bytes"),
    ],
    ids=["nan", "nonsense", "oversized"],
)
def test_a_forged_result_is_not_accepted_and_counted(
    registry: Registry, server: Server, broker: Broker, device: Any, liar: Liar, *, data: bytes, why: str
) -> None:
    device("pi-1")
    bench_id = a_request(registry)
    until(lambda: registry.benches.find(bench_id).state == "RUNNING", "its turn")
    liar.result("pi-1", bench_id, data)
    done = ended(registry, bench_id)
    assert (done.state, done.reason) == ("FAILED", "BadResult")
    assert why in done.detail
    until(lambda: registry.devices()[0].malformed >= 1, "the count")
    assert not registry.benches.measurements()
    liar.say(
        topics.telemetry("pi-1", "bench"),
        messages.encode(BenchStatus(task="x", device="pi-9", boot_id="x", state="DONE")),
    )
    until(lambda: registry.devices()[0].malformed >= 2, "the count of a status in another's name")
    assert server.alive


@pytest.mark.fault
def test_an_agent_that_does_not_answer_ends_it() -> None:
    task = BenchTask(device="pi-1", task="b", kind="measure", seq=1, deadline_s=600.0)
    errand, now, effects = Errand(task, 0.0, gone_s=60.0), 0.0, []
    while not any(isinstance(one, End) for one in effects):
        now += 1.0
        effects = errand.tick(now, online=True)
        assert now < 60
    assert effects[-1].reason == "NoAnswer"  # type: ignore[union-attr]
