"""The loop: one inbox, one thread. Every message is routed here and judged elsewhere.

The inbox wakes the loop at once; every 100 ms it also looks at the registry for requests and deadlines
and writes what changed. A message that cannot be read is counted for its device and is never fatal.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

from edgeml.errors import ServerUnavailable
from edgeml.registry import Heartbeat, Registry
from edgeml.server.benches import BenchQueues
from edgeml.server.blocks import BlockServer
from edgeml.server.deployments import Deployments
from edgeml.server.learner import Retrain
from edgeml.server.learning import Learning
from edgeml.server.roster import Roster
from edgeml.transport import SUBSCRIBED, WAKE, Incoming, ServerTransport
from edgeml_runtime.wire import MalformedMessage, WireError, messages, topics
from edgeml_runtime.wire.messages import BlockRequest, Metrics, Online, Reported
from edgeml_runtime.wire.topics import Topic

POLL_S = 0.1  # how long a request may lie in the registry before it is seen
BEAT_S = 1.0
log = logging.getLogger(__name__)


class Coordinator:
    """The server of one registry on one broker.

    Raises ServerUnavailable when another process already serves this registry.
    """

    def __init__(
        self,
        registry: Registry,
        transport: ServerTransport,
        *,
        retrain: Retrain,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry, self._transport, self._clock = registry, transport, clock
        _refuse_second(registry)
        self.roster = Roster(registry.fleet)
        self._blocks = BlockServer(registry)
        self._deployments = Deployments(registry, self.roster, transport.publish)
        self._learning = Learning(registry, retrain)
        self._benches = BenchQueues(registry, self.roster, transport.publish)
        self._next_poll = self._next_beat = clock()
        self._routes: dict[str, Callable[[Topic, Incoming, float], None]] = {
            "online": self._online,
            "reported": self._reported,
            "req": self._requested,
            "tel": self._telemetry,
            "up": self._uploaded,
            "say": self._said,
        }

    def run(self, stop: threading.Event) -> None:
        """Serve until `stop` is set; `wake` of the transport makes it look."""
        try:
            while not stop.is_set():
                self.step()
        finally:
            self.close()

    def step(self) -> None:
        """Handle the next message, or what the time asks for, whichever comes first."""
        patience = max(0.0, self._next_poll - self._clock())
        try:
            incoming = self._transport.inbox.get(timeout=patience)
        except queue.Empty:
            self._periodic()
            return
        self._receive(incoming)
        if self._clock() >= self._next_poll:
            self._periodic()

    def close(self) -> None:
        """Write what is not yet written and take the heartbeat back."""
        self._learning.close()
        self._flush()
        self._registry.fleet.stop_beating(os.getpid())
        self._blocks.close()

    def _receive(self, incoming: Incoming) -> None:
        now = self._clock()
        if incoming == WAKE:
            self._tick_learning(now)
            return
        if incoming == SUBSCRIBED:
            self._deployments.resend()
            self._benches.resend(now)
            if self._learning.current:
                self._learning.current.resend()
            return
        device = ""
        try:
            topic = topics.parse(incoming.topic)
            device = topic.device
            self._routes[topic.kind](topic, incoming, now)
        except WireError as error:
            if device:
                self.roster.malformed(device, str(error), time.time())
            else:
                log.warning("left aside: %s", error)

    def _online(self, topic: Topic, incoming: Incoming, now: float) -> None:
        message = messages.decode(Online, incoming.payload)
        self.roster.connected(topic.device, message, time.time(), live=not incoming.retained)
        if message.online:
            self._benches.came(topic.device, now)
        learning = self._learning.current
        if learning and message.online:
            learning.came(topic.device, now, live=not incoming.retained)
        elif learning and not self.roster[topic.device].online:
            learning.went(topic.device, now)

    def _reported(self, topic: Topic, incoming: Incoming, now: float) -> None:
        message = messages.decode(Reported, incoming.payload)
        if self.roster.reported(topic.device, message, time.time(), live=not incoming.retained):
            if message.job is not None:
                self._deployments.reported(topic.device, message.job, now)
            self._tick_learning(now)

    def _requested(self, topic: Topic, incoming: Incoming, now: float) -> None:
        request = messages.decode(BlockRequest, incoming.payload)
        name, sent = topics.block(topic.device), 0
        for block in self._blocks.answer(request):
            self._transport.publish(name, block)
            sent += len(block)
        if self._learning.current:
            self._learning.current.served(request.digest, sent)

    def _telemetry(self, topic: Topic, incoming: Incoming, now: float) -> None:
        if topic.detail == "bench":
            self._benches.took(topic.device, incoming.payload, now)
            return
        if topic.detail != "metrics":
            raise MalformedMessage(f"telemetry of kind {topic.detail!r}: this server reads metrics and bench")
        self.roster.measured(topic.device, messages.decode(Metrics, incoming.payload), time.time())

    def _uploaded(self, topic: Topic, incoming: Incoming, now: float) -> None:
        if self._learning.current:
            self._learning.current.uploaded(topic.device, topic.detail, incoming.payload, now=now)

    def _said(self, topic: Topic, incoming: Incoming, now: float) -> None:
        if self._learning.current:
            self._learning.current.said(topic.device, topic.detail, incoming.payload, now=now)

    def _tick_learning(self, now: float) -> None:
        if self._learning.current:
            self._learning.current.tick(now)

    def _periodic(self) -> None:
        now = self._clock()
        self._next_poll = now + POLL_S
        self._deployments.poll(now)
        self._deployments.tick(now)
        self._benches.poll(now)
        self._benches.tick(now)
        self._learning.poll(self.roster, publish=self._transport.publish, wake=self._transport.wake)
        self._tick_learning(now)
        self._flush()
        if now >= self._next_beat:
            self._next_beat = now + BEAT_S
            transport = self._transport
            self._registry.fleet.beat(
                Heartbeat(pid=os.getpid(), host=transport.host, port=transport.port, time=time.time())
            )

    def _flush(self) -> None:
        self.roster.flush()
        self._deployments.flush()
        self._benches.flush()
        self._learning.flush(self._clock())


def _refuse_second(registry: Registry) -> None:
    try:
        other = registry.server_alive()
    except ServerUnavailable:
        return
    if other.pid != os.getpid() and _is_running(other.pid):
        raise ServerUnavailable(
            f"pid {other.pid} already serves the registry at {registry.root} "
            f"(broker {other.host}:{other.port}); end it first"
        )


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
