"""The server's client against real brokers: both kinds, killed and started again, or not there at all."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import time

import paho.mqtt.client as mqtt
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.errors import BrokerUnavailable
from edgeml.transport import SUBSCRIBED, Broker, Incoming, ServerTransport, start_broker
from edgeml_runtime.wire import blocks, topics

pytestmark = pytest.mark.broker
PATIENCE_S = 20


class Device:
    """A bare MQTT client in the place of an agent: it keeps what it is sent."""

    def __init__(self, broker: Broker, name: str, filters: tuple[str, ...] = ()) -> None:
        self.inbox: queue.SimpleQueue[mqtt.MQTTMessage] = queue.SimpleQueue()
        self.subscribed: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv311)
        self.client.on_message = lambda client, data, message: self.inbox.put(message)
        self.client.on_subscribe = lambda *_: self.subscribed.put(None)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        if filters:
            self.client.subscribe([(name, 1) for name in filters])
            self.subscribed.get(timeout=PATIENCE_S)

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.disconnect()
        self.client.loop_stop()


def message(transport: ServerTransport) -> Incoming:
    """Return the next message; news of the subscription is passed over."""
    while (incoming := transport.inbox.get(timeout=PATIENCE_S)) == SUBSCRIBED:
        pass
    return incoming


def test_what_devices_say_arrives_in_the_inbox(broker: Broker) -> None:
    with ServerTransport(broker.host, broker.port) as transport, Device(broker, "pi") as device:
        for topic in (topics.reported("pi"), topics.telemetry("pi", "metrics"), topics.update("pi", "r1")):
            device.client.publish(topic, topic.encode(), qos=1)
            assert message(transport) == Incoming(topic, topic.encode(), False)


def test_what_was_retained_before_the_server_came_is_told_as_retained(broker: Broker) -> None:
    with Device(broker, "pi") as device:
        device.client.publish(topics.online("pi"), b"{}", qos=1, retain=True).wait_for_publish(PATIENCE_S)
        with ServerTransport(broker.host, broker.port) as transport:
            assert message(transport) == Incoming(topics.online("pi"), b"{}", True)


def test_a_block_reaches_its_device_and_nobody_else(broker: Broker) -> None:
    data = os.urandom(blocks.BLOCK_BYTES)
    payload = blocks.encode("ab" * 32, 7, data)
    with (
        ServerTransport(broker.host, broker.port) as transport,
        Device(broker, "one", topics.for_device("one")) as one,
        Device(broker, "two", topics.for_device("two")) as two,
    ):
        transport.publish(topics.block("one"), payload)
        transport.publish(topics.block("two"), b"end")
        assert blocks.decode(one.inbox.get(timeout=PATIENCE_S).payload) == blocks.Block(b"\xab" * 8, 7, data)
        assert two.inbox.get(timeout=PATIENCE_S).payload == b"end"


def test_the_embedded_broker_does_not_leak_what_it_retains() -> None:
    with (
        start_broker(kind="embedded") as broker,
        ServerTransport(broker.host, broker.port) as transport,
        Device(broker, "one", topics.for_device("one")) as one,
    ):
        transport.publish(topics.desired("one"), b"for one", qos=1, retain=True)
        assert one.inbox.get(timeout=PATIENCE_S).payload == b"for one"
        with Device(broker, "two", topics.for_device("two")) as two:  # the broker knows one's filter by now
            transport.publish(topics.desired("two"), b"for two", qos=1)
            assert two.inbox.get(timeout=PATIENCE_S).payload == b"for two"
            assert two.inbox.empty()


def test_no_broker_is_one_line_with_the_address_and_the_way_out() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        with pytest.raises(BrokerUnavailable, match=rf"127.0.0.1:{nobody.getsockname()[1]} .*`edgeml broker`"):
            ServerTransport("127.0.0.1", nobody.getsockname()[1])


@pytest.mark.fault
def test_a_broker_killed_and_started_again_finds_the_server_subscribed(broker: Broker) -> None:
    with ServerTransport(broker.host, broker.port) as transport:
        assert transport.inbox.get(timeout=PATIENCE_S) == SUBSCRIBED
        os.kill(broker.pid, signal.SIGKILL)
        broker.wait()
        transport.publish(topics.desired("pi"), b"kept", qos=1, retain=True)
        with start_broker(broker.port, kind=broker.kind) as again:
            assert transport.inbox.get(timeout=PATIENCE_S) == SUBSCRIBED
            with Device(again, "pi", topics.for_device("pi")) as device:
                assert device.inbox.get(timeout=PATIENCE_S).payload == b"kept"
                device.client.publish(topics.reported("pi"), b"hello", qos=1)
                assert message(transport).payload == b"hello"


def test_a_port_that_is_taken_is_said_at_once(broker: Broker) -> None:
    with pytest.raises(BrokerUnavailable, match=f"{broker.kind} on 127.0.0.1:{broker.port}"):
        start_broker(broker.port, kind=broker.kind)
    assert broker.alive


def test_a_stopped_broker_is_gone_and_so_is_its_folder(broker: Broker) -> None:
    broker.stop()
    assert not broker.alive
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((broker.host, broker.port), timeout=5).close()


PARENT = """
import sys, time
from edgeml.transport import start_broker
broker = start_broker(kind=sys.argv[1])
print(broker.pid, broker.port, flush=True)
time.sleep(60)
"""


@pytest.mark.fault
def test_a_broker_dies_with_its_parent(broker: Broker) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, broker.kind], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid, port = map(int, parent.stdout.readline().split())
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
        except OSError:
            break
        time.sleep(0.02)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    assert pid != parent.pid
