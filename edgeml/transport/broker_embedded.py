"""amqtt in a process of its own: the broker where mosquitto is not installed. Loopback and lab only.

    python -m edgeml.transport.broker_embedded HOST PORT

amqtt 0.12.1 sends every connecting client the retained messages that match *anybody's* filters,
with no access check, and leaves the first of two connections with one client id open and deaf.
`GuardedBroker` mends both.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from typing import Any

from amqtt.broker import Broker

PLUGINS = {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}}


class GuardedBroker(Broker):  # type: ignore[misc, unused-ignore]  # the only door amqtt has is its own method
    """amqtt that keeps retained messages to their subscribers, and one connection to a client id."""

    async def _delete_session(self, client_id: str) -> None:
        session, handler = self._sessions.get(client_id, (None, None))
        await super()._delete_session(client_id)
        if session is not None and session.transitions.is_connected():
            await handler.handle_connection_closed()  # as MQTT wants it [MQTT-3.1.4-2]; its will goes out

    async def _publish_retained_messages_for_subscription(self, subscription: tuple[str, int], session: Any) -> None:
        holders = self._subscriptions.get(subscription[0], [])
        if any(holder.client_id == session.client_id for holder, _ in holders):
            await super()._publish_retained_messages_for_subscription(subscription, session)


async def serve(host: str, port: int) -> None:
    """Run the broker until SIGTERM or SIGINT."""
    listeners = {"default": {"type": "tcp", "bind": f"{host}:{port}", "max_connections": 0}}
    broker = GuardedBroker({"listeners": listeners, "plugins": PLUGINS})
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await broker.start()
    await stop.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR)
    logging.getLogger("amqtt").setLevel(logging.CRITICAL)  # it logs every dropped connection as an error
    asyncio.run(serve(sys.argv[1], int(sys.argv[2])))
