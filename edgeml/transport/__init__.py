"""MQTT on the server's side, with nothing decided here: a client with an inbox, and a broker for the lab.

The wire needs MQTT 3.1.1 with QoS 0 and 1 and payloads of at most 64 KB, so any production broker will do.
"""

from edgeml.transport.broker import Broker, start_broker
from edgeml.transport.mqtt import SUBSCRIBED, WAKE, Incoming, ServerTransport

__all__ = ["SUBSCRIBED", "WAKE", "Broker", "Incoming", "ServerTransport", "start_broker"]
