"""MQTT on the device's side, over real brokers that come and go."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeml.transport.broker import find_mosquitto, start_broker
from edgeml_runtime.transport import MAX_PAYLOAD, Connected, Disconnected, Incoming, MqttTransport, Will
from tests.runtime.agent_kit import Mosquitto, broker_in, needs_mosquitto, until

pytestmark = pytest.mark.broker


class Client:
    """A transport and its inbox."""

    def __init__(self, port: int, device: str) -> None:
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        will = Will(f"t/{device}/online", b"gone")
        self.transport = MqttTransport(("127.0.0.1", port), device, will=will, filters=(f"t/{device}/in", "t/+/online"))

    def __enter__(self) -> Client:
        self.transport.open(self.inbox.put)
        return self

    def __exit__(self, *_: object) -> None:
        self.transport.close()

    def next(self, kind: type, *, timeout_s: float = 20.0) -> Any:
        """Return the next event of `kind`, leaving out others."""
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                event = self.inbox.get(timeout=left)
            except queue.Empty:
                break
            if isinstance(event, kind):
                return event
        pytest.fail(f"no {kind.__name__} within {timeout_s:g} s")


@pytest.fixture(params=["mosquitto", "embedded"])
def port(request: pytest.FixtureRequest) -> Iterator[int]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with start_broker(kind=request.param) as broker:
        yield broker.port


def test_messages_go_both_ways_on_either_broker(port: int) -> None:
    with Client(port, "a") as a, Client(port, "b") as b:
        a.next(Connected)
        b.next(Connected)
        for qos in (0, 1):
            assert a.transport.send("t/b/in", bytes([qos]) * 50_000, qos=qos)
            assert b.next(Incoming) == Incoming("t/b/in", bytes([qos]) * 50_000, False)


def test_what_is_retained_comes_back_as_such_and_the_farewell_replaces_the_will(port: int) -> None:
    with Client(port, "a") as a:
        a.next(Connected)
        a.transport.send("t/a/online", b"here", qos=1, retain=True)
        assert a.next(Incoming) == Incoming("t/a/online", b"here", False)
        a.transport.close(b"goodbye")
    with Client(port, "b") as b:
        assert b.next(Incoming) == Incoming("t/a/online", b"goodbye", True)


def test_a_client_that_vanishes_leaves_its_will(port: int) -> None:
    with Client(port, "b") as b, Client(port, "a") as a:
        a.next(Connected)
        b.next(Connected)
        a.transport._client.socket().shutdown(socket.SHUT_RDWR)  # type: ignore[union-attr]
        assert b.next(Incoming) == Incoming("t/a/online", b"gone", False)
        a.next(Disconnected)
        a.next(Connected)  # and comes back by itself


def test_nothing_is_sent_without_a_broker_and_nothing_old_arrives_later(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed")
    with broker_in(tmp_path) as broker, Client(broker.port, "a") as a:
        a.next(Connected)
        broker.kill()
        a.next(Disconnected)
        assert not a.transport.send("t/a/in", b"old", qos=1)
        broker.start()
        a.next(Connected)
        assert a.transport.send("t/a/in", b"new", qos=1)
        assert a.next(Incoming).payload == b"new"


@needs_mosquitto
def test_an_exception_in_the_receiver_does_not_end_the_connection(tmp_path: Path) -> None:
    """The receiver is a queue; this shows that even its refusal of a message (too large) costs nothing."""
    with broker_in(tmp_path) as broker, Client(broker.port, "a") as a:
        a.next(Connected)
        a.transport.send("t/a/in", b"x" * (MAX_PAYLOAD + 1000), qos=1)
        a.transport.send("t/a/in", b"small", qos=1)
        assert a.next(Incoming).payload == b"small" and a.transport.dropped == 1


@needs_mosquitto
def test_a_flood_is_dropped_and_counted(tmp_path: Path) -> None:
    with broker_in(tmp_path) as broker:
        a = Client(broker.port, "a")
        a.transport.open(a.inbox.put, backlog=lambda: 10**6)
        try:
            a.next(Connected)
            a.transport.send("t/a/in", b"one more", qos=1)
            until(lambda: a.transport.dropped, "the count")
        finally:
            a.transport.close()


@pytest.mark.fault
def test_a_server_that_is_no_broker_is_left_and_tried_again() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        accepted = list[socket.socket]()

        def accept() -> None:
            for _ in range(2):
                connection, _ = listener.accept()
                accepted.append(connection)
                connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with Client(int(listener.getsockname()[1]), "a") as a:
            until(lambda: len(accepted) == 2, "a second attempt")
            assert not a.transport.connected and a.inbox.empty()
        thread.join()


@pytest.mark.fault
def test_closing_while_nobody_answers_is_quick(tmp_path: Path) -> None:
    broker = Mosquitto(tmp_path)  # never started: its port is closed
    with Client(broker.port, "a") as a:
        start = time.monotonic()
        a.transport.close()
        assert time.monotonic() - start < 4
