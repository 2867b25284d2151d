"""The coordinator's MQTT client: what arrives goes into `inbox`, what is published goes out; nothing else.

The callbacks of paho run in its own thread and do one `put` each: an exception in there would end
the thread silently, and a slow one would miss the keep-alive.
"""

from __future__ import annotations

import logging
import queue
import secrets
import threading
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

from edgeml.errors import BrokerUnavailable
from edgeml_runtime.wire import topics

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 30
RECONNECT_S = (1, 8)  # paho doubles from the first to the second; one server is no herd, so no jitter
MAX_INFLIGHT = 100  # of QoS 1; brokers allow at least as many

log = logging.getLogger(__name__)


class Incoming(NamedTuple):
    """A message; or news of the transport itself: SUBSCRIBED (again) and WAKE have no slash in their topic."""

    topic: str
    payload: bytes = b""
    retained: bool = False


SUBSCRIBED, WAKE = Incoming("subscribed"), Incoming("wake")


class ServerTransport:
    """Subscribed to everything devices say, from construction to `close`; reconnects by itself.

    Raises BrokerUnavailable when the first connection fails; later losses are logged, one line each,
    and end with SUBSCRIBED in the inbox once the subscriptions stand again.
    """

    def __init__(self, host: str, port: int, *, client_id: str = "") -> None:
        self.host, self.port = host, port
        self.inbox: queue.SimpleQueue[Incoming] = queue.SimpleQueue()
        self._subscribed, self._refused = threading.Event(), ""
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id or f"edgeml-server-{secrets.token_hex(4)}",
            protocol=mqtt.MQTTv311,
        )
        client.max_inflight_messages_set(MAX_INFLIGHT)
        client.reconnect_delay_set(*RECONNECT_S)
        client.on_connect, client.on_disconnect = self._on_connect, self._on_disconnect
        client.on_subscribe, client.on_message = self._on_subscribe, self._on_message
        self._client = client
        self._connect()

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Send without waiting. While the broker is away QoS 0 is dropped and QoS 1 is kept for later."""
        self._client.publish(topic, payload, qos=qos, retain=retain)

    def wake(self) -> None:
        """Make whoever waits on `inbox` look up; from any thread."""
        self.inbox.put(WAKE)

    def close(self) -> None:
        """Say goodbye to the broker and end the thread."""
        self._client.disconnect()
        self._client.loop_stop()

    def __enter__(self) -> ServerTransport:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _connect(self) -> None:
        where = f"{self.host}:{self.port}"
        way_out = "start one with `edgeml broker`, or give the address of yours with --broker HOST:PORT"
        try:
            self._client.connect(self.host, self.port, keepalive=KEEPALIVE_S)
        except OSError as error:
            raise BrokerUnavailable(f"no broker answers at {where} ({error}); {way_out}") from error
        self._client.loop_start()
        if not self._subscribed.wait(CONNECT_TIMEOUT_S):
            self.close()
            why = self._refused or f"no answer within {CONNECT_TIMEOUT_S:g} s"
            raise BrokerUnavailable(f"the broker at {where} does not let the server in: {why}; {way_out}")

    def _on_connect(self, client: mqtt.Client, *told: Any) -> None:
        _data, _flags, reason, _properties = told
        if reason.is_failure:
            self._refused = str(reason)
            return
        client.subscribe([(name, 1) for name in topics.for_server()])

    def _on_subscribe(self, *_: Any) -> None:
        if self._subscribed.is_set():
            log.warning("the broker at %s:%d is back", self.host, self.port)
        self._subscribed.set()
        self.inbox.put(SUBSCRIBED)

    def _on_disconnect(self, _client: mqtt.Client, *told: Any) -> None:
        _data, _flags, reason, _properties = told
        if reason.is_failure and self._subscribed.is_set():
            log.warning("lost the broker at %s:%d (%s); trying again", self.host, self.port, reason)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        self.inbox.put(Incoming(message.topic, bytes(message.payload), bool(message.retain)))
