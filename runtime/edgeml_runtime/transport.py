"""MQTT on the device's side, with nothing decided here: what arrives is queued, what is sent goes out.

Callbacks do one `put` each, because an exception would end paho's thread silently. Every connection
is a new client: what an old one still had queued would arrive after newer state. What is sent while
the broker is away is dropped; the agent publishes its full state after every `Connected`.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import paho.mqtt.client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

KEEPALIVE_S = 30
CONNECT_S = 5.0  # for the TCP connection, and again for the broker's answer
SHORTEST_S, LONGEST_S = 0.5, 60.0  # between two attempts, doubling, with jitter: a restarted broker is no herd's target
STEADY_S = 10.0  # a connection that lasted this long starts the back-off anew
MAX_BACKLOG = 2000  # messages not yet looked at; a window is 8 blocks, so more is somebody's flood
MAX_PAYLOAD = 64 << 10  # of anything this wire sends to a device

log = logging.getLogger(__name__)


class Incoming(NamedTuple):
    topic: str
    payload: bytes
    retained: bool


class Connected(NamedTuple):
    """The subscriptions stand (again)."""


class Disconnected(NamedTuple):
    """The broker is gone; another attempt follows by itself."""


class Will(NamedTuple):
    """What the broker says for a device that vanishes: QoS 1, retained."""

    topic: str
    payload: bytes


class MqttTransport:
    """One device's connection: `open`, then `send` at any time, until `close`."""

    def __init__(self, address: tuple[str, int], device: str, *, will: Will, filters: tuple[str, ...]) -> None:
        """Speak as client id `device`; whatever happens is given to `post`, see `open`."""
        self.address, self._device, self._will, self._filters = address, device, will, filters
        self._post: Callable[[Any], None] = log.debug
        self._backlog: Callable[[], int] = int
        self._client: mqtt.Client | None = None
        self._closing, self._gone = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._silent = False  # about failed attempts, after the first of a row
        self.connected = False
        self.dropped = 0  # messages refused unread, for their size or their number

    def open(self, post: Callable[[Any], None], *, backlog: Callable[[], int] = int) -> None:
        """Connect in the background and keep trying; `post` gets Incoming, Connected and Disconnected."""
        self._post, self._backlog = post, backlog
        self._closing = threading.Event()  # of this thread: an earlier one may still be trying to connect
        self._thread = threading.Thread(target=self._run, args=(self._closing,), name="mqtt", daemon=True)
        self._thread.start()

    def send(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> bool:
        """Send without waiting; return False, having sent nothing, while there is no broker."""
        client = self._client
        if client is None or not self.connected:
            return False
        return client.publish(topic, payload, qos=qos, retain=retain).rc == mqtt.MQTT_ERR_SUCCESS

    def close(self, farewell: bytes | None = None, *, timeout_s: float = 2.0) -> None:
        """Say `farewell` on the will's topic, if given, disconnect and end the thread."""
        client = self._client
        if client is not None and self.connected:
            if farewell is not None:
                self._say(client, farewell, timeout_s)
            client.disconnect()
        self._closing.set()
        self._gone.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)  # an attempt to connect may take longer and is left to itself
        self._thread = None

    def _say(self, client: mqtt.Client, farewell: bytes, timeout_s: float) -> None:
        sent = client.publish(self._will.topic, farewell, qos=1, retain=True)
        try:
            sent.wait_for_publish(timeout_s)
        except (RuntimeError, ValueError) as error:  # the broker went meanwhile: its will speaks for us
            log.debug("no farewell: %s", error)

    def _run(self, closing: threading.Event) -> None:
        wait = SHORTEST_S
        while not closing.is_set():
            lasted = self._connection(closing)
            wait = SHORTEST_S if lasted >= STEADY_S else min(wait * 2, LONGEST_S)
            closing.wait(wait * random.uniform(0.5, 1.0))

    def _connection(self, closing: threading.Event) -> float:
        """Connect once and stay until it ends; return for how many seconds it stood."""
        client = self._new_client()
        try:
            client.connect(*self.address, keepalive=KEEPALIVE_S)
        except (OSError, ValueError) as error:
            self._complain(f"no broker answers at {self.address[0]}:{self.address[1]} ({error}); trying again")
            return 0.0
        self._client = client
        self._gone.clear()
        if closing.is_set():
            self._client = None
            return 0.0
        client.loop_start()
        began = time.monotonic()
        if not self._gone.wait(CONNECT_S) and not self.connected:
            self._complain(f"the broker at {self.address[0]}:{self.address[1]} does not answer; trying again")
        elif self.connected:
            self._gone.wait()
        client.loop_stop()
        lost, self.connected, self._client = self.connected, False, None
        if lost:
            self._post(Disconnected())
        return time.monotonic() - began if lost else 0.0

    def _new_client(self) -> mqtt.Client:
        client = mqtt.Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._device,
            clean_session=True,
            protocol=mqtt.MQTTv311,
            reconnect_on_failure=False,
        )
        client.connect_timeout = CONNECT_S
        client.will_set(self._will.topic, self._will.payload, qos=1, retain=True)
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_disconnect, client.on_message = self._on_disconnect, self._on_message
        return client

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._complain(f"the broker at {self.address[0]}:{self.address[1]} refuses {self._device}: {reason}")
            self._gone.set()
            return
        client.subscribe([(name, 1) for name in self._filters])

    def _on_subscribe(self, client: mqtt.Client, *_: Any) -> None:
        if client is self._client and not self.connected:
            self.connected, self._silent = True, False
            self._post(Connected())

    def _on_disconnect(self, client: mqtt.Client, *_: Any) -> None:
        if client is self._client:
            self._gone.set()

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        if len(message.payload) > MAX_PAYLOAD + 64 or self._backlog() > MAX_BACKLOG:
            self.dropped += 1
            return
        self._post(Incoming(message.topic, bytes(message.payload), bool(message.retain)))

    def _complain(self, line: str) -> None:
        log.log(logging.DEBUG if self._silent else logging.WARNING, line)
        self._silent = True
