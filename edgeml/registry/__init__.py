"""The registry: releases and the fleet's state in a SQLite index, bytes in a content-addressed folder.

The index is also the queue: `edgeml deploy` and `edgeml federate` insert a request, the server works on
it and writes how it goes; any number of processes may look. No request is lost when a process dies.
"""

from edgeml.registry.benches import Benches
from edgeml.registry.fleet import Fleet
from edgeml.registry.journals import Journals, Page, Upload
from edgeml.registry.records import (
    BenchPatience,
    BenchRecord,
    BenchWork,
    DeviceMeasurement,
    DeviceRecord,
    FederationOptions,
    FederationRecord,
    Heartbeat,
    Release,
    RolloutOptions,
    RolloutRecord,
    RoundRecord,
)
from edgeml.registry.registry import Registry

__all__ = [
    "BenchPatience",
    "BenchRecord",
    "BenchWork",
    "Benches",
    "DeviceMeasurement",
    "DeviceRecord",
    "FederationOptions",
    "FederationRecord",
    "Fleet",
    "Heartbeat",
    "Journals",
    "Page",
    "Registry",
    "Release",
    "RolloutOptions",
    "RolloutRecord",
    "RoundRecord",
    "Upload",
]
